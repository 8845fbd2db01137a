"""A bundle's graph as a flat list of kernel launches: what the Triton executor runs.

Reads model.onnx and nothing else. Knows nothing about devices and memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from segue.batching import INPUTS
from segue.bundle import Dimensions
from segue.errors import BundleError

__all__ = ["LOGITS", "PAIRS", "TOKENS", "Plan", "Step", "check_tables", "read_plan", "read_steps"]

LOGITS = "logits"
TOKENS, PAIRS = "tokens", "pairs"  # what a value's rows are
# op of the graph -> launcher in segue.kernels
_OPS = {
    "Embed": "embed",
    "PackedAttention": "packed_attention",
    "ClsAttention": "cls_attention",
    "LinearGelu": "linear_gelu",
    "AddLayerNorm": "add_layer_norm",
    "Softmax": "softmax",
    "PoolClassify": "pool_classify",
}
_GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
_DOMAIN, _VERSION = "segue", 2
_DEEPEST = 256  # head size that the kernels take


@dataclass(frozen=True)
class Step:
    """One launch. inputs: the launcher's tensors in its order, by the names of values, weights or graph
    inputs. The result has `columns` columns and a row for each of `rows`, TOKENS or PAIRS. `scratch`:
    elements for a row that the launcher needs besides, in the output's dtype."""

    name: str
    op: str
    inputs: tuple[str, ...]
    options: dict[str, Any]
    output: str
    rows: str
    columns: int
    scratch: int = 0


@dataclass(frozen=True)
class Plan:
    """The launches in order, the last giving the logits, and the weights that they read, by name."""

    steps: tuple[Step, ...]
    weights: dict[str, NDArray[Any]]

    @property
    def labels(self) -> int:
        """Columns of the logits."""
        return self.steps[-1].columns

    @property
    def words(self) -> int:
        """Rows of the smallest table of words: a token id beyond them would be read from other memory."""
        return min(len(self.weights[step.inputs[3]]) for step in self.steps if step.op == "embed")


def read_plan(path: Path) -> Plan:
    """The plan of the packed graph in the ONNX file at `path`.

    Raises:
        BundleError: the file is not readable, or kernels do not run one of its nodes, which is named.
    """
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's and onnx's own classes, and OSError
        raise BundleError(f"{path}: not readable as ONNX: {error}") from error
    for opset in model.opset_import:
        if opset.domain == _DOMAIN and opset.version != _VERSION:
            raise BundleError(
                f"{path}: the triton executor runs version {_VERSION} of the domain {_DOMAIN}, not "
                f"{opset.version}: export the checkpoint with this version of segue"
            )
    graph = model.graph
    steps = read_steps(graph, path)
    read = {name for step in steps for name in step.inputs}
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name in read}
    return Plan(steps, weights)


def check_tables(plan: Plan, dimensions: Dimensions, path: Path) -> None:
    """Raise BundleError if an embedding table of the graph at `path` has not as many rows as the model, or is
    read by other numbers than its own: those beyond it would be read from other memory."""
    expected = [dimensions.vocab_size, max(dimensions.token_types, 2), dimensions.positions]  # two sides
    for step in plan.steps:
        if step.op == "embed":
            rows = {name: len(plan.weights[name]) for name in step.inputs[3:6]}
            if step.inputs[:3] != INPUTS[:3] or [*rows.values()] != expected:
                raise BundleError(
                    f"{path}: expected embedding tables of {expected} rows for {', '.join(INPUTS[:3])}, "
                    f"got {rows} for {', '.join(step.inputs[:3])}"
                )


def read_steps(graph: onnx.GraphProto, path: Path) -> tuple[Step, ...]:
    """Return the launches; only the names and shapes of weights are read.

    Raises:
        BundleError: as `read_plan`, naming `path`.
    """
    reader = _Reader(path, {tensor.name: tensor for tensor in graph.initializer})
    for node in _needed(graph):
        reader.read(node)
    if not reader.steps or reader.steps[-1].output != LOGITS:
        raise BundleError(f"{path}: no node gives {LOGITS!r}")
    return tuple(reader.steps)


