"""LayerNorm of rows that are already in registers, for the kernels that end in one.

A row is a tuple of [ROWS, CHUNK] tiles in float32, so that E = 384 takes three tiles of 128 lanes, all of
them used, where one block would round up to 512.
"""

from __future__ import annotations

__all__ = ["chunk_of", "normalize", "rows_of"]

import triton
import triton.language as tl

_NVIDIA, _AMD = ("sm_80", "sm_90", "sm_100"), ("gfx942",)  # of 32 and of 64 threads a warp
_TABLE = (
    # targets, width of a tile at least, hidden size up to, up to so many rows: ROWS a program, warps. All
    # lines of a size have equal rows per warp, so that a row's columns lie in the same threads, and are
    # summed in the same order, whatever the number of rows; a warp has more of narrow tiles, to read 16 bytes
    # a thread.
    (_NVIDIA, 128, 768, 1024, 2, 1),
    (_NVIDIA, 128, 768, None, 16, 8),
    (_NVIDIA, 16, 768, 1024, 4, 1),
    (_NVIDIA, 16, 768, None, 16, 4),
    (_NVIDIA, 16, None, 1024, 2, 1),
    (_NVIDIA, 16, None, None, 8, 4),
    (_AMD, 16, 448, 1024, 8, 1),
    (_AMD, 16, 448, None, 32, 4),
    (_AMD, 16, None, 1024, 4, 1),
    (_AMD, 16, None, None, 16, 4),
)


def rows_of(device: str, hidden: int, rows: int) -> tuple[int, int]:
    """(rows a program, warps) for that many rows of that size on the device of that name in the tables."""
    return next(
        line[4:]
        for line in _TABLE
        if device in line[0] and chunk_of(hidden) >= line[1]
        if hidden <= (line[2] or hidden) and rows <= (line[3] or rows)
    )


def chunk_of(hidden: int) -> int:
    """How wide a tile is: the largest power of two, 128 at most, that leaves an eighth of its lanes idle at
    most; 16 where none does."""
    return next((c for c in (128, 64, 32) if triton.cdiv(hidden, c) * c <= 1.125 * hidden), 16)


@triton.jit
def normalize(tiles, weight_ptr, bias_ptr, out_ptrs, live, eps, E: tl.constexpr, CHUNK: tl.constexpr):
    """Store (row - mean) / sqrt(variance + eps) · weight + bias. tiles: zeros beyond column E. out_ptrs:
    [ROWS, CHUNK], of the first tile. live: [ROWS, 1], which rows to write."""
    column = tl.arange(0, CHUNK)[None, :]
    # Lanes add up their own columns first: threads meet once a sum, not once a tile.
    total = tiles[0]
    for i in tl.static_range(1, len(tiles)):
        total += tiles[i]
    mean = (tl.sum(total, axis=1) / E)[:, None]
    squares = tl.zeros_like(total)
    for i in tl.static_range(len(tiles)):
        centred = tiles[i] - mean
        if i * CHUNK + CHUNK > E:
            centred = tl.where(i * CHUNK + column < E, centred, 0.0)
        squares += centred * centred
    scale = tl.rsqrt(tl.sum(squares, axis=1) / E + eps)[:, None]
    for i in tl.static_range(len(tiles)):
        mask = i * CHUNK + column < E
        weight = tl.load(weight_ptr + i * CHUNK + column, mask=mask, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + i * CHUNK + column, mask=mask, other=0.0).to(tl.float32)
        result = (tiles[i] - mean) * scale * weight + bias
        tl.store(out_ptrs + i * CHUNK, result.to(out_ptrs.dtype.element_ty), mask=live & mask)
