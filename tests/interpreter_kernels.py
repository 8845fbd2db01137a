"""Kernels that try Triton's interpreter and the tools of the tests, good ones and bad. Imports nothing of
segue, so that a fresh process can run them on the interpreter as it comes."""

import triton
import triton.language as tl


@triton.jit
def convert(x_ptr, out_ptr, SIZE: tl.constexpr, ROUNDING: tl.constexpr = None):
    i = tl.arange(0, SIZE)
    x = tl.load(x_ptr + i)
    if ROUNDING is not None:
        x = x.to(out_ptr.dtype.element_ty, fp_downcast_rounding=ROUNDING)
    tl.store(out_ptr + i, x.to(out_ptr.dtype.element_ty))


@triton.jit
def store_sum(x_ptr, out_ptr, SIZE: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, SIZE)).to(tl.float32)
    tl.store(out_ptr, tl.sum(x * 2, axis=0))
    tl.store(out_ptr + 1, tl.max(x, axis=0))


@triton.jit
def native(x_ptr, out_ptr, WHAT: tl.constexpr):
    """Arithmetic on x in its own dtype."""
    i = tl.arange(0, 16)
    x = tl.load(x_ptr + i)
    if WHAT == "add":
        tl.store(out_ptr + i, x + x)
    if WHAT == "multiply":
        tl.store(out_ptr + i, x * x)
    if WHAT == "negate":
        tl.store(out_ptr + i, -x)
    if WHAT == "compare":
        tl.store(out_ptr + i, tl.where(x > x, x, x))
    if WHAT == "sum":
        tl.store(out_ptr, tl.sum(x, axis=0))
    if WHAT == "fma":
        tl.store(out_ptr + i, tl.fma(x, x, x))
    if WHAT == "atomic":
        tl.atomic_add(out_ptr + i, x)
    # what moves bits, or converts by itself, is right
    if WHAT == "where":
        tl.store(out_ptr + i, tl.where(i < 8, x, tl.abs(x)))
    if WHAT == "maximum":
        tl.store(out_ptr + i, tl.maximum(x, tl.zeros_like(x)))
    if WHAT == "max":
        tl.store(out_ptr, tl.max(x, axis=0))
    if WHAT == "cumsum":
        tl.store(out_ptr + i, tl.cumsum(x, axis=0))


@triton.jit
def matmul(
    a_ptr, b_ptr, out_ptr, rows, columns, inner, b_strides,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ACCUMULATE: tl.constexpr = True,
):  # fmt: skip
    """out [rows, columns] in float32. `range` runs over an argument."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, inner, BLOCK_K):
        k_a, k_b = start + k[None, :], start + k[:, None]
        a = tl.load(a_ptr + m * inner + k_a, mask=(m < rows) & (k_a < inner), other=0.0)
        b_ptrs = b_ptr + k_b * b_strides[0] + n * b_strides[1]
        b = tl.load(b_ptrs, mask=(n < columns) & (k_b < inner), other=0.0)
        if ACCUMULATE:
            total = tl.dot(a, b, total, input_precision="ieee")
        else:
            total += tl.dot(a, b, input_precision="ieee")
    tl.store(out_ptr + m * columns + n, total, mask=(m < rows) & (n < columns))


@triton.jit
def batched(a_ptr, b_ptr, out_ptr):
    """out [2, 16, 16] of bfloat16, a and b likewise."""
    i = tl.arange(0, 16)
    offs = tl.arange(0, 2)[:, None, None] * 256 + i[None, :, None] * 16 + i[None, None, :]
    tl.store(out_ptr + offs, tl.dot(tl.load(a_ptr + offs), tl.load(b_ptr + offs)).to(tl.bfloat16))


@triton.jit
def copy(
    x_ptr, out_ptr, x_stride, out_stride, rows, columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FAULT: tl.constexpr = None,
):  # fmt: skip
    """out = x, with one fault or none."""
    i = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    j = tl.arange(0, COLUMNS)[None, :]
    here = (i < rows) & (j < columns)
    reading, writing = here, here
    if FAULT == "reads a column too many":
        reading = (i < rows) & (j < columns + 1)
    if FAULT == "writes a column too many":
        writing = (i < rows) & (j < columns + 1)
    if FAULT == "writes a row too many":
        writing = (i < rows + 1) & (j < columns)
    if FAULT == "leaves out a column":
        writing = (i < rows) & (j < columns - 1)
    x = tl.load(x_ptr + i * x_stride + j, mask=reading, other=0.0)
    if FAULT == "reads twice":
        x = (x + tl.load(x_ptr + i * x_stride + j, mask=reading, other=0.0)) * 0.5
    if FAULT == "sums a column too many":
        reading = (i < rows) & (j < columns + 1)
        wide = tl.load(x_ptr + i * x_stride + j, mask=reading, other=0.0)
        x = x + 0 * tl.sum(wide, axis=1)[:, None]
    if FAULT == "writes to its input":
        tl.store(x_ptr + i * x_stride + j, x + 1, mask=here)
    tl.store(out_ptr + i * out_stride + j, x, mask=writing)


@triton.jit
def count(out_ptr, SIZE: tl.constexpr):
    tl.atomic_add(out_ptr + tl.arange(0, SIZE), 1)