def _needed(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes that the logits need, in order; the head turns these into probabilities elsewhere."""
    wanted = {LOGITS}
    found: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            found.append(node)
    return reversed(found)


class _Reader:
    """Reads nodes one after the other, knowing what has been made so far."""

    def __init__(self, path: Path, tensors: dict[str, onnx.TensorProto]) -> None:
        self.path, self.tensors = path, tensors
        self.steps: list[Step] = []
        self._values: dict[str, tuple[str, int]] = {}  # name -> rows, columns
        self._alias: dict[str, str] = {}  # what a Cast of a weight gives -> the weight
        self._starts: set[str] = set()  # values that are cu_seqlens without its end

    def read(self, node: onnx.NodeProto) -> None:
        inputs = tuple(self._alias.get(name, name) for name in node.input)
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        if kind == "Cast" and inputs[0] in self.tensors and attributes["to"] == onnx.TensorProto.FLOAT:
            self._alias[node.output[0]] = inputs[0]
        elif kind == "Slice" and inputs[0] == "cu_seqlens" and self._numbers(inputs[1:]) == [[0], [-1]]:
            self._starts.add(node.output[0])
        elif kind == "Gather" and inputs[1] in self._starts and not attributes.get("axis"):
            self._add(node, "first_rows", (inputs[0], "cu_seqlens"), {})
        elif kind == "Gemm" and _GEMM | {"transB": 0} | attributes == _GEMM and len(inputs) == 3:
            self._add(node, "linear", inputs, {})
        elif node.domain == _DOMAIN and node.op_type in _OPS:
            options = {"heads": attributes["heads"]} if "heads" in attributes else {}
            if "epsilon" in attributes:
                options["eps"] = attributes["epsilon"]
            self._add(node, _OPS[node.op_type], inputs, options)
        else:
            raise BundleError(
                f"{self.path}: the triton executor does not run node {node.name!r}, {kind}; it runs what "
                "segue export writes, unless --flat or --layout padded"
            )

    def _add(self, node: onnx.NodeProto, op: str, inputs: tuple[str, ...], options: dict[str, Any]) -> None:
        for name in inputs:
            if name not in self.tensors and name not in self._values and name not in INPUTS:
                raise BundleError(f"{self.path}: node {node.name!r} reads {name!r}, which is no tensor here")
        try:
            rows, columns = self._shape(op, inputs)
        except (KeyError, IndexError) as error:  # a weight where a value has to be, or with other axes
            raise BundleError(
                f"{self.path}: the triton executor does not run node {node.name!r} over {error}"
            ) from error
        if "heads" in options and options["heads"] < 1:
            raise BundleError(f"{self.path}: node {node.name!r} has {options['heads']} heads")
        if "heads" in options and (depth := columns // options["heads"]) > _DEEPEST:
            raise BundleError(
                f"{self.path}: the triton executor does not run node {node.name!r}: it takes a head size of "
                f"{_DEEPEST} at most, got {depth}"
            )
        self._values[node.output[0]] = rows, columns
        scratch = 2 * options["heads"] * columns if op == "cls_attention" else 0
        self.steps.append(Step(node.name, op, inputs, options, node.output[0], rows, columns, scratch))

    def _shape(self, op: str, inputs: tuple[str, ...]) -> tuple[str, int]:
        if op == "embed":
            return TOKENS, self.tensors[inputs[3]].dims[1]
        rows, columns = self._values[inputs[0]]
        if op == "first_rows":
            return PAIRS, columns
        if op in ("linear", "linear_gelu"):
            return rows, self.tensors[inputs[1]].dims[0]
        if op == "pool_classify":
            return rows, self.tensors[inputs[3]].dims[0]
        return rows, columns // 3 if op == "packed_attention" else columns

    def _numbers(self, names: tuple[str, ...]) -> list[list[int] | None]:
        """The values of constant tensors, None for any other; optional inputs that are left out are
        skipped."""
        given = [self.tensors.get(name) for name in names if name]
        return [None if t is None else np.atleast_1d(numpy_helper.to_array(t)).tolist() for t in given]
