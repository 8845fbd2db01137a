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
KERNEL = "_cls_attention_kernel"


def _bounds(lengths: tuple[int, ...], dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=dtype)


def _inputs(lengths: tuple[int, ...], hidden: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(sum(lengths) + hidden)
    return torch.randn(len(lengths), hidden).to(dtype), torch.randn(sum(lengths), 2 * hidden).to(dtype)


def _measure(lengths: tuple[int, ...], hidden: int, heads: int, dtype: torch.dtype, **options: Any) -> None:
    """Run it between fences and check twin, poison and cost."""
    fence, bounds = Fence(), _bounds(lengths, options.pop("bounds", torch.int32))
    q, kv = _inputs(lengths, hidden, dtype)
    fenced = fence.put(q), fence.put(kv), fence.put(bounds)
    out = fence.out(tuple(q.shape), dtype)
    with launches() as made, traffic(*fence.tensors) as meter:
        assert cls_attention(*fenced, heads, out=out, **options) is out
    fence.check()
    assert [launch.kernel for launch in made] == [KERNEL]
    assert_op_as_exact(out, "cls_attention", q, kv, bounds, heads)
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


def test_bounds_of_64_bits() -> None:
    _measure((5, 0, 40), 32, 1, torch.float32, bounds=torch.int64)


def test_it_is_the_first_row_of_packed_attention() -> None:
    qkv, bounds = torch.randn(60, 96), _bounds((25, 35))
    whole = packed_attention(qkv, bounds, 2)
    first = qkv[[0, 25]]
    assert torch.allclose(cls_attention(first[:, :32], qkv[:, 32:], bounds, 2), whole[[0, 25]], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_pair_has_the_same_bits_whatever_else_is_in_the_batch(dtype: torch.dtype) -> None:
    """With the interpreter's sums in a fixed order."""
    with fixed_order():
        for length in (1, 20, 33, 100):
            q, kv = _inputs((length,), 64, dtype)
            alone = cls_attention(q, kv, _bounds((length,)), 2)
            others, more = _inputs((9, 70), 64, dtype)
            batch = torch.cat([others[:1], q, others[1:]]), torch.cat([more[:9], kv, more[9:]])
            assert torch.equal(cls_attention(*batch, _bounds((9, length, 70)), 2)[1], alone[0])


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
        assert cls_attention(torch.zeros(0, 32), torch.zeros(0, 64), _bounds(()), 1).shape == (0, 32)
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
    "kv's dtype": ({"kv": torch.zeros(4, 64).half()}, "kv: expected float32"),
    "kv's columns": ({"kv": torch.zeros(4, 63)}, r"kv: expected shape \[any, 64\]"),
    "kv's device": ({"kv": torch.zeros(4, 64, device="meta")}, f"kv: expected it on {HERE}"),
    "heads": ({"heads": 3}, "q: expected .* divisible by 3 heads"),
    "pairs": ({"cu_seqlens": _of(0, 1, 2, 4)}, "cu_seqlens: expected 3 bounds of 2 pairs, got 4"),
    "pairs, trusted": ({"cu_seqlens": _of(0, 4), "longest": 4}, "cu_seqlens: expected 3 bounds"),
    "decreasing": ({"cu_seqlens": _of(0, 5, 4)}, "cu_seqlens: expected 0 to 4"),
    "end": ({"cu_seqlens": _of(0, 1, 3)}, "cu_seqlens: expected 0 to 4"),
    "strides": ({"q": torch.zeros(32, 2).T}, "q: expected a contiguous last axis"),
    "out": ({"out": torch.zeros(2, 33)}, r"out: expected shape \[2, 32\]"),
}


@pytest.mark.parametrize("wrong", BAD)
def test_what_is_wrong_is_said_before_any_launch(wrong: str) -> None:
    change, message = BAD[wrong]
    arguments: dict[str, Any] = {
        "q": torch.zeros(2, 32), "kv": torch.zeros(4, 64), "cu_seqlens": _of(0, 1, 4), "heads": 1,
    }  # fmt: skip
    with launches() as made, pytest.raises(ValueError, match=f"^{message}"):
        cls_attention(**(arguments | change))
    assert not made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_beyond_float32_leave_the_others_of_their_row(dtype: torch.dtype) -> None:
    """A block of keys whose products are all -inf, before one with some that are not."""
    _, kv = _inputs((80,), 16, torch.float32)
    kv[:, :16] = 0
    kv[:64, :16] = -1e20
    q, kv = torch.full((1, 16), 1e20).to(dtype), kv.to(dtype)
    found = cls_attention(q, kv, _bounds((80,)), 1)
    assert_op_as_exact(found, "cls_attention", q, kv, _bounds((80,)), 1)
