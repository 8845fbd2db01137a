"""How good binary probabilities are: accuracy, the area under the ROC curve, calibration. NumPy alone."""

from __future__ import annotations

__all__ = ["accuracy", "auc", "best_threshold", "calibration_bins", "calibration_error"]

import numpy as np
from numpy.typing import ArrayLike, NDArray


def accuracy(scores: ArrayLike, truth: ArrayLike, threshold: float = 0.5) -> float:
    """The share of `scores` [N] on the right side of the threshold; truth [N] is True where positive."""
    return float(np.mean((np.asarray(scores) > threshold) == np.asarray(truth, dtype=bool)))


def auc(scores: ArrayLike, truth: ArrayLike) -> float:
    """The probability that a positive scores above a negative, ties counting half (Mann and Whitney's U);
    NaN where one of the two is missing."""
    scores, truth = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=bool)
    positives = int(truth.sum())
    if positives in (0, len(truth)):
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # 1-based, the mean rank among equals
    surplus = ranks[truth].sum() - positives * (positives + 1) / 2
    return float(surplus / (positives * (len(truth) - positives)))


def best_threshold(scores: ArrayLike, truth: ArrayLike) -> float:
    """The threshold of the highest accuracy, midway between two neighbouring scores."""
    scores, truth = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=bool)
    order = np.argsort(scores)
    scores, truth = scores[order], truth[order]
    # Right answers if the first i are called negative, for i = 0 ... N; only between unequal scores.
    right = np.concatenate([[0], np.cumsum(~truth)]) + np.concatenate([np.cumsum(truth[::-1])[::-1], [0]])
    edges = np.concatenate([[scores[0] - 1], (scores[:-1] + scores[1:]) / 2, [scores[-1] + 1]])
    cut = np.concatenate([[True], scores[1:] > scores[:-1], [True]])
    return float(edges[np.argmax(np.where(cut, right, -1))])


def calibration_error(probabilities: ArrayLike, truth: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error: |mean probability - share of positives| over bins of equal width, each
    weighted by the pairs in it (Guo and others 2017, for the positive class)."""
    counts, probability, share = calibration_bins(probabilities, truth, bins)
    filled = counts > 0
    gaps = np.abs(probability - share)[filled] * counts[filled]
    return float(gaps.sum() / counts.sum())


def calibration_bins(
    probabilities: ArrayLike, truth: ArrayLike, bins: int = 15
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """(count, mean probability, share of positives) of each bin, each [bins], for `bins` equal parts of 0 to
    1; the last includes 1. The two means of an empty bin are NaN."""
    probabilities, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    totals = np.where(counts > 0, counts, np.nan)  # a mean of nothing is NaN, without a warning
    sums = (np.bincount(place, values, minlength=bins) for values in (probabilities, truth))
    probability, share = (values / totals for values in sums)
    return counts, probability, share
