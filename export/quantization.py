"""From a float32 network to the same with 8-bit weights: what `segue export --precision int8` writes.

The encoder's linear layers and the word table are stored as int8, one scale for each row of a weight; the
products are of integers, and all else (attention, LayerNorm, GELU, the head) stays float32. What enters a
product is rounded row by row at run time, to steps set by its own largest values: nothing is cut off, no
range has to be learned from data, and a pair's score stays the same in any batch.

A LayerNorm leaves a few columns of a token's row many times larger than all others, and the step that these
need drowns the others. So the difficulty is shared between a row and the weights that it meets, as in
SmoothQuant (Xiao and others, 2023): column k is divided by s_k = max|x_k|^a / max|W_k|^(1-a), and the
weights' column multiplied by it, which changes no product. The maxima of x are measured on text in a float32
pass; they decide how fine the rounding is, and no value is too large for it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segue.batching import PackedBatch
from segue.export import ops
from segue.export.bert import Bert, Embeddings, LinearGelu

__all__ = ["quantize"]

_SHARE = 0.6  # a; from 0.5 to 0.8 the scores of two six-layer models came out about as near to float32's
_SIGNED, _AFTER_GELU = 128, 32  # zero points; GELU is above -0.17, so few steps below zero suffice
_SMOOTHED = ("qkv", "query", "intermediate")  # what a LayerNorm feeds
_LEAST = 1e-5  # least maximum of a column, so that one of zeros divides nothing by 0


def quantize(model: Bert, batches: Iterable[PackedBatch]) -> Bert:
    """Return `model` with int8 weights, sharing the others; `model` itself is unchanged.

    Args:
        batches: of real text, on which the columns' maxima are measured.
    """
    peaks = _input_peaks(model, batches)
    quantized = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    quantized.embeddings = QuantizedEmbeddings(quantized.embeddings)
    for name, peak_K in peaks.items():
        owner, _, part = name.rpartition(".")
        layer = quantized.get_submodule(owner)
        linear = getattr(layer, part)
        kind = QuantizedLinearGelu if isinstance(linear, LinearGelu) else QuantizedLinear
        zero_point = _AFTER_GELU if part == "output" else _SIGNED
        setattr(layer, part, kind(linear, peak_K if part in _SMOOTHED else None, zero_point))
    return quantized


class QuantizedLinear(nn.Module):
    """[R, K] → [R, out]."""

    smooth: Tensor | None

    def __init__(self, linear: nn.Linear, peak_K: Tensor | None, zero_point: int) -> None:
        """Take over the weights of `linear`, smoothed by peak_K, the columns' maxima, if given."""
        super().__init__()
        self.zero_point = zero_point
        weight = linear.weight.detach()
        if peak_K is None:
            self.smooth = None
        else:
            share_K = peak_K.clamp_min(_LEAST) ** _SHARE
            share_K = share_K / weight.abs().amax(0).clamp_min(_LEAST) ** (1 - _SHARE)
            # to quarters of an octave, so that the last bits of a maximum do not change the file
            share_K = torch.exp2(torch.round(4 * torch.log2(share_K)) / 4)
            weight = weight * share_K
            self.register_buffer("smooth", 1 / share_K)
        stored, scale = _rows(weight)
        self.register_buffer("weight", stored)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, input: Tensor) -> Tensor:
        smooth = input if self.smooth is None else input * self.smooth
        return ops.quantized_linear(smooth, self.weight, self.scale, self.bias, self.zero_point)


class QuantizedLinearGelu(QuantizedLinear):
    """[R, K] → [R, F]."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.gelu(super().forward(input))


class QuantizedEmbeddings(nn.Module):
    """Three tables and a LayerNorm: ids [T] → hidden [T, E]."""

    def __init__(self, embeddings: Embeddings) -> None:
        """Take over the tables; that of words, by far the largest, is rounded."""
        super().__init__()
        stored, scale = _rows(embeddings.word.weight.detach())
        self.word = nn.Module()
        self.word.register_buffer("weight", stored)
        self.word.register_buffer("scale", scale)
        self.token_type, self.position = embeddings.token_type, embeddings.position
        self.norm = embeddings.norm

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor) -> Tensor:
        ids = (input_ids, token_type_ids, position_ids)
        tables = (self.word.weight, self.word.scale, self.token_type.weight, self.position.weight)
        return ops.quantized_embed(*ids, *tables, self.norm.weight, self.norm.bias, self.norm.eps)


def _rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 [rows, K] and the scale [rows] of each, so that a row's largest becomes 127."""
    most = weight.abs().amax(1)
    scale = torch.where(most > 0, most / 127, torch.ones_like(most))
    return torch.round(weight / scale[:, None]).clamp(-127, 127).to(torch.int8), scale


def _input_peaks(model: Bert, batches: Iterable[PackedBatch]) -> dict[str, Tensor]:
    """Return, for each linear layer of the encoder, the largest |x| of each of its inputs: name → [K]."""
    peaks: dict[str, Tensor] = {}

    def note(_: Any, inputs: tuple[Tensor, ...], *, name: str) -> None:
        found = inputs[0].abs().amax(0)
        peaks[name] = torch.maximum(peaks[name], found) if name in peaks else found

    hooks = [
        module.register_forward_pre_hook(partial(note, name=f"layers.{name}"))
        for name, module in model.layers.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            for batch in batches:
                model(*map(torch.from_numpy, vars(batch).values()))
    finally:
        for hook in hooks:
            hook.remove()
    return peaks
