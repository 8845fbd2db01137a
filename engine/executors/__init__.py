"""What runs the graph: the third step. One is chosen at load, by name or by what the machine has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segue.batching import PackedBatch, pack
from segue.errors import ExecutorUnavailable, InputError, SegueError
from segue.text import Encoded, Ints

__all__ = ["EXECUTORS", "Executor", "execute", "open_executor"]

EXECUTORS = ("auto", "onnxruntime", "triton")


class Executor(Protocol):
    """Runs one model on one device. Safe to share between threads."""

    name: str
    device: str
    precision: str  # of the arithmetic
    threads: int
    description: list[str]  # what `engine.info` prints as the plan

    def run(self, batch: PackedBatch) -> NDArray[np.float32]:
        """Return the logits `[B, C]`."""

    def close(self) -> None:
        """Give back what the model occupies."""


def open_executor(
    model: Path, *, executor: str, device: str, precision: str | None, threads: int
) -> Executor:
    """Load `model` into the executor that was asked for; "auto" takes a GPU where one works, else the CPU.

    Raises:
        InputError: a name is unknown.
        ExecutorUnavailable: what was asked for by name cannot be had here.
    """
    if executor not in EXECUTORS:
        raise InputError(f"executor: expected one of {', '.join(EXECUTORS)}, got {executor!r}")
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise InputError(f"device: expected auto, cpu, cuda or cuda:N, got {device!r}")
    if precision not in (None, "float32", "float16", "bfloat16"):
        raise InputError(f"precision: expected float32, float16, bfloat16 or None, got {precision!r}")
    if executor == "triton":
        raise ExecutorUnavailable("executor='triton': this version of segue runs ONNX Runtime only")
    try:
        from segue.executors.onnxruntime import OnnxRuntimeExecutor
    except ImportError as error:
        raise ExecutorUnavailable(
            "executor='onnxruntime' needs the package onnxruntime: "
            "pip install 'segue[cpu]', or 'segue[gpu]' for CUDA"
        ) from error
    return OnnxRuntimeExecutor.open(model, device=device, precision=precision, threads=threads)


def execute(
    executor: Executor, encoded: Encoded, batches: Sequence[Ints], *, labels: int, progress: bool = False
) -> NDArray[np.float32]:
    """Run every batch and return the logits of the distinct pairs, `[P, C]`.

    Raises:
        SegueError: the model gave a value that is not finite; the message names the pair.
    """
    logits = np.empty((len(encoded.pairs), labels), dtype=np.float32)
    for rows in _shown(batches, len(logits)) if progress else batches:
        logits[rows] = executor.run(pack(encoded, rows))
    if not np.isfinite(logits).all():
        row = int(np.argmin(np.isfinite(logits).all(axis=1)))
        index = int(np.argmax(encoded.inverse == row))
        raise SegueError(f"pairs[{index}]: the model's logits are not finite: {logits[row].tolist()}")
    return logits


def _shown(batches: Sequence[Ints], pairs: int) -> Iterator[Ints]:
    """Yield the batches while a bar on stderr counts their pairs."""
    from tqdm import tqdm  # 20 ms that most calls need not pay

    with tqdm(total=pairs, unit="pair", leave=False) as bar:
        for rows in batches:
            yield rows
            bar.update(len(rows))
