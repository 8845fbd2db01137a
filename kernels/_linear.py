"""linear and LinearGelu: x Wᵀ + b, with a residual or an exact GELU in the epilogue of the same product.

Bound by the matrix units for large R, by reading W for small R. With s bytes per element, K the length of a
row of x, N that of a row of the result, residual 1 if there is one and gelu 1 for LinearGelu:

    bytes = s * (R * K + N * K + N + R * N * (1 + residual))
    operations = 2 * R * N * K + R * N * (1 + residual + 4 * gelu)

One program sums an output element over K, from first to last. How many products an instruction adds at once,
and in which order, is the same in all lines of the table for a device and dtype, so a row of the result has
the same bits in any batch, whichever tile and kernel (`products`) computed it.
"""

from __future__ import annotations

__all__ = ["cost", "linear", "linear_gelu"]

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from segue.kernels.dependent import can_prefetch
from segue.kernels.door import check, check_live, check_out
from segue.kernels.launching import Cost, launch, processors, target, unit
from segue.kernels.products import linear_kernel, tensor_linear_kernel


class _Tile(NamedTuple):
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    # programs per processor that make tile after tile, fetched by the tensor memory accelerator; 0: none
    resident: int = 0


_TABLE = (
    # target, bytes of an element, up to so many rows, time per element of the result at the same K: rows,
    # columns and depth of a tile, warps, stages. Of all that fit, the one is taken whose share per processor
    # takes the least time. sm_90's are fitted to an H200 (bench/results/h200.md), whose sums have the same
    # bits whatever the depth; the others are guesses that compile well.
    ("sm_80", 2, None, 2.0, _Tile(32, 32, 64, 4, 4)),
    ("sm_80", 2, None, 1.3, _Tile(64, 64, 64, 4, 4)),
    ("sm_80", 2, None, 1.0, _Tile(128, 128, 64, 8, 3)),
    ("sm_80", 4, None, 1.0, _Tile(64, 64, 32, 4, 3)),
    ("sm_90", 2, None, 2.6, _Tile(64, 16, 128, 4, 4)),
    ("sm_90", 2, None, 2.0, _Tile(64, 32, 128, 4, 4)),
    ("sm_90", 2, None, 1.6, _Tile(64, 64, 64, 4, 6)),
    ("sm_90", 2, 256, 1.28, _Tile(128, 64, 64, 4, 4)),
    ("sm_90", 2, None, 1.3, _Tile(64, 128, 64, 4, 4, resident=2)),
    ("sm_90", 2, None, 1.3, _Tile(64, 128, 64, 4, 4)),
    ("sm_90", 2, None, 1.12, _Tile(128, 128, 64, 8, 4, resident=1)),
    ("sm_90", 2, None, 1.12, _Tile(128, 128, 64, 8, 4)),
    ("sm_90", 2, None, 1.0, _Tile(128, 256, 64, 8, 4, resident=1)),
    ("sm_90", 4, None, 1.0, _Tile(64, 64, 32, 4, 3)),
    ("sm_100", 2, None, 2.0, _Tile(64, 32, 64, 4, 4)),
    ("sm_100", 2, None, 1.3, _Tile(128, 64, 64, 4, 4)),
    ("sm_100", 2, None, 1.0, _Tile(128, 128, 64, 8, 4)),
    ("sm_100", 4, None, 1.0, _Tile(64, 64, 32, 4, 3)),
    ("gfx942", 2, None, 1.3, _Tile(64, 64, 64, 4, 2)),
    ("gfx942", 2, None, 1.0, _Tile(128, 128, 64, 8, 2)),
    ("gfx942", 4, None, 1.0, _Tile(64, 64, 32, 4, 2)),
)
_FEW = 256  # rows, up to which programs ask for their part of W ahead
_GROUP = 8  # rows of tiles that are walked column by column, so that x and W are found in the cache


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    live: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.linear`; the bias and the residual are added to the product in float32.

    Raises:
        ValueError: a tensor is of the wrong shape, dtype, device or stride.
    """
    return _multiply(x, weight, bias, residual, live, out, gelu=False)


def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, *, live: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """As `reference.linear_gelu`; the GELU is applied to the float32 product.

    Raises:
        ValueError: a tensor is of the wrong shape, dtype, device or stride.
    """
    return _multiply(x, weight, bias, None, live, out, gelu=True)


def cost(*, R: int, K: int, N: int, s: int, residual: int = 0, gelu: int = 0) -> Cost:
    """Return the cost of R rows of K elements of s bytes times N columns."""
    return Cost(
        bytes=s * (R * K + N * K + N + R * N * (1 + residual)),
        operations=2 * R * N * K + R * N * (1 + residual + 4 * gelu),
    )


def _multiply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    live: Tensor | None,
    out: Tensor | None,
    *,
    gelu: bool,
) -> Tensor:
    check("x", x, (None, None))
    rows, depth = x.shape
    check("weight", weight, (None, depth), like=x)
    columns = len(weight)
    check("bias", bias, (columns,), like=x)
    if residual is not None:
        check("residual", residual, (rows, columns), like=x)
    check_live(live, like=x)
    out = check_out(out, (rows, columns), like=x, live=live)
    more = x if residual is None else residual
    strides = x.stride(0), weight.stride(0), more.stride(0), out.stride(0)
    step = unit(*strides)
    aligned = step > 1 and x.data_ptr() % 16 == weight.data_ptr() % 16 == 0
    contiguous = x.stride(1) == weight.stride(1) == 1  # a single column need not be
    engine = residual is None and aligned and contiguous and min(strides[:2]) >= depth
    many = processors(x.device)
    tile = _configure(target(x.device), x.dtype, rows, columns, many, engine=engine)
    options = {
        "N": columns, "K": depth, "GELU": gelu,
        "ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth, "GROUP": _GROUP, "UNIT": step,
        "num_warps": tile.warps, "num_stages": tile.stages, "device": x.device,
    }  # fmt: skip
    tiles = triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
    if tile.resident:
        x_desc = _described(x, tile.rows, tile.depth)
        weight_desc = _described(weight, tile.columns, tile.depth)
        programs = tile.resident * many
        launch(
            tensor_linear_kernel, (min(tiles, programs),),
            x_desc, weight_desc, bias, out, live, out.stride(0) // step, rows,
            PROGRAMS=programs, **options,
        )  # fmt: skip
        return out
    launch(
        linear_kernel, (tiles,),
        x, weight, bias, residual, out, live, *(s // step for s in strides), rows,
        PREFETCH=rows <= _FEW and can_prefetch(weight), **options,
    )  # fmt: skip
    return out


def _described(x: Tensor, rows: int, columns: int) -> TensorDescriptor:
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [rows, columns])


def _configure(
    device: str, dtype: torch.dtype, rows: int, columns: int, processors: int, *, engine: bool = True
) -> _Tile:
    """The tile whose share per processor takes the least time, the first of equals. engine: whether the
    tensor memory accelerator can fetch the operands, and there is nothing to add that it does not fetch."""
    times = {}
    for at, (name, size, most, time, tile) in enumerate(_TABLE):
        fits = (most is None or rows <= most) and (engine or not tile.resident)
        if fits and (name, size) == (device, dtype.itemsize):
            tiles = triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
            times[at] = triton.cdiv(tiles, processors) * tile.rows * tile.columns * time
    return _TABLE[min(times, key=times.__getitem__)][-1]
