"""first_rows: the first row of each pair, what the graph's Gather of the [CLS] rows does.

Bound by latency: two rows moved a pair. s being the bytes of an element, i those of a bound:

    bytes = s * E * (B + sum(n > 0 for n in lengths)) + i * (B + 1)
    operations = 0
"""

from __future__ import annotations

__all__ = ["cost", "first_rows"]

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from segue.kernels.door import check, check_ids, check_out
from segue.kernels.launching import Cost, launch, target, unit


@triton.jit
def _first_rows_kernel(
    x_ptr, cu_seqlens_ptr, out_ptr, x_stride, out_stride, E, BLOCK: tl.constexpr, UNIT: tl.constexpr
):
    pair = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    start = tl.load(cu_seqlens_ptr + pair).to(tl.int64)
    filled = tl.load(cu_seqlens_ptr + pair + 1).to(tl.int64) > start
    row = tl.load(x_ptr + start * (x_stride * UNIT) + column, mask=(column < E) & filled, other=0.0)
    tl.store(out_ptr + pair * (out_stride * UNIT) + column, row, mask=column < E)


def first_rows(x: Tensor, cu_seqlens: Tensor, *, out: Tensor | None = None) -> Tensor:
    """As `reference.first_rows`. That cu_seqlens is 0 to T, never decreasing, is trusted, not read back.

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
    target(x.device)
    block = min(1024, triton.next_power_of_2(hidden))
    step = unit(x.stride(0), out.stride(0))
    launch(
        _first_rows_kernel, (pairs, triton.cdiv(hidden, block)),
        x, cu_seqlens, out, x.stride(0) // step, out.stride(0) // step, hidden, BLOCK=block, UNIT=step,
        num_warps=4, device=x.device,
    )  # fmt: skip
    return out


def cost(*, lengths: Sequence[int], E: int, s: int, i: int) -> Cost:
    """What pairs of those lengths cost, their bounds of i bytes, rows of E elements of s bytes."""
    moved = len(lengths) + sum(n > 0 for n in lengths)
    return Cost(bytes=s * E * moved + i * (len(lengths) + 1), operations=0)
