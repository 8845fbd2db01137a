"""Kernels that come onto the device while the one before them still runs: programmatic dependent launch.

Between two launches a GPU stands idle for about a microsecond, a hundred times in a forward pass. On
sm_90 and later the programs of a launch may be brought in early, and wait on the device until what came
before has ended and its results are seen. So every kernel begins with `begin`, before it reads or writes
anything that another kernel may have written; what never changes, a weight, may be asked for before.
"""

from __future__ import annotations

__all__ = ["begin", "can_prefetch", "prefetch_rows"]

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_SEGMENTS = tl.constexpr(4)  # of a row, each fetched by a thread of its own


@triton.jit
def begin(EARLY: tl.constexpr):
    """Wait for the launch before, then let the next one's programs in. Let in before that, launches pile up
    on the device, and small ones take twice as long (measured on an H200). Without EARLY there is nothing to
    wait for: one launch ends before the next begins."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


def can_prefetch(x: Tensor) -> bool:
    """Tell whether `prefetch_rows` takes a matrix's rows: 64 divides the bytes of a row and of the stride,
    and the first begins at a multiple of 16."""
    size = x.element_size()
    return all(size * count % 64 == 0 for count in (x.shape[1], x.stride(0))) and x.data_ptr() % 16 == 0


@triton.jit
def prefetch_rows(row_ptrs, ROWS: tl.constexpr, BYTES: tl.constexpr):
    """Ask for BYTES of each of the rows at row_ptrs [ROWS, 1], to be in the L2 cache soon. For sm_90 and
    later, and rows that `can_prefetch` takes."""
    segment = tl.arange(0, _SEGMENTS)[None, :] * (BYTES // _SEGMENTS)
    places = row_ptrs.to(tl.uint64, bitcast=True) + segment.to(tl.uint64)
    size = tl.full((ROWS, _SEGMENTS), BYTES // _SEGMENTS, dtype=tl.int32)
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;", "=r,l,r", [places, size],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip
