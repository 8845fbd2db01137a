"""PackedAttention: QKᵀ, softmax and PV of each pair in one pass, straight from the QKV product.

With s bytes per element, i per bound, and lengths those of the pairs:

    bytes = s * 4 * T * E + i * (B + 1)
    operations = 4 * E * sum(n * n for n in lengths) + 4 * H * sum(n * n for n in lengths)

Memory-bound up to a few hundred tokens per pair, then bound by the matrix units. A program takes one tile of
queries of one pair and one head, and passes over that pair's keys block by block, carrying each row's
maximum and sum (Milakov and Gimelshein, 2018; Dao and others, 2022); no block outside the pair is touched.

For a short pair, up to 32 tokens, a program takes as many heads as it has warps: one head per warp, in one
tile of 32 x 32, so that nothing is wasted on absent tokens. This holds whatever else is in the batch, and a
longer pair's blocks hold as many keys as the table says for the head size and device: the order in which a
row is summed depends only on its own pair. How many queries a program takes may follow the longest pair.
"""

from __future__ import annotations

__all__ = ["cost", "packed_attention"]

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from segue.kernels.attending import attend_from
from segue.kernels.dependent import begin
from segue.kernels.door import check, check_bounds, check_out, check_reach
from segue.kernels.launching import Cost, launch, target, unit

_SHORT, _SHORT_DEPTH = 32, 64  # tokens of a pair, and head size, that a warp holds in one tile
_LOG2E = 1.4426950408889634


class _Tile(NamedTuple):
    queries: int
    keys: int
    warps: int
    stages: int


_ANY = ("sm_80", "sm_90", "sm_100", "gfx942")
_TABLE = (
    # targets, bytes of an element, head size up to, longest pair up to: queries, keys, warps, stages.
    # With 16 bits and heads of 64 or less, pairs of up to 32 tokens take the short path under every line.
    (_ANY, 2, 64, 64, _Tile(64, 64, 4, 2)),
    (("sm_90",), 2, 64, None, _Tile(64, 64, 4, 3)),
    (("sm_80", "sm_100", "gfx942"), 2, 64, None, _Tile(64, 64, 4, 2)),
    (_ANY, 2, 128, None, _Tile(64, 64, 4, 2)),
    (_ANY, 2, 256, None, _Tile(64, 32, 8, 2)),
    (_ANY, 4, 32, None, _Tile(32, 32, 4, 1)),
    (_ANY, 4, 64, None, _Tile(16, 32, 4, 1)),
    (_ANY, 4, 128, None, _Tile(16, 32, 8, 1)),
    (("sm_80", "sm_90", "sm_100"), 4, 256, None, _Tile(16, 16, 16, 1)),
    (("gfx942",), 4, 256, None, _Tile(16, 16, 8, 1)),
)


@triton.jit(do_not_specialize=["tiles"])
def _packed_attention_kernel(
    qkv_ptr, cu_seqlens_ptr, out_ptr, stride, out_stride, tiles, scale,
    E: tl.constexpr, D: tl.constexpr, DEPTH: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
    SHORT: tl.constexpr, TOGETHER: tl.constexpr, LONG: tl.constexpr,
    UNIT: tl.constexpr, EARLY: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """SHORT: tokens of a pair on the short path, TOGETHER heads a program. LONG: there are other pairs, and a
    program has one head, so that one of TOGETHER programs does a short pair's work."""
    begin(EARLY)
    pair = tl.program_id(0) // tiles
    first = tl.program_id(0) % tiles * QUERIES
    head = tl.program_id(1) if LONG else tl.program_id(1) * TOGETHER
    attend_from(
        qkv_ptr, cu_seqlens_ptr, out_ptr, stride * UNIT, out_stride * UNIT, pair, head, first, scale,
        E, D, DEPTH, QUERIES, KEYS, SHORT, TOGETHER, LONG, PTX,
    )  # fmt: skip


def packed_attention(
    qkv: Tensor, cu_seqlens: Tensor, heads: int, *, longest: int | None = None, out: Tensor | None = None
) -> Tensor:
    """As `reference.packed_attention`. Without `longest`, reading cu_seqlens back waits for the device.

    Raises:
        ValueError: a tensor is of the wrong shape, dtype, device or stride, or cu_seqlens is not 0 to T.
    """
    check("qkv", qkv, (None, None))
    tokens, hidden = len(qkv), qkv.shape[1] // 3
    if not (heads > 0 and hidden and qkv.shape[1] == 3 * hidden and hidden % heads == 0):
        raise ValueError(f"qkv: expected [T, 3E], E divisible by {heads} heads, got shape {list(qkv.shape)}")
    longest = check_bounds(cu_seqlens, tokens, longest, like=qkv)
    out = check_out(out, (tokens, hidden), like=qkv)
    for name, x in ("qkv", qkv), ("out", out):
        check_reach(name, x, longest)
    depth = hidden // heads
    tile = _configure(target(qkv.device), qkv.dtype, depth, longest)
    short = _SHORT if qkv.dtype.itemsize == 2 and depth <= _SHORT_DEPTH else 0
    long = longest > short
    tiles = triton.cdiv(longest, tile.queries)
    step = unit(qkv.stride(0), out.stride(0))
    launch(
        _packed_attention_kernel,
        ((len(cu_seqlens) - 1) * tiles, heads if long else triton.cdiv(heads, tile.warps)),
        qkv, cu_seqlens, out, qkv.stride(0) // step, out.stride(0) // step, tiles, depth**-0.5 * _LOG2E,
        E=hidden, D=depth, DEPTH=max(16, triton.next_power_of_2(depth)),
        QUERIES=tile.queries, KEYS=tile.keys, SHORT=short, TOGETHER=tile.warps, LONG=long, UNIT=step,
        num_warps=tile.warps, num_stages=tile.stages, device=qkv.device,
    )  # fmt: skip
    return out


def cost(*, lengths: list[int], E: int, H: int, s: int, i: int) -> Cost:
    """Return the cost of pairs of those lengths: bounds of i bytes, H heads of E / H elements of s bytes."""
    squares = sum(n * n for n in lengths)
    return Cost(
        bytes=s * 4 * sum(lengths) * E + i * (len(lengths) + 1), operations=4 * E * squares + 4 * H * squares
    )


def _configure(device: str, dtype: torch.dtype, depth: int, longest: int) -> _Tile:
    for devices, size, deepest, most, tile in _TABLE:
        fits = depth <= deepest and (most is None or longest <= most)
        if fits and device in devices and size == dtype.itemsize:
            return tile
    raise ValueError(f"heads: expected a head size of 256 at most, got {depth}")
