"""The ops as ONNX functions of the domain `segue`: bodies of standard operators, for any runtime to run.

An attention body derives what it needs besides its inputs (which rows make up a pair, the longest pair, the
mask) from cu_seqlens alone, by the same nodes in every layer: a runtime that merges equal expressions
computes them once. Padding to [B, S] happens inside these bodies and nowhere else, S being the longest pair's
length, rounded up to a multiple of four: on Arm without SVE, ONNX Runtime's softmax adds up what is left of a
row after the last four by itself, and a pair would have other bits in another batch. The attentions take
empty pairs, a whole graph does not: its Gather finds no [CLS] rows for them.

Two things are due to the versions at hand. GELU is written out, since `Gelu` inside a function fails in
onnx's ReferenceEvaluator 1.23; ONNX Runtime fuses it back. The mask is expanded over the queries, since ONNX
Runtime 1.31 takes no [B, 1, 1, S]; opset 24's `nonpad_kv_seqlen` needs none, and was not faster by more than
the noise.
"""

from __future__ import annotations

import onnx
from onnxscript import script
from onnxscript.onnx_opset import opset23 as op
from onnxscript.values import Opset

from segue.export.ops import DOMAIN, VERSION

__all__ = ["OPSET", "function_protos"]

OPSET = 23
_FLOAT = 1  # onnx.TensorProto's number, which Cast takes
_segue = Opset(DOMAIN, VERSION)


def function_protos(opset: int = OPSET) -> list[onnx.FunctionProto]:
    """Return the body of every op, for a graph of the given opset.

    Below opset 23 the two attentions are invalid and must be replaced; the others work from opset 18 on.
    """
    functions = (Embed, PackedAttention, ClsAttention, LinearGelu, AddLayerNorm, Softmax, PoolClassify)
    protos = [function.to_function_proto() for function in functions]
    for proto in protos:
        proto.opset_import[0].version = opset
    return protos


@script(_segue, default_opset=op)
def Embed(input_ids, token_type_ids, position_ids, word, token_type, position, weight, bias, epsilon: float):
    tokens = op.Add(op.Gather(word, input_ids), op.Gather(token_type, token_type_ids))
    total = op.Add(tokens, op.Gather(position, position_ids))
    out = op.LayerNormalization(total, weight, bias, axis=-1, epsilon=epsilon)
    return out


@script(_segue, default_opset=op)
def PackedAttention(qkv, cu_seqlens, heads: int):
    starts = op.Slice(cu_seqlens, op.Constant(value_ints=[0]), op.Constant(value_ints=[-1]))
    ends = op.Slice(cu_seqlens, op.Constant(value_ints=[1]), op.Constant(value_ints=[2147483647]))
    lengths = op.Sub(ends, starts)
    longest = op.ReduceMax(lengths, keepdims=0)
    four = op.Constant(value_int=4)
    width = op.Mul(op.Div(op.Add(longest, op.Constant(value_int=3)), four), four)
    steps = op.Range(op.Constant(value_int=0), width, op.Constant(value_int=1))
    real = op.Less(steps, op.Unsqueeze(lengths, op.Constant(value_ints=[1])))
    # [B, S]: the row of each token; where a pair has none, row 0 stands in, and no query sees it
    row = op.Add(op.Unsqueeze(starts, op.Constant(value_ints=[1])), steps)
    rows = op.Where(real, row, op.Constant(value_int=0))
    # [3T, E]: row 3t is token t's query, then come its key and its value; so each is copied once, into place
    parts = op.Flatten(op.Reshape(qkv, op.Constant(value_ints=[0, 3, -1])), axis=2)
    first = op.Mul(rows, op.Constant(value_int=3))
    query = op.Gather(parts, first)
    key = op.Gather(parts, op.Add(first, op.Constant(value_int=1)))
    value = op.Gather(parts, op.Add(first, op.Constant(value_int=2)))
    square = op.Concat(op.Shape(real), op.Shape(real, start=1), axis=0)
    seen = op.Expand(op.Unsqueeze(real, op.Constant(value_ints=[1])), square)
    mask = op.Unsqueeze(seen, op.Constant(value_ints=[1]))
    context = op.Attention(query, key, value, mask, q_num_heads=heads, kv_num_heads=heads)
    flat = op.Reshape(real, op.Constant(value_ints=[-1]))
    out = op.Compress(op.Flatten(context, axis=2), flat, axis=0)
    return out


