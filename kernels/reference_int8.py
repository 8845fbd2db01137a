"""The ops on 8-bit weights as eager PyTorch, the definition of correct: ops of a CPU, without a kernel.

Each row of x is rounded to 8 bits by itself, so that a row's result never depends on the rows beside it. The
products are of integers, so that the order of summation does not matter. Letters as in `reference`; K is the
number of inputs of a linear layer. Needs only torch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["quantized_embed", "quantized_linear"]

_LEAST_STEP = 1e-30  # for a row of zeros, which must be divided all the same


def quantized_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, zero_point: int) -> Tensor:
    """Return x Wᵀ + bias, where W is scale · weight and each row of x is rounded to whole steps of its own.

    Row r is stored as round(x_r / step_r) + zero_point, from 0 to 255, ties to even. Its step is the
    smallest that clips nothing: max(max(x_r) / (255 - zero_point), -min(x_r) / zero_point). So a zero_point
    of 128 suits rows of both signs, and a smaller one rows that are mostly positive.

    Args:
        x: [R, K], float32.
        weight: [out, K], int8.
        scale: [out], float32, above 0.
        bias: [out], float32.
        zero_point: 1 to 254, the value that stands for 0.

    Returns:
        [R, out], float32.
    """
    least_R, most_R = x.aminmax(dim=1)
    step_R = torch.maximum(most_R / (255 - zero_point), least_R / -zero_point).clamp_min(_LEAST_STEP)
    whole_RK = (torch.round(x / step_R[:, None]) + zero_point).clamp(0, 255) - zero_point
    # float64 holds every sum of these products exactly, whatever the order
    product = functional.linear(whole_RK.double(), weight.double()).float()
    return product * scale * step_R[:, None] + bias


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
    """Return `reference.embed` of a word table whose row i is word_scale[i] · word[i].

    Args:
        input_ids, token_type_ids, position_ids: [T], int32 or int64, each below the rows of its table.
        word: [rows, E], int8; word_scale: [rows], float32.
        token_type, position: [rows, E], float32.
        weight, bias: [E], of the LayerNorm, which adds eps to the variance.

    Returns:
        [T, E], float32.
    """
    tokens_TE = word.index_select(0, input_ids).float() * word_scale.index_select(0, input_ids)[:, None]
    total_TE = tokens_TE + token_type.index_select(0, token_type_ids)
    total_TE = total_TE + position.index_select(0, position_ids)
    return functional.layer_norm(total_TE, total_TE.shape[-1:], weight, bias, eps)
