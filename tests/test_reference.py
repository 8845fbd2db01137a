"""The eager twins: the formulas, the edges their docstrings fix, dtypes, strides and out=."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from segue.kernels import reference as twins

LENGTHS = [[1], [31, 33], [3, 0, 5], [0, 7], [7, 0], [127, 257, 1], [512]]


def _bounds(lengths: list[int], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=dtype)


def _close(found: Tensor, judge: Tensor) -> None:
    """Compare a float32 result with float64, to tens of roundings of the largest element."""
    assert found.shape == judge.shape
    assert found.isfinite().all()
    limit = 64 * 2**-24 * max([1.0, *judge.abs().flatten().tolist()])
    assert ((found.double() - judge).abs() <= limit).all()


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("size", "heads"), [(24, 2), (384, 12)])
def test_packed_attention_is_pytorchs_attention_inside_each_pair(
    lengths: list[int], size: int, heads: int
) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3 * size)
    found = twins.packed_attention(qkv, _bounds(lengths), heads)
    pieces = []
    for rows in qkv.double().split(lengths):
        query, key, value = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in rows.chunk(3, dim=-1))
        if len(rows):
            context = functional.scaled_dot_product_attention(query[None], key[None], value[None])[0]
            pieces.append(context.transpose(0, 1).flatten(1))
    _close(found, torch.cat(pieces))


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_cls_attention_is_the_first_row_of_packed_attention_and_zero_for_an_empty_pair(
    lengths: list[int],
) -> None:
    torch.manual_seed(0)
    x, cu_seqlens = torch.randn(sum(lengths), 16), _bounds(lengths)
    key, value, bias = torch.randn(16, 16) / 4, torch.randn(16, 16) / 4, torch.randn(16)
    filled = torch.tensor(lengths) > 0
    query = torch.randn(len(lengths), 16)
    qkv = torch.cat([torch.randn(len(x), 16), x @ key.T + 5.0, x @ value.T + bias], dim=1)
    qkv[cu_seqlens[:-1][filled], :16] = query[filled]
    found = twins.cls_attention(query, x, cu_seqlens, key, value, bias, 2)
    every = twins.packed_attention(qkv, cu_seqlens, 2)
    _close(found[filled], every[cu_seqlens[:-1][filled]].double())
    assert (found[~filled] == 0).all()


def test_a_pair_of_one_token_gives_its_value() -> None:
    qkv = torch.randn(1, 24)
    assert torch.equal(twins.packed_attention(qkv, _bounds([1]), 2), qkv[:, 16:])


def test_no_rows_at_all() -> None:
    assert twins.packed_attention(torch.zeros(0, 24), _bounds([0, 0]), 2).shape == (0, 8)
    ones = torch.ones(8, 8)
    assert twins.cls_attention(ones[:2], ones[:0], _bounds([0, 0]), ones, ones, ones[0], 2).eq(0).all()


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_a_pair_does_not_see_its_neighbours(lengths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    qkv = torch.randn(sum(lengths), 24)
    together = twins.packed_attention(qkv, _bounds(lengths), 2)
    for found, rows in zip(together.split(lengths), qkv.split(lengths), strict=True):
        _close(found, twins.packed_attention(rows, _bounds([len(rows)]), 2).double())


@pytest.mark.parametrize("bounds", [[], [1, 4], [0, 3], [0, 5], [0, 3, 2, 4]], ids=str)
def test_bad_cu_seqlens_are_refused_by_name_unless_they_are_trusted(bounds: list[int]) -> None:
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    with pytest.raises(ValueError, match="cu_seqlens: expected 0 to 4"):
        twins.packed_attention(torch.zeros(4, 24), cu_seqlens, 2)
    square = torch.zeros(8, 8)
    with pytest.raises(ValueError, match="cu_seqlens: expected 0 to 4"):
        twins.cls_attention(square[:1], square[:4], cu_seqlens, square, square, square[0], 2)


def test_longest_says_that_cu_seqlens_are_trusted() -> None:
    qkv = torch.randn(5, 24)
    part = twins.packed_attention(qkv, _bounds([3], torch.int32), 2, longest=3)
    assert torch.equal(part, twins.packed_attention(qkv[:3], _bounds([3]), 2))


def test_softmax_at_its_edges() -> None:
    infinity = float("inf")
    x = torch.tensor([[1e4, 0.0], [-infinity, 3.0], [0.0, 0.0]])
    assert torch.equal(twins.softmax(x), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))
    assert twins.softmax(torch.tensor([[-infinity, -infinity]])).isnan().all()
    assert torch.equal(twins.softmax(torch.tensor([[7.0], [-9.0]])), torch.ones(2, 1))
    wide = torch.randn(3, 5000, dtype=torch.float64) * 20
    _close(twins.softmax(wide.float()), torch.softmax(wide.float().double(), -1))


def test_the_other_ops_are_their_formulas() -> None:
    torch.manual_seed(0)
    x, residual = torch.randn(5, 16), torch.randn(5, 16)
    weight, bias, scale, shift = torch.randn(24, 16), torch.randn(24), torch.rand(16), torch.randn(16)
    wide = [t.double() for t in (x, residual, weight, bias, scale, shift)]
    product = wide[0] @ wide[2].T + wide[3]
    _close(twins.linear(x, weight, bias), product)
    _close(twins.linear(x, weight, bias, torch.ones(5, 24)), product + 1)
    _close(twins.linear_gelu(x, weight, bias), product / 2 * (1 + torch.erf(product / 2**0.5)))
    total = wide[0] + wide[1]
    normal = (total - total.mean(1, keepdim=True)) / (total.var(1, correction=0, keepdim=True) + 0.1).sqrt()
    _close(twins.add_layer_norm(x, residual, scale, shift, 0.1), normal * wide[4] + wide[5])
    pooled = torch.tanh(product) @ torch.ones(24, 3).double() + 2
    between = torch.empty(5, 24)
    classifier = torch.ones(3, 24), torch.full((3,), 2.0)
    _close(twins.pool_classify(x, weight, bias, *classifier, pooled=between), pooled)
    _close(between, torch.tanh(product))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_embed_is_three_lookups_and_a_layer_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    word, segment, position = torch.randn(11, 8), torch.randn(2, 8), torch.randn(6, 8)
    ids = [torch.tensor(i, dtype=dtype) for i in ([10, 0, 3], [0, 1, 1], [0, 5, 2])]
    scale, shift = torch.rand(8), torch.randn(8)
    total = word[ids[0].long()] + segment[ids[1].long()] + position[ids[2].long()]
    judge = functional.layer_norm(total.double(), (8,), scale.double(), shift.double(), 1e-12)
    _close(twins.embed(*ids, word, segment, position, scale, shift, 1e-12), judge)


CALLS: dict[str, Callable[..., Tensor]] = {
    "packed_attention": lambda x, **out: twins.packed_attention(x, _bounds([2, 3]), 2, **out),
    "cls_attention": lambda x, **out: twins.cls_attention(
        x[:2, :4], x[:, :4], _bounds([2, 3]), x[:4, :4], x[:4, :4], x[0, :4], 2, **out
    ),
    "softmax": twins.softmax,
    "add_layer_norm": lambda x, **out: twins.add_layer_norm(x, x, x[0], x[1], 1e-5, **out),
    "linear_gelu": lambda x, **out: twins.linear_gelu(x, x[:3], x[0, :3], **out),
    "linear": lambda x, **out: twins.linear(x, x[:3], x[0, :3], x[:, :3], **out),
    "pool_classify": lambda x, **out: twins.pool_classify(x, x[:3], x[0, :3], x[:2, :3], x[0, :2], **out),
    "embed": lambda x, **out: twins.embed(*[torch.arange(3)] * 3, x, x, x, x[0], x[1], 1e-5, **out),
}


@pytest.mark.parametrize("op", CALLS)
def test_dtypes_strides_and_out(op: str) -> None:
    torch.manual_seed(0)
    call, x = CALLS[op], torch.randn(5, 24, dtype=torch.float64)
    judge = call(x)
    assert judge.dtype == torch.float64
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        exact = call(x.to(dtype).double())
        found = call(x.to(dtype))
        assert found.dtype == dtype
        # float32 inside: nothing is lost but the last rounding
        assert torch.allclose(found.double(), exact, rtol=1.01 * torch.finfo(dtype).eps, atol=1e-5)
    strided = torch.full((5, 30), torch.nan, dtype=torch.float64)
    strided[:, 3:27] = x
    assert torch.allclose(call(strided[:, 3:27]), judge, rtol=1e-12)
    out = torch.full(judge.shape, torch.nan, dtype=torch.float32)
    assert call(x, out=out) is out
    assert torch.allclose(out.double(), judge, rtol=1e-6)


@pytest.mark.parametrize("op", CALLS)
def test_every_op_is_differentiable(op: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(CALLS[op], (x,), fast_mode=True)


def test_the_twins_need_torch_alone() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['triton', 'onnx', 'onnxruntime', 'transformers']));"
        "import segue.kernels.reference"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
