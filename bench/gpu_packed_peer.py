"""The packed forward pass as PyTorch's own parts give it: cuBLASLt, variable-length attention, LayerNorm.

What an expert who uses no kernels of their own would write; every row goes through every layer. With `replay`
each batch becomes a GPU graph of its own, which no service could have, as its batches are never the same: a
bound for what launches cost.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from segue.batching import PackedBatch

__all__ = ["Packed", "PackedPeer", "attentions", "packed"]

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


class Packed(NamedTuple):
    """A batch on the host: the rows of its pairs, ids, types and positions [3, T], bounds, longest pair."""

    rows: np.ndarray
    numbers: Tensor
    bounds: Tensor
    longest: int


def packed(rows: list[np.ndarray], batches: list[PackedBatch], *, pinned: bool) -> list[Packed]:
    """Make batches ready to be sent."""
    ready = []
    for some, batch in zip(rows, batches, strict=True):
        numbers = torch.from_numpy(np.stack([batch.input_ids, batch.token_type_ids, batch.position_ids]))
        bounds = torch.from_numpy(batch.cu_seqlens.astype(np.int32))
        if pinned:
            numbers, bounds = numbers.pin_memory(), bounds.pin_memory()
        ready.append(Packed(some, numbers, bounds, int(np.diff(batch.cu_seqlens).max())))
    return ready


def attentions(smoke: bool) -> dict[str, Attend]:
    """What there is for packed sequences, [T, H, D] each; on a CPU a loop, to take the same path."""
    if smoke:
        return {"a loop of SDPA": _loop}
    from gpu_kernels import attend_variable

    found: dict[str, Attend] = {"varlen_attn": attend_variable}
    if find_spec("flash_attn"):
        found["flash-attn"] = _flash
    return found


class PackedPeer:
    """The weights of transformers' classifier, on its device and in its precision."""

    def __init__(self, module: Any, attend: Attend) -> None:
        """Take the weights of `module`, Q, K and V as one."""
        self._attend, self._classifier = attend, module.classifier
        self._embeddings, self._pooler = module.bert.embeddings, module.bert.pooler.dense
        self._heads, self._device = module.config.num_attention_heads, module.classifier.weight.device
        self._graphs: dict[int, tuple[Any, Tensor]] = {}
        self._layers = []
        for layer in module.bert.encoder.layer:
            parts = [getattr(layer.attention.self, name) for name in ("query", "key", "value")]
            weight, bias = (torch.cat([getattr(p, name) for p in parts]) for name in ("weight", "bias"))
            self._layers.append((layer, weight.detach(), bias.detach()))

    def score(self, batches: list[Packed], *, replay: bool = False) -> np.ndarray:
        """[N, C], in the order of the pairs; copied back when all batches have been sent."""
        with torch.inference_mode():
            found = [
                self._replay(batch) if replay else self._forward(*self._sent(batch)) for batch in batches
            ]
            logits = torch.cat(found).float().cpu()
        ordered = torch.empty_like(logits)
        ordered[torch.from_numpy(np.concatenate([batch.rows for batch in batches]))] = logits
        return ordered.numpy()

    def _sent(self, batch: Packed) -> tuple[Tensor, Tensor, int]:
        """Numbers and bounds on their way to the device, and the longest pair."""
        numbers, bounds = (part.to(self._device, non_blocking=True) for part in (batch.numbers, batch.bounds))
        return numbers, bounds, batch.longest

    def _replay(self, batch: Packed) -> Tensor:
        if id(batch) not in self._graphs:
            numbers, bounds, longest = self._sent(batch)
            self._forward(numbers, bounds, longest)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits = self._forward(numbers, bounds, longest)
            self._graphs[id(batch)] = graph, (logits, numbers, bounds, batch)
        graph, (logits, numbers, bounds, _) = self._graphs[id(batch)]
        numbers.copy_(batch.numbers, non_blocking=True)
        bounds.copy_(batch.bounds, non_blocking=True)
        graph.replay()
        return logits.clone()

    def _forward(self, numbers: Tensor, bounds: Tensor, longest: int) -> Tensor:
        tables = self._embeddings
        words = (tables.word_embeddings, tables.token_type_embeddings, tables.position_embeddings)
        x = tables.LayerNorm(sum(table(ids) for table, ids in zip(words, numbers, strict=True)))
        for layer, weight, bias in self._layers:
            qkv = functional.linear(x, weight, bias).view(len(x), 3, self._heads, -1)
            context = self._attend(*qkv.unbind(1), bounds, longest).reshape(x.shape)
            attended = layer.attention.output.LayerNorm(layer.attention.output.dense(context) + x)
            inner = functional.gelu(layer.intermediate.dense(attended))
            x = layer.output.LayerNorm(layer.output.dense(inner) + attended)
        logits: Tensor = self._classifier(torch.tanh(self._pooler(x[bounds[:-1].long()])))
        return logits


def _loop(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int) -> Tensor:
    parts = [
        functional.scaled_dot_product_attention(
            *(x[start:end].transpose(0, 1)[None] for x in (query, key, value))
        )
        for start, end in pairwise(bounds.tolist())
    ]
    return torch.cat([part[0].transpose(0, 1) for part in parts])


def _flash(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    context: Tensor = flash_attn_varlen_func(query, key, value, bounds, bounds, longest, longest)
    return context
