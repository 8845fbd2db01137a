"""What runs the graph: the third step. One is chosen at load, by name or by what the machine has."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import tee
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segue.batching import PackedBatch, pack
from segue.bundle import Dimensions
from segue.encoded import Encoded, Ints
from segue.errors import BundleError, ExecutorUnavailable, InputError, SegueError
from segue.executors.ending import each_whole, whole

__all__ = [
    "EXECUTORS",
    "ONNX_RUNTIME_ANEW",
    "Executor",
    "check_choice",
    "driver_loads",
    "execute",
    "open_executor",
]

EXECUTORS = ("auto", "onnxruntime", "triton")
# Both packages write to the same folder, so uninstalling one removes files of the other.
ONNX_RUNTIME_ANEW = (
    "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'segue[gpu]', or 'segue[cpu]' without a GPU"
)


class Executor(Protocol):
    """Runs one model on one device. Safe to share between threads."""

    name: str
    device: str
    precision: str  # of the arithmetic
    threads: int
    batch_tokens: int  # run at once, at most
    overlaps: bool  # whether it runs beside the host, which can encode the next pairs meanwhile
    grid: bool  # whether attention lays pairs out as a grid, where each takes the room of the longest
    description: list[str]  # what `engine.info` prints as the plan

    def tokens_at_once(self, total: int) -> int:
        """Return the best number of tokens for a batch, of `total` in all; at most `batch_tokens`."""

    def lanes(self, total: int) -> int:
        """Return how many batches run at a time on as many threads, of `total` tokens in all."""

    def run(self, batches: Iterable[PackedBatch]) -> Iterator[NDArray[np.float32]]:
        """Yield the logits `[B, C]` of each batch, in order; it may take the next batch first."""

    def warm_up(self) -> Iterator[tuple[int, int]]:
        """Do in advance what first batches would wait for; yields (done, of how many) on the way."""

    def close(self) -> None:
        """Free what the model occupies."""


@whole()
def open_executor(
    model: Path,
    *,
    executor: str,
    device: str,
    precision: str | None,
    threads: int,
    batch_tokens: int | None,
    longest: int,
    batch_invariant: bool = True,
    dimensions: Dimensions | None = None,
    stored: str = "float32",
) -> Executor:
    """Load `model` into the executor that was asked for; "auto" takes a GPU where one works, else the CPU.

    Args:
        model: the graph's file.
        batch_tokens: tokens run at once, or None for what suits the executor.
        longest: tokens of the longest pair.
        batch_invariant: under triton, give a pair the same bits in any batch.
        dimensions: of the model. An executor that checks no ids as it runs holds the graph's tables to them.
        stored: the precision of the weights in the file; int8 weights are computed with in int8, on a CPU.

    Raises:
        InputError: a name is unknown.
        BundleError: the executor does not run this graph.
        ExecutorUnavailable: what was asked for by name is missing here.
    """
    check_choice(executor, device, precision, stored)
    if stored == "int8":
        executor, device = "onnxruntime", "cpu"
    if executor == "triton" or (executor == "auto" and device != "cpu" and _triton_works(device)):
        try:
            from segue.executors.triton import TritonExecutor
        except ImportError as error:
            raise ExecutorUnavailable(
                f"executor='triton' needs the package {error.name or error}: pip install 'segue[gpu]'"
            ) from error
        try:
            return TritonExecutor.open(
                model,
                device=device,
                precision=precision,
                batch_tokens=batch_tokens,
                longest=longest,
                batch_invariant=batch_invariant,
                dimensions=dimensions,
            )
        except BundleError as error:  # a flat graph, or another that kernels do not run
            if executor != "auto":
                raise
            import logging

            logging.getLogger("segue").warning("%s: ONNX Runtime runs it instead", error)
    try:
        from segue.executors.onnxruntime import OnnxRuntimeExecutor
    except ImportError as error:
        if isinstance(error.__cause__, SystemExit | KeyboardInterrupt):  # a signal came meanwhile
            raise error.__cause__ from None
        if find_spec("onnxruntime") is not None:
            raise ExecutorUnavailable(
                f"executor='onnxruntime': {error}. Where onnxruntime and onnxruntime-gpu were both "
                f"installed, neither is whole: {ONNX_RUNTIME_ANEW}"
            ) from error
        raise ExecutorUnavailable(
            "executor='onnxruntime' needs the package onnxruntime: "
            "pip install 'segue[cpu]', or 'segue[gpu]' for CUDA"
        ) from error
    return OnnxRuntimeExecutor.open(
        model, device=device, precision=precision, threads=threads, batch_tokens=batch_tokens, stored=stored
    )


def check_choice(executor: str, device: str, precision: str | None, stored: str | None = None) -> None:
    """Refuse names that are unknown, or do not go together; `stored` as in `open_executor`, if that is known.

    Raises:
        InputError: a name is unknown.
        ExecutorUnavailable: int8 is asked for, or stored, with something that cannot compute it.
    """
    if executor not in EXECUTORS:
        raise InputError(f"executor: expected one of {', '.join(EXECUTORS)}, got {executor!r}")
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise InputError(f"device: expected auto, cpu, cuda or cuda:N, got {device!r}")
    if precision not in (None, "float32", "float16", "bfloat16", "int8"):
        raise InputError(f"precision: expected float32, float16, bfloat16, int8 or None, got {precision!r}")
    if "int8" not in (precision, stored):
        return
    for name, value, fits in (
        ("precision", precision, precision in (None, "int8")),
        ("executor", executor, executor != "triton"),
        ("device", device, not device.startswith("cuda")),
    ):
        if not fits:
            what = "the weights of this bundle are int8" if stored == "int8" else "int8 is asked for"
            raise ExecutorUnavailable(
                f"{name}={value!r}: {what}, which segue computes in int8 alone, on a CPU, by onnxruntime"
            )


def driver_loads() -> bool:
    """Tell whether there is an NVIDIA driver, without loading anything large."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _triton_works(device: str) -> bool:
    """Tell whether kernels would run on that GPU; imports PyTorch only where all else speaks for it."""
    if not driver_loads() or any(find_spec(name) is None for name in ("torch", "triton", "onnx")):
        return False
    from segue.executors.triton_device import works

    return works(device)


