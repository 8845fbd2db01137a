"""The ops as eager PyTorch on the CPU: the definition of correct, against which all others are tested.

The alphabet, used everywhere:

    N pairs asked for       B pairs in a packed batch      T tokens in it           S its longest pair
    L layers                E hidden size                  H heads                  D = E / H
    F feed-forward size     C labels                       R rows of any matrix

A packed batch is B pairs laid end to end in T rows; pair b owns the rows cu_seqlens[b] to cu_seqlens[b + 1].
Equal neighbours in `cu_seqlens` are an empty pair: it owns no rows, and if an op returns one row per pair,
that row is zero.

`live`, where an op takes it, is a tensor of one integer on the device: only so many rows count; the others
are neither read nor written (without `out` they are zero). So a launch made for many rows serves fewer.

Arithmetic is float32 whatever the storage (float64 stays float64, as a reference for tests); the result has
the dtype of the first tensor of floats. With `out=` the result is written there, in its dtype, and `out` is
returned; it may share no memory with an input, as kernels write some rows while others are read.
Without `out` every op is differentiable. Weights are laid out as in PyTorch's `Linear`, [out, in]. Needs only
torch.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "add_layer_norm",
    "cls_attention",
    "embed",
    "first_rows",
    "linear",
    "linear_gelu",
    "packed_attention",
    "pool_classify",
    "softmax",
]


def packed_attention(
    qkv: Tensor, cu_seqlens: Tensor, heads: int, *, longest: int | None = None, out: Tensor | None = None
) -> Tensor:
    """Return softmax(Q Kᵀ / √D) V inside each pair, for every head, every row attending to its whole pair.

    A pair of one token returns its own V; an empty pair has no rows.

    Args:
        qkv: [T, 3E], its columns Q, K, V in this order, each of H heads of D.
        cu_seqlens: [B + 1], int32 or int64, from 0 to T, never decreasing.
        longest: S. If given, cu_seqlens is trusted.
        out: [T, E].

    Returns:
        [T, E], heads side by side.

    Raises:
        ValueError: `longest` is None and cu_seqlens is not as above.
    """
    bounds = _bounds(cu_seqlens, qkv.shape[0], longest)
    query_THD, key_THD, value_THD = _split_heads(qkv, 3, heads)
    pieces = [
        _attend(query_THD[start:end], key_THD[start:end], value_THD[start:end])
        for start, end in pairwise(bounds)
        if end > start
    ]
    context_TE = torch.cat(pieces) if pieces else value_THD.flatten(1)
    return _give(context_TE, qkv, out)


def cls_attention(
    q: Tensor,
    x: Tensor,
    cu_seqlens: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    heads: int,
    *,
    longest: int | None = None,
    scratch: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return `packed_attention` of the first token of each pair, and zeros for an empty pair, with keys x Kᵀ
    and values x Vᵀ + b. Keys need no bias: it adds the same to all scores of a row.

    Args:
        q: [B, E], one query row per pair.
        x: [T, E].
        cu_seqlens, longest: as in `packed_attention`.
        key_weight, value_weight, value_bias: K and V [E, E], b [E].
        scratch: [B, 2 H E], where a kernel may leave intermediate results.
        out: [B, E].

    Returns:
        [B, E], heads side by side.

    Raises:
        ValueError: as in `packed_attention`.
    """
    bounds = _bounds(cu_seqlens, x.shape[0], longest)
    (query_BHD,) = _split_heads(q, 1, heads)
    (key_THD,) = _split_heads(functional.linear(_wide(x), _wide(key_weight)), 1, heads)
    (value_THD,) = _split_heads(_affine(x, value_weight, value_bias), 1, heads)
    rows = [
        _attend(query_BHD[pair : pair + 1], key_THD[start:end], value_THD[start:end])
        if end > start
        else query_BHD.new_zeros(1, q.shape[1])
        for pair, (start, end) in enumerate(pairwise(bounds))
    ]
    context_BE = torch.cat(rows) if rows else query_BHD.flatten(1)
    return _give(context_BE, q, out)


