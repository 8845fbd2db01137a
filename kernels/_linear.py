"""linear and LinearGelu: x Wᵀ + b, and in the epilogue of the same product a residual or an exact GELU.

Bound by the matrix units for large R, by reading W for small. s being the bytes of an element, K the length
of a row of x, N that of a row of the result, residual 1 where there is one and gelu 1 for LinearGelu:

    bytes = s * (R * K + N * K + N + R * N * (1 + residual))
    operations = 2 * R * N * K + R * N * (1 + residual + 4 * gelu)

An output element is summed over blocks of K, first to last, by one program. The block and the kind of
matrix instruction are the same in every row of the table that a device and dtype have, so a row of the
result has the same bits in any batch.
"""

from __future__ import annotations

__all__ = ["cost", "linear", "linear_gelu"]

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from segue.kernels.door import check, check_live, check_out, check_vector
from segue.kernels.launching import Cost, launch, target, unit


class _Tile(NamedTuple):
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


_TABLE = (
    # target, bytes of an element, up to so many rows: rows, columns and depth of a tile, warps, stages
    ("sm_80", 2, 256, _Tile(32, 32, 64, 4, 4)),
    ("sm_80", 2, 2048, _Tile(64, 64, 64, 4, 4)),
    ("sm_80", 2, None, _Tile(128, 128, 64, 8, 3)),
    ("sm_80", 4, None, _Tile(64, 64, 32, 4, 3)),
    ("sm_90", 2, 256, _Tile(64, 32, 64, 4, 4)),
    ("sm_90", 2, 2048, _Tile(64, 128, 64, 4, 4)),
    ("sm_90", 2, None, _Tile(128, 128, 64, 8, 4)),
    ("sm_90", 4, None, _Tile(64, 64, 32, 4, 3)),
    ("sm_100", 2, 256, _Tile(64, 32, 64, 4, 4)),
    ("sm_100", 2, 2048, _Tile(128, 64, 64, 4, 4)),
    ("sm_100", 2, None, _Tile(128, 128, 64, 8, 4)),
    ("sm_100", 4, None, _Tile(64, 64, 32, 4, 3)),
    ("gfx942", 2, 2048, _Tile(64, 64, 64, 4, 2)),
    ("gfx942", 2, None, _Tile(128, 128, 64, 8, 2)),
    ("gfx942", 4, None, _Tile(64, 64, 32, 4, 2)),
)
_GROUP = 8  # rows of tiles that are walked column by column, so that x and W are found in the cache


@triton.jit(do_not_specialize=["rows"])
def _linear_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr, live_ptr,
    x_stride, weight_stride, residual_stride, out_stride,
    rows,
    N: tl.constexpr, K: tl.constexpr, GELU: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    if live_ptr is not None:
        rows = tl.minimum(rows, tl.load(live_ptr).to(tl.int32))
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(N, COLUMNS)
    group = tl.program_id(0) // (GROUP * across)
    height = min(down - group * GROUP, GROUP)
    if height <= 0:
        return  # these rows are not live
    within = tl.program_id(0) - group * GROUP * across
    row = (group * GROUP + within % height) * ROWS + tl.arange(0, ROWS)
    column = within // height * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)

    # What lies beyond the last row or column is read from the last one again, and never written.
    read_row, read_column = tl.minimum(row, rows - 1).to(tl.int64), tl.minimum(column, N - 1)
    x_ptrs = x_ptr + read_row[:, None] * (x_stride * UNIT) + k[None, :]
    weight_ptrs = weight_ptr + read_column[:, None] * (weight_stride * UNIT) + k[None, :]
    product = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for _ in range(K // DEPTH):
        product = tl.dot(tl.load(x_ptrs), tl.load(weight_ptrs).T, product, input_precision="ieee")
        x_ptrs += DEPTH
        weight_ptrs += DEPTH
    if K % DEPTH:
        inside = k[None, :] < K % DEPTH
        x, weight = tl.load(x_ptrs, mask=inside, other=0.0), tl.load(weight_ptrs, mask=inside, other=0.0)
        product = tl.dot(x, weight.T, product, input_precision="ieee")

    result = product + tl.load(bias_ptr + read_column).to(tl.float32)[None, :]
    if GELU:
        result = 0.5 * result * (1.0 + tl.math.erf(result * 0.7071067811865476))
    mask = (row[:, None] < rows) & (column[None, :] < N)
    row = row.to(tl.int64)[:, None]
    if residual_ptr is not None:
        residual_ptrs = residual_ptr + row * (residual_stride * UNIT) + column[None, :]
        result += tl.load(residual_ptrs, mask=mask, other=0.0).to(tl.float32)
    out_ptrs = out_ptr + row * (out_stride * UNIT) + column[None, :]
    tl.store(out_ptrs, result.to(out_ptr.dtype.element_ty), mask=mask)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    live: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.linear`, the bias and the residual added to the product in float32.

    Raises:
        ValueError: a tensor is of the wrong shape, dtype, device or stride.
    """
    return _multiply(x, weight, bias, residual, live, out, gelu=False)


def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, *, live: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """As `reference.linear_gelu`, the GELU taken of the float32 product.

    Raises:
        ValueError: a tensor is of the wrong shape, dtype, device or stride.
    """
    return _multiply(x, weight, bias, None, live, out, gelu=True)


def cost(*, R: int, K: int, N: int, s: int, residual: int = 0, gelu: int = 0) -> Cost:
    """What R rows of K elements of s bytes cost, times N columns."""
    return Cost(
        bytes=s * (R * K + N * K + N + R * N * (1 + residual)),
        operations=2 * R * N * K + R * N * (1 + residual + 4 * gelu),
    )


def _multiply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    live: Tensor | None,
    out: Tensor | None,
    *,
    gelu: bool,
) -> Tensor:
    check("x", x, (None, None))
    rows, depth = x.shape
    check("weight", weight, (None, depth), like=x)
    columns = len(weight)
    check_vector("bias", bias, columns, like=x)
    if residual is not None:
        check("residual", residual, (rows, columns), like=x)
    check_live(live, like=x)
    out = check_out(out, (rows, columns), like=x, live=live)
    tile = _configure(target(x.device), x.dtype, rows)
    more = x if residual is None else residual
    strides = x.stride(0), weight.stride(0), more.stride(0), out.stride(0)
    step = unit(*strides)
    launch(
        _linear_kernel, (triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns),),
        x, weight, bias, residual, out, live,
        *(s // step for s in strides), rows, N=columns, K=depth, GELU=gelu,
        ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, GROUP=_GROUP, UNIT=step,
        num_warps=tile.warps, num_stages=tile.stages, device=x.device,
    )  # fmt: skip
    return out


def _configure(device: str, dtype: torch.dtype, rows: int) -> _Tile:
    lines = (line for line in _TABLE if line[:2] == (device, dtype.itemsize))
    return next(tile for _, _, most, tile in lines if most is None or rows <= most)
