"""The tools that judge kernels, judged: each fault that they are for is found, and what is right passes."""

from __future__ import annotations

import types

import eager_formulas
import interpreter_kernels as kernels
import pytest
import torch
from interpreted import fixed_order, traffic
from kernel_tools import DTYPES, Fence, Launch, assert_as_exact, assert_op_as_exact, launches, stated_cost
from test_reference import CALLS
from torch import Tensor
from triton.runtime.errors import InterpreterError

from segue.kernels import reference
from segue.kernels.launching import Cost, launch


def _matmul(a: Tensor, b: Tensor, m: int = 16, n: int = 16, k: int = 32) -> Tensor:
    (rows, inner), columns = a.shape, b.shape[1]
    out = torch.empty(rows, columns)
    kernels.matmul[(-(-rows // m), -(-columns // n))](
        a, b, out, rows, columns, inner, b.stride(), BLOCK_M=m, BLOCK_N=n, BLOCK_K=k
    )
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@fixed_order()
def test_in_a_fixed_order_a_row_has_the_same_bits_in_any_tile(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(40, 96).to(dtype), torch.randn(96, 33).to(dtype)
    whole = _matmul(a, b)
    torch.testing.assert_close(whole, a.float() @ b.float())
    assert torch.equal(_matmul(a, b, m=64, n=32), whole)
    assert torch.equal(_matmul(a[:1], b, m=1), whole[:1])
    assert torch.equal(_matmul(a[7:9], b[:, 32:]), whole[7:9, 32:])
    assert torch.equal(_matmul(a.flip(0).contiguous(), b.T.contiguous().T), whole.flip(0))
    assert not torch.equal(_matmul(a, b, k=64), whole)  # what does change the order shows


@fixed_order()
def test_a_fixed_order_in_three_dimensions() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 2, 16, 16).bfloat16()
    out = torch.empty(2, 16, 16, dtype=torch.bfloat16)
    kernels.batched[(1,)](a, b, out)
    assert_as_exact(out, a @ b, a.double() @ b.double())


@fixed_order()
def test_a_fixed_order_of_sums() -> None:
    x = torch.randn(64)
    out = torch.empty(2)
    kernels.store_sum[(1,)](x, out, SIZE=64)
    torch.testing.assert_close(out, torch.stack([2 * x.sum(), x.max()]))


def _copy(fence: Fence, x: Tensor, fault: str | None = None) -> Tensor:
    source, out = fence.put(x), fence.out(tuple(x.shape), x.dtype)
    kernels.copy[(-(-len(x) // 4),)](
        source, out, source.stride(0), out.stride(0), *x.shape, ROWS=4, COLUMNS=8, FAULT=fault
    )
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64], ids=str)
def test_a_fence_and_a_meter_let_a_good_kernel_pass(dtype: torch.dtype) -> None:
    fence, x = Fence(), torch.arange(35).reshape(7, 5).to(dtype)
    with traffic() as meter:
        out = _copy(fence, x)
    fence.check()
    assert torch.equal(out, x)
    assert (meter.read, meter.written, meter.read_again) == (35 * dtype.itemsize, 35 * dtype.itemsize, 0)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("writes a column too many", r"tensor 1, \[7, 5\]: 7 elements were written that are none"),
        ("writes a row too many", "5 elements were written that are none"),
        ("leaves out a column", "7 elements were not written"),
        ("writes to its input", "tensor 0.* 35 elements were written"),
    ],
)
def test_a_fence_finds_stray_and_missing_writes(fault: str, message: str) -> None:
    fence = Fence()
    _copy(fence, torch.randn(7, 5).half(), fault)
    with pytest.raises(AssertionError, match=message):
        fence.check()


def test_a_fence_makes_what_is_read_outside_show() -> None:
    fence, x = Fence(), torch.randn(7, 5)
    out = _copy(fence, x, "sums a column too many")
    fence.check()
    with pytest.raises(AssertionError):
        assert_as_exact(out, x, x.double())


def test_a_fenced_vector_is_contiguous_and_poisoned_on_both_sides() -> None:
    fence = Fence()
    ids = fence.put(torch.tensor([3, 4], dtype=torch.int32))
    assert ids.is_contiguous()
    around = ids.as_strided((4,), (1,), ids.storage_offset() - 1)
    assert around.tolist() == [2**30, 3, 4, 2**30]
    fence.check()


