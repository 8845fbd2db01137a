"""The formulas of the ops, run eagerly in the dtype of their tensors throughout: every line rounds to it.

The yardstick for kernels, which may be at most twice as wrong as this. It is not the definition of an op:
that is `segue.kernels.reference`, which computes in float32 inside. Same names and signatures, without `out`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def packed_attention(qkv: Tensor, cu_seqlens: Tensor, heads: int, *, longest: int | None = None) -> Tensor:
    query, key, value = qkv.chunk(3, dim=-1)
    pieces = [
        _attention(query[start:end], key[start:end], value[start:end], heads)
        for start, end in pairwise(cu_seqlens.tolist())
    ]
    return torch.cat(pieces) if pieces else query


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
) -> Tensor:
    key, value = x @ key_weight.T, linear(x, value_weight, value_bias)
    rows = [
        _attention(row[None], key[start:end], value[start:end], heads)
        for row, (start, end) in zip(q, pairwise(cu_seqlens.tolist()), strict=True)
    ]
    return torch.cat(rows) if rows else q


def softmax(x: Tensor) -> Tensor:
    powers = torch.exp(x - x.amax(-1, keepdim=True))
    return powers / powers.sum(-1, keepdim=True)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _layer_norm(x + residual, weight, bias, eps)


def linear(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
    product = x @ weight.T + bias
    return product if residual is None else product + residual


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    z = linear(x, weight, bias)
    return z / 2 * (1 + torch.erf(z / 2**0.5))


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
) -> Tensor:
    total = word[input_ids.long()] + token_type[token_type_ids.long()] + position[position_ids.long()]
    return _layer_norm(total, weight, bias, eps)


def pool_classify(
    cls: Tensor,
    pooler_weight: Tensor,
    pooler_bias: Tensor,
    classifier_weight: Tensor,
    classifier_bias: Tensor,
) -> Tensor:
    pooled = torch.tanh(linear(cls, pooler_weight, pooler_bias))
    return linear(pooled, classifier_weight, classifier_bias)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + eps) * weight + bias


def _attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """[Q, E] of [Q, E], [K, E], [K, E]; zeros where there are no keys."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (query, key, value))
    if not key.shape[1]:
        return query.transpose(0, 1).flatten(1) * 0
    scores = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
    return (softmax(scores) @ value).transpose(0, 1).flatten(1)
