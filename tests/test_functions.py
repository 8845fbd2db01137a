"""The three bodies of each op give the same: the ONNX function, run by onnxruntime and by onnx's
ReferenceEvaluator, the eager twin, and the Triton kernel, interpreted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from kernel_tools import LAUNCHES, launches
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from segue import kernels
from segue.export.functions import OPSET, function_protos
from segue.export.ops import DOMAIN, VERSION
from segue.kernels import reference

FUNCTIONS = {function.name: function for function in function_protos()}
PYTHON = {
    "Embed": "embed",
    "PackedAttention": "packed_attention",
    "ClsAttention": "cls_attention",
    "LinearGelu": "linear_gelu",
    "AddLayerNorm": "add_layer_norm",
    "Softmax": "softmax",
    "PoolClassify": "pool_classify",
}


def _with_onnxruntime(model: onnx.ModelProto, feed: dict[str, Any]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def _with_reference(model: onnx.ModelProto, feed: dict[str, Any]) -> NDArray[np.float32]:
    return ReferenceEvaluator(model).run(None, feed)[0]


def _model(name: str, arrays: list[NDArray[Any]], attributes: dict[str, Any]) -> onnx.ModelProto:
    names = list(FUNCTIONS[name].input)
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)
        for n, array in zip(names, arrays, strict=True)
    ]
    output = helper.make_tensor_value_info("result", onnx.TensorProto.FLOAT, [None, None])
    node = helper.make_node(name, names, ["result"], domain=DOMAIN, **attributes)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    graph = helper.make_graph([node], name, inputs, [output])
    model = helper.make_model(graph, functions=[FUNCTIONS[name]], opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def _bounds(*lengths: int) -> NDArray[np.int64]:
    return np.array([0, *np.cumsum(lengths)])


def _ids(*values: int) -> NDArray[np.int64]:
    return np.array(values)


RAGGED = _bounds(5, 1, 33, 2)
EMPTY = _bounds(0, 4, 0, 3, 0)
KEY_VALUE = _random(24, 24), _random(24, 24), _random(24)
CASES: list[tuple[str, list[NDArray[Any]], dict[str, Any]]] = [
    (
        "Embed",
        [
            *(_ids(9, 0, 4), _ids(1, 0, 0), _ids(0, 6, 2)),
            *(_random(10, 8), _random(2, 8), _random(7, 8), _random(8), _random(8)),
        ],
        {"epsilon": 1e-3},
    ),
    ("PackedAttention", [_random(41, 72), RAGGED], {"heads": 3}),
    ("PackedAttention", [_random(7, 48), EMPTY], {"heads": 2}),
    ("PackedAttention", [_random(1, 48), _bounds(1)], {"heads": 1}),
    ("ClsAttention", [_random(4, 24), _random(41, 24), RAGGED, *KEY_VALUE], {"heads": 3}),
    ("ClsAttention", [_random(5, 24), _random(7, 24), EMPTY, *KEY_VALUE], {"heads": 2}),
    ("ClsAttention", [_random(1, 24), _random(1, 24), _bounds(1), *KEY_VALUE], {"heads": 1}),
    ("LinearGelu", [_random(6, 16) * 3, _random(24, 16), _random(24)], {}),
    ("AddLayerNorm", [_random(6, 16), _random(6, 16) * 9, _random(16), _random(16)], {"epsilon": 0.5}),
    ("Softmax", [_random(6, 3) * 30], {}),
    ("Softmax", [_random(6, 1)], {}),
    ("PoolClassify", [_random(6, 16), _random(16, 16), _random(16), _random(3, 16), _random(3)], {}),
]


each_case = pytest.mark.parametrize(
    ("name", "arrays", "attributes"), CASES, ids=[f"{case[0]}-{i}" for i, case in enumerate(CASES)]
)
each_runtime = pytest.mark.parametrize("runtime", [_with_onnxruntime, _with_reference])


def _same(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 2e-6 * max(1, np.abs(expected).max())


@each_runtime
@each_case
def test_a_function_is_its_twin_and_its_kernel(
    name: str,
    arrays: list[NDArray[Any]],
    attributes: dict[str, Any],
    runtime: Callable[..., NDArray[np.float32]],
) -> None:
    feed = dict(zip(FUNCTIONS[name].input, arrays, strict=True))
    found = runtime(_model(name, arrays, attributes), feed)
    arguments = [*map(torch.from_numpy, arrays), *attributes.values()]
    _same(found, getattr(reference, PYTHON[name])(*arguments).numpy())
    with launches() as made:
        kernel = getattr(kernels, PYTHON[name])(*arguments)
    assert len(made) == LAUNCHES.get(PYTHON[name], 1)
    _same(kernel.numpy(), found)


def test_every_function_is_tested_and_uses_standard_operators_alone() -> None:
    assert set(FUNCTIONS) == set(PYTHON) == {name for name, _, _ in CASES}
    for function in FUNCTIONS.values():
        assert {node.domain for node in function.node} == {""}
