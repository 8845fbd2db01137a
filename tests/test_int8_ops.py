"""The ops on weights of 8 bits: the ONNX function, run by onnxruntime and by onnx's ReferenceEvaluator, and
the eager twin give the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from segue.executors import overflow
from segue.export.functions import OPSET
from segue.export.functions_int8 import function_protos_int8
from segue.export.ops import DOMAIN, VERSION
from segue.kernels import reference, reference_int8

FUNCTIONS = {function.name: function for function in function_protos_int8()}


def _model(
    name: str, arrays: list[NDArray[Any]], attributes: dict[str, Any]
) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]]]:
    """A model of one op and its feed; what is int8 is a constant of it, as weights are in a bundle."""
    function = FUNCTIONS[name]
    named = dict(zip(function.input, arrays, strict=True))
    feed = {n: array for n, array in named.items() if array.dtype != np.int8}
    weights = [numpy_helper.from_array(array, n) for n, array in named.items() if n not in feed]
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(array.dtype), list(array.shape))
        for n, array in feed.items()
    ]
    output = helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [None, None])
    node = helper.make_node(name, list(function.input), ["out"], domain=DOMAIN, **attributes)
    graph = helper.make_graph([node], name, inputs, [output], weights)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model, feed


def _linear(rows: int, zero_point: int) -> list[NDArray[Any]]:
    draw = np.random.default_rng(zero_point)
    x = (draw.standard_normal((rows, 40)) * draw.lognormal(size=(rows, 1))).astype(np.float32)
    x = np.maximum(x, np.float32(-0.2)) if zero_point == 32 else x
    weight = draw.integers(-127, 128, (24, 40)).astype(np.int8)
    return [x, weight, (draw.random(24) + 0.01).astype(np.float32), x[0, :24].copy()]


@pytest.mark.parametrize("zero_point", [128, 32, 1, 254])
def test_a_linear_layer_is_its_twin_to_the_bit_in_any_runtime(zero_point: int) -> None:
    arrays = _linear(50, zero_point)
    arrays[0][7] = 0
    arrays[0][8] *= 1e-6
    model, feed = _model("QuantizedLinear", arrays, {"zero_point": zero_point})
    expected = reference_int8.quantized_linear(*map(torch.from_numpy, arrays), zero_point).numpy()
    options = onnxruntime.SessionOptions()
    if overflow.overflows():
        options.add_session_config_entry(*overflow.EXACT_INT8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    assert np.array_equal(session.run(None, feed)[0], expected)
    judge = ReferenceEvaluator(model).run(None, feed)[0]  # it sums in float32
    assert np.abs(judge - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.array_equal(expected[7], arrays[3]), "a row of zeros gives the bias"


@pytest.mark.parametrize("zero_point", [128, 32])
def test_a_row_is_rounded_by_half_a_step_and_nothing_is_cut_off(zero_point: int) -> None:
    x, weight, scale, bias = map(torch.from_numpy, _linear(200, zero_point))
    x[5] *= 1e-6
    found = reference_int8.quantized_linear(x, weight, scale, bias, zero_point).double()
    table = weight.double() * scale.double()[:, None]
    least, most = x.double().aminmax(dim=1)
    step = torch.maximum(most / (255 - zero_point), -least / zero_point)
    allowed = step[:, None] / 2 * table.abs().sum(1)
    assert ((found - (x.double() @ table.T + bias)).abs() <= allowed * 1.001 + 1e-4).all()
    ones = torch.eye(40, dtype=torch.int8)
    rounded = reference_int8.quantized_linear(x, ones, torch.ones(40), torch.zeros(40), zero_point)
    assert ((rounded - x).abs() <= step[:, None] * 0.5001).all()


def test_a_row_gives_the_same_bits_beside_any_others() -> None:
    x, *weights = map(torch.from_numpy, _linear(30, 128))
    together = reference_int8.quantized_linear(x, *weights, 128)
    alone = torch.cat([reference_int8.quantized_linear(row[None], *weights, 128) for row in x])
    assert torch.equal(together, alone)


def test_an_embedding_is_that_of_the_table_it_stands_for() -> None:
    draw = np.random.default_rng(0)
    word = draw.integers(-127, 128, (11, 8)).astype(np.int8)
    scale, *rest = (draw.random(shape).astype(np.float32) for shape in (11, (2, 8), (7, 8), 8, 8))
    ids = [np.array(values) for values in ([9, 0, 4, 9], [1, 0, 0, 1], [0, 6, 2, 3])]
    arrays = [*ids, word, scale, *rest]
    tensors = [*map(torch.from_numpy, arrays)]
    found = reference_int8.quantized_embed(*tensors, 1e-3)
    table = tensors[3].float() * tensors[4][:, None]
    assert torch.equal(found, reference.embed(*tensors[:3], table, *tensors[5:], 1e-3))
    model, feed = _model("QuantizedEmbed", arrays, {"epsilon": 1e-3})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for run in (session.run, ReferenceEvaluator(model).run):
        assert np.abs(run(None, feed)[0] - found.numpy()).max() <= 2e-6


def test_functions_are_of_standard_operators_alone() -> None:
    assert set(FUNCTIONS) == {"QuantizedEmbed", "QuantizedLinear"}
    for function in FUNCTIONS.values():
        assert {node.domain for node in function.node} == {""}


def test_weights_have_a_zero_point_without_which_onnx_runtime_before_1_30_ends_the_process() -> None:
    """In the mode for CPUs on which products overflow, which this machine may not need."""
    (linear,) = (function for function in FUNCTIONS.values() if function.name == "QuantizedLinear")
    given = [node for node in linear.node if node.op_type == "DequantizeLinear"]
    assert len(given) == 2
    assert all(len(node.input) == 3 and all(node.input) for node in given)
