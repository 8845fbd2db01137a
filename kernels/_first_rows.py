"""first_rows: the first row of each pair, as the graph's Gather takes the [CLS] rows.

Latency-bound: it moves two rows per pair. With s bytes per element and i per bound:

    bytes = s * E * (B + sum(n > 0 for n in lengths)) + i * (B + 1)
    operations = 0
"""

from __future__ import annotations

__all__ = ["cost", "first_rows"]

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from segue.kernels.dependent import begin
from segue.kernels.door import check, check_ids, check_out
from segue.kernels.launching import Cost, launch, unit
from segue.kernels.normalize import chunk_of

_ROWS = 8  # a program and warp


@triton.jit(do_not_specialize=["pairs"])
def _first_rows_kernel(
    x_ptr, cu_seqlens_ptr, out_ptr, x_stride, out_stride, pairs,
    E: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, UNIT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    begin(EARLY)
    pair = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = pair < pairs
    start = tl.load(cu_seqlens_ptr + pair, mask=live, other=0).to(tl.int64)
    filled = tl.load(cu_seqlens_ptr + pair + 1, mask=live, other=0).to(tl.int64) > start
    live, filled, column = live[:, None], filled[:, None], tl.arange(0, CHUNK)[None, :]
    x_ptrs = x_ptr + start[:, None] * (x_stride * UNIT) + column
    out_ptrs = out_ptr + pair.to(tl.int64)[:, None] * (out_stride * UNIT) + column
    for i in tl.static_range((E + CHUNK - 1) // CHUNK):  # triton 3.6 makes no constant of tl.cdiv
        mask = live & (i * CHUNK + column < E)
        row = tl.load(x_ptrs + i * CHUNK, mask=mask & filled, other=0.0)
        tl.store(out_ptrs + i * CHUNK, row, mask=mask)


def first_rows(x: Tensor, cu_seqlens: Tensor, *, out: Tensor | None = None) -> Tensor:
    """As `reference.first_rows`. Trusts that cu_seqlens runs from 0 to T without decreasing.

    Raises:
        ValueError: a tensor is of the wrong shape, dtype, device or stride.
    """
    check("x", x, (None, None))
    hidden = x.shape[1]
    check_ids("cu_seqlens", cu_seqlens, None, like=x)
    if not len(cu_seqlens):
        raise ValueError("cu_seqlens: expected a bound more than there are pairs, got none at all")
    pairs = len(cu_seqlens) - 1
    out = check_out(out, (pairs, hidden), like=x)
    step = unit(x.stride(0), out.stride(0))
    launch(
        _first_rows_kernel, (triton.cdiv(pairs, _ROWS),),
        x, cu_seqlens, out, x.stride(0) // step, out.stride(0) // step, pairs,
        E=hidden, CHUNK=chunk_of(hidden), ROWS=_ROWS, UNIT=step, num_warps=1, device=x.device,
    )  # fmt: skip
    return out


def cost(*, lengths: Sequence[int], E: int, s: int, i: int) -> Cost:
    """Return the cost of pairs of those lengths: bounds of i bytes, rows of E elements of s bytes."""
    moved = len(lengths) + sum(n > 0 for n in lengths)
    return Cost(bytes=s * E * moved + i * (len(lengths) + 1), operations=0)
