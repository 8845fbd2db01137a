"""Triton's interpreter, mended: bfloat16 as a GPU has it, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import interpreter_kernels as kernels
import pytest
import torch
from kernel_tools import run_python
from torch import Tensor
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import InterpreterBuilder

from segue.kernels import launching
from segue.kernels.interpreter import mend

BFLOAT16, INFINITY = torch.bfloat16, float("inf")
# float32 bits → bfloat16 bits
ROUNDING = {
    "exact": (0x3F80_0000, 0x3F80),
    "below half": (0x3F80_7FFF, 0x3F80),
    "a tie goes down to even": (0x3F80_8000, 0x3F80),
    "a tie goes up to even": (0x3F81_8000, 0x3F82),
    "above half": (0x3F80_8001, 0x3F81),
    "carries into the exponent": (0x3FFF_8000, 0x4000),
    "negative": (0xBF81_8000, 0xBF82),
    "the largest becomes infinite": (0x7F7F_FFFF, 0x7F80),
    "infinity": (0xFF80_0000, 0xFF80),
    "minus zero": (0x8000_0000, 0x8000),
    "subnormal": (0x0000_8001, 0x0001),
}


def _bits(values: list[int], dtype: torch.dtype) -> Tensor:
    """A tensor of these bits."""
    size = dtype.itemsize * 8
    signed = [value - (1 << size) if value >> (size - 1) else value for value in values]
    return torch.tensor(signed, dtype={16: torch.int16, 32: torch.int32}[size]).view(dtype)


def _convert(x: Tensor, dtype: torch.dtype, **options: str) -> Tensor:
    out = torch.empty(x.shape, dtype=dtype)
    kernels.convert[(1,)](x, out, SIZE=x.numel(), **options)
    return out


def _eighths(*shape: int) -> Tensor:
    """Numbers whose products and sums float32 holds exactly, in any order."""
    return torch.randint(-16, 17, shape) / 8


@pytest.mark.parametrize("case", ROUNDING)
@pytest.mark.parametrize("options", [{}, {"ROUNDING": "rtne"}], ids=["default", "asked for"])
def test_float32_is_rounded_to_the_nearest_bfloat16_ties_to_even(case: str, options: dict[str, str]) -> None:
    source, wanted = ROUNDING[case]
    found = _convert(_bits([source], torch.float32), BFLOAT16, **options)
    assert found.view(torch.int16).item() & 0xFFFF == wanted


@pytest.mark.parametrize("bits", [0x7FC0_0000, 0x7F80_0001, 0xFF80_0001, 0x7FFF_FFFF])
def test_nan_stays_nan(bits: int) -> None:
    assert _convert(_bits([bits], torch.float32), BFLOAT16).isnan().all()


def test_every_bfloat16_becomes_its_float32_and_returns() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(BFLOAT16)
    wide = _convert(every, torch.float32)
    assert torch.equal(wide.view(torch.int32), every.float().view(torch.int32))
    assert torch.equal(_convert(wide, BFLOAT16).nan_to_num(7), every.nan_to_num(7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32, torch.int64], ids=str)
def test_casts_from_and_to_other_dtypes_are_pytorchs(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 1.5, -2.25, 100.0, -7.0, 3.0, 1 / 3, 60000.0])
    assert torch.equal(_convert(x.bfloat16(), dtype), x.bfloat16().to(dtype))
    assert torch.equal(_convert(x.to(dtype), BFLOAT16), x.to(dtype).bfloat16())


def test_towards_zero_when_asked() -> None:
    found = _convert(_bits([0x3F80_FFFF, 0xBF80_FFFF], torch.float32), BFLOAT16, ROUNDING="rtz")
    assert found.tolist() == [1, -1]


def test_float16_rounds_to_nearest_even_when_asked() -> None:
    x = torch.tensor([1 + 2**-11, 1 + 3 * 2**-11, 2 - 2**-12, 65519.0, 1e-7, INFINITY, -INFINITY, 2**-24])
    assert torch.equal(_convert(x, torch.float16, ROUNDING="rtne"), x.half())


@pytest.mark.parametrize("dtype", [BFLOAT16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("accumulate", [True, False])
def test_dot_is_pytorchs_with_a_float32_sum(dtype: torch.dtype, accumulate: bool) -> None:
    torch.manual_seed(0)
    a, b = _eighths(16, 40), _eighths(40, 16)
    out = torch.empty(16, 16)
    kernels.matmul[(1, 1)](
        a.to(dtype), b.to(dtype), out, 16, 16, 40, b.stride(),
        BLOCK_M=16, BLOCK_N=16, BLOCK_K=32, ACCUMULATE=accumulate,
    )  # fmt: skip
    assert torch.equal(out, a @ b)


def test_dot_in_three_dimensions() -> None:
    torch.manual_seed(0)
    a, b = _eighths(2, 16, 16).bfloat16(), _eighths(2, 16, 16).bfloat16()
    out = torch.empty(2, 16, 16, dtype=BFLOAT16)
    kernels.batched[(1,)](a, b, out)
    assert torch.equal(out, (a.float() @ b.float()).bfloat16())


def test_sum_and_max_of_what_was_widened() -> None:
    torch.manual_seed(0)
    x = _eighths(64).bfloat16()
    out = torch.empty(2, dtype=BFLOAT16)
    kernels.store_sum[(1,)](x, out, SIZE=64)
    assert torch.equal(out, torch.stack([2 * x.float().sum(), x.float().max()]).bfloat16())


NATIVE = ["add", "multiply", "negate", "compare", "sum", "fma", "atomic"]


@pytest.mark.parametrize("what", NATIVE)
def test_arithmetic_on_bfloat16_itself_is_refused(what: str) -> None:
    message = "Unsupported data type" if what == "atomic" else "bfloat16: the interpreter"
    with pytest.raises(InterpreterError, match=message):
        kernels.native[(1,)](torch.ones(16, dtype=BFLOAT16), torch.ones(16, dtype=BFLOAT16), WHAT=what)
    kernels.native[(1,)](torch.ones(16), torch.ones(16), WHAT=what)  # on float32 it is not


def test_what_moves_bits_or_widens_by_itself_is_right() -> None:
    x, out = -torch.arange(16).bfloat16() / 8, torch.zeros(16, dtype=BFLOAT16)
    kernels.native[(1,)](x, out, WHAT="where")
    assert torch.equal(out, torch.cat([x[:8], x[8:].abs()]))
    kernels.native[(1,)](x, out, WHAT="maximum")
    assert torch.equal(out, torch.zeros(16, dtype=BFLOAT16))
    kernels.native[(1,)](x - 1, out, WHAT="max")
    assert out[0] == -1
    kernels.native[(1,)](x, out, WHAT="cumsum")
    assert torch.equal(out, x.float().cumsum(0).bfloat16())


def test_a_second_mend_does_nothing() -> None:
    before = dict(vars(InterpreterBuilder))
    mend()
    assert dict(vars(InterpreterBuilder)) == before


FRESH = f"""
import json, sys
sys.path.append({str(Path(__file__).parent)!r})
import torch, interpreter_kernels as kernels
if MENDED:
    import segue.kernels.launching
