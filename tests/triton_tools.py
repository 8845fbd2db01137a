"""What the tests of the Triton executor share: tiny models, packed batches, the plan run eagerly."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import eager_formulas
import numpy as np
import torch
from torch import Tensor

from segue.batching import PackedBatch
from segue.executors import Executor, open_executor
from segue.executors.triton_plan import PAIRS, Plan
from segue.kernels import reference

LONGEST, VOCABULARY = 40, 60  # tokens of the longest pair, and in the vocabulary, of the models below
_SMALL = {"vocab_size": VOCABULARY, "positions": LONGEST}
# E and F are no powers of two, nor multiples of a tile
NSP = {"hidden_size": 48, "heads": 3, "layers": 2, "intermediate_size": 88, **_SMALL}
ONE_LABEL = {
    **{"architecture": "BertForSequenceClassification", "num_labels": 1, "hidden_size": 32, "heads": 2},
    **{"layers": 1, "intermediate_size": 50, **_SMALL},
}
FIVE_LABELS = {
    **{"architecture": "BertForSequenceClassification", "num_labels": 5, "hidden_size": 64, "heads": 4},
    **{"layers": 2, "intermediate_size": 96, "precision": "float16", **_SMALL},
}


def packed(lengths: Iterable[int], seed: int = 0) -> PackedBatch:
    """A batch of pairs of so many tokens; a pair depends on its length and the seed alone."""
    parts = []
    for length in lengths:
        draw = np.random.default_rng([length, seed])
        ids = draw.integers(5, VOCABULARY, length)
        ids[0], ids[-1] = 2, 3
        types = (np.arange(length) > draw.integers(1, length - 1)).astype(np.int64)
        parts.append((ids, types, np.arange(length)))
    ids, types, positions = (np.concatenate(part) for part in zip(*parts, strict=True))
    bounds = np.cumsum([0, *(len(part[0]) for part in parts)])
    return PackedBatch(ids, types, positions, bounds)


def open_triton(
    bundle: Path, precision: str = "float32", batch_tokens: int = 64, *, batch_invariant: bool = True
) -> Any:
    """The interpreted executor of a bundle of the models above."""
    return _open(bundle, "triton", precision, batch_tokens, batch_invariant)


def judge(bundle: Path, batch: PackedBatch) -> np.ndarray:
    """What ONNX Runtime gives for the batch."""
    return next(iter(_open(bundle, "onnxruntime", "float32", None).run([batch])))


def run(executor: Executor, *batches: PackedBatch) -> np.ndarray:
    """The logits of the batches' pairs."""
    return np.concatenate([logits.copy() for logits in executor.run(batches)])


def run_eagerly(plan: Plan, batch: PackedBatch, dtype: torch.dtype, *, arithmetic: torch.dtype) -> Tensor:
    """The logits by the plan's formulas, every line in `arithmetic`, the weights rounded to `dtype` first."""
    values: dict[str, Tensor] = {name: torch.from_numpy(array) for name, array in vars(batch).items()}
    for name, array in plan.weights.items():
        values[name] = torch.from_numpy(array.copy()).to(dtype).to(arithmetic)
    for step in plan.steps:
        formulas = reference if step.op == "first_rows" else eager_formulas
        inputs = (values[name] for name in step.inputs)
        values[step.output] = getattr(formulas, step.op)(*inputs, **step.options)
    assert plan.steps[-1].rows == PAIRS
    return values[plan.steps[-1].output]


def _open(
    bundle: Path, executor: str, precision: str, batch_tokens: int | None, batch_invariant: bool = True
) -> Executor:
    return open_executor(
        bundle / "model.onnx",
        executor=executor,
        device="auto",
        precision=precision,
        threads=1,
        batch_tokens=batch_tokens,
        longest=LONGEST,
        batch_invariant=batch_invariant,
    )