def softmax(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return exp(x - max) / Σ exp(x - max) over the last axis of x: [R, C].

    -inf gives 0, a single column 1; a row of -inf alone gives NaN, as does one with a NaN or +inf.
    """
    return _give(torch.softmax(_wide(x), dim=-1), x, out)


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    live: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return LayerNorm(x + residual) over the last axis: x, residual: [T, E]; weight, bias: [E] → [T, E].

    The sum is taken in float32. The variance is the biased one (divided by E); eps is added under the root.
    """
    if live is not None:
        part, out = _live(live, out, x.shape, x)
        add_layer_norm(x[part], residual[part], weight, bias, eps, out=out[part])
        return out
    return _give(_layer_norm(_wide(x) + _wide(residual), weight, bias, eps), x, out)


def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, *, live: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """Return GELU(x Wᵀ + b), GELU(z) = z/2 · (1 + erf(z/√2)): x [T, E]; weight [F, E]; bias [F] → [T, F]."""
    if live is not None:
        part, out = _live(live, out, (len(x), len(weight)), x)
        linear_gelu(x[part], weight, bias, out=out[part])
        return out
    return _give(functional.gelu(_affine(x, weight, bias)), x, out)


def embed(
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    token_type: Tensor,
    position: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    live: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return LayerNorm(word[input_ids] + token_type[token_type_ids] + position[position_ids]).

    Args:
        input_ids, token_type_ids, position_ids: [T], int32 or int64, each below the rows of its table.
        word, token_type, position: the tables, [rows, E].
        weight, bias: [E], of the LayerNorm; eps as in `add_layer_norm`.
        out: [T, E].

    Returns:
        [T, E], in the dtype of `word`.
    """
    if live is not None:
        part, out = _live(live, out, (len(input_ids), word.shape[1]), word)
        ids = input_ids[part], token_type_ids[part], position_ids[part]
        embed(*ids, word, token_type, position, weight, bias, eps, out=out[part])
        return out
    total_TE = _wide(word.index_select(0, input_ids))
    total_TE = total_TE + _wide(token_type.index_select(0, token_type_ids))
    total_TE = total_TE + _wide(position.index_select(0, position_ids))
    return _give(_layer_norm(total_TE, weight, bias, eps), word, out)


def pool_classify(
    cls: Tensor,
    pooler_weight: Tensor,
    pooler_bias: Tensor,
    classifier_weight: Tensor,
    classifier_bias: Tensor,
    *,
    pooled: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return the logits, classifier(tanh(pooler(cls))).

    The intermediate tanh(pooler(cls)) is float32 whatever the dtype of cls.

    Args:
        cls: [B, E], the first row of each pair.
        pooler_weight, pooler_bias: [E, E] and [E].
        classifier_weight, classifier_bias: [C, E] and [C].
        pooled: [B, E], float32; receives the intermediate.
        out: [B, C].

    Returns:
        [B, C].
    """
    pooled_BE = torch.tanh(_affine(cls, pooler_weight, pooler_bias))
    if pooled is not None:
        pooled.copy_(pooled_BE)
    return _give(_affine(pooled_BE, classifier_weight, classifier_bias), cls, out)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    live: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return x Wᵀ + b (+ residual): x [R, in]; weight [out, in]; bias [out]; residual [R, out] → [R, out]."""
    if live is not None:
        part, out = _live(live, out, (len(x), len(weight)), x)
        linear(x[part], weight, bias, residual if residual is None else residual[part], out=out[part])
        return out
    product = _affine(x, weight, bias)
    return _give(product if residual is None else product + _wide(residual), x, out)


def first_rows(x: Tensor, cu_seqlens: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the first row of each pair: x [T, E], cu_seqlens as in `packed_attention` → [B, E], zeros for an
    empty pair. What the graph's Gather does, where it is defined."""
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
    result = x.new_zeros(len(starts), x.shape[1])
    result[ends > starts] = x.index_select(0, starts[ends > starts])
    return _give(result, x, out)


def _live(live: Tensor, out: Tensor | None, shape: tuple[int, ...], like: Tensor) -> tuple[slice, Tensor]:
    """The rows that count, and the tensor to write them to."""
    return slice(int(live)), like.new_zeros(shape) if out is None else out


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _give(result: Tensor, like: Tensor, out: Tensor | None) -> Tensor:
    return result.to(like.dtype) if out is None else out.copy_(result)


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.linear(_wide(x), _wide(weight), _wide(bias))


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], _wide(weight), _wide(bias), eps)


def _split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Split [rows, parts · E] into `parts` tensors of [rows, H, D], in float32."""
    return _wide(x).unflatten(-1, (parts, heads, -1)).unbind(1)


def _attend(query_QHD: Tensor, key_KHD: Tensor, value_KHD: Tensor) -> Tensor:
    """Return [Q, E]: every query row of one pair against all K rows of it."""
    scale = query_QHD.shape[-1] ** -0.5
    scores_HQK = query_QHD.transpose(0, 1) @ key_KHD.permute(1, 2, 0) * scale
    context_HQD = torch.softmax(scores_HQK, dim=-1) @ value_KHD.transpose(0, 1)
    return context_HQD.transpose(0, 1).flatten(1)


def _bounds(cu_seqlens: Tensor, tokens: int, longest: int | None) -> list[int]:
    """Return cu_seqlens as a list, checked unless `longest` says that it need not be."""
    bounds: list[int] = cu_seqlens.tolist()
    if longest is None and (
        not bounds or bounds[0] != 0 or bounds[-1] != tokens or any(b < a for a, b in pairwise(bounds))
    ):
        raise ValueError(f"cu_seqlens: expected 0 to {tokens} (the rows), never decreasing, got {bounds}")
    return bounds
