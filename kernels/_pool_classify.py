"""PoolClassify: the tanh pooler and the classifier after it, in one launch, nothing rounded between them.

Bound by reading the pooler's weight, s being the bytes of an element:

    bytes = s * (B * E + E * E + E + C * E + C + B * C)
    operations = 2 * B * E * E + 2 * B * E + 2 * B * E * C + B * C

A program has a few rows. It makes the pooled row column block by column block, and adds each block's part
of the logits at once, so that no pooled row is ever stored. Blocks are the same whatever B is.
"""

from __future__ import annotations

__all__ = ["cost", "pool_classify"]

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from segue.kernels.door import check, check_out, check_vector
from segue.kernels.launching import Cost, launch, target, unit


class _Tile(NamedTuple):
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


_ANY = ("sm_80", "sm_90", "sm_100", "gfx942")
_TABLE = (
    # targets, bytes of an element: rows, columns and depth of a tile, warps, stages
    (_ANY, 2, _Tile(16, 64, 64, 4, 3)),
    (_ANY, 4, _Tile(16, 32, 32, 4, 2)),
)


@triton.jit(do_not_specialize=["rows"])
def _pool_classify_kernel(
    cls_ptr, pooler_ptr, pooler_bias_ptr, classifier_ptr, classifier_bias_ptr, out_ptr,
    cls_stride, pooler_stride, classifier_stride, out_stride,
    rows,
    E: tl.constexpr, C: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, LABELS: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    read_row = tl.minimum(row, rows - 1).to(tl.int64)[:, None] * (cls_stride * UNIT)
    k, label = tl.arange(0, DEPTH), tl.arange(0, LABELS)
    logits = tl.zeros((ROWS, LABELS), dtype=tl.float32)
    for first in range(0, E, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        pooler_ptrs = pooler_ptr + tl.minimum(column, E - 1)[:, None] * (pooler_stride * UNIT) + k[None, :]
        pooled = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for start in range(0, E, DEPTH):
            if E % DEPTH == 0:
                cls = tl.load(cls_ptr + read_row + start + k[None, :])
                pooler = tl.load(pooler_ptrs + start)
            else:
                inside = k[None, :] < E - start
                cls = tl.load(cls_ptr + read_row + start + k[None, :], mask=inside, other=0.0)
                pooler = tl.load(pooler_ptrs + start, mask=inside, other=0.0)
            pooled = tl.dot(cls, pooler.T, pooled, input_precision="ieee")
        there = column < E
        pooled += tl.load(pooler_bias_ptr + column, mask=there, other=0.0).to(tl.float32)[None, :]
        pooled = 2.0 * tl.sigmoid(2.0 * pooled) - 1.0  # tanh
        classifier_ptrs = classifier_ptr + label[None, :] * (classifier_stride * UNIT) + column[:, None]
        mask = there[:, None] & (label < C)[None, :]
        classifier = tl.load(classifier_ptrs, mask=mask, other=0.0).to(tl.float32)
        logits = tl.dot(pooled, classifier, logits, input_precision="ieee")
    logits += tl.load(classifier_bias_ptr + label, mask=label < C, other=0.0).to(tl.float32)[None, :]
    out_ptrs = out_ptr + row.to(tl.int64)[:, None] * out_stride + label[None, :]
    mask = (row < rows)[:, None] & (label < C)[None, :]
    tl.store(out_ptrs, logits.to(out_ptr.dtype.element_ty), mask=mask)


def pool_classify(
    cls: Tensor,
    pooler_weight: Tensor,
    pooler_bias: Tensor,
    classifier_weight: Tensor,
    classifier_bias: Tensor,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.pool_classify`. `out` may be float32 whatever the dtype of cls.

    Raises:
        ValueError: a tensor is of the wrong shape, dtype, device or stride.
    """
    check("cls", cls, (None, None))
    rows, hidden = cls.shape
    check("pooler_weight", pooler_weight, (hidden, hidden), like=cls)
    check_vector("pooler_bias", pooler_bias, hidden, like=cls)
    check("classifier_weight", classifier_weight, (None, hidden), like=cls)
    labels = len(classifier_weight)
    check_vector("classifier_bias", classifier_bias, labels, like=cls)
    out = check_out(out, (rows, labels), like=cls, wide=True)
    device = target(cls.device)
    tile = next(tile for devices, size, tile in _TABLE if device in devices and size == cls.dtype.itemsize)
    step = unit(cls.stride(0), pooler_weight.stride(0), classifier_weight.stride(0))
    launch(
        _pool_classify_kernel, (triton.cdiv(rows, tile.rows),),
        cls, pooler_weight, pooler_bias, classifier_weight, classifier_bias, out,
        cls.stride(0) // step, pooler_weight.stride(0) // step,
        classifier_weight.stride(0) // step, out.stride(0), rows,
        E=hidden, C=labels, ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth,
        LABELS=max(16, triton.next_power_of_2(labels)),
        UNIT=step, num_warps=tile.warps, num_stages=tile.stages, device=cls.device,
    )  # fmt: skip
    return out


def cost(*, B: int, E: int, C: int, s: int) -> Cost:
    """What B rows of E elements of s bytes cost, for C labels."""
    return Cost(
        bytes=s * (B * E + E * E + E + C * E + C + B * C),
        operations=2 * B * E * E + 2 * B * E + 2 * B * E * C + B * C,
    )