def test_a_meter_finds_what_is_read_twice_or_too_much() -> None:
    x = torch.randn(7, 5)
    with traffic() as meter:
        _copy(Fence(), x, "reads twice")
    assert (meter.read, meter.read_again) == (140, 140)
    with traffic() as meter:
        _copy(Fence(), x, "reads a column too many")
    assert (meter.read, meter.written) == (168, 140)
    with traffic() as meter:  # another program's read does not count as again
        _copy(fence := Fence(), x[:4])
        kernels.copy[(3, 2)](*fence.tensors, 13, 13, 4, 5, ROWS=4, COLUMNS=8)
    assert (meter.read, meter.written, meter.read_again) == (80, 80, 0)


@pytest.mark.parametrize("fault", ["reads a column too many", "writes a row too many"])
def test_a_meter_with_tensors_refuses_what_lies_outside(fault: str) -> None:
    fence = Fence()
    x, out = fence.put(torch.randn(7, 5)), fence.out((7, 5), torch.float32)
    arguments = (x, out, x.stride(0), out.stride(0), 7, 5)
    with traffic(x, out):
        kernels.copy[(2,)](*arguments, ROWS=4, COLUMNS=8)
    with (
        traffic(x, out),
        pytest.raises(InterpreterError, match=r"bytes (read|written) outside of the tensors"),
    ):
        kernels.copy[(2,)](*arguments, ROWS=4, COLUMNS=8, FAULT=fault)
    fence.check()


def test_a_meter_sees_atomics() -> None:
    with traffic(total := torch.zeros(4, dtype=torch.int32)) as meter:
        kernels.count[(3,)](total, SIZE=4)
    assert total.tolist() == [3] * 4
    assert (meter.read, meter.written, meter.read_again) == (16, 16, 0)


def test_launches_are_noted_and_take_place() -> None:
    x, out = torch.randn(4, 5), torch.zeros(4, 5)
    with launches() as made:
        launch(kernels.copy, (1,), x, out, 5, 5, 4, 5, ROWS=4, COLUMNS=8, device=x.device)
        launch(kernels.copy, (0,), x, out, 5, 5, 4, 5, ROWS=4, COLUMNS=8, device=x.device)
    assert made == [Launch("copy", (1,), {"ROWS": 4, "COLUMNS": 8, "enable_fp_fusion": True})]
    assert torch.equal(out, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", CALLS)
def test_the_twins_are_as_exact_as_kernels_must_be(op: str, dtype: torch.dtype, monkeypatch) -> None:
    """And `eager_formulas` has the same ops with the same meaning."""
    torch.manual_seed(0)
    x = torch.randn(5, 24).to(dtype)
    found, exact = CALLS[op](x), CALLS[op](x.double())
    monkeypatch.setattr(reference, op, getattr(eager_formulas, op))
    call = (lambda x: eager_formulas.softmax(x)) if op == "softmax" else CALLS[op]
    torch.testing.assert_close(call(x.double()), exact)
    assert_as_exact(found, call(x), exact)


def test_a_result_that_is_too_wrong_is_found() -> None:
    torch.manual_seed(0)
    arguments = [torch.randn(*size).half() for size in ((64, 96), (40, 96), (40,))]
    found = reference.linear(*arguments)
    assert_op_as_exact(found, "linear", *arguments)
    shifted = found.clone()
    shifted[0, 0] += 0.1
    few, many = found.clone(), found * 1.002
    few[3] = found[4]
    for wrong in (shifted, few, many, found.index_fill(0, torch.tensor([2]), torch.nan)):
        with pytest.raises(AssertionError):
            assert_op_as_exact(wrong, "linear", *arguments)
    with pytest.raises(AssertionError):
        assert_op_as_exact(found.float(), "linear", *arguments)


def test_a_stated_cost_is_read_from_the_docstring() -> None:
    module = types.ModuleType("some")
    module.__doc__ = "Some.\n\n    bytes = s * T\n    operations = sum(n * E for n in lengths)\n"
    assert stated_cost(module, s=2, T=3, E=5, lengths=[1, 2]) == Cost(bytes=6, operations=15)
