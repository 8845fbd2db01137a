"""The ops as the exporter sees them: the eager twin normally, one ONNX node of our own during an export.

Names and arguments are those of `segue.kernels.reference`. A node's inputs are the twin's tensors in the
twin's order, its attributes `heads` and `epsilon`; `functions` holds the bodies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segue.kernels import reference, reference_int8

__all__ = [
    "DOMAIN",
    "VERSION",
    "add_layer_norm",
    "cls_attention",
    "embed",
    "first_rows",
    "gelu",
    "linear_gelu",
    "packed_attention",
    "pool_classify",
    "quantized_embed",
    "quantized_linear",
    "softmax",
]

DOMAIN, VERSION = "segue", 2


def packed_attention(qkv: Tensor, cu_seqlens: Tensor, heads: int) -> Tensor:
    """qkv: [T, 3E], cu_seqlens: [B + 1] → [T, E]."""
    if not torch.onnx.is_in_onnx_export():
        return reference.packed_attention(qkv, cu_seqlens, heads)
    shape = (qkv.shape[0], qkv.shape[1] // 3)
    return _node("PackedAttention", (qkv, cu_seqlens), shape, heads=heads)


def cls_attention(
    q: Tensor,
    x: Tensor,
    cu_seqlens: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    heads: int,
) -> Tensor:
    """q: [B, E], x: [T, E], cu_seqlens: [B + 1]; key [E, E]; value [E, E], [E] → [B, E]."""
    inputs = (q, x, cu_seqlens, key_weight, value_weight, value_bias)
    if not torch.onnx.is_in_onnx_export():
        return reference.cls_attention(*inputs, heads)
    return _node("ClsAttention", inputs, q.shape, heads=heads)


def first_rows(hidden: Tensor, cu_seqlens: Tensor, from_to: tuple[Tensor, Tensor]) -> Tensor:
    """hidden: [T, E], cu_seqlens: [B + 1] → the first row of each pair [B, E], by standard Slice and Gather.

    `from_to` is what the Slice needs, the int64 tensors [0] and [-1]. PyTorch's own translation of the same
    line takes ten nodes.
    """
    if not torch.onnx.is_in_onnx_export():
        return hidden.index_select(0, cu_seqlens[:-1])
    pairs = cu_seqlens.shape[0] - 1
    starts = torch.onnx.ops.symbolic("Slice", (cu_seqlens, *from_to), dtype=torch.int64, shape=(pairs,))
    return torch.onnx.ops.symbolic(
        "Gather", (hidden, starts), {"axis": 0}, dtype=hidden.dtype, shape=(pairs, hidden.shape[1])
    )


def softmax(x: Tensor) -> Tensor:
    """x: [R, C] → [R, C]."""
    if not torch.onnx.is_in_onnx_export():
        return reference.softmax(x)
    return _node("Softmax", (x,), x.shape)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x, residual: [R, E]; weight, bias: [E] → [R, E]."""
    if not torch.onnx.is_in_onnx_export():
        return reference.add_layer_norm(x, residual, weight, bias, eps)
    return _node("AddLayerNorm", (x, residual, weight, bias), x.shape, epsilon=eps)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x: [R, E]; weight: [F, E]; bias: [F] → [R, F]."""
    if not torch.onnx.is_in_onnx_export():
        return reference.linear_gelu(x, weight, bias)
    return _node("LinearGelu", (x, weight, bias), (x.shape[0], weight.shape[0]))


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
    """input_ids, token_type_ids, position_ids: [T]; three tables [rows, E]; weight, bias: [E] → [T, E]."""
    inputs = (input_ids, token_type_ids, position_ids, word, token_type, position, weight, bias)
    if not torch.onnx.is_in_onnx_export():
        return reference.embed(*inputs, eps)
    return _node("Embed", inputs, (input_ids.shape[0], word.shape[1]), epsilon=eps)


def pool_classify(
    cls: Tensor,
    pooler_weight: Tensor,
    pooler_bias: Tensor,
    classifier_weight: Tensor,
    classifier_bias: Tensor,
) -> Tensor:
    """cls: [B, E]; pooler [E, E], [E]; classifier [C, E], [C] → [B, C]."""
    inputs = (cls, pooler_weight, pooler_bias, classifier_weight, classifier_bias)
    if not torch.onnx.is_in_onnx_export():
        return reference.pool_classify(*inputs)
    return _node("PoolClassify", inputs, (cls.shape[0], classifier_weight.shape[0]))


def quantized_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, zero_point: int) -> Tensor:
    """x: [R, K]; weight: [out, K], int8; scale, bias: [out] → [R, out]."""
    inputs = (x, weight, scale, bias)
    if not torch.onnx.is_in_onnx_export():
        return reference_int8.quantized_linear(*inputs, zero_point)
    return _node("QuantizedLinear", inputs, (x.shape[0], weight.shape[0]), zero_point=zero_point)


def quantized_embed(
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    word_scale: Tensor,
    token_type: Tensor,
    position: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """As `embed`, with an int8 word table [rows, E], one scale per row."""
    ids, norm = (input_ids, token_type_ids, position_ids), (weight, bias)
    inputs = (*ids, word, word_scale, token_type, position, *norm)
    if not torch.onnx.is_in_onnx_export():
        return reference_int8.quantized_embed(*inputs, eps)
    return _node("QuantizedEmbed", inputs, (input_ids.shape[0], word.shape[1]), epsilon=eps)


def gelu(x: Tensor) -> Tensor:
    """x: [R, F] → [R, F], by the standard operator, which is the exact (erf) one."""
    if not torch.onnx.is_in_onnx_export():
        return torch.nn.functional.gelu(x)
    return torch.onnx.ops.symbolic("Gelu", (x,), dtype=x.dtype, shape=x.shape)


def _node(name: str, inputs: Sequence[Tensor], shape: Sequence[Any], **attributes: int | float) -> Tensor:
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{name}", inputs, attributes, dtype=torch.float32, shape=shape, version=VERSION
    )
