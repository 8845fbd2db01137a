"""Embed's kernel, interpreted: three gathers and a LayerNorm, exactness, memory, bits, cost, the door."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from interpreted import traffic
from kernel_tools import DTYPES, HERE, Fence, assert_op_as_exact, launches, stated_cost
from torch import Tensor

from segue.kernels import embed

MODULE = importlib.import_module("segue.kernels._embed")
EPS = 1e-12
NAMES = (
    "input_ids", "token_type_ids", "position_ids", "word", "token_type", "position", "weight", "bias",
)  # fmt: skip


def _inputs(
    tokens: int, hidden: int, dtype: torch.dtype = torch.float32, ids: torch.dtype = torch.int64
) -> list[Tensor]:
    torch.manual_seed(tokens + hidden)
    numbers = [torch.randint(0, size, (tokens,), dtype=ids) for size in (90, 2, 50)]
    tables = [torch.randn(size, hidden).to(dtype) for size in (90, 2, 50)]
    return [*numbers, *tables, (1 + torch.randn(hidden) / 5).to(dtype), torch.randn(hidden).to(dtype)]


def _rows_read(inputs: list[Tensor]) -> int:
    return sum(len(ids.unique()) for ids in inputs[:3])


@pytest.mark.parametrize("ids", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "hidden"), [(33, 64), (31, 384), (5, 312), (1, 768), (3, 1024)])
def test_as_exact_as_it_may_be_and_touches_what_it_says(
    tokens: int, hidden: int, dtype: torch.dtype, ids: torch.dtype
) -> None:
    inputs, fence = _inputs(tokens, hidden, dtype, ids), Fence()
    fenced, out = [fence.put(x) for x in inputs], fence.out((tokens, hidden), dtype)
    with launches() as made, traffic(*fence.tensors) as meter:
        assert embed(*fenced, EPS, out=out) is out
    fence.check()
    assert [launch.kernel for launch in made] == ["_embed_kernel"]
    assert_op_as_exact(out, "embed", *inputs, EPS)
    cost = MODULE.cost(T=tokens, E=hidden, W=_rows_read(inputs), s=dtype.itemsize, i=3 * ids.itemsize)
    assert meter.total == cost.bytes


@pytest.mark.parametrize(("hidden", "wanted"), [(16, [16, 4]), (128, [16, 2])])
def test_a_token_has_the_same_bits_wherever_it_stands(hidden: int, wanted: list[int]) -> None:
    inputs = _inputs(1030, hidden, torch.float16)
    with launches() as made:
        many = embed(*inputs, EPS)
        few = embed(*(ids[1020:1027] for ids in inputs[:3]), *inputs[3:], EPS)
    assert [launch.options["ROWS"] for launch in made] == wanted
    assert torch.equal(few, many[1020:1027])


def test_no_tokens_launch_nothing() -> None:
    with launches() as made:
        assert embed(*_inputs(0, 64), EPS).shape == (0, 64)
    assert not made


def test_the_docstring_states_the_cost() -> None:
    letters = {"T": 100, "E": 384, "W": 180, "s": 2, "i": 24}
    assert stated_cost(MODULE, **letters) == MODULE.cost(**letters)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "ids' dtype": ({"input_ids": torch.zeros(4, dtype=torch.int16)}, "input_ids: expected int32 or int64"),
    "ids' shape": ({"input_ids": torch.zeros(4, 1, dtype=torch.int64)}, r"input_ids: expected shape \[any\]"),
    "types' size": ({"token_type_ids": torch.zeros(3, dtype=torch.int64)}, r"token_type_ids: .* \[4\]"),
    "positions' stride": ({"position_ids": torch.zeros(8, dtype=torch.int64)[::2]}, "position_ids: .* cont"),
    "ids' device": (
        {"input_ids": torch.zeros(4, dtype=torch.int64, device="meta")},
        f"input_ids: .* on {HERE}",
    ),
    "word's dtype": ({"word": torch.zeros(90, 64, dtype=torch.float64)}, "word: expected float16"),
    "columns": ({"word": torch.zeros(90, 0)}, "word: expected one column or more"),
    "position's width": ({"position": torch.zeros(50, 63)}, r"position: expected shape \[any, 64\]"),
    "token_type's dtype": ({"token_type": torch.zeros(2, 64).half()}, "token_type: expected float32"),
    "weight": ({"weight": torch.zeros(63)}, r"weight: expected shape \[64\]"),
    "bias": ({"bias": torch.zeros(64, 1)}, r"bias: expected shape \[64\]"),
    "out": ({"out": torch.zeros(5, 64)}, r"out: expected shape \[4, 64\]"),
    "gradient": ({"word": torch.zeros(90, 64, requires_grad=True)}, "word: requires a gradient"),
}


@pytest.mark.parametrize("wrong", BAD)
def test_what_is_wrong_is_said_before_any_launch(wrong: str) -> None:
    change, message = BAD[wrong]
    arguments = dict(zip(NAMES, _inputs(4, 64), strict=True)) | change
    with launches() as made, pytest.raises(ValueError, match=f"^{message}"):
        embed(**arguments, eps=EPS)
    assert not made