@script(_segue, default_opset=op)
def ClsAttention(q, x, cu_seqlens, key_weight, value_weight, value_bias, heads: int):
    starts = op.Slice(cu_seqlens, op.Constant(value_ints=[0]), op.Constant(value_ints=[-1]))
    ends = op.Slice(cu_seqlens, op.Constant(value_ints=[1]), op.Constant(value_ints=[2147483647]))
    lengths = op.Sub(ends, starts)
    longest = op.ReduceMax(lengths, keepdims=0)
    four = op.Constant(value_int=4)
    width = op.Mul(op.Div(op.Add(longest, op.Constant(value_int=3)), four), four)
    steps = op.Range(op.Constant(value_int=0), width, op.Constant(value_int=1))
    real = op.Less(steps, op.Unsqueeze(lengths, op.Constant(value_ints=[1])))
    row = op.Add(op.Unsqueeze(starts, op.Constant(value_ints=[1])), steps)
    rows = op.Where(real, row, op.Constant(value_int=0))
    rest = op.Constant(value_ints=[-1])
    count = op.Reshape(op.Constant(value_int=heads), rest)
    by_head = op.Concat(count, rest, op.Shape(key_weight, start=1), axis=0)
    key = op.Reshape(key_weight, by_head)  # K: [H, D, E]
    value = op.Transpose(op.Reshape(value_weight, by_head), perm=[0, 2, 1])
    # Two things keep a pair's bits the same in any batch. ONNX Runtime adds up a single row in another order
    # than several: a row of zeros goes along through the products with weights. And it splits a long sum by
    # the number of columns: x comes first, so that this is the number of heads, not of tokens.
    apart = op.Reshape(
        op.Pad(q, op.Constant(value_ints=[0, 0, 1, 0])),
        op.Concat(op.Constant(value_ints=[0]), count, rest, axis=0),
    )
    query = op.MatMul(op.Transpose(apart, perm=[1, 0, 2]), key)  # Kᵀ q: [H, B + 1, E]
    first = op.Constant(value_ints=[0])
    asking = op.Slice(op.Transpose(query, perm=[1, 2, 0]), first, rest, first)
    padded = op.Gather(x, rows)
    root = op.Sqrt(op.Cast(op.Shape(key, start=1, end=2), to=_FLOAT))
    scores = op.Transpose(op.Div(op.MatMul(padded, asking), root), perm=[0, 2, 1])  # [B, H, S]
    seen = op.Unsqueeze(real, op.Constant(value_ints=[1]))
    # the least float32 replaces a score that is not seen: exactly 0 after the softmax
    weights = op.Softmax(op.Where(seen, scores, op.Constant(value_float=-3.4028234e38)), axis=-1)
    mixed = op.MatMul(
        op.Transpose(padded, perm=[0, 2, 1]), op.Transpose(weights, perm=[0, 2, 1])
    )  # [B, E, H]
    more = op.Pad(mixed, op.Constant(value_ints=[0, 0, 0, 1, 0, 0]))
    context = op.Transpose(op.MatMul(op.Transpose(more, perm=[2, 0, 1]), value), perm=[1, 0, 2])
    biased = op.Add(op.Slice(op.Flatten(context), first, rest, first), value_bias)
    # an empty pair attends to nothing, and the softmax gives numbers all the same; it is zero by definition
    some = op.Greater(op.Unsqueeze(lengths, op.Constant(value_ints=[1])), op.Constant(value_int=0))
    out = op.Where(some, biased, op.Constant(value_float=0.0))
    return out


@script(_segue, default_opset=op)
def LinearGelu(x, weight, bias):
    product = op.Gemm(x, weight, bias, transB=1)
    scaled = op.Div(product, op.Constant(value_float=1.4142135623730951))
    gate = op.Add(op.Erf(scaled), op.Constant(value_float=1.0))
    out = op.Mul(op.Mul(product, gate), op.Constant(value_float=0.5))
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
