"""What tests need of Triton's interpreter besides results: sums in a fixed order, and a meter of the memory
that a kernel touches. On a GPU sums are in a fixed order anyway, and there is no meter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY, patch

import numpy as np
import torch
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, TensorHandle

from segue.kernels.interpreter import widen
from segue.kernels.launching import INTERPRETED


@contextmanager
def fixed_order() -> Iterator[None]:
    """Let `tl.dot` and `tl.sum` add up every element of a result in the same order, wherever it lies in its
    tile and whatever the tile's shape and strides, as a GPU does.

    The interpreter hands a product to NumPy, which hands it to BLAS: a row then has other bits at another
    place, or among other rows, and a test of bit equality would see BLAS and not the kernel. (einsum is no
    way out: it changes its loops for transposed operands and single columns.) Here K products are rounded
    and added one after the other, and the accumulator comes last, so that a kernel that cuts K otherwise
    still shows. bfloat16 and three dimensions too. A sum goes along the last axis of a contiguous copy.
    """

    if not INTERPRETED:
        yield
        return

    def dot(_: Any, a: TensorHandle, b: TensorHandle, d: TensorHandle, *rest: Any) -> TensorHandle:
        left, right = (widen(x).data.astype(d.data.dtype) for x in (a, b))
        total = np.zeros((*left.shape[:-1], right.shape[-1]), d.data.dtype)
        for k in range(left.shape[-1]):
            total += left[..., :, k, None] * right[..., None, k, :]
        return TensorHandle(total + d.data, d.dtype.scalar)

    def add_up(self: ReduceOps, x: Any) -> Any:
        data = x.handle.data.reshape(-1) if self.axis is None else np.moveaxis(x.handle.data, self.axis, -1)
        total = np.ascontiguousarray(data).sum(axis=-1)
        if self.keep_dims:
            axes = self.axis if self.axis is not None else tuple(range(x.handle.data.ndim))
            total = np.expand_dims(total, axes)
        return self.to_tensor(total, x.dtype)

    with patch.object(InterpreterBuilder, "create_dot", dot), patch.object(ReduceOps, "sum", add_up):
        yield


class Traffic:
    """Bytes that kernels touched since the meter was switched on; lanes that are masked off touch none.

    Attributes:
        read, written: how many different bytes. A `Cost` counts these.
        read_again: how many bytes a program read that it had read before, summed over programs.
        total: read and written.
    """

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self._allowed = _ranges(tensors) if tensors else None
        self._program: object = None
        self._loads: list[np.ndarray] = []  # the current program's
        self._read: list[np.ndarray] = []
        self._written: list[np.ndarray] = []
        self.read = self.written = self.read_again = 0

    @property
    def total(self) -> int:
        return self.read + self.written

    def touch(
        self, verbs: tuple[str, ...], program: object, pointers: TensorHandle, mask: TensorHandle | None
    ) -> None:
        """Note one access of one program, "read", "written" or both."""
        if program is not self._program:
            self._end_program()
            self._program = program
        touched = self._bytes(verbs[0], pointers, mask)
        if "read" in verbs:
            self._loads.append(touched)
        if "written" in verbs:
            self._written.append(touched)

    def finish(self) -> None:
        self._end_program()
        self.read, self.written = (len(_distinct(parts)) for parts in (self._read, self._written))

    def _end_program(self) -> None:
        distinct = _distinct(self._loads)
        self.read_again += sum(map(len, self._loads)) - len(distinct)
        self._read.append(distinct)
        self._loads = []

    def _bytes(self, verb: str, pointers: TensorHandle, mask: TensorHandle | None) -> np.ndarray:
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        live = True if mask is None else mask.data.astype(bool)  # the interpreter makes some integers
        starts = np.unique(pointers.data[np.broadcast_to(live, pointers.data.shape)])
        touched = (starts[:, None] + np.arange(size, dtype=np.uint64)).reshape(-1)
        if self._allowed is not None:
            # the bounds of the ranges rise, so an address inside one has an odd number of them at or below it
            stray = touched[np.searchsorted(self._allowed, touched, side="right") % 2 == 0]
            if len(stray):
                raise AssertionError(f"{len(stray)} bytes {verb} outside of the tensors, from {stray[0]:#x}")
        return touched


@contextmanager
def traffic(*tensors: Tensor) -> Iterator[Traffic | SimpleNamespace]:
    """Meter what kernels read and write; the numbers are there when the block ends.

    With `tensors` given, touching any byte that is no element of one of them raises (an `InterpreterError`
    that says so) before memory is touched: it sees what is masked out later, which a poisoned guard cannot.
    On a GPU it counts nothing, and equals whatever it is compared with.
    """
    if not INTERPRETED:
        yield SimpleNamespace(read=ANY, written=ANY, read_again=ANY, total=ANY)
        return
    meter = Traffic(tensors)

    def metered(name: str, verbs: tuple[str, ...], mask_at: int | None) -> Any:
        original = getattr(InterpreterBuilder, name)

        def access(self: Any, *operands: Any, **options: Any) -> Any:
            pointers = next(x for x in operands if isinstance(x, TensorHandle))
            meter.touch(verbs, self.grid_idx, pointers, None if mask_at is None else operands[mask_at])
            return original(self, *operands, **options)

        return patch.object(InterpreterBuilder, name, access)

    with (
        metered("create_masked_load", ("read",), 1),
        metered("create_masked_store", ("written",), 2),
        metered("create_atomic_rmw", ("read", "written"), 3),
        metered("create_atomic_cas", ("read", "written"), None),
    ):
        yield meter
    meter.finish()


def _ranges(tensors: tuple[Tensor, ...]) -> np.ndarray:
    """First byte, and one past the last, of every run of elements, ascending; touching runs are one."""
    runs = []
    for x in tensors:
        width = x.shape[-1] if x.dim() and (x.shape[-1] < 2 or x.stride(-1) == 1) else 1
        rows = x[..., 0] if x.dim() and width == x.shape[-1] and x.numel() else x
        offsets = torch.zeros((), dtype=torch.int64)
        for size, stride in zip(rows.shape, rows.stride(), strict=True):
            offsets = offsets[..., None] + torch.arange(size) * stride
        starts = x.data_ptr() + np.unique(offsets.numpy()) * x.element_size()
        runs += [(int(start), int(start) + width * x.element_size()) for start in starts]
    merged: list[list[int]] = []
    for start, end in sorted(runs):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged, dtype=np.uint64).reshape(-1)


def _distinct(parts: list[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([np.empty(0, np.uint64), *parts]))
