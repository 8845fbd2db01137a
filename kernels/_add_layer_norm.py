"""AddLayerNorm: LayerNorm(x + residual), each row read once and written once.

Memory-bound. With s bytes per element:

    bytes = s * (3 * T * E + 2 * E)
    operations = 8 * T * E

The residual is added here, not in the epilogue of the preceding product: either way five T · E pass through
memory from the product's input to the normalised rows, and here the sum is not rounded to 16 bits.
"""

from __future__ import annotations

__all__ = ["add_layer_norm", "cost"]

import triton
import triton.language as tl
from torch import Tensor

from segue.kernels.dependent import begin
from segue.kernels.door import check, check_columns, check_live, check_out
from segue.kernels.launching import Cost, launch, target, unit
from segue.kernels.normalize import chunk_of, normalize, rows_of


@triton.jit(do_not_specialize=["rows"])
def _add_layer_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, out_ptr, live_ptr,
    x_stride, residual_stride, out_stride,
    rows, eps,
    E: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, UNIT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    begin(EARLY)
    if live_ptr is not None:
        rows = tl.minimum(rows, tl.load(live_ptr).to(tl.int32))
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    live = row < rows
    row = row.to(tl.int64)
    column = tl.arange(0, CHUNK)[None, :]
    tiles = ()
    for i in tl.static_range((E + CHUNK - 1) // CHUNK):  # triton 3.6 makes no constant of tl.cdiv
        mask = live & (i * CHUNK + column < E)
        x = tl.load(x_ptr + row * (x_stride * UNIT) + i * CHUNK + column, mask=mask, other=0.0).to(tl.float32)
        residual_ptrs = residual_ptr + row * (residual_stride * UNIT) + i * CHUNK + column
        tiles += (x + tl.load(residual_ptrs, mask=mask, other=0.0).to(tl.float32),)
    normalize(tiles, weight_ptr, bias_ptr, out_ptr + row * (out_stride * UNIT) + column, live, eps, E, CHUNK)


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    live: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.add_layer_norm`, one program for a few rows.

    Raises:
        ValueError: a tensor is of the wrong shape, dtype, device or stride, or x has no columns.
    """
    check("x", x, (None, None))
    check_columns("x", x)
    rows, hidden = x.shape
    check("residual", residual, (rows, hidden), like=x)
    check("weight", weight, (hidden,), like=x)
    check("bias", bias, (hidden,), like=x)
    check_live(live, like=x)
    out = check_out(out, (rows, hidden), like=x, live=live)
    block, warps = rows_of(target(x.device), hidden, rows)
    strides = x.stride(0), residual.stride(0), out.stride(0)
    step = unit(*strides)
    launch(
        _add_layer_norm_kernel, (triton.cdiv(rows, block),),
        x, residual, weight, bias, out, live, *(s // step for s in strides), rows, eps,
        E=hidden, CHUNK=chunk_of(hidden), ROWS=block, UNIT=step, num_warps=warps, device=x.device,
    )  # fmt: skip
    return out


def cost(*, T: int, E: int, s: int) -> Cost:
    """Return the cost of T rows of E elements of s bytes."""
    return Cost(bytes=s * (3 * T * E + 2 * E), operations=8 * T * E)
