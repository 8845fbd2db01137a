"""The exported graph: its names, what it computes on how many rows, and what ONNX Runtime makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from segue.export import export_checkpoint

LAYERS = 3
LENGTHS = [7, 31, 3, 12]
PAIRS, TOKENS, LONGEST = len(LENGTHS), sum(LENGTHS), max(LENGTHS)
LINEAR = ("Gemm", "MatMul")
PADDED_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="module")
def folder(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(layers=LAYERS)


@pytest.fixture(scope="module")
def flat(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(layers=LAYERS, flat=True)


def _feed() -> dict[str, NDArray[np.int64]]:
    return {
        "input_ids": np.arange(TOKENS) % 300,
        "token_type_ids": np.arange(TOKENS) % 2,
        "position_ids": np.concatenate([np.arange(length) for length in LENGTHS]),
        "cu_seqlens": np.array([0, *np.cumsum(LENGTHS)]),
    }


def _every_value(
    path: Path, feed: dict[str, NDArray[np.int64]]
) -> tuple[list[onnx.NodeProto], dict[str, NDArray]]:
    """Run the graph as written, nothing optimised, and return its nodes and every value in it."""
    model = onnx.load(path)
    names = [name for node in model.graph.node for name in node.output]
    del model.graph.output[:], model.graph.value_info[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return list(model.graph.node), dict(zip(names, session.run(names, feed), strict=True))


def _optimised(path: Path, folder: Path) -> onnx.ModelProto:
    """Return the graph that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3  # it warns that the file is for this machine, which it is
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def test_a_layer_is_seven_nodes_named_after_their_modules(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    first = [node.name for node in model.graph.node if node.name.startswith("layers/0/")]
    assert first == [
        "layers/0/qkv/Gemm",
        "layers/0/PackedAttention",
        "layers/0/attention_output/Gemm",
        "layers/0/attention_norm/AddLayerNorm",
        "layers/0/intermediate/LinearGelu",
        "layers/0/output/Gemm",
        "layers/0/output_norm/AddLayerNorm",
    ]
    last = [node.name.removeprefix("layers/2/") for node in model.graph.node if "layers/2/" in node.name]
    assert last[:5] == ["Slice", "Gather", "query/Gemm", "ClsAttention", "attention_output/Gemm"]
    assert [node.name for node in model.graph.node[-2:]] == ["head/PoolClassify", "Softmax"]
    assert {weight.name for weight in model.graph.initializer} >= {
        "embeddings.word.weight",
        "layers.0.qkv.weight",
        "layers.2.value.bias",
        "head.classifier.weight",
    }


def test_inputs_and_outputs_are_the_contract(folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx").graph

    def described(values: list[onnx.ValueInfoProto]) -> dict[str, tuple]:
        return {
            value.name: (
                value.type.tensor_type.elem_type,
                *(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim),
            )
            for value in values
        }

    integer, real = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    assert described(graph.input) == {
        "input_ids": (integer, "T"),
        "token_type_ids": (integer, "T"),
        "position_ids": (integer, "T"),
        "cu_seqlens": (integer, "B + 1"),
    }
    assert described(graph.output) == {"logits": (real, "B", 2), "probabilities": (real, "B", 2)}


def test_no_linear_layer_sees_padding_and_the_last_layer_computes_cls_rows_alone(flat: Path) -> None:
    nodes, values = _every_value(flat / "model.onnx", _feed())
    shapes = {node.name: values[node.output[0]].shape for node in nodes if node.op_type in LINEAR}
    weighted, *of_tokens, mixed = (
        shapes.pop(f"layers/2/ClsAttention/MatMul{place}") for place in ("", "_2", "_3", "_4")
    )
    assert weighted[1] == mixed[1] == PAIRS + 1  # one of zeros, for the sake of the order of sums
    assert {shape[0] for shape in of_tokens} == {PAIRS}
    rows = {name: shape[0] for name, shape in shapes.items()}
    on_tokens = {name for name, count in rows.items() if count == TOKENS}
    assert on_tokens == {
        f"layers/{layer}/{part}"
        for layer in range(LAYERS - 1)
        for part in ("qkv/Gemm", "attention_output/Gemm", "intermediate/LinearGelu/Gemm", "output/Gemm")
    }
    on_pairs = {name for name, count in rows.items() if count == PAIRS}
    assert on_pairs | on_tokens == set(rows)
    assert len(on_pairs) == 4 + 2  # query, attention output, intermediate, output; pooler, classifier


def test_the_padded_layouts_last_layer_computes_cls_rows_alone(make_bundle: Callable[..., Path]) -> None:
    path = make_bundle(layout="padded") / "model.onnx"
    nodes, values = _every_value(path, {name: np.ones((3, 17), np.int64) for name in PADDED_INPUTS})
    rows = {node.name: len(values[node.output[0]]) for node in nodes if node.op_type == "Gemm"}
    assert {count for name, count in rows.items() if name.startswith("layers/0")} == {3 * 17}
    assert {count for name, count in rows.items() if not name.startswith("layers/0")} == {3}


def test_nothing_is_padded_outside_the_attention_bodies(flat: Path) -> None:
    nodes, values = _every_value(flat / "model.onnx", _feed())
    padded = {
        node.name.split("/")[2]
        for node in nodes
        for name in node.output
        if values[name].ndim > 1 and values[name].shape[:2] == (PAIRS, -(-LONGEST // 4) * 4)
    }
    assert padded == {"PackedAttention", "ClsAttention"}
    widest = max(values[name].size for node in nodes if "Attention" not in node.name for name in node.output)
    assert widest == TOKENS * 256  # the feed-forward layer's


@pytest.mark.parametrize("form", ["functions", "flat"])
def test_what_cu_seqlens_say_is_worked_out_once_for_all_layers(
    folder: Path, flat: Path, tmp_path: Path, form: str
) -> None:
    model = _optimised({"functions": folder, "flat": flat}[form] / "model.onnx", tmp_path)
    counts = Counter(node.op_type for node in model.graph.node)
    for op in ("ReduceMax", "Range", "Less", "Greater"):
        assert counts[op] == 1, f"{op}: {counts[op]} times for {LAYERS} layers"
    assert counts["Expand"] == 1  # the mask, over queries
    assert counts["Where"] == 3  # the row index, and the mask and the zeros of empty pairs in the last layer
    assert counts["Attention"] == LAYERS - 1
    assert counts["Compress"] == LAYERS - 1
    assert counts["Gelu"] == LAYERS  # fused back
    assert counts["Erf"] == 0


def test_functions_and_flat_form_are_optimised_to_the_same_graph(
    folder: Path, flat: Path, tmp_path: Path
) -> None:
    found = [
        Counter(node.op_type for node in _optimised(path / "model.onnx", tmp_path).graph.node)
        for path in (folder, flat)
    ]
    assert found[0] == found[1]


def test_float16_weights_are_widened_once_at_load(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    path = make_bundle(precision="float16") / "model.onnx"
    kinds = Counter(weight.data_type for weight in onnx.load(path).graph.initializer)
    assert set(kinds) == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}
    assert "Cast" not in {node.op_type for node in _optimised(path, tmp_path).graph.node}
    assert path.stat().st_size < 0.55 * (make_bundle() / "model.onnx").stat().st_size


@pytest.mark.parametrize(
    "options", [{}, {"flat": True}, {"layout": "padded"}, {"precision": "float16"}], ids=str
)
def test_the_file_says_nothing_about_the_machine_it_was_made_on(
    make_bundle: Callable[..., Path], options: dict
) -> None:
    folder = make_bundle(**options)
    data = (folder / "model.onnx").read_bytes()
    root = str(Path(__file__).resolve().parents[1])
    for trace in (root, str(Path.home()), "site-packages", ".py", "pkg.torch", 'File "'):
        assert trace.encode() not in data, trace
    model = onnx.load(folder / "model.onnx")
    assert (model.producer_name, model.graph.name) == ("segue", "bert")
    assert not model.metadata_props


@pytest.mark.parametrize("options", [{"flat": True}, {"layout": "padded"}], ids=str)
def test_forms_for_other_runtimes_have_standard_operators_alone(
    make_bundle: Callable[..., Path], options: dict
) -> None:
    model = onnx.load(make_bundle(**options) / "model.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    assert [opset.domain for opset in model.opset_import] == [""]
    assert not model.functions
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


def test_the_same_checkpoint_gives_the_same_bytes(
    make_checkpoint: Callable[..., Path], make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    export_checkpoint(make_checkpoint(), tmp_path / "again")
    for name in ("model.onnx", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (make_bundle() / name).read_bytes()


@pytest.mark.parametrize("options", [{}, {"flat": True}, {"layout": "padded"}], ids=str)
def test_other_tools_find_the_type_of_a_constant_and_a_weight_in_one_place(
    make_bundle: Callable[..., Path], options: dict[str, object]
) -> None:
    model = onnx.load(make_bundle(layers=LAYERS, **options) / "model.onnx")
    graph = model.graph
    nodes = [node for holder in (graph, *model.functions) for node in holder.node]
    constants = [a for node in nodes if node.op_type == "Constant" for a in node.attribute]
    assert constants
    assert {a.name for a in constants if not a.ref_attr_name} == {"value"}
    weights = {tensor.name for tensor in graph.initializer}
    assert not weights & {value.name for value in graph.value_info}


@pytest.mark.parametrize("prepared", [False, True])
def test_the_padded_layout_can_be_quantised(
    make_bundle: Callable[..., Path], tmp_path: Path, prepared: bool
) -> None:
    """As users do it: products of eight bits, of weights that change their name, type and axes."""
    from onnxruntime.quantization import quant_pre_process, quantize_dynamic

    path = source = make_bundle(layers=LAYERS, layout="padded") / "model.onnx"
    if prepared:  # constants are folded, so that more products have a weight
        source = tmp_path / "prepared.onnx"
        quant_pre_process(path, source, skip_symbolic_shape=True)
    quantize_dynamic(source, tmp_path / "quantised.onnx", per_channel=prepared)
    feed = dict.fromkeys(PADDED_INPUTS, np.ones((2, 9), np.int64))
    found, expected = (
        onnxruntime.InferenceSession(file).run(["logits"], feed)[0]
        for file in (tmp_path / "quantised.onnx", path)
    )
    assert 0 < np.abs(found - expected).max() < 0.5
