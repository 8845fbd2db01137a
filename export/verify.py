"""Verification: the exported file in ONNX Runtime against the PyTorch module, on real text of many lengths.

Knows nothing about checkpoints; it is given the file, the module and the tokenizer.
"""

from __future__ import annotations

import os
from itertools import accumulate, chain, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from segue.batching import PackedBatch
from segue.errors import BundleError
from segue.executors.overflow import EXACT_INT8, overflows
from segue.export.bert import Bert
from segue.export.sentences import SENTENCES

__all__ = [
    "INT8_LOGIT_LIMIT",
    "INT8_PROBABILITY_LIMIT",
    "LOGIT_LIMIT",
    "PROBABILITY_LIMIT",
    "differences",
    "measure",
    "padded",
    "pair_lengths",
    "sample",
]

PROBABILITY_LIMIT = 1e-5
LOGIT_LIMIT = 1e-4  # of the pair's largest logit, or of 1 where that is smaller
# For 8-bit weights. A value that float32's last bit tips to another step changes as much as rounding changes
# it, so two ways of computing the same differ as much as either does from the unrounded result.
INT8_PROBABILITY_LIMIT = 0.1
INT8_LOGIT_LIMIT = 0.25

Arrays = tuple[NDArray[np.float32], NDArray[np.float32]]  # logits, probabilities: [B, C]


def measure(
    path: Path,
    model: Bert,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    layout: str,
    precision: str,
    quantized: Bert | None = None,
) -> dict[str, Any]:
    """Return the measured distance of the ONNX file at `path` from `model`, as segue.json stores it.

    With precision "float16" the file is compared with `model` after its weights are rounded in place; with
    "int8", with `quantized`. The distance from the unrounded model is given as rounding_…. A regression has
    no probability: both figures are relative, of its logit.

    Raises:
        BundleError: the distance is beyond the limits; the message has the figures.
    """
    regression = model.activation == "identity"
    batches = sample(tokenizer, max_tokens)
    found = _run_onnx(path, batches, layout, exact_int8=quantized is not None and overflows())
    expected = _run_pytorch(model, batches)
    parity: dict[str, Any] = {
        "against": f"PyTorch {torch.__version__}, the eager ops of segue",
        "pairs": len(found[0]),
        "shortest": min(pair_lengths(max_tokens)),
        "longest": max_tokens,
    }
    if precision == "float32":
        return parity | _checked("", differences(found, expected, regression=regression), regression)
    rounding = differences(found, expected, regression=regression)
    if quantized is None:
        for parameter in model.parameters():
            parameter.data = parameter.data.half().float()
        exact = differences(found, _run_pytorch(model, batches), regression=regression)
        parity |= _checked("", exact, regression)
        return parity | dict(zip(_names("rounding_"), rounding, strict=True))
    exact = differences(found, _run_pytorch(quantized, batches), regression=regression)
    limits = INT8_LOGIT_LIMIT if regression else INT8_PROBABILITY_LIMIT, INT8_LOGIT_LIMIT
    for prefix, distance in (("", exact), ("rounding_", rounding)):
        parity |= _checked(prefix, distance, regression, *limits)
    mean = float(_distances(found, expected, regression=regression)[0].mean())
    return parity | {"rounding_mean_probability_difference": mean}


def pair_lengths(longest: int) -> list[int]:
    """Return lengths in tokens from 3, the least a pair can have, to `longest`, denser where short."""
    steps = {3 + round((longest - 3) * (step / 14) ** 2) for step in range(15)}
    return sorted(steps | set(range(3, min(longest, 8) + 1)))


def sample(tokenizer: Tokenizer, longest: int) -> list[PackedBatch]:
    """Return real text, a pair of every length, in three batches: short, long (and one short), longest; two
    if there is only one length."""
    cls, sep, _ = tokenizer.encode("", "").ids
    texts = [tokenizer.encode(sentence, add_special_tokens=False).ids for sentence in SENTENCES]
    if not all(texts):
        raise BundleError("the tokenizer finds no token in an English sentence")
    pairs = []
    for number, length in enumerate(pair_lengths(longest)):
        first = (length - 3) * (1 + number % 3) // 4  # a quarter of the text, a half, three quarters
        a = _running_text(texts, number, first)
        b = _running_text(texts, number + 1, length - 3 - first)
        pairs.append(([cls, *a, sep], [*b, sep]))
    middle = len(pairs) // 2
    batches = pairs[:middle], [pairs[0], *pairs[middle:]], pairs[-1:]
    return [_pack(batch) for batch in batches if batch]


