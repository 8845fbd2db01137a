"""AddLayerNorm's kernel, interpreted: exactness, memory, bits, cost and the door.

The pattern for every kernel's test.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from interpreted import traffic
from kernel_tools import DTYPES, HERE, Fence, assert_op_as_exact, launches, stated_cost
from torch import Tensor

from segue.kernels import add_layer_norm

MODULE = importlib.import_module("segue.kernels._add_layer_norm")
KERNEL = "_add_layer_norm_kernel"
EPS = 1e-12


def _inputs(rows: int, hidden: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(rows + hidden)
    x, residual = torch.randn(2, rows, hidden)
    return [t.to(dtype) for t in (x, 2 * residual + 1, 1 + torch.randn(hidden) / 5, torch.randn(hidden))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "hidden"), [(33, 64), (2, 127), (5, 312), (31, 384), (1, 768), (3, 1024)])
def test_as_exact_as_it_may_be_and_touches_what_it_says(rows: int, hidden: int, dtype: torch.dtype) -> None:
    inputs, fence = _inputs(rows, hidden, dtype), Fence()
    fenced = [fence.put(x) for x in inputs]
    out = fence.out((rows, hidden), dtype)
    with launches() as made, traffic(*fence.tensors) as meter:
        assert add_layer_norm(*fenced, EPS, out=out) is out
    fence.check()
    assert [launch.kernel for launch in made] == [KERNEL]
    assert_op_as_exact(out, "add_layer_norm", *inputs, EPS)
    cost = MODULE.cost(T=rows, E=hidden, s=dtype.itemsize)
    assert meter.total == cost.bytes
    assert meter.written == rows * hidden * dtype.itemsize
    assert meter.read_again == 0


@pytest.mark.parametrize(("hidden", "wanted"), [(16, [16, 4, 4, 4]), (128, [16, 2, 2, 2])])
def test_many_rows_take_the_other_line_of_the_table_and_have_the_same_bits(
    hidden: int, wanted: list[int]
) -> None:
    inputs = _inputs(1030, hidden, torch.float16)
    with launches() as made:
        many = add_layer_norm(*inputs, EPS)
        few = [
            add_layer_norm(*(x[row : row + 7] for x in inputs[:2]), *inputs[2:], EPS) for row in (0, 9, 1023)
        ]
    assert [launch.options["ROWS"] for launch in made] == wanted
    assert_op_as_exact(many, "add_layer_norm", *inputs, EPS)
    for row, part in zip((0, 9, 1023), few, strict=True):
        assert torch.equal(part, many[row : row + 7])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_same_bits_whatever_the_batch(dtype: torch.dtype) -> None:
    x, residual, weight, bias = _inputs(9, 384, dtype)
    together = add_layer_norm(x, residual, weight, bias, EPS)
    order = torch.randperm(9)
    assert torch.equal(add_layer_norm(x[order], residual[order], weight, bias, EPS), together[order])
    x[1:], residual[1:] = torch.nan, torch.inf
    assert torch.equal(add_layer_norm(x, residual, weight, bias, EPS)[0], together[0])
    assert torch.equal(add_layer_norm(x[:1], residual[:1], weight, bias, EPS)[0], together[0])


@pytest.mark.parametrize("eps", [1e-12, 0.5])
def test_eps_counts_and_a_constant_row_gives_the_bias(eps: float) -> None:
    x, residual, weight, bias = _inputs(2, 64)
    x[1], residual[1] = 3.0, -1.0
    found = add_layer_norm(x, residual, weight, bias, eps)
    assert_op_as_exact(found, "add_layer_norm", x, residual, weight, bias, eps)
    assert torch.equal(found[1], bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_sum_is_not_rounded(dtype: torch.dtype) -> None:
    _, _, weight, bias = _inputs(1, 64, dtype)
    x = torch.full((1, 64), 1 / torch.finfo(dtype).eps, dtype=dtype)
    residual = torch.tensor([[0.25, -0.25]], dtype=dtype).repeat(1, 32)  # beyond the last bit of x
    assert_op_as_exact(
        add_layer_norm(x, residual, weight, bias, EPS),
        "add_layer_norm", torch.zeros_like(x), residual, weight, bias, EPS,
    )  # fmt: skip


def test_no_rows_launch_nothing() -> None:
    x, residual, weight, bias = _inputs(0, 64)
    with launches() as made:
        assert add_layer_norm(x, residual, weight, bias, EPS).shape == (0, 64)
    assert not made


def test_the_result_may_take_the_place_of_an_input() -> None:
    x, residual, weight, bias = _inputs(5, 64)
    expected = add_layer_norm(x, residual, weight, bias, EPS)
    assert add_layer_norm(x, residual, weight, bias, EPS, out=residual) is residual
    assert torch.equal(residual, expected)


@pytest.mark.parametrize("letters", [{"T": 1, "E": 64, "s": 4}, {"T": 1025, "E": 768, "s": 2}])
def test_the_docstring_states_the_cost(letters: dict[str, int]) -> None:
    assert stated_cost(MODULE, **letters) == MODULE.cost(**letters)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"x": torch.zeros(4, 64, dtype=torch.float64)}, "x: expected float16, bfloat16 or float32"),
    "integers": ({"x": torch.zeros(4, 64, dtype=torch.int32)}, "x: expected float16"),
    "vector": ({"x": torch.zeros(64)}, r"x: expected shape \[any, any\], got \[64\]"),
    "columns": ({"x": torch.zeros(4, 0)}, r"x: expected one column or more, got shape \[4, 0\]"),
    "strides": ({"x": torch.zeros(64, 4).T}, "x: expected a contiguous last axis"),
    "gradient": ({"x": torch.zeros(4, 64, requires_grad=True)}, "x: requires a gradient"),
    "weight's gradient": ({"weight": torch.zeros(64, requires_grad=True)}, "weight: requires a gradient"),
    "rows": ({"residual": torch.zeros(3, 64)}, r"residual: expected shape \[4, 64\], got \[3, 64\]"),
    "other dtype": ({"residual": torch.zeros(4, 64).half()}, "residual: expected float32 as the first"),
    "device": ({"residual": torch.zeros(4, 64, device="meta")}, f"residual: expected it on {HERE}"),
    "weight's size": ({"weight": torch.zeros(63)}, r"weight: expected shape \[64\]"),
    "weight's stride": ({"weight": torch.zeros(128)[::2]}, "weight: expected a contiguous last axis"),
    "weight's dtype": ({"weight": torch.zeros(64).half()}, "weight: expected float32"),
    "bias's size": ({"bias": torch.zeros(65)}, r"bias: expected shape \[64\]"),
    "bias's device": ({"bias": torch.zeros(64, device="meta")}, f"bias: expected it on {HERE}"),
    "out's shape": ({"out": torch.zeros(4, 65)}, r"out: expected shape \[4, 64\]"),
    "out's dtype": ({"out": torch.zeros(4, 64).half()}, "out: expected float32"),
    "out's device": ({"out": torch.zeros(4, 64, device="meta")}, f"out: expected it on {HERE}"),
    "out's rows overlap": ({"out": torch.zeros(300).as_strided((4, 64), (63, 1))}, "out: expected rows"),
    "out's columns": ({"out": torch.zeros(64, 4).T}, "out: expected a contiguous last axis"),
}


@pytest.mark.parametrize("wrong", BAD)
def test_what_is_wrong_is_said_before_any_launch(wrong: str) -> None:
    arguments: dict[str, Any] = dict(zip(("x", "residual", "weight", "bias"), _inputs(4, 64), strict=True))
    change, message = BAD[wrong]
    with launches() as made, pytest.raises(ValueError, match=f"^{message}"):
        add_layer_norm(**(arguments | change), eps=EPS)
    assert not made


def test_gradients_are_fine_where_none_are_kept() -> None:
    x, residual, weight, bias = _inputs(1, 64)
    with torch.no_grad():
        add_layer_norm(x.requires_grad_(), residual, weight.requires_grad_(), bias, EPS)
