"""The plan that the Triton executor reads off a bundle's graph, and what it refuses by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx.inliner
import pytest
from onnx import helper, numpy_helper
from triton_tools import FIVE_LABELS, NSP, ONE_LABEL

from segue import BundleError
from segue.bundle import read_bundle
from segue.executors.triton_plan import PAIRS, TOKENS, Plan, check_tables, read_plan

FULL_LAYER = (
    *("linear", "packed_attention", "linear", "add_layer_norm"),
    *("linear_gelu", "linear", "add_layer_norm"),
)
LAST_LAYER = (
    *("first_rows", "linear", "cls_attention", "linear", "add_layer_norm"),
    *("linear_gelu", "linear", "add_layer_norm"),
)
Change = Callable[[onnx.GraphProto], None]


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(**NSP)


@pytest.fixture(scope="module")
def plan(bundle: Path) -> Plan:
    return read_plan(bundle / "model.onnx")


def _node(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    (found,) = (node for node in graph.node if node.name == name)
    return found


def _set(graph: onnx.GraphProto, name: str, **attributes: object) -> None:
    node = _node(graph, name)
    kept = [a for a in node.attribute if a.name not in attributes]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(k, v) for k, v in attributes.items())])


def _changed(bundle: Path, tmp_path: Path, change: Change) -> Path:
    model = onnx.load(str(bundle / "model.onnx"))
    change(model.graph)
    onnx.save(model, str(tmp_path / "model.onnx"))
    return tmp_path / "model.onnx"


def test_a_full_layer_is_seven_launches_and_the_last_nine(plan: Plan) -> None:
    assert [step.op for step in plan.steps] == ["embed", *FULL_LAYER, *LAST_LAYER, "pool_classify"]


def test_values_have_a_row_for_each_token_or_for_each_pair(plan: Plan) -> None:
    """Nothing of the last layer is computed for every token."""
    sizes, hidden, inner = {}, NSP["hidden_size"], NSP["intermediate_size"]
    for step in plan.steps:
        sizes.setdefault(step.name.rpartition("/")[0], (step.rows, step.columns))
    assert sizes == {
        "embeddings": (TOKENS, hidden),
        "layers/0/qkv": (TOKENS, 3 * hidden),
        "layers/0": (TOKENS, hidden),
        "layers/0/attention_output": (TOKENS, hidden),
        "layers/0/attention_norm": (TOKENS, hidden),
        "layers/0/intermediate": (TOKENS, inner),
        "layers/0/output": (TOKENS, hidden),
        "layers/0/output_norm": (TOKENS, hidden),
        "layers/1": (PAIRS, hidden),
        "layers/1/query": (PAIRS, hidden),
        "layers/1/attention_output": (PAIRS, hidden),
        "layers/1/attention_norm": (PAIRS, hidden),
        "layers/1/intermediate": (PAIRS, inner),
        "layers/1/output": (PAIRS, hidden),
        "layers/1/output_norm": (PAIRS, hidden),
        "head": (PAIRS, 2),
    }


def test_a_step_reads_what_is_there(plan: Plan) -> None:
    known = {"input_ids", "token_type_ids", "position_ids", "cu_seqlens", *plan.weights}
    for step in plan.steps:
        assert set(step.inputs) <= known
        known.add(step.output)
    read = {name for step in plan.steps for name in step.inputs}
    assert set(plan.weights) <= read
    assert {step.options.get("heads") for step in plan.steps} == {None, NSP["heads"]}
    assert {round(step.options.get("eps", 0), 15) for step in plan.steps} == {0, 1e-12}


@pytest.mark.parametrize("options", [ONE_LABEL, FIVE_LABELS], ids=["one label", "five labels"])
def test_other_heads_and_stored_precisions(make_bundle: Callable[..., Path], options: dict) -> None:
    plan = read_plan(make_bundle(**options) / "model.onnx")
    full = (options["layers"] - 1) * FULL_LAYER
    assert tuple(step.op for step in plan.steps) == ("embed", *full, *LAST_LAYER, "pool_classify")
    assert plan.labels == options["num_labels"]
    stored = np.float16 if options.get("precision") == "float16" else np.float32
    assert {array.dtype for array in plan.weights.values()} == {np.dtype(stored)}


def test_what_follows_the_logits_is_left_out(bundle: Path, tmp_path: Path, plan: Plan) -> None:
    def add(graph: onnx.GraphProto) -> None:
        graph.node.append(helper.make_node("Relu", ["logits"], ["more"], name="after"))
        graph.node.append(helper.make_node("Relu", ["embeddings/Embed"], ["else"], name="beside"))

    assert read_plan(_changed(bundle, tmp_path, add)).steps == plan.steps


def _insert_relu(graph: onnx.GraphProto) -> None:
    after = _node(graph, "layers/0/intermediate/LinearGelu")
    for node in graph.node:
        node.input[:] = ["slipped" if name == after.output[0] else name for name in node.input]
    place = list(graph.node).index(after)
    graph.node.insert(place + 1, helper.make_node("Relu", [after.output[0]], ["slipped"], name="slip"))


def _gather_other_rows(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "chosen"))
    _node(graph, "layers/1/Gather").input[1] = "chosen"


def _gather_a_weight(graph: onnx.GraphProto) -> None:
    _node(graph, "layers/1/Gather").input[0] = "layers.0.qkv.weight"


def _slice_other_bounds(graph: onnx.GraphProto) -> None:
    (node,) = (node for node in graph.node if node.op_type == "Slice")
    node.name = "cut"
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    node.input[1] = "one"


def _slice_other_numbers(graph: onnx.GraphProto) -> None:
    (node,) = (node for node in graph.node if node.op_type == "Slice")
    node.name, node.input[0] = "cut", "position_ids"


def _drop_bias(graph: onnx.GraphProto) -> None:
    del _node(graph, "layers/0/qkv/Gemm").input[2]


def _compute_weight(graph: onnx.GraphProto) -> None:
    _node(graph, "layers/0/qkv/Gemm").input[1] = "embeddings/Embed"


def _read_nothing(graph: onnx.GraphProto) -> None:
    _node(graph, "layers/0/qkv/Gemm").input[0] = "nowhere"


def _leave_attributes(graph: onnx.GraphProto) -> None:
    """Their defaults give another product."""
    del _node(graph, "layers/0/attention_output/Gemm").attribute[:]


def _cast_to_half(graph: onnx.GraphProto) -> None:
    node = _node(graph, "layers/0/qkv/Gemm")
    graph.node.insert(0, helper.make_node("Cast", [node.input[1]], ["half"], "half", to=10))
    node.input[1] = "half"


def _flatten_table(graph: onnx.GraphProto) -> None:
    (table,) = (t for t in graph.initializer if t.name == "embeddings.word.weight")
    table.dims[:] = [int(np.prod(table.dims))]


def _rename_op(graph: onnx.GraphProto) -> None:
    _node(graph, "layers/0/PackedAttention").op_type = "UnpackedAttention"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_insert_relu, "node 'slip', Relu"),
        (lambda g: _set(g, "layers/0/qkv/Gemm", transB=0), "node 'layers/0/qkv/Gemm', Gemm"),
        (_leave_attributes, "node 'layers/0/attention_output/Gemm', Gemm"),
        (_cast_to_half, "node 'half', Cast"),
        (_flatten_table, "node 'embeddings/Embed' over"),
        (lambda g: _set(g, "layers/0/PackedAttention", heads=0), "'layers/0/PackedAttention' has 0 heads"),
        (lambda g: _set(g, "layers/0/output/Gemm", alpha=2.0), "node 'layers/0/output/Gemm', Gemm"),
        (lambda g: _set(g, "layers/1/query/Gemm", beta=0.5), "node 'layers/1/query/Gemm', Gemm"),
        (_drop_bias, "node 'layers/0/qkv/Gemm', Gemm"),
        (_compute_weight, "node 'layers/0/qkv/Gemm' over 'embeddings/Embed'"),
        (_read_nothing, "node 'layers/0/qkv/Gemm' reads 'nowhere'"),
        (_gather_other_rows, "node 'layers/1/Gather', Gather"),
        (lambda g: _set(g, "layers/1/Gather", axis=1), "node 'layers/1/Gather', Gather"),
        (_gather_a_weight, "node 'layers/1/Gather' over 'layers.0.qkv.weight'"),
        (_slice_other_bounds, "node 'cut', Slice"),
        (_slice_other_numbers, "node 'cut', Slice"),
        (_rename_op, "node 'layers/0/PackedAttention', segue::UnpackedAttention"),
        (lambda g: g.node.remove(_node(g, "head/PoolClassify")), "no node gives 'logits'"),
    ],
)
def test_what_no_kernel_runs_is_refused_by_name(
    bundle: Path, tmp_path: Path, change: Change, words: str
) -> None:
    path = _changed(bundle, tmp_path, change)
    with pytest.raises(BundleError) as caught:
        read_plan(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_another_version_of_the_ops_is_refused(bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(str(bundle / "model.onnx"))
    (opset,) = (opset for opset in model.opset_import if opset.domain == "segue")
    opset.version = 1
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(BundleError, match="runs version 2 of the domain segue, not 1"):
        read_plan(tmp_path / "model.onnx")


@pytest.mark.parametrize("table", ["vocab_size", "token_types", "positions"])
def test_an_embedding_table_of_other_rows_than_the_model_s_is_refused(
    bundle: Path, plan: Plan, table: str
) -> None:
    dimensions = read_bundle(bundle).dimensions
    check_tables(plan, dimensions, bundle)
    with pytest.raises(BundleError, match="expected embedding tables of"):
        check_tables(plan, replace(dimensions, **{table: getattr(dimensions, table) + 1}), bundle)


def test_a_table_of_segments_has_a_row_for_each_side(bundle: Path, plan: Plan) -> None:
    name = plan.steps[0].inputs[4]
    shorter = Plan(plan.steps, plan.weights | {name: plan.weights[name][:1]})
    with pytest.raises(BundleError, match="expected embedding tables of"):
        check_tables(shorter, replace(read_bundle(bundle).dimensions, token_types=1), bundle)


def test_an_embedding_table_read_by_other_numbers_than_its_own_is_refused(bundle: Path, plan: Plan) -> None:
    first, *others = plan.steps
    ids, _, *tables = first.inputs
    swapped = replace(first, inputs=(ids, ids, *tables))
    with pytest.raises(BundleError, match="for input_ids, token_type_ids, position_ids, got"):
        check_tables(Plan((first, swapped, *others), plan.weights), read_bundle(bundle).dimensions, bundle)


def test_a_head_size_beyond_the_kernels_is_refused_when_the_file_is_read(tmp_path: Path) -> None:
    shapes = {"word": [9, 514], "type": [2, 514], "position": [9, 514], "w": [514], "b": [514]}
    shapes |= {"qkv": [1542, 514], "qkv_bias": [1542]}
    weights = [numpy_helper.from_array(np.zeros(s, np.float32), name) for name, s in shapes.items()]
    ids = ["input_ids", "token_type_ids", "position_ids"]
    nodes = [
        helper.make_node("Embed", [*ids, *list(shapes)[:5]], ["x"], domain="segue", epsilon=1e-12),
        helper.make_node("Gemm", ["x", "qkv", "qkv_bias"], ["y"], transB=1),
        helper.make_node("PackedAttention", ["y", "cu_seqlens"], ["logits"], "deep", domain="segue", heads=2),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], weights))
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(BundleError, match=r"'deep': it takes a head size of 256 at most, got 257"):
        read_plan(tmp_path / "model.onnx")


def test_a_flat_graph_says_how_to_export_another(bundle: Path, tmp_path: Path) -> None:
    flat = onnx.inliner.inline_local_functions(onnx.load(str(bundle / "model.onnx")))
    onnx.save(flat, str(tmp_path / "model.onnx"))
    with pytest.raises(BundleError, match=r"does not run node .*, Gather; .* unless --flat"):
        read_plan(tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [b"", b"no protobuf", None])
def test_a_file_that_is_no_graph_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)
