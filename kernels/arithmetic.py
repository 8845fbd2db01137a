"""Arithmetic that kernels share: products, and functions that Triton lacks, or has with more around them than
needed here."""

from __future__ import annotations

__all__ = ["exp2", "multiply", "tanh"]

import triton
import triton.language as tl


@triton.jit
def multiply(
    x_ptrs, weight_ptrs, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr, DEPTH: tl.constexpr
):
    """x Wᵀ, [ROWS, COLUMNS] in float32, of rows of K elements. x_ptrs, weight_ptrs: their first DEPTH."""
    product = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for _ in range(K // DEPTH):
        product = _add(tl.load(x_ptrs), tl.load(weight_ptrs), product)
        x_ptrs += DEPTH
        weight_ptrs += DEPTH
    if K % DEPTH:
        inside = tl.arange(0, DEPTH)[None, :] < K % DEPTH
        x, weight = tl.load(x_ptrs, mask=inside, other=0.0), tl.load(weight_ptrs, mask=inside, other=0.0)
        product = _add(x, weight, product)
    return product


@triton.jit
def _add(x, weight, product):
    """product + x Wᵀ of blocks x and weight, for float32 no TF32. There the block is summed by itself, which
    over many blocks errs less than one long sum; matrix units, fed with 16 bits, sum no other way."""
    if x.dtype == tl.float32:
        block = tl.dot(x, weight.T, input_precision="ieee")
        return tl.fma(block, 1.0, product)  # Triton would turn a plain sum into one long sum again
    return tl.dot(x, weight.T, product, input_precision="ieee")


@triton.jit
def exp2(x, PTX: tl.constexpr):
    """2 to the power of x, float32, to 2 units in the last place. PTX: results below 2^-126 are 0."""
    if PTX:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)


@triton.jit
def tanh(x):
    """The hyperbolic tangent of x, float32, to 3 units in the last place. Near zero, where the sigmoid's
    result would cancel, a polynomial fitted on [0, 0.625], to 5e-9 in relative terms."""
    z = x * x
    p = ((-5.7049352e-3 * z + 2.0639043e-2) * z - 5.3739700e-2) * z + 1.3331442e-1
    near = x + x * z * (p * z - 3.3333281e-1)
    return tl.where(tl.abs(x) < 0.625, near, 2.0 * tl.sigmoid(2.0 * x) - 1.0)
