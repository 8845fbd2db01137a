"""ClsAttention: one query row per pair, whose keys and values are never made.

With K and V [D, E] the rows of both weights that belong to a head, a score is q · K x = (Kᵀ q) · x, and the
context Σ p (V x + b) = V (Σ p x) + b: the sum runs over the tokens of a pair, and p adds up to 1. So the
weights multiply B rows instead of T, and attention reads x itself, once for all heads. (DeepSeek-V2, 2024,
absorbs weights so where keys have few columns; where one row asks, it pays for any.) With s bytes per element
and i per bound:

    bytes = s * E * (2 * E + 1 + 2 * B + T + 2 * H * (B + sum(n > 0 for n in lengths))) + i * (B + 1)
    operations = 4 * B * E * E + B * E + 4 * H * T * E + 4 * H * T

There are three launches: Kᵀ q; Σ p x, a program per pair and 16 heads, which passes over the pair's rows
block by block; and V times that. Tiles and blocks are the same for any B, so the order in which a row is
summed depends only on its own pair.
"""

from __future__ import annotations

__all__ = ["cls_attention", "cost"]

import triton
import triton.language as tl
from torch import Tensor

from segue.kernels.arithmetic import exp2, multiply
from segue.kernels.dependent import begin, can_prefetch, prefetch_rows
from segue.kernels.door import check, check_bounds, check_out, check_reach
from segue.kernels.launching import Cost, launch, unit
from segue.kernels.normalize import chunk_of

_LOG2E = 1.4426950408889634
_ROWS = 16  # pairs, or heads, of a tile
_WITHIN = 64  # of a head's D, summed at once in Kᵀ q
_COLUMNS, _WARPS = 32, 4  # of V times the sum; of both products
_TABLE = (
    # bytes of an element: columns of Kᵀ q a program, depth of a product's block; of Σ p x: keys a block,
    # columns a program, warps
    (2, 128, 64, 32, 1024, 8),
    (4, 64, 32, 16, 512, 8),
)