def padded(batch: PackedBatch) -> dict[str, NDArray[np.int64]]:
    """Return the same pairs as input_ids, attention_mask and token_type_ids [B, S]."""
    lengths = np.diff(batch.cu_seqlens)
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids, types = np.zeros((2, *mask.shape), np.int64)
    ids[mask], types[mask] = batch.input_ids, batch.token_type_ids
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": types}


def differences(found: Arrays, expected: Arrays, *, regression: bool = False) -> tuple[float, float]:
    """Return the largest difference of a probability, and of a logit relative to the pair's largest or 1."""
    probability, logit = _distances(found, expected, regression=regression)
    return float(probability.max()), float(logit.max())


def _distances(found: Arrays, expected: Arrays, *, regression: bool) -> Arrays:
    """Return the differences of probabilities, and of logits relative to the pair's largest or 1; the latter
    twice for a regression, which has no probabilities."""
    scale = np.maximum(np.abs(expected[0]).max(axis=1, keepdims=True), 1)
    logits = np.abs(found[0] - expected[0]) / scale
    return logits if regression else np.abs(found[1] - expected[1]), logits


def _names(prefix: str) -> tuple[str, str]:
    return f"{prefix}max_probability_difference", f"{prefix}max_relative_logit_difference"


def _checked(
    prefix: str,
    found: tuple[float, float],
    regression: bool,
    probability_limit: float = PROBABILITY_LIMIT,
    logit_limit: float = LOGIT_LIMIT,
) -> dict[str, float]:
    """Return two differences under their names, unless one is beyond its limit."""
    if not (found[0] <= probability_limit and found[1] <= logit_limit):  # NaN is beyond the limits too
        what = (
            "rounding to int8 takes the scores too far from" if prefix else "the exported graph differs from"
        )
        scores = "scores (relative)" if regression else "probabilities"
        raise BundleError(
            f"{what} PyTorch: {scores} by {found[0]:.2e} (limit {probability_limit:g}), "
            f"logits by {found[1]:.2e} (limit {logit_limit:g}, relative)"
        )
    return dict(zip(_names(prefix), found, strict=True))


def _run_pytorch(model: Bert, batches: list[PackedBatch]) -> Arrays:
    with torch.no_grad():
        results = [model(*map(torch.from_numpy, vars(batch).values())) for batch in batches]
    logits, probabilities = (torch.cat(parts).numpy() for parts in zip(*results, strict=True))
    return logits, probabilities


def _run_onnx(path: Path, batches: list[PackedBatch], layout: str, *, exact_int8: bool) -> Arrays:
    options = onnxruntime.SessionOptions()
    if exact_int8:
        options.add_session_config_entry(*EXACT_INT8)
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        os.fsencode(path).decode(), options, providers=["CPUExecutionProvider"]
    )
    feeds = [padded(batch) if layout == "padded" else vars(batch) for batch in batches]
    results = [session.run(["logits", "probabilities"], feed) for feed in feeds]
    logits, probabilities = (np.concatenate(parts) for parts in zip(*results, strict=True))
    return logits, probabilities


def _running_text(texts: list[list[int]], start: int, count: int) -> list[int]:
    """Return exactly `count` tokens of text that begins with sentence `start`."""
    sentences = islice(cycle(texts), start, None)
    return list(islice(chain.from_iterable(sentences), count))


def _pack(pairs: list[tuple[list[int], list[int]]]) -> PackedBatch:
    lengths = [len(a) + len(b) for a, b in pairs]
    arrays = (
        [token for a, b in pairs for token in (*a, *b)],
        [segment for a, b in pairs for segment in [0] * len(a) + [1] * len(b)],
        [position for length in lengths for position in range(length)],
        [0, *accumulate(lengths)],
    )
    return PackedBatch(*(np.array(array, np.int64) for array in arrays))
