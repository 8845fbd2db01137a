"""The ops as ONNX functions of the domain `segue`: bodies of standard operators, so that any runtime can run them.

What an attention body needs besides its inputs (the longest pair, the gather index, the mask) it derives from
cu_seqlens with the same nodes in every layer, so that a runtime which merges equal expressions computes them once.
GELU is written out: `Gelu` inside a function fails in onnx's ReferenceEvaluator 1.23, and ONNX Runtime fuses it anyway.
"""

from __future__ import annotations

import onnx
from onnxscript import script
from onnxscript.onnx_opset import opset23 as op
from onnxscript.values import Opset

from segue.export.ops import DOMAIN, VERSION

__all__ = ["OPSET", "function_protos"]

OPSET = 23
_segue = Opset(DOMAIN, VERSION)


@script(_segue, default_opset=op)
def Embed(input_ids, token_type_ids, position_ids, word, token_type, position, weight, bias, epsilon: float):
    segments = op.Add(op.Gather(word, input_ids), op.Gather(token_type, token_type_ids))
    total = op.Add(segments, op.Gather(position, position_ids))
    out = op.LayerNormalization(total, weight, bias, axis=-1, epsilon=epsilon)
    return out


@script(_segue, default_opset=op)
def PackedAttention(qkv, cu_seqlens, heads: int):
    # Padded to [B, S] for the products alone: row b, s is token starts[b] + s; where that is no token of pair b, token 0
    # stands in, and the mask keeps it from being seen.
    zero = op.Constant(value_int=0)
    one = op.Constant(value_int=1)
    starts = op.Slice(cu_seqlens, op.Constant(value_ints=[0]), op.Constant(value_ints=[-1]))
    ends = op.Slice(cu_seqlens, op.Constant(value_ints=[1]), op.Constant(value_ints=[9223372036854775807]))
    lengths = op.Sub(ends, starts)
    steps = op.Range(zero, op.ReduceMax(lengths, keepdims=0), one)
    real = op.Less(steps, op.Unsqueeze(lengths, op.Constant(value_ints=[1])))
    index = op.Where(real, op.Add(op.Unsqueeze(starts, op.Constant(value_ints=[1])), steps), zero)
    q, k, v = op.Split(op.Gather(qkv, index), axis=-1, num_outputs=3)
    keys = op.Unsqueeze(real, op.Constant(value_ints=[1, 2]))
    queries = op.Unsqueeze(real, op.Constant(value_ints=[1, 3]))
    mask = op.Expand(keys, op.Shape(op.Or(keys, queries)))
    context = op.Attention(q, k, v, mask, q_num_heads=heads, kv_num_heads=heads)
    rows = op.Flatten(context, axis=2)
    out = op.Compress(rows, op.Reshape(real, op.Constant(value_ints=[-1])), axis=0)
    return out


@script(_segue, default_opset=op)
def ClsAttention(q, kv, cu_seqlens, heads: int):
    zero = op.Constant(value_int=0)
    one = op.Constant(value_int=1)
    starts = op.Slice(cu_seqlens, op.Constant(value_ints=[0]), op.Constant(value_ints=[-1]))
    ends = op.Slice(cu_seqlens, op.Constant(value_ints=[1]), op.Constant(value_ints=[9223372036854775807]))
    lengths = op.Sub(ends, starts)
    steps = op.Range(zero, op.ReduceMax(lengths, keepdims=0), one)
    real = op.Less(steps, op.Unsqueeze(lengths, op.Constant(value_ints=[1])))
    index = op.Where(real, op.Add(op.Unsqueeze(starts, op.Constant(value_ints=[1])), steps), zero)
    k, v = op.Split(op.Gather(kv, index), axis=-1, num_outputs=2)
    mask = op.Unsqueeze(real, op.Constant(value_ints=[1, 2]))
    query = op.Unsqueeze(q, op.Constant(value_ints=[1]))
    context = op.Attention(query, k, v, mask, q_num_heads=heads, kv_num_heads=heads)
    out = op.Squeeze(context, op.Constant(value_ints=[1]))
    return out


@script(_segue, default_opset=op)
def LinearGelu(x, weight, bias):
    product = op.Gemm(x, weight, bias, transB=1)
    half = op.Constant(value_float=0.5)
    one = op.Constant(value_float=1.0)
    root = op.Constant(value_float=1.4142135623730951)
    out = op.Mul(op.Mul(product, op.Add(op.Erf(op.Div(product, root)), one)), half)
    return out


@script(_segue, default_opset=op)
def AddLayerNorm(x, residual, weight, bias, epsilon: float):
    out = op.LayerNormalization(op.Add(x, residual), weight, bias, axis=-1, epsilon=epsilon)
    return out


@script(_segue, default_opset=op)
def Softmax(x):
    out = op.Softmax(x, axis=-1)
    return out


@script(_segue, default_opset=op)
def PoolClassify(cls, pooler_weight, pooler_bias, classifier_weight, classifier_bias):
    pooled = op.Tanh(op.Gemm(cls, pooler_weight, pooler_bias, transB=1))
    out = op.Gemm(pooled, classifier_weight, classifier_bias, transB=1)
    return out


def function_protos() -> dict[str, onnx.FunctionProto]:
    """Return the body of every op, by name."""
    functions = (Embed, PackedAttention, ClsAttention, LinearGelu, AddLayerNorm, Softmax, PoolClassify)
    return {function.name: function.to_function_proto() for function in functions}
