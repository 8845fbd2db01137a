"""The classic graph for other runtimes: input_ids, attention_mask, token_type_ids [B, S], standard operators alone.

The same weights under the same names as in `bert`, computed over padding: what TensorRT, OpenVINO or a browser expects.
Opset 18, and nothing newer than LayerNormalization. The last layer computes the first row of each pair alone here too.
"""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

from segue.export.bert import Bert, Layer
from segue.export.graph import trace

__all__ = ["PaddedBert", "padded_graph"]

OPSET = 18


def padded_graph(model: Bert) -> ir.Model:
    """Return the graph of `model` over input_ids, attention_mask, token_type_ids [B, S] → logits, probabilities [B, C]."""
    axes = {0: torch.export.Dim("B"), 1: torch.export.Dim("S")}
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: (torch.ones(2, 5, dtype=torch.int64), axes) for name in names}
    return trace(PaddedBert(model), inputs, opset=OPSET, optimize=True)


class PaddedBert(nn.Module):
    """The network of a `Bert`, sharing its weights; every pair must have one real token at least."""

    def __init__(self, bert: Bert) -> None:
        super().__init__()
        self.activation = bert.activation
        self.embeddings, self.layers, self.head = bert.embeddings, bert.layers, bert.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        real_B11S = attention_mask[:, None, None, :] != 0
        tables = self.embeddings
        hidden = tables.word(input_ids) + tables.token_type(token_type_ids)
        hidden = tables.norm(hidden + tables.position.weight[: input_ids.shape[1]])
        for layer in self.layers[:-1]:
            query, key, value = layer.qkv(hidden).chunk(3, dim=-1)
            hidden = _finish(layer, _attend(query, key, value, real_B11S, layer.heads), hidden)
        last = self.layers[-1]
        cls_B1E = hidden[:, :1]
        key, value = last.key_value(hidden).chunk(2, dim=-1)
        cls_B1E = _finish(last, _attend(last.query(cls_B1E), key, value, real_B11S, last.heads), cls_B1E)
        pooled_BE = torch.tanh(self.head.pooler(cls_B1E[:, 0]))
        logits_BC = self.head.classifier(pooled_BE)
        if self.activation == "softmax":
            return logits_BC, torch.softmax(logits_BC, dim=-1)
        return logits_BC, torch.sigmoid(logits_BC) if self.activation == "sigmoid" else logits_BC.clone()


def _attend(query: Tensor, key: Tensor, value: Tensor, real_B11S: Tensor, heads: int) -> Tensor:
    """Return softmax(Q Kᵀ / √D) V over the real tokens: query [B, Q, E], key and value [B, S, E] → [B, Q, E]."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    weights = torch.softmax(scores.masked_fill(~real_B11S, float("-inf")), dim=-1)
    return (weights @ value).transpose(1, 2).flatten(2)


def _finish(layer: Layer, context: Tensor, residual: Tensor) -> Tensor:
    norm, inner = layer.attention_norm, layer.intermediate
    attended = functional.layer_norm(
        layer.attention_output(context) + residual, norm.normalized_shape, norm.weight, norm.bias, norm.eps
    )
    hidden = layer.output(functional.gelu(functional.linear(attended, inner.weight, inner.bias))) + attended
    norm = layer.output_norm
    return functional.layer_norm(hidden, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
