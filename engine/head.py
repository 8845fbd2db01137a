"""Logits to scores: the last step. Which column is the score is data of the bundle, never a guess."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segue.bundle import Head
from segue.errors import InputError

__all__ = ["OUTPUTS", "check_output", "positive_column", "probabilities", "ranked", "scores"]

OUTPUTS = ("probability", "logit")


def check_output(output: str) -> None:
    """Raise InputError where `output` is not one of `OUTPUTS`."""
    if output not in OUTPUTS:
        raise InputError(f"output: expected one of {', '.join(OUTPUTS)}, got {output!r}")


def positive_column(head: Head) -> int:
    """Return the column that `score` reports.

    Raises:
        InputError: the head has several labels and none was declared positive at export.
    """
    if head.positive is None:
        raise InputError(
            f"this model has the labels {', '.join(head.labels)} and none is declared positive: "
            "use `predict`, `segue score --all-labels`, or export again with `segue export --positive LABEL`"
        )
    return head.positive


def probabilities(logits: NDArray[np.floating], head: Head) -> NDArray[np.floating]:
    """Return `[..., C]` probabilities of `[..., C]` logits, in the logits' own precision.

    Softmax, sigmoid or, for a regression head, the logit itself; neither overflows.
    """
    if head.activation == "softmax":
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
    if head.activation == "sigmoid":
        small = np.exp(-np.abs(logits))
        return np.asarray(np.where(logits >= 0, 1, small) / (1 + small), dtype=logits.dtype)
    return logits


def scores(logits: NDArray[np.floating], head: Head, output: str = "probability") -> NDArray[np.floating]:
    """Return `[..., C]` logits as what was asked for: probabilities, or the logits as they are."""
    return probabilities(logits, head) if output == "probability" else logits


def ranked(
    logits: NDArray[np.floating], head: Head, output: str = "probability", top_k: int | None = None
) -> list[tuple[int, float]]:
    """Return (row, score) of logits `[N, C]`, best first; equal scores keep their order.

    Computed in float64, so that those near 1 do not become ties.
    """
    values = scores(logits.astype(np.float64), head, output)[:, positive_column(head)]
    best = np.argsort(-values, kind="stable")[:top_k]
    return [(int(row), float(values[row])) for row in best]
