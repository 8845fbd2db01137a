"""PackedAttention's kernel, interpreted: exactness over lengths and sizes, memory, bits, cost, the door."""

from __future__ import annotations

import importlib
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import fixed_order, traffic
from kernel_tools import DTYPES, HERE, TARGETS, Fence, assert_op_as_exact, launches, stated_cost
from torch import Tensor

from segue.kernels import packed_attention

MODULE = importlib.import_module("segue.kernels._packed_attention")
KERNEL = "_packed_attention_kernel"
MIXED = (1, 31, 33, 0, 127, 2)


def _bounds(lengths: tuple[int, ...], dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=dtype)


def _qkv(tokens: int, hidden: int, dtype: torch.dtype, spread: float = 1.5) -> Tensor:
    torch.manual_seed(tokens + hidden)
    return (spread * torch.randn(tokens, 3 * hidden)).to(dtype)


def _measure(lengths: tuple[int, ...], hidden: int, heads: int, dtype: torch.dtype, **options: Any) -> None:
    """Run it between fences and check twin, poison and cost."""
    fence = Fence()
    qkv, bounds = _qkv(sum(lengths), hidden, dtype), _bounds(lengths, options.pop("bounds", torch.int32))
    fenced, out = fence.put(qkv), fence.out((len(qkv), hidden), dtype)
    guarded = fence.put(bounds)
    with launches() as made, traffic(*fence.tensors) as meter:
        assert packed_attention(fenced, guarded, heads, out=out, **options) is out
    fence.check()
    assert [launch.kernel for launch in made] == [KERNEL]
    assert_op_as_exact(out, "packed_attention", qkv, bounds, heads)
    cost = MODULE.cost(lengths=list(lengths), E=hidden, H=heads, s=dtype.itemsize, i=bounds.itemsize)
    assert meter.total == cost.bytes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("hidden", "heads"), [(64, 4), (128, 4), (128, 2), (48, 2), (128, 1)])
def test_as_exact_as_it_may_be_over_mixed_lengths(hidden: int, heads: int, dtype: torch.dtype) -> None:
    _measure(MIXED, hidden, heads, dtype)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 127, 257, 512])
def test_one_pair_of_any_length(length: int) -> None:
    _measure((length,), 64, 2, torch.float16)


@pytest.mark.parametrize(("hidden", "heads"), [(384, 12), (768, 12), (1024, 16)])
def test_the_sizes_of_real_models(hidden: int, heads: int) -> None:
    _measure((70, 20), hidden, heads, torch.float16)


@pytest.mark.parametrize("lengths", [(5,), (5, 40)])
def test_heads_that_programs_do_not_divide_evenly(lengths: tuple[int, ...]) -> None:
    _measure(lengths, 96, 6, torch.float16)


def test_every_tile_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [
        (torch.float16, 32, (20, 32)), (torch.float16, 32, (60, 3)), (torch.float16, 64, (150, 40)),
        (torch.float16, 128, (70,)), (torch.float16, 256, (70,)), (torch.float32, 32, (20,)),
        (torch.float32, 128, (40,)),
        (torch.float32, 64, (70,)), (torch.float32, 256, (70,)),
    ]  # fmt: skip
    taken = set()
    for target in TARGETS:
        monkeypatch.setattr(MODULE, "target", lambda device, target=target: target)
        for dtype, width, lengths in shapes:
            tile = dtype, MODULE._configure(target, dtype, width, max(lengths))
            if tile not in taken:
                taken.add(tile)
                _measure(lengths, width, 1, dtype)
    assert {tile for _, tile in taken} == {line[-1] for line in MODULE._TABLE if {*line[0]} & {*TARGETS}}


@pytest.mark.parametrize("bounds", [torch.int32, torch.int64], ids=str)
def test_bounds_of_both_widths_and_a_longest_given(bounds: torch.dtype) -> None:
    _measure((5, 40, 0), 32, 1, torch.float32, bounds=bounds, longest=40)
    _measure((5, 40, 0), 32, 1, torch.float32, bounds=bounds, longest=90)


def test_with_longest_given_the_bounds_are_not_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Tensor) -> list[int]:
        raise AssertionError("the values were asked for")

    bounds, qkv = _bounds((5, 7)), _qkv(12, 32, torch.float32)
    monkeypatch.setattr(Tensor, "tolist", refuse)
    monkeypatch.setattr(Tensor, "item", refuse)
    monkeypatch.setattr(MODULE, "launch", lambda *arguments, **options: None)
    packed_attention(qkv, bounds, 1, longest=7)
    with pytest.raises(AssertionError, match="asked for"):
        packed_attention(qkv, bounds, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [7, 32, 33, 64, 130])
def test_a_pair_has_the_same_bits_whatever_else_is_in_the_batch(length: int, dtype: torch.dtype) -> None:
    """With the interpreter's products in a fixed order, in place of NumPy's BLAS, whose bits depend on a
    row's place in its tile."""
    qkv = _qkv(length, 64, dtype)
    with fixed_order():
        alone = packed_attention(qkv, _bounds((length,)), 2)
        for before, after in ((0, 20), (3, 0), (90, 31), (33, 130)):
            batch = torch.cat([_qkv(before, 64, dtype), qkv, _qkv(after, 64, dtype)])
            found = packed_attention(batch, _bounds((before, length, after)), 2)
            assert torch.equal(found[before : before + length], alone)