def execute(
    executor: Executor, encoded: Encoded, batches: Iterable[Ints], *, labels: int, progress: bool = False
) -> NDArray[np.float32]:
    """Run every batch and return the logits of the distinct pairs, `[P, C]`.

    Raises:
        InputError: a batch that is only now encoded has a bad pair; the message names it.
        BundleError: the graph has not as many logits as labels.
        SegueError: the model gave a value that is not finite; the message names the pair.
    """
    logits = np.empty((len(encoded.pairs), labels), dtype=np.float32)
    begun, ended = tee(batches)
    found = each_whole(executor.run(pack(encoded, rows) for rows in begun))
    for values, rows in zip(found, _shown(ended, len(logits)) if progress else ended, strict=True):
        if np.shape(values) != (len(rows), labels):
            raise BundleError(
                f"the graph gives logits {list(np.shape(values))} for {len(rows)} pairs, the head has "
                f"{labels} labels"
            )
        logits[rows] = values
    if not np.isfinite(logits).all():
        row = int(np.argmin(np.isfinite(logits).all(axis=1)))
        index = int(np.argmax(encoded.inverse == row))
        raise SegueError(f"the model's logits are not finite: {logits[row].tolist()}", index=index)
    return logits


def _shown(batches: Iterable[Ints], pairs: int) -> Iterator[Ints]:
    """Yield the batches while a bar on stderr counts their pairs."""
    from tqdm import tqdm  # 20 ms that most calls need not pay

    with tqdm(total=pairs, unit="pair", leave=False, disable=sys.stderr is None) as bar:
        for rows in batches:
            yield rows
            bar.update(len(rows))
