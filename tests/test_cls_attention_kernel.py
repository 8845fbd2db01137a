"""ClsAttention's kernel, interpreted: exactness, empty pairs, memory, bits, cost, the door."""

from __future__ import annotations

import importlib
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import fixed_order, traffic
from kernel_tools import DTYPES, HERE, Fence, assert_op_as_exact, launches, stated_cost
from torch import Tensor

from segue.kernels import cls_attention, packed_attention

MODULE = importlib.import_module("segue.kernels._cls_attention")
KERNELS = ["_absorb_kernel", "_mix_kernel", "_value_kernel"]


def _bounds(lengths: tuple[int, ...], dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=dtype)


def _inputs(lengths: tuple[int, ...], hidden: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(sum(lengths) + hidden)
    return torch.randn(len(lengths), hidden).to(dtype), torch.randn(sum(lengths), hidden).to(dtype)


def _weights(hidden: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Of keys and of values, as a trained layer's: a row of x stays about as long as it was."""
    torch.manual_seed(hidden)
    key, value = torch.randn(2, hidden, hidden) * hidden**-0.5
    return key.to(dtype), value.to(dtype), torch.randn(hidden).to(dtype)


def _measure(lengths: tuple[int, ...], hidden: int, heads: int, dtype: torch.dtype, **options: Any) -> None:
    """Run it between fences and check twin, poison and cost."""
    fence, bounds = Fence(), _bounds(lengths, options.pop("bounds", torch.int32))
    arguments = (*_inputs(lengths, hidden, dtype), bounds, *_weights(hidden, dtype))
    fenced = [fence.put(x) for x in arguments]
    out = fence.out((len(lengths), hidden), dtype)
    scratch = torch.full((len(lengths), 2 * heads * hidden), torch.nan).to(dtype)
    with launches() as made, traffic(*fence.tensors, scratch) as meter:
        assert cls_attention(*fenced, heads, scratch=scratch, out=out, **options) is out
    fence.check()
    assert [launch.kernel for launch in made] == KERNELS
    assert_op_as_exact(out, "cls_attention", *arguments, heads)
    cost = MODULE.cost(lengths=list(lengths), E=hidden, H=heads, s=dtype.itemsize, i=bounds.itemsize)
    assert meter.total == cost.bytes
    empty = [n == 0 for n in lengths]
    assert not out[empty].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("hidden", "heads"), [(64, 4), (384, 12), (128, 2), (48, 2), (60, 5), (256, 1)])
def test_as_exact_as_it_may_be(hidden: int, heads: int, dtype: torch.dtype) -> None:
    _measure((1, 31, 0, 33, 127), hidden, heads, dtype)


@pytest.mark.parametrize(("hidden", "heads", "lengths"), [(768, 12, (257,)), (1024, 16, (40, 3))])
def test_the_sizes_of_real_models(hidden: int, heads: int, lengths: tuple[int, ...]) -> None:
    _measure(lengths, hidden, heads, torch.float16, longest=512)


def test_more_pairs_and_heads_than_a_program_has() -> None:
    _measure((2, 0, 1) * 6, 34, 17, torch.float16)


def test_more_columns_than_a_program_has() -> None:
    """Nine tiles of them: five for one program, four for the other."""
    _measure((20,), 520, 4, torch.float32)


def test_bounds_of_64_bits() -> None:
    _measure((5, 0, 40), 32, 1, torch.float32, bounds=torch.int64)


def test_it_is_the_first_row_of_packed_attention() -> None:
    """Of queries, keys and values made from x, keys with a bias, which changes nothing."""
    x, bounds = torch.randn(60, 32), _bounds((25, 35))
    key, value, bias = _weights(32, torch.float32)
    query = torch.randn(60, 32)
    whole = packed_attention(torch.cat([query, x @ key.T + 3.0, x @ value.T + bias], 1), bounds, 2)
    found = cls_attention(query[[0, 25]], x, bounds, key, value, bias, 2)
    assert torch.allclose(found, whole[[0, 25]], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_pair_has_the_same_bits_whatever_else_is_in_the_batch(dtype: torch.dtype) -> None:
    """With the interpreter's sums in a fixed order."""
    weights = _weights(64, dtype)
    with fixed_order():
        for length in (1, 20, 33, 100):
            q, x = _inputs((length,), 64, dtype)
            alone = cls_attention(q, x, _bounds((length,)), *weights, 2)
            others, more = _inputs((9, 70), 64, dtype)
            batch = torch.cat([others[:1], q, others[1:]]), torch.cat([more[:9], x, more[9:]])
            assert torch.equal(cls_attention(*batch, _bounds((9, length, 70)), *weights, 2)[1], alone[0])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=5),
    width=st.sampled_from([8, 16, 20, 32]),
    heads=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
)
def test_any_ragged_batch(lengths: list[int], width: int, heads: int, dtype: torch.dtype) -> None:
    _measure(tuple(lengths), width * heads, heads, dtype)


