"""Verification: the exported file in ONNX Runtime against the PyTorch module, on real text of many lengths.

Knows nothing about checkpoints; it is given the file, the module and the tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from segue.errors import BundleError
from segue.export.bert import Bert
from segue.export.sentences import SENTENCES

__all__ = [
    "LOGIT_LIMIT",
    "PROBABILITY_LIMIT",
    "Batch",
    "differences",
    "pair_lengths",
    "run_onnx",
    "run_pytorch",
    "sample",
]

PROBABILITY_LIMIT = 1e-5
LOGIT_LIMIT = 1e-4  # of the pair's largest logit, or of 1 where that is smaller

Arrays = tuple[NDArray[np.float32], NDArray[np.float32]]  # logits, probabilities: [B, C]


@dataclass(frozen=True)
class Batch:
    """A packed batch, int64: ids, segments and positions [T], cu_seqlens [B + 1]."""

    input_ids: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    cu_seqlens: NDArray[np.int64]

    def padded(self) -> dict[str, NDArray[np.int64]]:
        """Return the same pairs as input_ids, attention_mask and token_type_ids [B, S]."""
        lengths = np.diff(self.cu_seqlens)
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids, types = np.zeros((2, *mask.shape), np.int64)
        ids[mask], types[mask] = self.input_ids, self.token_type_ids
        return {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": types}


def pair_lengths(longest: int) -> list[int]:
    """Return lengths in tokens from 3, the shortest a pair can have, to `longest`, closer together where short."""
    steps = {3 + round((longest - 3) * (step / 14) ** 2) for step in range(15)}
    return sorted(steps | set(range(3, min(longest, 8) + 1)))


def sample(tokenizer: Tokenizer, longest: int) -> list[Batch]:
    """Return real text as batches: one of every length, and one of nothing but the longest pair."""
    cls, sep, _ = tokenizer.encode("", "").ids
    pairs = []
    for number, length in enumerate(pair_lengths(longest)):
        first = (length - 3) * (1 + number % 3) // 4  # a quarter, a half, three quarters
        a = _tokens(tokenizer, number, first)
        b = _tokens(tokenizer, number + 1, length - 3 - first)
        pairs.append(([cls, *a, sep], [*b, sep]))
    return [_pack(pairs), _pack(pairs[-1:])]


def run_pytorch(model: Bert, batches: list[Batch]) -> Arrays:
    """Return what the module gives for every pair of every batch."""
    with torch.no_grad():
        results = [model(*(torch.from_numpy(array) for array in vars(batch).values())) for batch in batches]
    return tuple(torch.cat(parts).numpy() for parts in zip(*results, strict=True))


def run_onnx(path: Path, batches: list[Batch], *, layout: str) -> Arrays:
    """Return what ONNX Runtime gives, on the CPU, for every pair of every batch."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = [batch.padded() if layout == "padded" else vars(batch) for batch in batches]
    results = [session.run(["logits", "probabilities"], feed) for feed in feeds]
    return tuple(np.concatenate(parts) for parts in zip(*results, strict=True))


def differences(found: Arrays, expected: Arrays) -> tuple[float, float]:
    """Return the largest difference of a probability, and of a logit relative to the pair's largest, or to 1."""
    scale = np.maximum(np.abs(expected[0]).max(axis=1, keepdims=True), 1)
    return (
        float(np.abs(found[1] - expected[1]).max()),
        float((np.abs(found[0] - expected[0]) / scale).max()),
    )


def check(probability: float, logit: float) -> None:
    """Refuse what differs from PyTorch by more than the limits; NaN is more.

    Raises:
        BundleError: it does; the message has the figures.
    """
    if not (probability <= PROBABILITY_LIMIT and logit <= LOGIT_LIMIT):
        raise BundleError(
            f"the exported graph differs from PyTorch: probabilities by {probability:.2e} "
            f"(limit {PROBABILITY_LIMIT:.0e}), logits by {logit:.2e} (limit {LOGIT_LIMIT:.0e}, relative)"
        )


def _tokens(tokenizer: Tokenizer, start: int, count: int) -> list[int]:
    """Return exactly `count` tokens of running text that begins with another sentence for another `start`."""
    ids: list[int] = []
    while len(ids) < count:
        ids += tokenizer.encode(SENTENCES[start % len(SENTENCES)], add_special_tokens=False).ids
        start += 1
    return ids[:count]


def _pack(pairs: list[tuple[list[int], list[int]]]) -> Batch:
    lengths = [len(a) + len(b) for a, b in pairs]
    arrays = (
        [token for a, b in pairs for token in (*a, *b)],
        [segment for a, b in pairs for segment in [0] * len(a) + [1] * len(b)],
        [position for length in lengths for position in range(length)],
        [0, *accumulate(lengths)],
    )
    return Batch(*(np.array(array, np.int64) for array in arrays))