@triton.jit(do_not_specialize=["pairs"])
def _absorb_kernel(
    q_ptr, weight_ptr, scratch_ptr, q_stride, weight_stride, scratch_stride, pairs, scale,
    E: tl.constexpr, D: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    UNIT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Kᵀ q of one head, scaled, for ROWS pairs and COLUMNS columns."""
    begin(EARLY)
    pair, head = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    live, there = (pair < pairs)[:, None], (column < E)[None, :]
    pair = pair.to(tl.int64)[:, None]
    query = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for first in tl.static_range(0, D, DEPTH):
        d = first + tl.arange(0, DEPTH)
        row = (head * D + d).to(tl.int64)[:, None]
        q_ptrs = q_ptr + pair * (q_stride * UNIT) + head * D + d[None, :]
        q = tl.load(q_ptrs, mask=live & (d < D)[None, :], other=0.0)
        weight_ptrs = weight_ptr + row * (weight_stride * UNIT) + column[None, :]
        weight = tl.load(weight_ptrs, mask=(d < D)[:, None] & there, other=0.0)
        query = tl.dot(q, weight, query, input_precision="ieee")
    query_ptrs = scratch_ptr + pair * (scratch_stride * UNIT) + head * E + column[None, :]
    tl.store(query_ptrs, (query * scale).to(scratch_ptr.dtype.element_ty), mask=live & there)


@triton.jit
def _mix_kernel(
    scratch_ptr, x_ptr, cu_seqlens_ptr, scratch_stride, x_stride,
    E: tl.constexpr, H: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, DEPTH: tl.constexpr,
    HEADS: tl.constexpr, KEYS: tl.constexpr, UNIT: tl.constexpr, EARLY: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Σ p x of HEADS heads of a pair, in CHUNKS times CHUNK columns; their Kᵀ q has E."""
    begin(EARLY)
    pair = tl.program_id(0)
    start = tl.load(cu_seqlens_ptr + pair).to(tl.int64)
    length = (tl.load(cu_seqlens_ptr + pair + 1).to(tl.int64) - start).to(tl.int32)
    if length <= 0:
        return
    x_stride = x_stride * UNIT
    x_ptr += start * x_stride
    head, key = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, KEYS)
    depth = tl.arange(0, DEPTH)[None, :]
    column = tl.program_id(2) * CHUNKS * CHUNK + tl.arange(0, CHUNK)[None, :]
    scratch_ptr += pair.to(tl.int64) * (scratch_stride * UNIT)
    query_ptrs = scratch_ptr + tl.minimum(head, H - 1)[:, None] * E + depth
    most = tl.full((HEADS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((HEADS,), dtype=tl.float32)
    sums = ()
    for _ in tl.static_range(CHUNKS):
        sums += (tl.zeros((HEADS, CHUNK), dtype=tl.float32),)
    for first in range(0, length, KEYS):
        row = tl.minimum(first + key, length - 1)[:, None] * x_stride  # beyond the last, the last again
        live = (first + key < length)[None, :]
        scores = multiply(query_ptrs, x_ptr + row + depth, HEADS, KEYS, E, DEPTH)
        scores = tl.where(live, scores, float("-inf"))
        larger = tl.maximum(most, tl.max(scores, axis=1))
        shift = tl.where(larger == float("-inf"), 0.0, larger)  # as where all products so far are too large
        power = exp2(scores - shift[:, None], PTX)
        fade = exp2(most - shift, PTX)
        total = total * fade + tl.sum(power, axis=1)
        added = ()
        for i in tl.static_range(len(sums)):
            x = tl.load(x_ptr + row + i * CHUNK + column, mask=i * CHUNK + column < E, other=0.0)
            faded = sums[i] * fade[:, None]
            added += (tl.dot(power.to(x.dtype), x, faded, input_precision="ieee"),)
        sums = added
        most = larger
    mixed_ptrs = scratch_ptr + (H + head)[:, None] * E + column
    for i in tl.static_range(len(sums)):
        mask = (head < H)[:, None] & (i * CHUNK + column < E)
        mixed = sums[i] / total[:, None]
        tl.store(mixed_ptrs + i * CHUNK, mixed.to(scratch_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["pairs"])
def _value_kernel(
    scratch_ptr, weight_ptr, bias_ptr, cu_seqlens_ptr, out_ptr,
    scratch_stride, weight_stride, out_stride, pairs,
    E: tl.constexpr, H: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    ROWS: tl.constexpr, UNIT: tl.constexpr, PREFETCH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """V times the sum of a head, and the bias, for ROWS pairs: zeros for an empty one."""
    pair, head = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    d = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    read_row = (head * D + tl.minimum(d, D - 1)).to(tl.int64)[:, None]
    weight_rows = weight_ptr + read_row * (weight_stride * UNIT)
    if EARLY and PREFETCH:
        prefetch_rows(weight_rows, COLUMNS, E * weight_ptr.dtype.element_ty.primitive_bitwidth // 8)
    begin(EARLY)
    live = pair < pairs
    start = tl.load(cu_seqlens_ptr + pair, mask=live, other=0)
    filled = tl.load(cu_seqlens_ptr + pair + 1, mask=live, other=0) > start
    there, k = d < D, tl.arange(0, DEPTH)[None, :]
    read_pair = tl.minimum(pair, pairs - 1).to(tl.int64)
    mixed_ptrs = scratch_ptr + read_pair[:, None] * (scratch_stride * UNIT) + (H + head) * E + k
    value = multiply(mixed_ptrs, weight_rows + k, ROWS, COLUMNS, E, DEPTH)
    value += tl.load(bias_ptr + head * D + d, mask=there, other=0.0).to(tl.float32)[None, :]
    value = tl.where(filled[:, None], value, 0.0)
    out_ptrs = out_ptr + pair.to(tl.int64)[:, None] * (out_stride * UNIT) + head * D + d[None, :]
    tl.store(out_ptrs, value.to(out_ptr.dtype.element_ty), mask=live[:, None] & there[None, :])


def cls_attention(
    q: Tensor,
    x: Tensor,
    cu_seqlens: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    heads: int,
    *,
    longest: int | None = None,
    scratch: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.cls_attention`. Given `out` and `scratch`, nothing is allocated. Without `longest`,
    reading cu_seqlens back waits for the device.

    Raises:
        ValueError: a tensor is of the wrong shape, dtype, device or stride, or cu_seqlens is not 0 to T.
    """
    check("q", q, (None, None))
    pairs, hidden = q.shape
    if not (heads > 0 and hidden and hidden % heads == 0):
        raise ValueError(f"q: expected [B, E], E divisible by {heads} heads, got shape {list(q.shape)}")
    check("x", x, (None, hidden), like=q)
    check_reach("x", x, check_bounds(cu_seqlens, len(x), longest, like=q))
    if len(cu_seqlens) != pairs + 1:
        raise ValueError(f"cu_seqlens: expected {pairs + 1} bounds of {pairs} pairs, got {len(cu_seqlens)}")
    check("key_weight", key_weight, (hidden, hidden), like=q)
    check("value_weight", value_weight, (hidden, hidden), like=q)
    check("value_bias", value_bias, (hidden,), like=q)
    scratch = check_out(scratch, (pairs, 2 * heads * hidden), like=q, name="scratch")
    out = check_out(out, (pairs, hidden), like=q)
    columns, depth, keys, most, warps = next(line[1:] for line in _TABLE if line[0] == q.dtype.itemsize)
    size, down = hidden // heads, triton.cdiv(pairs, _ROWS)
    within = max(16, triton.next_power_of_2(size))  # tl.dot takes no fewer than 16
    step = unit(q.stride(0), key_weight.stride(0), scratch.stride(0))
    launch(
        _absorb_kernel, (down, heads, triton.cdiv(hidden, columns)),
        q, key_weight, scratch, q.stride(0) // step, key_weight.stride(0) // step, scratch.stride(0) // step,
        pairs, size**-0.5 * _LOG2E,
        E=hidden, D=size, DEPTH=min(within, _WITHIN), ROWS=_ROWS, COLUMNS=columns, UNIT=step,
        num_warps=_WARPS, device=q.device,
    )  # fmt: skip
    chunk, across = chunk_of(hidden), triton.cdiv(hidden, most)
    step = unit(scratch.stride(0), x.stride(0))
    launch(
        _mix_kernel, (pairs, triton.cdiv(heads, _ROWS), across),
        scratch, x, cu_seqlens, scratch.stride(0) // step, x.stride(0) // step,
        E=hidden, H=heads, CHUNK=chunk, CHUNKS=triton.cdiv(triton.cdiv(hidden, chunk), across), DEPTH=depth,
        HEADS=_ROWS, KEYS=keys, UNIT=step, num_warps=warps, device=q.device,
    )  # fmt: skip
    step = unit(scratch.stride(0), value_weight.stride(0), out.stride(0))
    launch(
        _value_kernel, (down, heads, triton.cdiv(size, _COLUMNS)),
        scratch, value_weight, value_bias, cu_seqlens, out,
        scratch.stride(0) // step, value_weight.stride(0) // step, out.stride(0) // step, pairs,
        E=hidden, H=heads, D=size, COLUMNS=min(within, _COLUMNS), DEPTH=depth, ROWS=_ROWS, UNIT=step,
        PREFETCH=can_prefetch(value_weight), num_warps=_WARPS, device=q.device,
    )  # fmt: skip
    return out


def cost(*, lengths: list[int], E: int, H: int, s: int, i: int) -> Cost:
    """Return the cost of pairs of those lengths: bounds of i bytes, H heads of E / H elements of s bytes."""
    T, B, filled = sum(lengths), len(lengths), sum(n > 0 for n in lengths)
    return Cost(
        bytes=s * E * (2 * E + 1 + 2 * B + T + 2 * H * (B + filled)) + i * (B + 1),
        operations=4 * B * E * E + B * E + 4 * H * T * E + 4 * H * T,
    )
