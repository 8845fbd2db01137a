"""BERT with a pair classifier on top, written over the ops, for packed batches.

What an export traces and is verified against. The last layer is computed for the [CLS] rows alone, since
nothing else of it is read: exact, and spares 8 % of BERT-base's work. Other tokens enter its attention as
they are, without keys and values; so it has three projections, where other layers have one.

    T tokens   B pairs   R rows, T or B   E hidden size   F feed-forward size   C labels

Every exported node is named after the module whose forward makes it: hence the small modules.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segue.bundle import Dimensions
from segue.export import ops

__all__ = ["Bert", "activate"]


def activate(logits_BC: Tensor, activation: str) -> Tensor:
    """Return the probabilities [B, C]: `softmax`, `sigmoid`, or `identity`, a regression's logit itself."""
    if activation == "softmax":
        return ops.softmax(logits_BC)
    return torch.sigmoid(logits_BC) if activation == "sigmoid" else logits_BC.clone()


class Bert(nn.Module):
    """input_ids, token_type_ids, position_ids [T], cu_seqlens [B + 1] → logits, probabilities [B, C]."""

    def __init__(self, dimensions: Dimensions, *, labels: int, activation: str, eps: float) -> None:
        """Make the module, its weights still random; `activation` is the head's, `eps` every LayerNorm's."""
        super().__init__()
        self.activation = activation
        self.embeddings = Embeddings(dimensions, eps)
        layers = [Layer(dimensions, eps) for _ in range(dimensions.layers - 1)]
        self.layers = nn.ModuleList([*layers, LastLayer(dimensions, eps)])
        self.head = PoolClassify(dimensions.hidden_size, labels)

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor, cu_seqlens: Tensor
    ) -> tuple[Tensor, Tensor]:
        hidden = self.embeddings(input_ids, token_type_ids, position_ids)
        for layer in self.layers:
            hidden = layer(hidden, cu_seqlens)
        logits_BC = self.head(hidden)
        return logits_BC, activate(logits_BC, self.activation)


class Embeddings(nn.Module):
    """Three tables and a LayerNorm: ids [T] → hidden [T, E]."""

    def __init__(self, dimensions: Dimensions, eps: float) -> None:
        super().__init__()
        size = dimensions.hidden_size
        self.word = nn.Embedding(dimensions.vocab_size, size)
        self.token_type = nn.Embedding(dimensions.token_types, size)
        self.position = nn.Embedding(dimensions.positions, size)
        self.norm = nn.LayerNorm(size, eps)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor) -> Tensor:
        tables = (self.word.weight, self.token_type.weight, self.position.weight)
        ids = (input_ids, token_type_ids, position_ids)
        return ops.embed(*ids, *tables, self.norm.weight, self.norm.bias, self.norm.eps)


class Layer(nn.Module):
    """hidden [T, E], cu_seqlens [B + 1] → hidden [T, E]."""

    def __init__(self, dimensions: Dimensions, eps: float) -> None:
        super().__init__()
        size, inner = dimensions.hidden_size, dimensions.intermediate_size
        self.heads = dimensions.heads
        self.add_projections(size)
        self.attention_output = nn.Linear(size, size)
        self.attention_norm = AddNorm(size, eps)
        self.intermediate = LinearGelu(size, inner)
        self.output = nn.Linear(inner, size)
        self.output_norm = AddNorm(size, eps)

    def add_projections(self, size: int) -> None:
        self.qkv = nn.Linear(size, 3 * size)

    def forward(self, hidden_TE: Tensor, cu_seqlens: Tensor) -> Tensor:
        context_TE = ops.packed_attention(self.qkv(hidden_TE), cu_seqlens, self.heads)
        return self.finish(context_TE, hidden_TE)

    def finish(self, context_RE: Tensor, residual_RE: Tensor) -> Tensor:
        """Compute what follows the attention, for any number of rows: [R, E] → [R, E]."""
        attended_RE = self.attention_norm(self.attention_output(context_RE), residual_RE)
        return self.output_norm(self.output(self.intermediate(attended_RE)), attended_RE)


class LastLayer(Layer):
    """hidden [T, E], cu_seqlens [B + 1] → the [CLS] rows [B, E]."""

    def add_projections(self, size: int) -> None:
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size, bias=False)  # one would change no score: see ClsAttention
        self.value = nn.Linear(size, size)
        self.register_buffer("slice_from", torch.tensor([0], device="cpu"), persistent=False)
        self.register_buffer("slice_to", torch.tensor([-1], device="cpu"), persistent=False)

    def forward(self, hidden_TE: Tensor, cu_seqlens: Tensor) -> Tensor:
        cls_BE = ops.first_rows(hidden_TE, cu_seqlens, (self.slice_from, self.slice_to))
        weights = (self.key.weight, self.value.weight, self.value.bias)
        context_BE = ops.cls_attention(self.query(cls_BE), hidden_TE, cu_seqlens, *weights, self.heads)
        return self.finish(context_BE, cls_BE)


class LinearGelu(nn.Linear):
    """[R, E] → [R, F]."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.linear_gelu(input, self.weight, self.bias)


class AddNorm(nn.LayerNorm):
    """LayerNorm(x + residual): [R, E] → [R, E]."""

    def forward(self, input: Tensor, residual: Tensor) -> Tensor:
        return ops.add_layer_norm(input, residual, self.weight, self.bias, self.eps)


class PoolClassify(nn.Module):
    """The [CLS] rows [B, E] → logits [B, C]."""

    def __init__(self, size: int, labels: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(size, size)
        self.classifier = nn.Linear(size, labels)

    def forward(self, cls_BE: Tensor) -> Tensor:
        weights = (self.pooler.weight, self.pooler.bias, self.classifier.weight, self.classifier.bias)
        return ops.pool_classify(cls_BE, *weights)
