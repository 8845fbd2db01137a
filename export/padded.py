"""The classic graph for other runtimes: input_ids, attention_mask, token_type_ids [B, S], standard operators.

The same nodes and weights as the packed graph, with other bodies where boundaries matter: the mask stands in
for cu_seqlens, and the T rows are those of B·S tokens, real or not. All bodies are inlined. Opset 18, and
nothing newer than LayerNormalization in it: what TensorRT, OpenVINO or a browser expects.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import script
from onnxscript.onnx_opset import opset18 as op
from onnxscript.values import Opset

from segue.export.bert import Bert
from segue.export.functions import function_protos
from segue.export.graph import add_functions, inline, trace
from segue.export.ops import DOMAIN, VERSION

__all__ = ["padded_graph"]

OPSET = 18
_segue = Opset(DOMAIN, VERSION)
_FLOAT, _BOOL = 1, 9  # onnx.TensorProto's numbers, which Cast takes


def padded_graph(model: Bert) -> ir.Model:
    """Return the graph: input_ids, attention_mask, token_type_ids [B, S] → logits, probabilities [B, C]."""
    graph = trace(model, OPSET)
    ids, segments, positions, bounds = graph.graph.inputs
    mask = ir.val("attention_mask", ir.DataType.INT64)
    for value in (ids, mask, segments):
        value.shape = ir.Shape(["B", "S"])
    positions.replace_all_uses_with(ids)  # Embed takes the positions from the shape of its third input
    (rows,) = (node for node in graph.graph if node.op_type == "Slice")  # of each pair's first token
    first = ir.node(
        "FirstRows", [mask], domain=DOMAIN, version=VERSION, name=rows.name.replace("Slice", "FirstRows")
    )
    first.outputs[0].name = first.name
    rows.outputs[0].replace_all_uses_with(first.outputs[0])
    rows.append(first)
    for bound in rows.inputs[1:]:
        del graph.graph.initializers[bound.name]
    graph.graph.remove(rows, safe=True)
    bounds.replace_all_uses_with(mask)
    graph.graph.inputs[:] = [ids, mask, segments]
    own = [Embed, PackedAttention, ClsAttention, FirstRows]
    add_functions(graph, [*function_protos(OPSET), *(function.to_function_proto() for function in own)])
    inline(graph)
    return graph


@script(_segue, default_opset=op)
def Embed(input_ids, token_type_ids, like, word, token_type, position, weight, bias, epsilon: float):
    tokens = op.Add(op.Gather(word, input_ids), op.Gather(token_type, token_type_ids))
    longest = op.Shape(like, start=1)
    positions = op.Slice(position, op.Constant(value_ints=[0]), longest, op.Constant(value_ints=[0]))
    normal = op.LayerNormalization(op.Add(tokens, positions), weight, bias, axis=-1, epsilon=epsilon)
    out = op.Flatten(normal, axis=2)
    return out


@script(_segue, default_opset=op)
def PackedAttention(qkv, attention_mask, heads: int):
    rest = op.Constant(value_ints=[-1])
    parts = op.Constant(value_ints=[3])
    count = op.Reshape(op.Constant(value_int=heads), rest)
    sizes = op.Concat(op.Shape(attention_mask), parts, count, rest, axis=0)
    split = op.Transpose(op.Reshape(qkv, sizes), perm=[2, 0, 3, 1, 4])  # [3, B, H, S, D]
    query = op.Gather(split, op.Constant(value_int=0), axis=0)
    key = op.Gather(split, op.Constant(value_int=1), axis=0)
    value = op.Gather(split, op.Constant(value_int=2), axis=0)
    root = op.Sqrt(op.Cast(op.Shape(key, start=3), to=_FLOAT))
    scores = op.Div(op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2])), root)
    seen = op.Unsqueeze(op.Cast(attention_mask, to=_BOOL), op.Constant(value_ints=[1, 2]))
    # the least float32 replaces a padded score, it is not added: exactly 0 after the softmax
    weights = op.Softmax(op.Where(seen, scores, op.Constant(value_float=-3.4028234e38)), axis=-1)
    context = op.MatMul(weights, value)
    out = op.Flatten(op.Transpose(context, perm=[0, 2, 1, 3]), axis=2)
    return out


@script(_segue, default_opset=op)
def ClsAttention(q, x, attention_mask, key_weight, value_weight, value_bias, heads: int):
    rest = op.Constant(value_ints=[-1])
    count = op.Reshape(op.Constant(value_int=heads), rest)
    by_head = op.Concat(count, rest, op.Shape(key_weight, start=1), axis=0)
    # the weights come first in a product: ONNX Runtime's quantiser mistakes the axes of a second one in 3-D
    key = op.Transpose(op.Reshape(key_weight, by_head), perm=[0, 2, 1])  # Kᵀ: [H, E, D]
    value = op.Reshape(value_weight, by_head)
    apart = op.Reshape(q, op.Concat(op.Constant(value_ints=[0]), count, rest, axis=0))
    query = op.Transpose(op.MatMul(key, op.Transpose(apart, perm=[1, 2, 0])), perm=[2, 0, 1])  # [B, H, E]
    rows = op.Reshape(x, op.Concat(op.Shape(attention_mask), rest, axis=0))  # [B, S, E]
    root = op.Sqrt(op.Cast(op.Shape(key, start=2), to=_FLOAT))
    scores = op.Div(op.MatMul(query, op.Transpose(rows, perm=[0, 2, 1])), root)
    seen = op.Unsqueeze(op.Cast(attention_mask, to=_BOOL), op.Constant(value_ints=[1]))
    weights = op.Softmax(op.Where(seen, scores, op.Constant(value_float=-3.4028234e38)), axis=-1)
    context = op.MatMul(value, op.Transpose(op.MatMul(weights, rows), perm=[1, 2, 0]))
    out = op.Add(op.Flatten(op.Transpose(context, perm=[2, 0, 1])), value_bias)
    return out


@script(_segue, default_opset=op)
def FirstRows(attention_mask):
    longest = op.Squeeze(op.Shape(attention_mask, start=1))
    rows = op.ReduceProd(op.Shape(attention_mask), keepdims=0)
    out = op.Range(op.Constant(value_int=0), rows, longest)
    return out
