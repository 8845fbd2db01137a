"""ClsAttention: one query row per pair against all keys of the pair.

Memory-bound: each key and value is read once and used once, so no matrix unit would help. With s bytes per
element and i per bound:

    bytes = s * E * (2 * T + B + sum(n > 0 for n in lengths)) + i * (B + 1)
    operations = 4 * T * E + 4 * T * H

(the query of an empty pair is not read). A program takes one pair and a few heads, whose keys lie side by
side, and passes over them block by block. All rows of the table have the same block, so the order in which a
row is summed depends only on its own pair.
"""

from __future__ import annotations

__all__ = ["cls_attention", "cost"]

import triton
import triton.language as tl
from torch import Tensor

from segue.kernels.dependent import begin
from segue.kernels.door import check, check_bounds, check_out, check_reach
from segue.kernels.launching import Cost, launch, unit

_LOG2E = 1.4426950408889634
_LANES = 128  # columns that a program takes, in whole heads
_TABLE = (
    # bytes of an element: keys a block, warps
    (2, 32, 4),
    (4, 16, 4),
)


@triton.jit
def _cls_attention_kernel(
    q_ptr, kv_ptr, cu_seqlens_ptr, out_ptr, q_stride, kv_stride, out_stride, scale,
    E: tl.constexpr, D: tl.constexpr, DEPTH: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr,
    UNIT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    begin(EARLY)
    pair = tl.program_id(0)
    start = tl.load(cu_seqlens_ptr + pair).to(tl.int64)
    length = (tl.load(cu_seqlens_ptr + pair + 1).to(tl.int64) - start).to(tl.int32)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    d = tl.arange(0, DEPTH)[None, :]
    column, mask = head * D + d, (head * D < E) & (d < D)
    q_ptrs = q_ptr + pair.to(tl.int64) * (q_stride * UNIT) + column
    q = tl.load(q_ptrs, mask=mask & (length > 0), other=0.0).to(tl.float32) * scale
    kv_stride = kv_stride * UNIT
    kv_ptr += start * kv_stride
    key = tl.arange(0, KEYS)
    most = tl.full((HEADS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((HEADS,), dtype=tl.float32)
    context = tl.zeros((HEADS, DEPTH), dtype=tl.float32)
    for first in range(0, length, KEYS):
        live = (first + key < length)[:, None]
        k_ptrs = kv_ptr + (first + key)[:, None, None] * kv_stride + column[None, :, :]
        there = live[:, :, None] & mask[None, :, :]
        k = tl.load(k_ptrs, mask=there, other=0.0).to(tl.float32)
        v = tl.load(k_ptrs + E, mask=there, other=0.0).to(tl.float32)
        scores = tl.where(live, tl.sum(q[None, :, :] * k, axis=2), float("-inf"))
        larger = tl.maximum(most, tl.max(scores, axis=0))
        shift = tl.where(larger == float("-inf"), 0.0, larger)  # as where all products so far are too large
        power = tl.exp2(scores - shift[None, :])
        fade = tl.exp2(most - shift)
        total = total * fade + tl.sum(power, axis=0)
        context = context * fade[:, None] + tl.sum(power[:, :, None] * v, axis=0)
        most = larger
    context = context / tl.where(length > 0, total, 1.0)[:, None]
    out_ptrs = out_ptr + pair.to(tl.int64) * (out_stride * UNIT) + column
    tl.store(out_ptrs, context.to(out_ptr.dtype.element_ty), mask=mask)


def cls_attention(
    q: Tensor,
    kv: Tensor,
    cu_seqlens: Tensor,
    heads: int,
    *,
    longest: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.cls_attention`. Without `longest`, reading cu_seqlens back waits for the device.

    Raises:
        ValueError: a tensor is of the wrong shape, dtype, device or stride, or cu_seqlens is not 0 to T.
    """
    check("q", q, (None, None))
    pairs, hidden = q.shape
    if not (heads > 0 and hidden and hidden % heads == 0):
        raise ValueError(f"q: expected [B, E], E divisible by {heads} heads, got shape {list(q.shape)}")
    check("kv", kv, (None, 2 * hidden), like=q)
    check_reach("kv", kv, check_bounds(cu_seqlens, len(kv), longest, like=q))
    if len(cu_seqlens) != pairs + 1:
        raise ValueError(f"cu_seqlens: expected {pairs + 1} bounds of {pairs} pairs, got {len(cu_seqlens)}")
    out = check_out(out, (pairs, hidden), like=q)
    depth = hidden // heads
    padded = triton.next_power_of_2(depth)
    together = min(max(1, _LANES // padded), triton.next_power_of_2(heads))
    keys, warps = next(line[1:] for line in _TABLE if line[0] == q.dtype.itemsize)
    strides = q.stride(0), kv.stride(0), out.stride(0)
    step = unit(*strides)
    launch(
        _cls_attention_kernel, (pairs, triton.cdiv(heads, together)),
        q, kv, cu_seqlens, out, *(s // step for s in strides), depth**-0.5 * _LOG2E,
        E=hidden, D=depth, DEPTH=padded, HEADS=together, KEYS=keys, UNIT=step,
        num_warps=warps, device=q.device,
    )  # fmt: skip
    return out


def cost(*, lengths: list[int], E: int, H: int, s: int, i: int) -> Cost:
    """Return the cost of pairs of those lengths: bounds of i bytes, H heads of E / H elements of s bytes."""
    tokens, pairs = sum(lengths), len(lengths)
    return Cost(
        bytes=s * E * (2 * tokens + pairs + sum(n > 0 for n in lengths)) + i * (pairs + 1),
        operations=4 * tokens * E + 4 * tokens * H,
    )
