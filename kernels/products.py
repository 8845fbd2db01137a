"""The two kernels of linear and LinearGelu, and the epilogue that they share. Which of them runs, and in what
tiles, is chosen in `_linear`."""

from __future__ import annotations

__all__ = ["linear_kernel", "tensor_linear_kernel"]

import triton
import triton.language as tl

from segue.kernels.arithmetic import exp2, multiply
from segue.kernels.dependent import begin, prefetch_rows


@triton.jit
def _gelu(x, WIDE: tl.constexpr, PTX: tl.constexpr):
    """x Φ(x). For a result of 16 bits it is max(x, 0) - a Φ(-a), where a is |x| and a polynomial stands for
    the logarithm of Φ(-a) to base 2, fitted on [0, 5.6] so that a result is within 9e-5 of the exact one in
    relative terms, down to 6e-5, and 6e-9 below; a step of float16 is ten times that. Its instructions, two
    thirds of them multiply-adds, are a quarter as many as erf takes; erf also loses what a negative x leaves
    of 1 + erf."""
    if WIDE:
        return 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    a = tl.abs(x)
    p = ((-3.2050618e-4 * a + 5.8272598e-3) * a - 4.8237267e-2) * a - 4.6412063e-1
    p = (p * a - 1.1491762) * a - 1.0001207
    return tl.maximum(x, 0.0) - a * exp2(p, PTX)


@triton.jit
def _place(tile, rows, N: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """First row and column of a tile; a group of GROUP rows of tiles is walked column by column. The row is
    beyond `rows` where there is no such tile."""
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(N, COLUMNS)
    group = tile // (GROUP * across)
    height = tl.maximum(min(down - group * GROUP, GROUP), 1)
    within = tile - group * GROUP * across
    return (group * GROUP + within % height) * ROWS, within // height * COLUMNS


@triton.jit
def _finish(
    product, bias_ptr, residual_ptr, out_ptr, residual_stride, out_stride, first_row, first_column, rows,
    N: tl.constexpr, GELU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Bias, GELU, residual: what is done to a tile of the product before it is stored."""
    row, column = first_row + tl.arange(0, ROWS), first_column + tl.arange(0, COLUMNS)
    result = product + tl.load(bias_ptr + tl.minimum(column, N - 1)).to(tl.float32)[None, :]
    if GELU:
        result = _gelu(result, out_ptr.dtype.element_ty.primitive_bitwidth == 32, PTX)
    mask = (row[:, None] < rows) & (column[None, :] < N)
    row = row.to(tl.int64)[:, None]
    if residual_ptr is not None:
        residual_ptrs = residual_ptr + row * residual_stride + column[None, :]
        result += tl.load(residual_ptrs, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * out_stride + column[None, :], result.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def linear_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr, live_ptr,
    x_stride, weight_stride, residual_stride, out_stride,
    rows,
    N: tl.constexpr, K: tl.constexpr, GELU: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    UNIT: tl.constexpr, PREFETCH: tl.constexpr, EARLY: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """PREFETCH: ask for this program's rows of W while the launch before still runs; worth it where programs
    are few, and wait for W more than they compute."""
    if EARLY and PREFETCH:
        ahead = tl.program_id(0) // tl.cdiv(rows, ROWS) * COLUMNS + tl.arange(0, COLUMNS)
        ahead = tl.minimum(ahead, N - 1).to(tl.int64)[:, None] * (weight_stride * UNIT)
        prefetch_rows(weight_ptr + ahead, COLUMNS, K * weight_ptr.dtype.element_ty.primitive_bitwidth // 8)
    begin(EARLY)
    if live_ptr is not None:
        rows = tl.minimum(rows, tl.load(live_ptr).to(tl.int32))
    first_row, first_column = _place(tl.program_id(0), rows, N, ROWS, COLUMNS, GROUP)
    if first_row >= rows or first_column >= N:
        return  # what this program would have made is not live
    k = tl.arange(0, DEPTH)
    # Beyond the last row or column the last one is read again, and nothing is written.
    read_row = tl.minimum(first_row + tl.arange(0, ROWS), rows - 1).to(tl.int64)
    read_column = tl.minimum(first_column + tl.arange(0, COLUMNS), N - 1).to(tl.int64)
    x_ptrs = x_ptr + read_row[:, None] * (x_stride * UNIT) + k[None, :]
    weight_ptrs = weight_ptr + read_column[:, None] * (weight_stride * UNIT) + k[None, :]
    product = multiply(x_ptrs, weight_ptrs, ROWS, COLUMNS, K, DEPTH)
    _finish(
        product, bias_ptr, residual_ptr, out_ptr, residual_stride * UNIT, out_stride * UNIT,
        first_row, first_column, rows, N, GELU, ROWS, COLUMNS, PTX,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def tensor_linear_kernel(
    x_desc, weight_desc, bias_ptr, out_ptr, live_ptr,
    out_stride,
    rows,
    N: tl.constexpr, K: tl.constexpr, GELU: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr, UNIT: tl.constexpr, EARLY: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """The same product, its operands fetched by the tensor memory accelerator, which gives zeros beyond the
    last row and column. A program makes tile after tile; the next one's operands come while one is stored."""
    begin(EARLY)
    if live_ptr is not None:
        rows = tl.minimum(rows, tl.load(live_ptr).to(tl.int32))
    tiles = tl.cdiv(rows, ROWS) * tl.cdiv(N, COLUMNS)
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=True):
        first_row, first_column = _place(tile, rows, N, ROWS, COLUMNS, GROUP)
        product = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for start in range(0, K, DEPTH):
            x, weight = x_desc.load([first_row, start]), weight_desc.load([first_column, start])
            product = tl.dot(x, weight.T, product)
        _finish(
            product, bias_ptr, None, out_ptr, 0, out_stride * UNIT,
            first_row, first_column, rows, N, GELU, ROWS, COLUMNS, PTX,
        )  # fmt: skip
