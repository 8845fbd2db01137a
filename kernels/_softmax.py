"""Softmax over the last axis: a narrow row in one block, a wide one in several.

Memory-bound. With s bytes per element; a wide row, read again to be written, is then in the cache:

    bytes = s * 2 * R * C
    operations = 5 * R * C

The order in which a row is summed depends only on C.
"""

from __future__ import annotations

__all__ = ["cost", "softmax"]

import triton
import triton.language as tl
from torch import Tensor

from segue.kernels.dependent import begin
from segue.kernels.door import check, check_columns, check_out
from segue.kernels.launching import Cost, launch, unit

_LOG2E = tl.constexpr(1.4426950408889634)
_TABLE = (
    # up to so many columns, which one block holds: rows a program, columns of the block, warps
    (16, 64, 16, 4),
    (128, 16, 128, 4),
    (256, 8, 256, 4),
    (512, 4, 512, 4),
    (1024, 4, 1024, 4),
    (4096, 1, 4096, 8),
    # wider rows, block after block
    (None, 1, 4096, 8),
)


@triton.jit(do_not_specialize=["rows"])
def _narrow_softmax_kernel(
    x_ptr, out_ptr, x_stride, out_stride, rows,
    C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    begin(EARLY)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < C)
    row = row.to(tl.int64)
    x = tl.load(x_ptr + row * (x_stride * UNIT) + column, mask=mask, other=0.0).to(tl.float32)
    x = tl.where(column < C, x, float("-inf"))
    power = tl.exp2((x - tl.max(x, axis=1)[:, None]) * _LOG2E)
    result = power / tl.sum(power, axis=1)[:, None]
    tl.store(out_ptr + row * (out_stride * UNIT) + column, result.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _wide_softmax_kernel(
    x_ptr, out_ptr, x_stride, out_stride, C,
    BLOCK: tl.constexpr, UNIT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    begin(EARLY)
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * (x_stride * UNIT)
    out_ptr += row * (out_stride * UNIT)
    column = tl.arange(0, BLOCK)
    # Each lane carries the maximum and the sum of its own columns; they meet once, at the end.
    most = tl.full((BLOCK,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, C, BLOCK):
        mask = start + column < C
        x = tl.load(x_ptr + start + column, mask=mask, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(most, x)
        shift = tl.where(larger == float("-inf"), 0.0, larger)  # a lane that has seen nothing but -inf
        total = total * tl.exp2((most - shift) * _LOG2E) + tl.exp2((x - shift) * _LOG2E)
        most = larger
    top = tl.max(most, axis=0)
    total = tl.sum(total * tl.exp2((most - top) * _LOG2E), axis=0)
    for start in range(0, C, BLOCK):
        mask = start + column < C
        x = tl.load(x_ptr + start + column, mask=mask, other=0.0).to(tl.float32)
        result = tl.exp2((x - top) * _LOG2E) / total
        tl.store(out_ptr + start + column, result.to(out_ptr.dtype.element_ty), mask=mask)


def softmax(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """As `reference.softmax`.

    Raises:
        ValueError: a tensor is of the wrong shape, dtype, device or stride, or x has no columns.
    """
    check("x", x, (None, None))
    rows, columns = x.shape
    check_columns("x", x)
    out = check_out(out, (rows, columns), like=x)
    most, block_rows, block, warps = _configure(columns)
    step = unit(x.stride(0), out.stride(0))
    strides = x.stride(0) // step, out.stride(0) // step
    options = {"BLOCK": block, "UNIT": step, "num_warps": warps, "device": x.device}
    if most is None:
        launch(_wide_softmax_kernel, (rows,), x, out, *strides, columns, **options)
    else:
        grid = (triton.cdiv(rows, block_rows),)
        launch(_narrow_softmax_kernel, grid, x, out, *strides, rows, C=columns, ROWS=block_rows, **options)
    return out


def cost(*, R: int, C: int, s: int) -> Cost:
    """Return the cost of R rows of C elements of s bytes; a wide row read again is found in the cache."""
    return Cost(bytes=s * 2 * R * C, operations=5 * R * C)


def _configure(columns: int) -> tuple[int | None, int, int, int]:
    return next(line for line in _TABLE if line[0] is None or columns <= line[0])
