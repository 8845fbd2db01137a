"""From a PyTorch module to an ONNX file: traced, named, and with the ops' bodies beside the graph or inlined.

Knows nothing about checkpoints or bundles. All work on the graph is done in onnx_ir, which holds weights by
reference, so that a model beyond protobuf's 2 GB passes too.
"""

from __future__ import annotations

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    CommonSubexpressionEliminationPass,
    InlinePass,
    RemoveUnusedFunctionsPass,
)

import segue
from segue.bundle import WEIGHTS
from segue.errors import BundleError
from segue.export.bert import Bert
from segue.export.functions import OPSET, function_protos
from segue.export.functions_int8 import function_protos_int8
from segue.export.ops import DOMAIN

__all__ = [
    "EXTERNAL_DATA_BYTES",
    "add_functions",
    "inline",
    "packed_graph",
    "save_graph",
    "store_float16",
    "trace",
]

EXTERNAL_DATA_BYTES = 1_500_000_000  # protobuf ends at 2 GB, and a runtime that copies the file wants room
_SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's note of the modules that a node comes from


def packed_graph(model: Bert, *, flat: bool = False) -> ir.Model:
    """Return the graph: three ids [T] and cu_seqlens [B + 1] → logits, probabilities [B, C].

    With `flat` the functions are inlined, so that only standard operators are left.
    """
    graph = trace(model, OPSET)
    add_functions(graph, [*function_protos(), *function_protos_int8()])
    if flat:
        inline(graph)
    return graph


def trace(model: Bert, opset: int) -> ir.Model:
    """Return the graph of `model` without the bodies of its ops and without the exporter's notes.

    Not for two threads at once, nor while another runs a module: PyTorch's exporter changes modules. Weights
    keep their state-dict names; a node, and its value, is named after the module that made it and its
    operator, as in layers/0/PackedAttention.
    """
    pairs, tokens = torch.export.Dim("B"), torch.export.Dim("T")
    examples = [torch.zeros(5, dtype=torch.int64) for _ in range(3)]  # one tensor thrice would be one input
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model.eval(),
            (*examples, torch.tensor([0, 2, 5])),
            dynamo=True,
            input_names=["input_ids", "token_type_ids", "position_ids", "cu_seqlens"],
            output_names=["logits", "probabilities"],
            dynamic_shapes=(*({0: tokens} for _ in examples), {0: pairs + 1}),
            opset_version=opset,
            optimize=False,  # the optimiser merges equal weights; the trace already has one node per op
            verbose=False,
        )
    graph = program.model
    _name(graph.graph)
    _forget(graph)
    graph.producer_name, graph.producer_version = "segue", segue.__version__
    graph.graph.name = "bert"
    return graph


def add_functions(graph: ir.Model, protos: Iterable[onnx.FunctionProto]) -> None:
    """Add the bodies that the graph uses; of two with the same name the later wins."""
    for proto in protos:
        function = ir.serde.deserialize_function(proto)
        _make_tensors(function)
        graph.functions[function.identifier()] = function
    RemoveUnusedFunctionsPass()(graph)


def inline(graph: ir.Model) -> None:
    """Replace each op by its body, compute once what bodies share, and name a body's nodes after its op."""
    nodes = list(graph.graph)
    ops = {node.outputs[0].name: node.name for node in nodes if node.domain == DOMAIN}
    named = {node.name for node in nodes}
    InlinePass()(graph)
    CommonSubexpressionEliminationPass()(graph)
    graph.opset_imports.pop(DOMAIN)
    body: list[ir.Node] = []
    for node in graph.graph:
        if node.name in named:
            continue
        body.append(node)
        if (op := ops.get(node.outputs[0].name)) is None:
            continue
        taken: Counter[str] = Counter()
        for part in body:  # the last of them gives the op's value, so the body is complete
            part.name = _unique(f"{op}/{part.op_type}", taken)
            for index, value in enumerate(part.outputs):
                if part is not node:
                    value.name = part.name if index == 0 else f"{part.name}:{index}"
        body = []
    _make_tensors(graph.graph)  # again: an op's attribute has become a plain number


def _make_tensors(nodes: Iterable[ir.Node]) -> None:
    """Write constants as tensors, but for an op's attributes: some tools give plain numbers another type."""
    types = {"value_float": np.float32, "value_int": np.int64, "value_ints": np.int64}
    for node in nodes:
        for name in node.attributes.keys() & types.keys():
            if node.attributes[name].is_ref():
                continue
            value = np.array(node.attributes.pop(name).value, dtype=types[name])
            node.attributes.add(ir.AttrTensor("value", ir.tensor(value)))


def store_float16(graph: ir.Model) -> None:
    """Store every float32 weight as float16, rounded to nearest, and Cast it back at the graph's start.

    Raises:
        BundleError: a weight lies beyond float16's largest number.
    """
    first = graph.graph.node(0)
    for weight in list(graph.graph.initializers.values()):
        if weight.dtype != ir.DataType.FLOAT:
            continue
        with np.errstate(over="ignore"):
            rounded = weight.const_value.numpy().astype(np.float16)
        if not np.isfinite(rounded).all():
            raise BundleError(f"precision: {weight.name} holds values that float16 cannot (above 65504)")
        cast = ir.node("Cast", [weight], {"to": ir.DataType.FLOAT.value}, name=f"{weight.name}/Cast")
        (wide,) = cast.outputs
        wide.name, wide.shape, wide.dtype = cast.name, weight.shape, weight.dtype
        for user, index in [use for use in weight.uses() if use.node is not cast]:
            user.replace_input_with(index, wide)
        first.prepend(cast)
        weight.const_value = ir.tensor(rounded, name=weight.name)
        weight.dtype = ir.DataType.FLOAT16


def save_graph(graph: ir.Model, path: Path) -> None:
    """Write the graph to `path`, weights above EXTERNAL_DATA_BYTES beside it in model.onnx.data; check it."""
    weights = sum(weight.const_value.nbytes for weight in graph.graph.initializers.values())
    for weight in graph.graph.initializers.values():
        # The tensor has both: kept twice, they would differ once a tool changes the weight.
        weight.shape = weight.type = None
    ir.save(graph, path, external_data=WEIGHTS if weights > EXTERNAL_DATA_BYTES else None)
    onnx.checker.check_model(str(path), full_check=True)


def _name(graph: ir.Graph) -> None:
    """Name nodes and values after modules, and the free axis of the outputs B."""
    batch = graph.outputs[0].shape[0]
    taken: Counter[str] = Counter()
    for node in graph:
        # ['', 'layers.0', 'layers.0.qkv', 'linear']: the last is the traced call itself, the one before it
        # the module.
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "['', '']"))
        node.name = _unique("/".join([*filter(None, scopes[-2].split(".")), node.op_type]), taken)
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = node.name if index == 0 else f"{node.name}:{index}"
            if value.shape is not None:
                value.shape = ir.Shape(["B" if axis == batch else axis for axis in value.shape])


def _unique(name: str, taken: Counter[str]) -> str:
    taken[name] += 1
    return name if taken[name] == 1 else f"{name}_{taken[name]}"


def _forget(graph: ir.Model) -> None:
    """Drop the exporter's notes: they hold stack traces, and with them paths of this machine."""
    ClearMetadataAndDocStringPass()(graph)
    values = [value for node in graph.graph for value in node.outputs]
    for value in [*graph.graph.inputs, *graph.graph.initializers.values(), *values]:
        value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks (torchvision is missing, an axis name is not used) from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
