"""What every launcher checks before it launches: matrices, vectors, results, ids and bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segue.kernels import cls_attention, packed_attention
from segue.kernels.door import check, check_bounds, check_ids, check_out, check_reach

X = torch.zeros(4, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_rows_may_lie_anywhere(dtype: torch.dtype) -> None:
    memory = torch.zeros(9, 20, dtype=dtype)
    for x in (memory[1:5, 3:11], memory[::2], memory[:0], memory[:, :0], memory[:1].expand(4, 20)):
        check("x", x, (None, None))
        check("x", x, tuple(x.shape), like=memory)
    check("x", torch.zeros(2, 8).T[:, :1], (8, 1))  # a single column has no stride to speak of


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4), r"x: expected shape \[4, any\], got \[4\]"),
        (torch.zeros(1, 4, 8), r"x: expected shape \[4, any\], got \[1, 4, 8\]"),
        (torch.zeros(5, 8), r"x: expected shape \[4, any\], got \[5, 8\]"),
        (X.double(), "x: expected float16, bfloat16 or float32, got float64"),
        (X.long(), "x: expected float16, bfloat16 or float32, got int64"),
        (torch.zeros(8, 4).T, r"x: expected a contiguous last axis, got strides \(1, 4\)"),
        (torch.zeros(4, 16)[:, ::2], r"x: expected a contiguous last axis, got strides \(16, 2\)"),
        (torch.zeros(4, 8, requires_grad=True), "x: requires a gradient, which kernels do not give"),
        (torch.zeros(4, 8, requires_grad=True) + 1, "x: requires a gradient"),
    ],
)
def test_a_matrix_that_is_none(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        check("x", x, (4, None))


def test_what_follows_is_like_the_first() -> None:
    check("bias", torch.zeros(8), (8,), like=X)
    with pytest.raises(ValueError, match=r"^bias: expected float32 as the first tensor, got float16"):
        check("bias", torch.zeros(8).half(), (8,), like=X)
    with pytest.raises(ValueError, match=r"^bias: expected it on cpu as the first tensor, got meta"):
        check("bias", torch.zeros(8, device="meta"), (8,), like=X)
    with pytest.raises(ValueError, match=r"^bias: expected shape \[8\], got \[1, 8\]"):
        check("bias", torch.zeros(1, 8), (8,), like=X)


def test_a_gradient_matters_only_where_one_is_kept() -> None:
    x = torch.zeros(4, 8, requires_grad=True)
    with torch.no_grad():
        check("x", x, (4, 8))
    with torch.inference_mode():
        check("x", x, (4, 8))


def test_a_result_is_made_or_checked() -> None:
    made = check_out(None, (4, 6), like=X.bfloat16())
    assert (made.shape, made.dtype, made.device) == ((4, 6), torch.bfloat16, X.device)
    for out in (torch.zeros(4, 6), torch.zeros(9, 7)[1:5, 1:], torch.zeros(6).expand(1, 6)):
        shape = tuple(out.shape)
        assert check_out(out, shape, like=X) is out


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.zeros(6, 4), r"out: expected shape \[4, 6\]"),
        (torch.zeros(4, 6).half(), "out: expected float32 as the first tensor, got float16"),
        (torch.zeros(4, 6, device="meta"), "out: expected it on cpu"),
        (torch.zeros(6, 4).T, "out: expected a contiguous last axis"),
        (torch.zeros(6).expand(4, 6), r"out: expected rows that do not overlap, got strides \(0, 1\)"),
        (torch.zeros(30).as_strided((4, 6), (5, 1)), "out: expected rows that do not overlap"),
        (torch.zeros(4, 6, requires_grad=True), "out: requires a gradient"),
    ],
)
def test_a_result_that_cannot_be_written(out: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        check_out(out, (4, 6), like=X)


def test_two_rows_that_overlap_cannot_be_written() -> None:
    with pytest.raises(ValueError, match=r"^out: expected rows that do not overlap, got strides \(5, 1\)"):
        check_out(torch.zeros(11).as_strided((2, 6), (5, 1)), (2, 6), like=X)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), r"ids: expected shape \[4\], got \[3\]"),
        (torch.zeros(1, 4, dtype=torch.int64), r"ids: expected shape \[4\], got \[1, 4\]"),
        (torch.zeros(4), "ids: expected int32 or int64, got float32"),
        (torch.zeros(4, dtype=torch.int16), "ids: expected int32 or int64, got int16"),
        (torch.zeros(4, dtype=torch.int64, device="meta"), "ids: expected it on cpu"),
        (torch.zeros(8, dtype=torch.int64)[::2], r"ids: expected a contiguous tensor, got strides \(2,\)"),
    ],
)
def test_ids_that_are_none(ids: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        check_ids("ids", ids, 4, like=X)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(("bounds", "longest"), [([0], 0), ([0, 4], 4), ([0, 0, 3, 3, 4], 3), ([0, 0], 0)])
def test_bounds_give_the_longest_pair(bounds: list[int], longest: int, dtype: torch.dtype) -> None:
    cu_seqlens = torch.tensor(bounds, dtype=dtype)
    assert check_bounds(cu_seqlens, bounds[-1], None, like=X) == longest


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        (torch.tensor([], dtype=torch.int64), "cu_seqlens: expected a bound more than there are pairs"),
        (torch.tensor([1, 4]), "cu_seqlens: expected 0 to 4"),
        (torch.tensor([0, 3]), "cu_seqlens: expected 0 to 4"),
        (torch.tensor([0, 5]), "cu_seqlens: expected 0 to 4"),
        (torch.tensor([0, 3, 2, 4]), r"cu_seqlens: .* never decreasing, got \[0, 3, 2, 4\]"),
        (torch.tensor([0, -1, 4]), "cu_seqlens: expected 0 to 4"),
        (torch.tensor([[0, 4]]), r"cu_seqlens: expected shape \[any\]"),
        (torch.tensor([0.0, 4.0]), "cu_seqlens: expected int32 or int64"),
        (torch.tensor([0, 9, 4, 9])[::2], "cu_seqlens: expected a contiguous tensor"),
    ],
)
def test_bounds_that_are_none(cu_seqlens: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        check_bounds(cu_seqlens, 4, None, like=X)


def test_a_pair_that_reaches_further_than_32_bits_is_refused() -> None:
    far = torch.empty_strided((20, 96), (2**27, 1), device="meta")
    check_reach("qkv", far, 15)
    check_reach("qkv", X, 2**20)
    near, bounds = torch.empty(20, 288, device="meta"), torch.empty(3, dtype=torch.int32, device="meta")
    with pytest.raises(ValueError, match=r"^qkv: 16 rows of stride 134217728 reach over 2\^31 elements"):
        packed_attention(far, bounds, 2, longest=16)
    weights = torch.empty(96, 96, device="meta"), torch.empty(96, 96, device="meta"), near[0, :96]
    with pytest.raises(ValueError, match=r"^x: 16 rows of stride 134217728 reach over"):
        cls_attention(near[:2, :96], far, bounds, *weights, 2, longest=16)
    with pytest.raises(ValueError, match=r"^out: 16 rows of stride 134217728 reach over"):
        packed_attention(near, bounds, 2, longest=16, out=far)


def test_more_rows_than_32_bits_count_are_refused() -> None:
    check("x", torch.empty(1).expand(2**31 - 2**13, 1), (None, None))
    with pytest.raises(ValueError, match=r"^x: expected 2147475456 rows or columns at most"):
        check("x", torch.empty(1).expand(2**31 - 2**13 + 1, 1), (None, None))
    with pytest.raises(ValueError, match=r"^x: expected 2147475456 rows or columns at most"):
        check("x", torch.empty(1).expand(1, 2**31 - 2**13 + 1), (None, None))


def test_with_longest_the_bounds_are_trusted_and_never_read() -> None:
    like: Any = torch.zeros(4, 8, device="meta")
    unreadable = torch.empty(3, dtype=torch.int64, device="meta")
    assert check_bounds(unreadable, 4, 3, like=like) == 3
    assert check_bounds(torch.tensor([9, 1]), 4, 0, like=X) == 0
    assert type(check_bounds(torch.tensor([0, 4]), 4, np.int64(4), like=X)) is int
    with pytest.raises(ValueError, match=r"^longest: expected a whole number, got 4.0"):
        check_bounds(torch.tensor([0, 4]), 4, 4.0, like=X)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^longest: expected 0 or more, got -1"):
        check_bounds(torch.tensor([0, 4]), 4, -1, like=X)
    with pytest.raises(ValueError, match=r"^cu_seqlens: expected a bound more"):
        check_bounds(torch.tensor([], dtype=torch.int64), 4, 3, like=X)
