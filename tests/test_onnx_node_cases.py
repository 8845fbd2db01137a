"""The ONNX project's own node tests, run by our kernels as far as their ops are ours.

A case gives inputs and what ONNX expects of them, which ONNX's own runner checks. `OURS` says how our kernels
compute an op of ONNX, `EXCLUDED` which cases they do not, and why. Only the first output is checked: no
kernel gives the mean of a LayerNormalization, or the scores of an Attention.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from kernel_tools import launches
from numpy.typing import NDArray
from onnx import helper
from onnx.backend.test.case.node import _NodeTestCases
from onnx.backend.test.runner import Runner
from torch import Tensor

from segue import kernels

# A module of cases registers them when it is imported; importing all of them takes 13 s.
for _module in ("attention", "gelu", "gemm", "layernormalization", "matmul", "softmax"):
    import_module(f"onnx.backend.test.case.node.{_module}")


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    last = x.movedim(axis, -1).contiguous()
    return kernels.softmax(last.flatten(0, -2)).reshape(last.shape).movedim(-1, axis)


def layer_normalization(X: Tensor, W: Tensor, B: Tensor, *, axis: int = -1, epsilon: float = 1e-5) -> Tensor:
    """The normalised axes flattened to one, the residual zero."""
    assert W.shape == X.shape[axis % X.dim() :]
    rows = X.reshape(-1, W.numel())
    zero = torch.zeros_like(rows)
    return kernels.add_layer_norm(rows, zero, W.flatten(), B.flatten(), epsilon).reshape(X.shape)


def gelu(x: Tensor) -> Tensor:
    """That of a linear layer whose weight is the identity, so that its product is x to the bit."""
    rows = x.reshape(-1, x.shape[-1])
    columns = rows.shape[1]
    return kernels.linear_gelu(rows, torch.eye(columns), torch.zeros(columns)).reshape(x.shape)


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """alpha scales a, beta scales c; a c of one row is the bias, one of several the residual."""
    x = (a.T if transA else a).contiguous() * alpha
    weight = (b if transB else b.T).contiguous()
    if c is None:
        return kernels.linear(x, weight, torch.zeros(len(weight)))
    if c.dim() == 2 and len(c) > 1:
        return kernels.linear(x, weight, torch.zeros(len(weight)), c * beta)
    return kernels.linear(x, weight, (c * beta).reshape(-1).expand(len(weight)).contiguous())


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """All rows of a in one product where b is one matrix, a product for each matrix where it is a stack."""
    x, weight = (a if a.dim() > 1 else a[None]), (b.mT if b.dim() > 1 else b[None]).contiguous()
    bias = torch.zeros(weight.shape[-2])
    if weight.dim() == 2:
        found = kernels.linear(x.reshape(-1, x.shape[-1]), weight, bias).unflatten(0, x.shape[:-1])
    else:
        outer = torch.broadcast_shapes(x.shape[:-2], weight.shape[:-2])
        stacks = (t.expand(*outer, *t.shape[-2:]).flatten(0, -3) for t in (x, weight))
        products = [kernels.linear(*matrices, bias) for matrices in zip(*stacks, strict=True)]
        found = torch.stack(products).unflatten(0, outer)
    found = found if a.dim() > 1 else found.squeeze(-2)
    return found if b.dim() > 1 else found.squeeze(-1)


def packed_attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    *,
    q_num_heads: int | None = None,
    kv_num_heads: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Each batch row is a pair; where queries are fewer than keys, zeros fill up, and are dropped."""
    q, k, v, heads = _tokens(Q, K, V, q_num_heads, kv_num_heads, scale)
    (batch, queries, _), keys = q.shape, k.shape[1]
    q = torch.nn.functional.pad(q, (0, 0, 0, keys - queries))
    qkv = torch.cat([q, k, v], dim=-1).flatten(0, 1)
    out = kernels.packed_attention(qkv, torch.arange(batch + 1) * keys, heads)
    return _like(Q, out.unflatten(0, (batch, keys))[:, :queries], heads)