a, out, rounded = torch.ones(16, 16).bfloat16(), torch.empty(16, 16), torch.empty(2).bfloat16()
kernels.convert[(1,)](torch.tensor([1 + 3 * 2.0**-8, 3.0]), rounded, SIZE=2)
summed = torch.zeros(16).bfloat16()
try:
    kernels.native[(1,)](torch.ones(16).bfloat16(), summed, WHAT="sum")
except Exception:
    summed = None
try:
    kernels.matmul[(1, 1)](a, a, out, 16, 16, 16, a.stride(), BLOCK_M=16, BLOCK_N=16, BLOCK_K=16)
except Exception:  # triton 3.6 with NumPy 2.4, for `range`
    out = None
print(json.dumps([rounded.tolist(), *(x if x is None else x.flatten()[0].item() for x in (summed, out))]))
"""


def test_without_the_mend_all_this_is_wrong() -> None:
    right = json.loads(run_python(FRESH.replace("MENDED", "True"), interpreted=True))
    assert right == [[1 + 2**-6, 3.0], None, 16.0]
    wrong = json.loads(run_python(FRESH.replace("MENDED", "False"), interpreted=True))
    assert wrong[0] == [1 + 2**-7, 3.0]  # cut off
    assert wrong[1] != 16.0
    assert wrong[2] != 16.0


def test_where_kernels_are_compiled_the_interpreter_is_left_alone() -> None:
    code = (
        "from segue.kernels import launching; from triton.runtime.interpreter import InterpreterBuilder;"
        "print(launching.INTERPRETED, InterpreterBuilder.cast_impl.__module__)"
    )
    assert run_python(code, interpreted=False).split() == ["False", "triton.runtime.interpreter"]
    assert launching.INTERPRETED
    assert str(Path(__file__).parent.parent) not in sys.path