def test_what_is_not_in_the_pair_is_not_seen() -> None:
    qkv = _qkv(50, 32, torch.float32)
    expected = packed_attention(qkv, _bounds((10, 40)), 1)
    qkv[10:] = torch.nan
    assert torch.equal(packed_attention(qkv, _bounds((10, 40)), 1)[:10], expected[:10])


def test_large_scores_stay_finite() -> None:
    qkv = _qkv(40, 32, torch.float16, spread=20)
    found = packed_attention(qkv, _bounds((40,)), 1)
    assert_op_as_exact(found, "packed_attention", qkv, _bounds((40,)), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_beyond_float32_leave_the_others_of_their_row(dtype: torch.dtype) -> None:
    """A block of keys whose products are all -inf, before one with some that are not."""
    q, k = torch.full((80, 16), 1e20), torch.zeros(80, 16)
    k[:64] = -1e20
    qkv = torch.cat([q, k, _qkv(80, 16, torch.float32)[:, 32:]], dim=1).to(dtype)
    found = packed_attention(qkv, _bounds((80,)), 1)
    assert_op_as_exact(found, "packed_attention", qkv, _bounds((80,)), 1)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=5),
    width=st.sampled_from([8, 16, 24, 32]),
    heads=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
)
def test_any_ragged_batch(lengths: list[int], width: int, heads: int, dtype: torch.dtype) -> None:
    if sum(lengths):
        _measure(tuple(lengths), width * heads, heads, dtype)


@pytest.mark.parametrize("lengths", [(), (0, 0)])
def test_no_tokens_launch_nothing(lengths: tuple[int, ...]) -> None:
    with launches() as made:
        assert packed_attention(torch.zeros(0, 96), _bounds(lengths), 1).shape == (0, 32)
    assert not made


@pytest.mark.parametrize("lengths", [(1,), (3, 0, 70), (512, 512)])
def test_the_docstring_states_the_cost(lengths: tuple[int, ...]) -> None:
    stated = stated_cost(MODULE, lengths=lengths, T=sum(lengths), B=len(lengths), E=384, H=12, s=2, i=4)
    assert stated == MODULE.cost(lengths=list(lengths), E=384, H=12, s=2, i=4)


def _of(*bounds: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(bounds, dtype=dtype)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"qkv": torch.zeros(4, 96, dtype=torch.float64)}, "qkv: expected float16"),
    "columns": ({"qkv": torch.zeros(4, 97)}, r"qkv: expected \[T, 3E\]"),
    "no columns": ({"qkv": torch.zeros(4, 0)}, r"qkv: expected \[T, 3E\]"),
    "heads": ({"heads": 5}, "qkv: expected .* divisible by 5 heads"),
    "no heads": ({"heads": 0}, "qkv: expected .* divisible by 0 heads"),
    "head size": ({"qkv": torch.zeros(4, 3 * 512), "heads": 1}, "heads: expected .* 256 at most, got 512"),
    "strides": ({"qkv": torch.zeros(96, 4).T}, "qkv: expected a contiguous last axis"),
    "decreasing": ({"cu_seqlens": _of(0, 3, 1, 4)}, "cu_seqlens: expected 0 to 4"),
    "start": ({"cu_seqlens": _of(1, 4)}, "cu_seqlens: expected 0 to 4"),
    "end": ({"cu_seqlens": _of(0, 3)}, "cu_seqlens: expected 0 to 4"),
    "beyond": ({"cu_seqlens": _of(0, 5)}, "cu_seqlens: expected 0 to 4"),
    "no bounds": ({"cu_seqlens": _of()}, "cu_seqlens: expected a bound more"),
    "bounds' dtype": ({"cu_seqlens": _of(0, 4, dtype=torch.int16)}, "cu_seqlens: expected int32 or int64"),
    "bounds' device": ({"cu_seqlens": _of(0, 4).to("meta")}, f"cu_seqlens: expected it on {HERE}"),
    "bounds' shape": ({"cu_seqlens": _of(0, 4)[None]}, r"cu_seqlens: expected shape \[any\]"),
    "bounds' stride": ({"cu_seqlens": _of(0, 0, 4, 0)[::2]}, "cu_seqlens: expected a contiguous"),
    "longest": ({"longest": -1}, "longest: expected 0 or more, got -1"),
    "out": ({"out": torch.zeros(4, 96)}, r"out: expected shape \[4, 32\]"),
    "gradient": ({"qkv": torch.zeros(4, 96, requires_grad=True)}, "qkv: requires a gradient"),
}


@pytest.mark.parametrize("wrong", BAD)
def test_what_is_wrong_is_said_before_any_launch(wrong: str) -> None:
    change, message = BAD[wrong]
    arguments: dict[str, Any] = {"qkv": torch.zeros(4, 96), "cu_seqlens": _of(0, 1, 4), "heads": 1}
    with launches() as made, pytest.raises(ValueError, match=f"^{message}"):
        packed_attention(**(arguments | change))
    assert not made
