"""PoolClassify: the tanh pooler and the classifier, with no rounding between them.

Latency-bound, because there are few rows. With s bytes per element:

    bytes = s * (B * E + E * E + E + C * E + C + B * C) + 8 * B * E
    operations = 2 * B * E * E + 2 * B * E + 2 * B * E * C + B * C

There are two launches. In the first, a program computes a tile of the pooled rows, in float32, so that many
programs share one pair's E columns. In the second, a program takes a few whole pooled rows, one label after
another. Tiles, and the columns of each thread, are the same for any B.
"""

from __future__ import annotations

__all__ = ["cost", "pool_classify"]

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from segue.kernels.arithmetic import multiply, tanh
from segue.kernels.dependent import begin, can_prefetch, prefetch_rows
from segue.kernels.door import check, check_out
from segue.kernels.launching import Cost, launch, unit
from segue.kernels.normalize import chunk_of


class _Tile(NamedTuple):
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


_TABLE = (
    # bytes of an element: rows, columns and depth of a tile of pooled rows, warps, stages
    (2, _Tile(16, 32, 128, 4, 3)),
    (4, _Tile(16, 32, 32, 4, 2)),
)
_ROWS = 4  # per program and warp that classifies


@triton.jit(do_not_specialize=["rows"])
def _pool_kernel(
    cls_ptr, weight_ptr, bias_ptr, pooled_ptr,
    cls_stride, weight_stride, pooled_stride,
    rows,
    E: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    UNIT: tl.constexpr, PREFETCH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < E
    k = tl.arange(0, DEPTH)
    weight_rows = weight_ptr + tl.minimum(column, E - 1).to(tl.int64)[:, None] * (weight_stride * UNIT)
    if EARLY and PREFETCH:
        prefetch_rows(weight_rows, COLUMNS, E * weight_ptr.dtype.element_ty.primitive_bitwidth // 8)
    begin(EARLY)
    cls_ptrs = cls_ptr + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * (cls_stride * UNIT) + k[None, :]
    pooled = multiply(cls_ptrs, weight_rows + k[None, :], ROWS, COLUMNS, E, DEPTH)
    pooled += tl.load(bias_ptr + column, mask=there, other=0.0).to(tl.float32)[None, :]
    pooled_ptrs = pooled_ptr + row.to(tl.int64)[:, None] * (pooled_stride * UNIT) + column[None, :]
    tl.store(pooled_ptrs, tanh(pooled), mask=(row < rows)[:, None] & there[None, :])


@triton.jit(do_not_specialize=["rows"])
def _classify_kernel(
    pooled_ptr, weight_ptr, bias_ptr, out_ptr,
    pooled_stride, weight_stride, out_stride,
    rows,
    E: tl.constexpr, C: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
    UNIT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    begin(EARLY)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live, column = (row < rows)[:, None], tl.arange(0, CHUNK)[None, :]
    row = row.to(tl.int64)
    tiles = ()
    for i in tl.static_range((E + CHUNK - 1) // CHUNK):  # triton 3.6 makes no constant of tl.cdiv
        pooled_ptrs = pooled_ptr + row[:, None] * (pooled_stride * UNIT) + i * CHUNK + column
        tiles += (tl.load(pooled_ptrs, mask=live & (i * CHUNK + column < E), other=0.0),)
    for label in range(C):
        parts = tl.zeros((ROWS, CHUNK), dtype=tl.float32)
        for i in tl.static_range(len(tiles)):
            weight_ptrs = weight_ptr + i * CHUNK + column
            parts += tiles[i] * tl.load(weight_ptrs, mask=i * CHUNK + column < E, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + label + tl.zeros((ROWS,), dtype=tl.int32)).to(tl.float32)
        logit = tl.sum(parts, axis=1) + bias
        tl.store(out_ptr + row * out_stride + label, logit.to(out_ptr.dtype.element_ty), mask=row < rows)
        weight_ptr += weight_stride * UNIT


def pool_classify(
    cls: Tensor,
    pooler_weight: Tensor,
    pooler_bias: Tensor,
    classifier_weight: Tensor,
    classifier_bias: Tensor,
    *,
    pooled: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.pool_classify`. `out` may be float32 whatever the dtype of cls; given `pooled` as well,
    nothing is allocated.

    Raises:
        ValueError: a tensor is of the wrong shape, dtype, device or stride.
    """
    check("cls", cls, (None, None))
    rows, hidden = cls.shape
    check("pooler_weight", pooler_weight, (hidden, hidden), like=cls)
    check("pooler_bias", pooler_bias, (hidden,), like=cls)
    check("classifier_weight", classifier_weight, (None, hidden), like=cls)
    labels = len(classifier_weight)
    check("classifier_bias", classifier_bias, (labels,), like=cls)
    pooled = check_out(pooled, (rows, hidden), like=cls, name="pooled", dtype=torch.float32)
    out = check_out(out, (rows, labels), like=cls, wide=True)
    tile = next(tile for size, tile in _TABLE if size == cls.dtype.itemsize)
    step = unit(cls.stride(0), pooler_weight.stride(0), pooled.stride(0))
    launch(
        _pool_kernel, (triton.cdiv(rows, tile.rows), triton.cdiv(hidden, tile.columns)),
        cls, pooler_weight, pooler_bias, pooled,
        cls.stride(0) // step, pooler_weight.stride(0) // step, pooled.stride(0) // step, rows,
        E=hidden, ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, UNIT=step,
        PREFETCH=can_prefetch(pooler_weight), num_warps=tile.warps, num_stages=tile.stages, device=cls.device,
    )  # fmt: skip
    step = unit(classifier_weight.stride(0), pooled.stride(0))
    launch(
        _classify_kernel, (triton.cdiv(rows, _ROWS),),
        pooled, classifier_weight, classifier_bias, out,
        pooled.stride(0) // step, classifier_weight.stride(0) // step, out.stride(0), rows,
        E=hidden, C=labels, CHUNK=chunk_of(hidden), ROWS=_ROWS, UNIT=step, num_warps=1, device=cls.device,
    )  # fmt: skip
    return out


def cost(*, B: int, E: int, C: int, s: int) -> Cost:
    """Return the cost of B rows of E elements of s bytes, for C labels."""
    return Cost(
        bytes=s * (B * E + E * E + E + C * E + C + B * C) + 8 * B * E,
        operations=2 * B * E * E + 2 * B * E + 2 * B * E * C + B * C,
    )