def cls_attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    *,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    q_num_heads: int | None = None,
    kv_num_heads: int | None = None,
    scale: float | None = None,
    is_causal: int = 0,
    left_window_size: int = -1,
    right_window_size: int = -1,
) -> Tensor:
    """Each query row is a pair, whose keys are the run of those that it sees, past ones first.

    The rows of x are a key, its value and as many zeros again, from which the weights take one or the other;
    as x and a query are of one size, a head has four times as many columns: its scale is half as large.
    """
    offset = 0  # the place of the first query among the keys
    if past_key is not None and past_value is not None:
        offset = past_key.shape[2]
        K, V = torch.cat([past_key, K], dim=2), torch.cat([past_value, V], dim=2)
    q, k, v, heads = _tokens(Q, K, V, q_num_heads, kv_num_heads, scale)
    batch, queries, _ = q.shape
    right = 0 if is_causal else right_window_size
    runs = []
    for i, row in enumerate(torch.cat([k, v], dim=-1)):
        length = len(row)
        if nonpad_kv_seqlen is not None:
            length = int(nonpad_kv_seqlen[i])
            offset = length - queries
        for place in range(offset, offset + queries):
            first = max(0, place - left_window_size) if left_window_size >= 0 else 0
            end = min(length, max(0, place + right + 1)) if right >= 0 else length
            runs.append(row[first:end])
    cu_seqlens = torch.tensor([0, *map(len, runs)]).cumsum(0)
    pad, hidden = torch.nn.functional.pad, q.shape[2]
    x, depth = pad(torch.cat(runs), (0, 2 * hidden)), hidden // heads
    wide = pad(2 * q.flatten(0, 1).unflatten(1, (heads, -1)), (0, 3 * depth)).flatten(1)
    taken = pad(torch.eye(hidden).unflatten(0, (heads, -1)), (0, 0, 0, 3 * depth)).flatten(0, 1)
    key, value = pad(taken, (0, 3 * hidden)), pad(taken, (hidden, 2 * hidden))
    weights = (x.to(Q.dtype) for x in (key, value, torch.zeros(4 * hidden)))
    out = kernels.cls_attention(wide, x, cu_seqlens, *weights, heads)
    out = out.unflatten(1, (heads, 4, -1))[:, :, 0].flatten(1)
    return _like(Q, out.unflatten(0, (batch, queries)), heads)


