"""From a PyTorch module to an ONNX file: traced, named, and with the ops' bodies beside the graph or inlined.

Knows nothing about checkpoints or bundles. All work on the graph is done in onnx_ir, which holds weights by reference,
so that a model beyond protobuf's 2 GB passes too.
"""

from __future__ import annotations

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
from torch import Tensor, nn

import segue
from segue.bundle import WEIGHTS
from segue.errors import BundleError
from segue.export.functions import OPSET, function_protos
from segue.export.ops import DOMAIN

__all__ = ["EXTERNAL_DATA_BYTES", "packed_graph", "save_graph", "store_float16", "trace"]

EXTERNAL_DATA_BYTES = 1_500_000_000  # protobuf ends at 2 GB, and a runtime that copies the file wants room
_SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's note of the modules that a node comes from


def packed_graph(model: nn.Module, *, flat: bool = False) -> ir.Model:
    """Return the graph of a `Bert`: three ids [T] and cu_seqlens [B + 1] → logits, probabilities [B, C].

    With `flat` the functions are inlined, so that standard operators alone are left.
    """
    pairs, tokens = torch.export.Dim("B"), {0: torch.export.Dim("T")}
    ids = ("input_ids", "token_type_ids", "position_ids")
    inputs: dict[str, Any] = {name: (torch.zeros(5, dtype=torch.int64), tokens) for name in ids}
    graph = trace(
        model,
        inputs | {"cu_seqlens": (torch.tensor([0, 2, 5]), {0: pairs + 1})},
        opset=OPSET,
        optimize=False,  # its optimiser merges equal weights; as traced, the graph has a node an op already
    )
    for proto in function_protos().values():
        function = ir.serde.deserialize_function(proto)
        graph.functions[function.identifier()] = function
    RemoveUnusedFunctionsPass()(graph)
    if flat:
        _inline(graph)
    return graph


def trace(
    model: nn.Module, inputs: Mapping[str, tuple[Tensor, Mapping[int, Any]]], *, opset: int, optimize: bool
) -> ir.Model:
    """Return the graph of `model` over the named inputs, each an example and its dynamic axes, without its traces.

    The outputs are logits and probabilities. Weights keep their state-dict names; a node, and the value it gives, is
    called after the module that made it and its operator, as in layers/0/PackedAttention.
    """
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model.eval(),
            tuple(example for example, _ in inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=["logits", "probabilities"],
            dynamic_shapes=tuple(axes for _, axes in inputs.values()),
            opset_version=opset,
            optimize=optimize,
            verbose=False,
        )
    graph = program.model
    _name(graph.graph)
    _forget(graph)
    graph.producer_name, graph.producer_version = "segue", segue.__version__
    graph.graph.name = "bert"
    return graph


def store_float16(graph: ir.Model) -> None:
    """Store every float32 weight as float16, rounded to nearest, with a Cast back to float32 at its start.

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


def save_graph(graph: ir.Model, path: Path, *, external_above: int = EXTERNAL_DATA_BYTES) -> None:
    """Write the graph to `path`, its weights inside, or beside it in model.onnx.data where they are large; check it."""
    weights = sum(weight.const_value.nbytes for weight in graph.graph.initializers.values())
    ir.save(graph, path, external_data=WEIGHTS if weights > external_above else None)
    onnx.checker.check_model(str(path), full_check=True)


def _name(graph: ir.Graph) -> None:
    """Name nodes and values after modules, and the free axis of the outputs B."""
    batch = graph.outputs[0].shape[0]
    taken: Counter[str] = Counter()
    for node in graph:
        # ['', 'layers.0', 'layers.0.qkv', 'linear']: the last is the traced call itself, the one before it the module.
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "['', '']"))
        node.name = _unique("/".join([*filter(None, scopes[-2].split(".")), node.op_type]), taken)
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = node.name if index == 0 else f"{node.name}:{index}"
            if value.shape is not None:
                value.shape = ir.Shape(["B" if axis == batch else axis for axis in value.shape])


def _inline(graph: ir.Model) -> None:
    """Replace each op by its body, computing once what several bodies share, and name the nodes after the op."""
    InlinePass()(graph)
    CommonSubexpressionEliminationPass()(graph)
    taken: Counter[str] = Counter(node.name for node in graph.graph)
    op = ""
    for node in reversed(graph.graph):
        last = node.outputs[0].name  # the last node of a body gives the op's value, which bears the op's name
        op = last if "/" in last else op
        if "/" not in node.name:
            node.name = _unique(f"{op}/{node.op_type}", taken)
    graph.opset_imports.pop(DOMAIN)


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