def test_no_pairs_launch_nothing() -> None:
    with launches() as made:
        none, weights = torch.zeros(0, 32), _weights(32, torch.float32)
        assert cls_attention(none, none, _bounds(()), *weights, 1).shape == (0, 32)
    assert not made


@pytest.mark.parametrize("lengths", [(1,), (3, 0, 70), (512, 512)])
def test_the_docstring_states_the_cost(lengths: tuple[int, ...]) -> None:
    letters = {"E": 384, "H": 12, "s": 2, "i": 4}
    stated = stated_cost(MODULE, lengths=lengths, T=sum(lengths), B=len(lengths), **letters)
    assert stated == MODULE.cost(lengths=list(lengths), **letters)


def _of(*bounds: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(bounds, dtype=dtype)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"q": torch.zeros(2, 32, dtype=torch.float64)}, "q: expected float16"),
    "x's dtype": ({"x": torch.zeros(4, 32).half()}, "x: expected float32"),
    "x's columns": ({"x": torch.zeros(4, 31)}, r"x: expected shape \[any, 32\]"),
    "x's device": ({"x": torch.zeros(4, 32, device="meta")}, f"x: expected it on {HERE}"),
    "key's shape": ({"key_weight": torch.zeros(64, 32)}, r"key_weight: expected shape \[32, 32\]"),
    "value's shape": ({"value_weight": torch.zeros(32, 64)}, r"value_weight: expected shape \[32, 32\]"),
    "bias's shape": ({"value_bias": torch.zeros(64)}, r"value_bias: expected shape \[32\]"),
    "heads": ({"heads": 3}, "q: expected .* divisible by 3 heads"),
    "pairs": ({"cu_seqlens": _of(0, 1, 2, 4)}, "cu_seqlens: expected 3 bounds of 2 pairs, got 4"),
    "pairs, trusted": ({"cu_seqlens": _of(0, 4), "longest": 4}, "cu_seqlens: expected 3 bounds"),
    "decreasing": ({"cu_seqlens": _of(0, 5, 4)}, "cu_seqlens: expected 0 to 4"),
    "end": ({"cu_seqlens": _of(0, 1, 3)}, "cu_seqlens: expected 0 to 4"),
    "strides": ({"q": torch.zeros(32, 2).T}, "q: expected a contiguous last axis"),
    "out": ({"out": torch.zeros(2, 33)}, r"out: expected shape \[2, 32\]"),
    "scratch": ({"scratch": torch.zeros(2, 32)}, r"scratch: expected shape \[2, 64\]"),
}


@pytest.mark.parametrize("wrong", BAD)
def test_what_is_wrong_is_said_before_any_launch(wrong: str) -> None:
    change, message = BAD[wrong]
    arguments: dict[str, Any] = {
        "q": torch.zeros(2, 32), "x": torch.zeros(4, 32), "cu_seqlens": _of(0, 1, 4),
        "key_weight": torch.zeros(32, 32), "value_weight": torch.zeros(32, 32), "value_bias": torch.zeros(32),
        "heads": 1,
    }  # fmt: skip
    with launches() as made, pytest.raises(ValueError, match=f"^{message}"):
        cls_attention(**(arguments | change))
    assert not made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_beyond_float32_leave_the_others_of_their_row(dtype: torch.dtype) -> None:
    """A block of keys whose products are all -inf, before one with some that are not."""
    _, x = _inputs((80,), 16, torch.float32)
    x[:, :8] = 0
    x[:64, :8] = -1e20
    key = torch.eye(16) * (torch.arange(16) < 8)
    arguments = (torch.full((1, 16), 1e20), x, _bounds((80,)), key, torch.eye(16) - key, torch.zeros(16))
    arguments = tuple(x.to(dtype) if x.is_floating_point() else x for x in arguments)
    assert_op_as_exact(cls_attention(*arguments, 1), "cls_attention", *arguments, 1)
