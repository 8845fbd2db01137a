"""`live` rows and `first_rows`: a launch made for many rows serves fewer. Kernels, interpreted, and twins."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from interpreted import traffic
from kernel_tools import DTYPES, Fence, launches, stated_cost
from torch import Tensor

from segue import kernels
from segue.kernels import first_rows, reference

MODULE = importlib.import_module("segue.kernels._first_rows")


def _calls(rows: int, dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    torch.manual_seed(rows)
    x, residual = torch.randn(2, rows, 64).to(dtype)
    weight, bias = torch.randn(70, 64).to(dtype) / 8, torch.randn(70).to(dtype)
    scale, shift = torch.randn(2, 64).to(dtype)
    ids = [torch.randint(0, n, (rows,)) for n in (9, 2, 7)]
    tables = [torch.randn(n, 64).to(dtype) for n in (9, 2, 7)]
    return {
        "linear": (x, weight, bias),
        "linear with a residual": (x, weight, bias, torch.randn(rows, 70).to(dtype)),
        "linear_gelu": (x, weight, bias),
        "add_layer_norm": (x, residual, scale, shift, 1e-12),
        "embed": (*ids, *tables, scale, shift, 1e-12),
    }


OPS = tuple(_calls(1, torch.float32))


@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("count", [0, 1, 33, 90])
@pytest.mark.parametrize("op", OPS)
def test_only_live_rows_are_read_and_written(op: str, count: int, integer: torch.dtype) -> None:
    name = op.partition(" ")[0]
    arguments, live = _calls(90, torch.float16)[op], torch.tensor([count], dtype=integer)
    expected = getattr(kernels, name)(*arguments)
    arguments = tuple(_spoilt(x, count) for x in arguments)
    out = torch.full_like(expected, 7)
    with launches() as made:
        assert getattr(kernels, name)(*arguments, live=live, out=out) is out
    assert len(made) == 1
    assert torch.equal(out[:count], expected[:count])
    assert (out[count:] == 7).all()


@pytest.mark.parametrize("op", OPS)
def test_more_live_rows_than_there_are_count_as_all(op: str) -> None:
    name, arguments = op.partition(" ")[0], _calls(3, torch.float16)[op]
    expected = getattr(kernels, name)(*arguments)
    memory = torch.full((64, expected.shape[1]), 7.0).half()
    getattr(kernels, name)(*arguments, live=torch.tensor([64]), out=memory[:3])
    assert torch.equal(memory[:3], expected)
    assert (memory[3:] == 7).all()


def _spoilt(x: Any, count: int) -> Any:
    """Rows that do not count become NaN, or ids out of any table."""
    if not isinstance(x, Tensor) or len(x) != 90:
        return x
    x = x.clone()
    x[count:] = torch.nan if x.is_floating_point() else 2**30
    return x


@pytest.mark.parametrize("op", OPS)
def test_without_out_the_other_rows_are_zero_in_kernel_and_twin(op: str) -> None:
    name, arguments, live = op.partition(" ")[0], _calls(40, torch.float32)[op], torch.tensor([5])
    found, expected = (getattr(module, name)(*arguments, live=live) for module in (kernels, reference))
    assert not found[5:].any()
    assert not expected[5:].any()
    assert torch.allclose(found[:5], expected[:5], atol=1e-5)
    assert torch.allclose(expected[:5], getattr(reference, name)(*arguments)[:5], atol=1e-6)


@pytest.mark.parametrize("live", [torch.tensor([1.0]), torch.tensor([1, 2]), torch.tensor(1)])
@pytest.mark.parametrize("op", OPS)
def test_live_is_one_integer(op: str, live: Tensor) -> None:
    with launches() as made, pytest.raises(ValueError, match=r"^live: expected"):
        getattr(kernels, op.partition(" ")[0])(*_calls(4, torch.float32)[op], live=live)
    assert not made


@pytest.mark.parametrize("bounds", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", [64, 312, 1100])
def test_first_rows(hidden: int, dtype: torch.dtype, bounds: torch.dtype) -> None:
    lengths = (2, 0, 5, 1, 0)
    x, cu = torch.randn(8, hidden).to(dtype), torch.tensor([0, 2, 2, 7, 8, 8], dtype=bounds)
    fence = Fence()
    fenced, guarded, out = fence.put(x), fence.put(cu), fence.out((5, hidden), dtype)
    with launches() as made, traffic(*fence.tensors) as meter:
        assert first_rows(fenced, guarded, out=out) is out
    fence.check()
    assert len(made) == 1
    assert torch.equal(out, reference.first_rows(x, cu))
    assert torch.equal(out[[0, 2, 3]], x[[0, 2, 7]])
    assert not out[[1, 4]].any()
    letters = {"lengths": lengths, "E": hidden, "s": dtype.itemsize, "i": bounds.itemsize}
    # every program along the columns reads the bounds again, which are counted once
    assert meter.total == MODULE.cost(**letters).bytes
    assert stated_cost(MODULE, B=5, **letters) == MODULE.cost(**letters)


def test_first_rows_says_what_is_wrong() -> None:
    x, cu = torch.zeros(4, 8), torch.tensor([0, 4])
    for arguments, message in (
        ((x, cu.float()), "cu_seqlens: expected int32 or int64"),
        ((x, cu[:0]), "cu_seqlens: expected a bound more"),
        ((x.double(), cu), "x: expected float16"),
        ((x.T.contiguous().T, cu), "x: expected a contiguous last axis"),
    ):
        with launches() as made, pytest.raises(ValueError, match=f"^{message}"):
            first_rows(*arguments)
        assert not made
    with pytest.raises(ValueError, match=r"^out: expected shape \[1, 8\]"):
        first_rows(x, cu, out=x)


def test_logits_may_be_float32_whatever_the_weights_are() -> None:
    torch.manual_seed(0)
    arguments = [x.half() for x in (torch.randn(3, 64), torch.randn(64, 64) / 8, *torch.randn(3, 64))]
    arguments[3:] = [arguments[3][None].repeat(2, 1), torch.zeros(2).half()]
    out = torch.empty(3, 2)
    kernels.pool_classify(*arguments, out=out)
    exact = reference.pool_classify(*(x.double() for x in arguments))
    assert (out - exact).abs().max() < 1e-5 < (exact.half().double() - exact).abs().max()
    with pytest.raises(ValueError, match=r"^out: expected float16"):
        kernels.pool_classify(*arguments, out=out.bfloat16())
