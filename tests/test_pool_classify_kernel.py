"""PoolClassify's kernels, interpreted: two products and a tanh, nothing rounded between them."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import fixed_order, traffic
from kernel_tools import DTYPES, HERE, Fence, assert_op_as_exact, launches, stated_cost
from torch import Tensor

from segue.kernels import pool_classify
from segue.kernels.reference import linear

MODULE = importlib.import_module("segue.kernels._pool_classify")
NAMES = ("cls", "pooler_weight", "pooler_bias", "classifier_weight", "classifier_bias")


def _inputs(pairs: int, hidden: int, labels: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(pairs + hidden + labels)
    shapes = (pairs, hidden), (hidden, hidden), (hidden,), (labels, hidden), (labels,)
    scales = 1, hidden**-0.5, 0.5, 4 * hidden**-0.5, 1
    return [(torch.randn(shape) * scale).to(dtype) for shape, scale in zip(shapes, scales, strict=True)]


def _measure(pairs: int, hidden: int, labels: int, dtype: torch.dtype) -> None:
    """Run it between fences and check twin and poison."""
    inputs, fence = _inputs(pairs, hidden, labels, dtype), Fence()
    fenced, out = [fence.put(x) for x in inputs], fence.out((pairs, labels), dtype)
    pooled = fence.out((pairs, hidden), torch.float32)
    with launches() as made:
        assert pool_classify(*fenced, pooled=pooled, out=out) is out
    fence.check()
    assert [launch.kernel for launch in made] == ["_pool_kernel", "_classify_kernel"]
    assert torch.allclose(pooled, torch.tanh(linear(*(x.float() for x in inputs[:3]))), atol=1e-5)
    assert_op_as_exact(out, "pool_classify", *inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("pairs", "hidden", "labels"), [
    (1, 384, 2), (33, 64, 1), (17, 120, 3), (2, 72, 40),
])  # fmt: skip
def test_as_exact_as_it_may_be(pairs: int, hidden: int, labels: int, dtype: torch.dtype) -> None:
    _measure(pairs, hidden, labels, dtype)


@pytest.mark.parametrize("hidden", [768, 1024])
def test_the_sizes_of_real_models(hidden: int) -> None:
    _measure(2, hidden, 2, torch.float16)


@pytest.mark.parametrize(("pairs", "hidden", "labels"), [(17, 64, 1), (2, 72, 40)])
def test_it_touches_what_it_says(pairs: int, hidden: int, labels: int) -> None:
    fence = Fence()
    fenced = [fence.put(x) for x in _inputs(pairs, hidden, labels, torch.float16)]
    out, pooled = fence.out((pairs, labels), torch.float16), fence.out((pairs, hidden), torch.float32)
    with traffic(*fence.tensors) as meter:
        pool_classify(*fenced, pooled=pooled, out=out)
    assert meter.total == MODULE.cost(B=pairs, E=hidden, C=labels, s=2).bytes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_same_bits_whatever_the_batch(dtype: torch.dtype) -> None:
    """With the interpreter's products in a fixed order, in place of NumPy's BLAS."""
    cls, *weights = _inputs(40, 72, 3, dtype)
    with fixed_order():
        together = pool_classify(cls, *weights)
        for rows in (slice(0, 1), slice(15, 18), slice(39, 40)):
            assert torch.equal(pool_classify(cls[rows], *weights), together[rows])


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    pairs=st.integers(4, 40),
    hidden=st.integers(16, 100),
    labels=st.integers(1, 20),
    dtype=st.sampled_from(DTYPES),
)
def test_any_shape(pairs: int, hidden: int, labels: int, dtype: torch.dtype) -> None:
    _measure(pairs, hidden, labels, dtype)


def test_what_lies_between_may_have_a_stride_of_its_own() -> None:
    inputs, pooled = _inputs(3, 16, 2), torch.full((3, 19), torch.nan)[:, :16]
    assert torch.equal(pool_classify(*inputs, pooled=pooled), pool_classify(*inputs))


def test_nothing_is_rounded_between_the_products() -> None:
    """The classifier subtracts the rounded tanh, and what rounding would have lost is left."""
    one, half = torch.ones(1, 1).half(), torch.full((1, 1), 0.5).half()
    tanh = torch.tanh(torch.tensor([0.5]))
    found = pool_classify(one, half, torch.zeros(1).half(), one, -tanh.half())
    lost = (tanh - tanh.half().float()).item()
    assert lost != 0
    assert found.item() == pytest.approx(lost, rel=1e-2)


def test_large_values_saturate() -> None:
    cls, pooler, *rest = _inputs(3, 64, 2)
    found = pool_classify(100 * cls, 100 * pooler, *rest)
    assert_op_as_exact(found, "pool_classify", 100 * cls, 100 * pooler, *rest)


@pytest.mark.parametrize("scale", [1.0, 0.3, 0.1, 1e-2, 1e-4])
def test_small_values_keep_their_digits(scale: float) -> None:
    """A tanh made from a sigmoid would lose most of them."""
    cls, pooler, pooler_bias, classifier, classifier_bias = _inputs(5, 64, 2)
    arguments = cls, pooler * scale, pooler_bias * scale, classifier / scale, classifier_bias
    assert_op_as_exact(pool_classify(*arguments), "pool_classify", *arguments)


def test_no_pairs_launch_nothing() -> None:
    with launches() as made:
        assert pool_classify(*_inputs(0, 64, 2)).shape == (0, 2)
    assert not made


def test_the_docstring_states_the_cost() -> None:
    letters = {"B": 100, "E": 384, "C": 2, "s": 2}
    assert stated_cost(MODULE, **letters) == MODULE.cost(**letters)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"cls": torch.zeros(4, 64, dtype=torch.float64)}, "cls: expected float16"),
    "pooler": ({"pooler_weight": torch.zeros(64, 63)}, r"pooler_weight: expected shape \[64, 64\]"),
    "pooler's dtype": ({"pooler_weight": torch.zeros(64, 64).half()}, "pooler_weight: expected float32"),
    "pooler's bias": ({"pooler_bias": torch.zeros(63)}, r"pooler_bias: expected shape \[64\]"),
    "classifier": ({"classifier_weight": torch.zeros(2, 63)}, r"classifier_weight: expected .* 64\]"),
    "classifier's bias": ({"classifier_bias": torch.zeros(3)}, r"classifier_bias: expected shape \[2\]"),
    "device": ({"classifier_bias": torch.zeros(2, device="meta")}, f"classifier_bias: expected it on {HERE}"),
    "strides": ({"cls": torch.zeros(64, 4).T}, "cls: expected a contiguous last axis"),
    "pooled": ({"pooled": torch.zeros(4, 64).half()}, "pooled: expected float32"),
    "pooled's device": ({"pooled": torch.zeros(4, 64, device="meta")}, f"pooled: expected it on {HERE}"),
    "out": ({"out": torch.zeros(4, 3)}, r"out: expected shape \[4, 2\]"),
    "gradient": ({"cls": torch.zeros(4, 64, requires_grad=True)}, "cls: requires a gradient"),
}


@pytest.mark.parametrize("wrong", BAD)
def test_what_is_wrong_is_said_before_any_launch(wrong: str) -> None:
    change, message = BAD[wrong]
    arguments = dict(zip(NAMES, _inputs(4, 64, 2), strict=True)) | change
    with launches() as made, pytest.raises(ValueError, match=f"^{message}"):
        pool_classify(**arguments)
    assert not made
