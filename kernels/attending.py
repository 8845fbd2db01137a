"""Attention within one pair, by tiles: what a program does, in whichever order programs come."""

from __future__ import annotations

__all__ = ["attend_from"]

import triton
import triton.language as tl

from segue.kernels.arithmetic import exp2


@triton.jit
def attend_from(
    qkv_ptr, cu_seqlens_ptr, out_ptr, stride, out_stride, pair, head, first, scale,
    E: tl.constexpr, D: tl.constexpr, DEPTH: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
    SHORT: tl.constexpr, TOGETHER: tl.constexpr, LONG: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """The context of a program's rows of a pair and head, or heads: QUERIES from `first` on, if there are."""
    start = tl.load(cu_seqlens_ptr + pair).to(tl.int64)
    length = (tl.load(cu_seqlens_ptr + pair + 1).to(tl.int64) - start).to(tl.int32)
    if first >= length:
        return
    q_ptr = qkv_ptr + start * stride + head * D
    out_ptr += start * out_stride + head * D
    k_ptr, v_ptr = q_ptr + E, q_ptr + 2 * E
    if SHORT > 0 and (length <= SHORT) & (head % TOGETHER == 0):
        _attend_short(
            q_ptr, k_ptr, v_ptr, out_ptr, stride, out_stride, E // D - head, length, scale,
            D, DEPTH, TOGETHER, SHORT, PTX,
        )  # fmt: skip
    if LONG and length > SHORT:
        _attend(
            q_ptr, k_ptr, v_ptr, out_ptr, stride, out_stride, first, length, scale,
            D, DEPTH, QUERIES, KEYS, PTX,
        )  # fmt: skip


@triton.jit
def _attend(
    q_ptr, k_ptr, v_ptr, out_ptr, stride, out_stride, first, length, scale,
    D: tl.constexpr, DEPTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """The context of QUERIES rows, from `first` on, of the pair and head that the pointers point to."""
    query = (first + tl.arange(0, QUERIES))[:, None]
    d = tl.arange(0, DEPTH)
    column = d[None, :] < D
    q = tl.load(q_ptr + query * stride + d[None, :], mask=(query < length) & column, other=0.0)
    most = tl.full((QUERIES,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((QUERIES,), dtype=tl.float32)
    context = tl.zeros((QUERIES, DEPTH), dtype=tl.float32)
    if q_ptr.dtype.element_ty.primitive_bitwidth == 16 and DEPTH <= 64:
        whole = length // KEYS * KEYS
        for start in range(0, whole, KEYS):
            most, total, context = _attend_to(
                q, k_ptr, v_ptr, stride, start, length, most, total, context, scale,
                D, DEPTH, KEYS, False, PTX,
            )  # fmt: skip
        if whole < length:
            most, total, context = _attend_to(
                q, k_ptr, v_ptr, stride, whole, length, most, total, context, scale, D, DEPTH, KEYS, True, PTX
            )
    else:  # written out twice, it would need more registers than there are
        for start in range(0, length, KEYS):
            most, total, context = _attend_to(
                q, k_ptr, v_ptr, stride, start, length, most, total, context, scale, D, DEPTH, KEYS, True, PTX
            )
    context = context / total[:, None]
    out_ptrs = out_ptr + query * out_stride + d[None, :]
    tl.store(out_ptrs, context.to(out_ptr.dtype.element_ty), mask=(query < length) & column)


@triton.jit
def _attend_to(
    q, k_ptr, v_ptr, stride, start, length, most, total, context, scale,
    D: tl.constexpr, DEPTH: tl.constexpr, KEYS: tl.constexpr, PART: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Each row's running maximum, sum and context after the block of keys from `start` on. PART: some of its
    keys may lie beyond the pair."""
    key, d = start + tl.arange(0, KEYS), tl.arange(0, DEPTH)
    offs = key[:, None] * stride + d[None, :]
    mask = d[None, :] < D
    if PART:
        mask = mask & (key < length)[:, None]
    if PART or D < DEPTH:
        k, v = tl.load(k_ptr + offs, mask=mask, other=0.0), tl.load(v_ptr + offs, mask=mask, other=0.0)
    else:
        k, v = tl.load(k_ptr + offs), tl.load(v_ptr + offs)
    scores = tl.dot(q, k.T, input_precision="ieee")
    if PART:
        scores = tl.where((key < length)[None, :], scores, float("-inf"))
    # Scores are scaled where the maximum is subtracted, in one instruction.
    larger = tl.maximum(most, tl.max(scores, axis=1) * scale)
    shift = larger
    if q.dtype != tl.float16:  # whose products are never too large for float32
        shift = tl.where(larger == float("-inf"), 0.0, larger)
    power = exp2(scores * scale - shift[:, None], PTX)
    fade = exp2(most - shift, PTX)
    total = total * fade + tl.sum(power, axis=1)
    context = tl.dot(power.to(v.dtype), v, context * fade[:, None], input_precision="ieee")
    return larger, total, context


@triton.jit
def _attend_short(
    q_ptr, k_ptr, v_ptr, out_ptr, stride, out_stride, heads, length, scale,
    D: tl.constexpr, DEPTH: tl.constexpr, HEADS: tl.constexpr, SHORT: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """The context of all rows of a pair, for HEADS heads from the one that the pointers point to."""
    head = tl.arange(0, HEADS)[:, None, None]
    row, d = tl.arange(0, SHORT)[None, :, None], tl.arange(0, DEPTH)[None, None, :]
    mask = (head < heads) & (row < length) & (d < D)
    offs = row * stride + head * D + d
    q = tl.load(q_ptr + offs, mask=mask, other=0.0)
    k = tl.load(k_ptr + offs, mask=mask, other=0.0)
    v = tl.load(v_ptr + offs, mask=mask, other=0.0)
    scores = tl.dot(q, tl.permute(k, (0, 2, 1)), input_precision="ieee") * scale
    scores = tl.where(tl.arange(0, SHORT)[None, None, :] < length, scores, float("-inf"))
    power = exp2(scores - tl.max(scores, axis=2)[:, :, None], PTX)
    context = tl.dot(power.to(v.dtype), v, input_precision="ieee") / tl.sum(power, axis=2)[:, :, None]
    out_ptrs = out_ptr + row * out_stride + head * D + d
    tl.store(out_ptrs, context.to(out_ptr.dtype.element_ty), mask=mask)
