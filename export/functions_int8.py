"""The ops on weights of 8 bits as ONNX functions; the others are in `functions`.

Bodies of standard operators again, written as quantisation commonly is: a QuantizeLinear turns values into
integers, a DequantizeLinear turns them back, and a product takes the outputs of two of the latter. A runtime
can follow that literally; ONNX Runtime (1.25 to 1.32 tried) makes an integer product of it. OpenVINO 2026.4
cannot run it, also inlined: its QuantizeLinear takes no scale for each of an unknown number of rows. To
divide by the steps beforehand would help it, but costs ONNX Runtime 1 to 3 % of its time. Weights are
symmetric, but their zero point is given all the same: before 1.30, ONNX Runtime's mode for CPUs on which
products overflow ends the process without it.
"""

from __future__ import annotations

import onnx
from onnxscript import script
from onnxscript.onnx_opset import opset23 as op
from onnxscript.values import Opset

from segue.export.ops import DOMAIN, VERSION

__all__ = ["function_protos_int8"]

_segue = Opset(DOMAIN, VERSION)
_FLOAT, _UINT8, _INT8 = 1, 2, 3  # onnx.TensorProto's numbers, which Cast takes


def function_protos_int8() -> list[onnx.FunctionProto]:
    """Return the bodies of both ops."""
    return [function.to_function_proto() for function in (QuantizedEmbed, QuantizedLinear)]


@script(_segue, default_opset=op)
def QuantizedEmbed(
    input_ids,
    token_type_ids,
    position_ids,
    word,
    word_scale,
    token_type,
    position,
    weight,
    bias,
    epsilon: float,
):
    scales = op.Gather(word_scale, input_ids)
    words = op.DequantizeLinear(op.Gather(word, input_ids), scales, axis=0)
    total = op.Add(op.Add(words, op.Gather(token_type, token_type_ids)), op.Gather(position, position_ids))
    out = op.LayerNormalization(total, weight, bias, axis=-1, epsilon=epsilon)
    return out


@script(_segue, default_opset=op)
def QuantizedLinear(x, weight, scale, bias, zero_point: int):
    columns = op.Constant(value_ints=[-1])
    zero = op.Cast(op.Constant(value_int=zero_point), to=_FLOAT)
    above = op.Div(op.ReduceMax(x, columns, keepdims=0), op.Sub(op.Constant(value_float=255.0), zero))
    below = op.Div(op.ReduceMin(x, columns, keepdims=0), op.Neg(zero))
    step = op.Max(above, below, op.Constant(value_float=1e-30))
    stored_zero = op.Cast(zero, to=_UINT8)
    stored = op.QuantizeLinear(x, step, op.Expand(stored_zero, op.Shape(step)), axis=0)
    whole = op.DequantizeLinear(stored, op.Constant(value_float=1.0), stored_zero)
    zeros = op.Expand(op.Cast(op.Constant(value_int=0), to=_INT8), op.Shape(scale))
    product = op.MatMul(whole, op.DequantizeLinear(op.Transpose(weight), scale, zeros, axis=1))
    out = op.Add(op.Mul(product, op.Unsqueeze(step, columns)), bias)
    return out
