"""Softmax's kernels, interpreted: narrow rows in one block, wide ones in several, each path seen taken."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import fixed_order, traffic
from kernel_tools import DTYPES, Fence, assert_op_as_exact, launches, stated_cost
from torch import Tensor

from segue.kernels import softmax

MODULE = importlib.import_module("segue.kernels._softmax")
NARROW, WIDE = "_narrow_softmax_kernel", "_wide_softmax_kernel"
INF = math.inf


def _logits(rows: int, columns: int, dtype: torch.dtype, spread: float = 4) -> Tensor:
    torch.manual_seed(rows + columns)
    return (spread * torch.randn(rows, columns)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("columns", "kernel"), [
    (1, NARROW), (2, NARROW), (16, NARROW), (17, NARROW), (128, NARROW), (1000, NARROW), (4096, NARROW),
    (4097, WIDE), (6145, WIDE),
])  # fmt: skip
def test_as_exact_as_it_may_be_and_touches_what_it_says(
    columns: int, kernel: str, dtype: torch.dtype
) -> None:
    x, fence = _logits(48, columns, dtype), Fence()
    fenced, out = fence.put(x), fence.out((48, columns), dtype)
    with launches() as made, traffic(*fence.tensors) as meter:
        assert softmax(fenced, out=out) is out
    fence.check()
    assert [launch.kernel for launch in made] == [kernel]
    assert_op_as_exact(out, "softmax", x)
    assert meter.total == MODULE.cost(R=48, C=columns, s=dtype.itemsize).bytes


@pytest.mark.parametrize("columns", [3, 5000])
@pytest.mark.parametrize("spread", [1e4, 1e-6])
def test_large_and_small_logits(columns: int, spread: float) -> None:
    x = _logits(4, columns, torch.float32, spread)
    assert_op_as_exact(softmax(x), "softmax", x)


@pytest.mark.parametrize("columns", [4, 5000])
def test_infinities_and_nan_do_as_in_the_twin(columns: int) -> None:
    x = _logits(6, columns, torch.float32)
    x[0, :2], x[1, 2:], x[2] = -INF, -INF, -INF
    x[3, 1], x[4, 3] = INF, torch.nan
    found = softmax(x)
    assert not found[0, :2].any()
    assert not found[1, 2:].any()
    assert torch.allclose(found[[0, 1, 5]].sum(-1), torch.ones(3))
    assert found[2:5].isnan().all()
    assert_op_as_exact(found[[0, 1, 5]], "softmax", x[[0, 1, 5]])


def test_extremes_of_float32() -> None:
    largest = torch.finfo(torch.float32).max
    for columns in (2, 5000):
        x = torch.full((1, columns), -largest)
        x[0, 1] = largest
        assert softmax(x)[0, :2].tolist() == [0, 1]


@pytest.mark.parametrize("columns", [3, 4500])
def test_a_row_has_the_same_bits_whatever_the_batch(columns: int) -> None:
    x = _logits(70, columns, torch.float32) if columns == 3 else _logits(3, columns, torch.float32)
    with fixed_order():
        together = softmax(x)
        for row in (0, 1, len(x) - 1):
            assert torch.equal(softmax(x[row : row + 1]), together[row : row + 1])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.integers(1, 70), columns=st.integers(1, 200), dtype=st.sampled_from(DTYPES))
def test_any_shape(rows: int, columns: int, dtype: torch.dtype) -> None:
    x = _logits(rows, columns, dtype)
    assert_op_as_exact(softmax(x), "softmax", x)


def test_no_rows_launch_nothing() -> None:
    with launches() as made:
        assert softmax(torch.zeros(0, 5)).shape == (0, 5)
    assert not made


def test_it_may_work_in_place() -> None:
    x = _logits(3, 7, torch.float32)
    expected = softmax(x)
    assert softmax(x, out=x) is x
    assert torch.equal(x, expected)


def test_the_docstring_states_the_cost() -> None:
    assert stated_cost(MODULE, R=7, C=300, s=2) == MODULE.cost(R=7, C=300, s=2)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"x": torch.zeros(4, 8, dtype=torch.float64)}, "x: expected float16"),
    "shape": ({"x": torch.zeros(8)}, r"x: expected shape \[any, any\]"),
    "no columns": ({"x": torch.zeros(4, 0)}, "x: expected one column or more"),
    "strides": ({"x": torch.zeros(8, 4).T}, "x: expected a contiguous last axis"),
    "out": ({"out": torch.zeros(4, 9)}, r"out: expected shape \[4, 8\]"),
    "out's dtype": ({"out": torch.zeros(4, 8).half()}, "out: expected float32"),
    "gradient": ({"x": torch.zeros(4, 8, requires_grad=True)}, "x: requires a gradient"),
}


@pytest.mark.parametrize("wrong", BAD)
def test_what_is_wrong_is_said_before_any_launch(wrong: str) -> None:
    change, message = BAD[wrong]
    with launches() as made, pytest.raises(ValueError, match=f"^{message}"):
        softmax(**({"x": torch.zeros(4, 8)} | change))
    assert not made