def _tokens(
    Q: Tensor, K: Tensor, V: Tensor, q_heads: int | None, kv_heads: int | None, scale: float | None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Q, K, V as [batch, rows, E] and their heads: a scale goes into Q, shared keys are repeated."""
    if Q.dim() == 3:
        Q = Q.unflatten(-1, (q_heads, -1)).transpose(1, 2)
        K, V = (x.unflatten(-1, (kv_heads, -1)).transpose(1, 2) for x in (K, V))
    heads, depth = Q.shape[1], Q.shape[3]
    if scale is not None:
        Q = Q * (scale * depth**0.5)
    K, V = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (K, V))
    q, k, v = (x.transpose(1, 2).flatten(2) for x in (Q, K, V))
    return q, k, v, heads


def _like(Q: Tensor, out: Tensor, heads: int) -> Tensor:
    return out if Q.dim() == 3 else out.unflatten(-1, (heads, -1)).transpose(1, 2)


OURS: dict[str, Callable[..., Tensor]] = {
    "Attention": cls_attention,
    "Gelu": gelu,
    "Gemm": gemm,
    "LayerNormalization": layer_normalization,
    "MatMul": matmul,
    "Softmax": softmax,
}
# Cases whose queries see every key: these go through the other attention, too.
PACKED = [
    "attention_3d",
    "attention_3d_gqa",
    "attention_3d_gqa_scaled",
    "attention_3d_scaled",
    "attention_3d_transpose_verification",
    "attention_4d",
    "attention_4d_gqa",
    "attention_4d_gqa_scaled",
    "attention_4d_scaled",
    "attention_4d_with_qk_matmul",
]
EXCLUDED: dict[str, str] = {
    "a mask, to be added to the scores: ours have lengths": """
        attention_4d_attn_mask attention_4d_attn_mask_3d attention_4d_attn_mask_3d_causal
        attention_4d_attn_mask_4d attention_4d_attn_mask_4d_causal attention_4d_attn_mask_bool
        attention_4d_attn_mask_bool_4d attention_4d_gqa_attn_mask
        attention_4d_diff_heads_sizes_attn_mask attention_4d_with_past_and_present
        attention_4d_gqa_with_past_and_present attention_4d_gqa_with_past_and_present_fp16
        attention_4d_diff_heads_with_past_and_present
        attention_4d_diff_heads_with_past_and_present_mask3d
        attention_4d_diff_heads_with_past_and_present_mask4d attention_4d_with_qk_matmul_bias
        attention_4d_with_qk_matmul_softcap attention_4d_with_qk_matmul_softmax
        attention_4d_with_past_and_present_qk_matmul_bias
        attention_4d_with_past_and_present_qk_matmul_bias_3d_mask
        attention_4d_with_past_and_present_qk_matmul_bias_4d_mask
        attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal
        attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal
        attention_4d_with_past_and_present_qk_matmul attention_3d_attn_mask
        attention_3d_gqa_attn_mask attention_3d_diff_heads_sizes_attn_mask
        attention_3d_with_past_and_present attention_3d_gqa_with_past_and_present
        attention_3d_diff_heads_with_past_and_present attention_3d_with_past_and_present_qk_matmul
        attention_3d_with_past_and_present_qk_matmul_bias
        attention_3d_with_past_and_present_qk_matmul_softcap
        attention_3d_with_past_and_present_qk_matmul_softmax
        attention_4d_diff_heads_mask4d_padded_kv attention_4d_padded_kv_bf16
        attention_4d_causal_padded_kv_bf16 attention_4d_attn_mask_causal_bf16
        attention_4d_softcap_neginf_mask attention_4d_softcap_neginf_mask_poison
        attention_causal_boolmask_nan_robustness
        attention_23_boolmask_fullymasked_row_nan_robustness
        attention_23_fullymasked_qk_matmul_output_mode3_zero
        attention_24_fullymasked_qk_matmul_output_mode3_zero
        attention_24_qk_matmul_output_mode3_softmax_precision
        attention_4d_causal_nonpad_attn_mask_composition attention_local_window_rank1_boolean_mask
        attention_local_window_ext_cache_rank3_head_mask
        attention_local_window_ext_cache_rank4_batch_mask
        attention_local_window_ext_cache_rank2_mask attention_local_window_ext_cache_float16_mask
        attention_local_window_gqa_rank4_mask
    """,
    "a softcap on the scores": """
        attention_4d_softcap attention_4d_gqa_softcap attention_4d_diff_heads_sizes_softcap
        attention_3d_softcap attention_3d_gqa_softcap attention_3d_diff_heads_sizes_softcap
    """,
    "values of another head size than the keys": """
        attention_4d_diff_heads_sizes attention_4d_diff_heads_sizes_scaled
        attention_4d_diff_heads_sizes_causal attention_3d_diff_heads_sizes
        attention_3d_diff_heads_sizes_scaled attention_3d_diff_heads_sizes_causal
        attention_3d_local_window
    """,
    "what ONNX expects is wrong by 9e-4 against float64, our kernels by 6e-4: together that is too much": """
        attention_4d_fp16 attention_4d_causal_fp16
    """,
    "the GELU by tanh: ours is the one by erf": """
        gelu_tanh_1 gelu_tanh_2
    """,
}
# `_expanded` cases are the same inputs again, through a graph of other ops.
CASES = {
    case.name.removeprefix("test_"): case
    for case in _NodeTestCases
    if case.model.graph.node[0].op_type in OURS and "_expanded" not in case.name
}
LEFT_OUT = [name for names in EXCLUDED.values() for name in names.split()]
COVERED = [name for name in CASES if name not in LEFT_OUT]


@pytest.mark.parametrize("name", COVERED)
def test_a_kernel_gives_what_onnx_expects(name: str) -> None:
    _check(name, OURS[CASES[name].model.graph.node[0].op_type])


@pytest.mark.parametrize("name", PACKED)
def test_packed_attention_gives_what_onnx_expects(name: str) -> None:
    _check(name, packed_attention)


def test_every_case_is_run_or_left_out_for_a_reason() -> None:
    assert not set(LEFT_OUT) - set(CASES)
    assert len(LEFT_OUT) == len(set(LEFT_OUT))
    ops = {name: case.model.graph.node[0].op_type for name, case in CASES.items()}
    assert Counter(ops[name] for name in COVERED) == {
        "Attention": 26, "Gelu": 2, "Gemm": 11, "LayerNormalization": 19, "MatMul": 7, "Softmax": 7,
    }  # fmt: skip
    assert Counter(ops[name] for name in LEFT_OUT) == {"Attention": 67, "Gelu": 2}


def _check(name: str, ours: Callable[..., Tensor]) -> None:
    case = CASES[name]
    (node,) = case.model.graph.node
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    for inputs, outputs in case.data_sets:
        named = dict(zip(filter(None, node.input), map(_to_torch, inputs), strict=True))
        with launches() as made:
            found = ours(**named, **attributes)
        assert made
        expected = outputs[:1]
        Runner.assert_similar_outputs(
            expected, [_to_numpy(found, expected[0].dtype)], rtol=case.rtol, atol=case.atol
        )


def _to_torch(x: NDArray[Any]) -> Tensor:
    if x.dtype.name != "bfloat16":  # which NumPy has from ml_dtypes, and torch does not know
        return torch.tensor(x)
    return torch.tensor(x.view(np.int16)).view(torch.bfloat16)


def _to_numpy(x: Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    return x.view(torch.int16).numpy().view(dtype) if x.dtype == torch.bfloat16 else x.numpy()
