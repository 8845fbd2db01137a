"""Weights of 8 bits: the two ops, how a network is rounded, the bundle that comes of it, the engine on it."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from segue import BundleError, Engine, ExecutorUnavailable, InputError
from segue.bundle import read_bundle, sha256
from segue.cli import main
from segue.executors import overflow
from segue.export import export_checkpoint, verify
from segue.export.checkpoint import load_bert, read_checkpoint
from segue.export.evaluate import evaluate
from segue.export.functions import OPSET
from segue.export.functions_int8 import function_protos_int8
from segue.export.ops import DOMAIN, VERSION
from segue.export.quantization import _input_peaks, quantize
from segue.export.sentences import SENTENCES
from segue.export.tokenizer import read_tokenizer
from segue.kernels import reference, reference_int8

FUNCTIONS = {function.name: function for function in function_protos_int8()}
SIZES = {"hidden_size": 96, "heads": 3, "layers": 2}
PAIRS = [(SENTENCES[i], " ".join(SENTENCES[i + 1 : i + 1 + i % 4])) for i in range(24)]


def _model(name: str, arrays: Iterable[NDArray[Any]], attributes: dict[str, Any]) -> onnx.ModelProto:
    function = FUNCTIONS[name]
    weights = [helper.np_dtype_to_tensor_dtype(array.dtype) for array in arrays]
    inputs = [
        helper.make_tensor_value_info(n, kind, list(array.shape))
        for n, kind, array in zip(function.input, weights, arrays, strict=True)
    ]
    output = helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [None, None])
    node = helper.make_node(name, list(function.input), ["out"], domain=DOMAIN, **attributes)
    graph = helper.make_graph([node], name, inputs, [output])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


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
    model = _model("QuantizedLinear", arrays, {"zero_point": zero_point})
    feed = dict(zip(FUNCTIONS["QuantizedLinear"].input, arrays, strict=True))
    expected = reference_int8.quantized_linear(*map(torch.from_numpy, arrays), zero_point).numpy()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, feed)[0], expected)
    judge = ReferenceEvaluator(model).run(None, feed)[0]  # it sums in float32
    assert np.abs(judge - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.array_equal(expected[7], arrays[3]), "a row of zeros gives the bias"


@pytest.mark.parametrize("zero_point", [128, 32])
def test_a_row_is_rounded_by_half_a_step_and_nothing_is_cut_off(zero_point: int) -> None:
    x, weight, scale, bias = map(torch.from_numpy, _linear(200, zero_point))
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
    model = _model("QuantizedEmbed", arrays, {"epsilon": 1e-3})
    feed = dict(zip(FUNCTIONS["QuantizedEmbed"].input, arrays, strict=True))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for run in (session.run, ReferenceEvaluator(model).run):
        assert np.abs(run(None, feed)[0] - found.numpy()).max() <= 2e-6


def test_functions_are_of_standard_operators_alone() -> None:
    assert set(FUNCTIONS) == {"QuantizedEmbed", "QuantizedLinear"}
    for function in FUNCTIONS.values():
        assert {node.domain for node in function.node} == {""}


@pytest.fixture(scope="module")
def networks(make_checkpoint: Callable[..., Path]) -> tuple[Any, Any, list[verify.Batch]]:
    """The float32 network, the same in int8, and the text that its columns were measured on."""
    checkpoint = make_checkpoint(**SIZES)
    model = load_bert(read_checkpoint(checkpoint))
    text = verify.sample(read_tokenizer(checkpoint, model.embeddings.word.num_embeddings), 512)
    return model, quantize(model, text), text


def test_what_is_stored_is_the_network_to_half_a_step(networks: tuple[Any, Any, Any]) -> None:
    model, quantized, _ = networks
    names = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    rounded = [name for name in names if not name.startswith("head.")]
    assert len(rounded) == 4 * SIZES["layers"] + 1  # the last layer has its query apart
    for name in rounded:
        before, after = model.get_submodule(name), quantized.get_submodule(name)
        smooth = torch.ones(before.in_features) if after.smooth is None else after.smooth
        assert (after.smooth is None) == name.endswith("output")
        assert after.zero_point == (32 if name.endswith(".output") else 128)
        assert after.weight.dtype == torch.int8
        assert (after.weight.abs().amax(1) == 127).all()
        error = after.weight * after.scale[:, None] * smooth - before.weight
        assert (error.abs() <= 0.501 * after.scale[:, None] * smooth).all()
        assert torch.equal(after.bias, before.bias)
    assert quantized.embeddings.word.weight.dtype == torch.int8
    assert quantized.head.pooler.weight is model.head.pooler.weight, "all else is lent, not copied"
    assert isinstance(model.layers[0].qkv, torch.nn.Linear), "the network itself stays"


def test_columns_that_a_layer_norm_makes_large_do_not_drown_the_others(
    networks: tuple[Any, Any, list[verify.Batch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two columns are made thirty times as large, and their weights as small: the same network."""
    model, _, text = networks
    spoilt = copy.deepcopy(model)
    with torch.no_grad():
        for layer in spoilt.layers:
            layer.attention_norm.weight[:2] *= 30
            layer.attention_norm.bias[:2] *= 30
            layer.intermediate.weight[:, :2] /= 30

    def error() -> float:
        found = verify._run_pytorch(quantize(spoilt, text), text)
        return float(np.abs(found[0] - expected[0]).mean())

    expected = verify._run_pytorch(spoilt, text)
    smoothed = error()
    monkeypatch.setattr("segue.export.quantization._SMOOTHED", ())
    assert smoothed < error() / 2


def test_columns_are_measured_on_all_of_the_text_and_nothing_stays_behind(
    networks: tuple[Any, Any, list[verify.Batch]],
) -> None:
    model, _, text = networks
    every = _input_peaks(model, text)
    for batch in text:
        assert all((peak <= every[name]).all() for name, peak in _input_peaks(model, [batch]).items())
    assert torch.equal(every["layers.0.qkv"], torch.stack([_embedded(model, b) for b in text]).amax(0))
    assert not any(part._forward_pre_hooks for part in model.modules())


def _embedded(model: Any, batch: verify.Batch) -> torch.Tensor:
    ids = (batch.input_ids, batch.token_type_ids, batch.position_ids)
    return model.embeddings(*map(torch.from_numpy, ids)).detach().abs().amax(0)


def test_columns_and_rows_of_zeros_divide_nothing_by_zero(networks: tuple[Any, Any, Any]) -> None:
    model, _, text = networks
    empty = copy.deepcopy(model)
    with torch.no_grad():
        for part in (empty.embeddings.norm, empty.layers[0].attention_norm):
            part.weight[3:5], part.bias[3:5] = 0, 0
        empty.layers[0].intermediate.weight[7], empty.layers[0].intermediate.weight[:, 9] = 0, 0
        empty.embeddings.word.weight[0] = 0
    quantized = quantize(empty, text)
    assert (quantized.embeddings.word.weight[0] == 0).all()
    assert all(part.isfinite().all() for part in quantized.state_dict().values())
    found, expected = (verify._run_pytorch(network, text) for network in (quantized, empty))
    assert verify.differences(found, expected)[0] < 0.1


@pytest.mark.parametrize(
    "head",
    [{"num_labels": 1}, {"labels": ["no", "maybe", "yes"]}, {"num_labels": 1, "head": "regression"}],
    ids=["sigmoid", "multiclass", "regression"],
)
def test_other_heads(head: dict[str, Any], make_bundle: Callable[..., Path]) -> None:
    options = {"architecture": "BertForSequenceClassification", "layers": 1, **head}
    with Engine.load(make_bundle(precision="int8", **options)) as engine:
        found, parity = engine.predict(PAIRS), engine.info.parity
    with Engine.load(make_bundle(**options)) as exact:
        expected = exact.predict(PAIRS)
    assert found.shape == expected.shape
    assert 1e-6 < np.abs(found - expected).max() < 0.1
    if "head" in head:  # a regression has no probability: all figures are relative ones of its logit
        kinds = ("probability", "relative_logit")
        assert len({parity[f"rounding_max_{kind}_difference"] for kind in kinds}) == 1


def test_a_regression_is_held_to_the_limit_of_logits(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint(architecture="BertForSequenceClassification", layers=1, num_labels=1)
    monkeypatch.setattr(verify, "INT8_PROBABILITY_LIMIT", 0.0)
    export_checkpoint(checkpoint, tmp_path / "out", precision="int8", head="regression")
    monkeypatch.setattr(verify, "INT8_LOGIT_LIMIT", 1e-9)
    with pytest.raises(BundleError, match=r"PyTorch: scores \(relative\) by .* \(limit 1e-09\)"):
        export_checkpoint(checkpoint, tmp_path / "again", precision="int8", head="regression")


def test_the_command_says_how_far_scores_move(
    make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = make_checkpoint(architecture="BertForSequenceClassification", layers=1, num_labels=1)
    for number, more in enumerate(([], ["--head", "regression"])):
        assert (
            main(["export", str(checkpoint), str(tmp_path / f"{number}"), "--precision", "int8", *more]) == 0
        )
    printed = capsys.readouterr().out
    figures = r"by \d\.\de-0\d in the mean of these pairs, by \d\.\de-0\d at most"
    assert re.search(f"int8 moves a probability {figures}", printed)
    assert re.search(rf"int8 moves a score \(relative\) {figures}", printed)


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(precision="int8", **SIZES)


def test_the_bundle_says_how_far_rounding_goes(bundle: Path, make_bundle: Callable[..., Path]) -> None:
    manifest, whole = read_bundle(bundle), make_bundle(**SIZES)
    assert manifest.precision == "int8"
    parity = manifest.parity
    for kind in ("", "rounding_"):
        assert 0 < parity[f"{kind}max_probability_difference"] <= verify.INT8_PROBABILITY_LIMIT
        assert 0 < parity[f"{kind}max_relative_logit_difference"] <= verify.INT8_LOGIT_LIMIT
    mean = parity["rounding_mean_probability_difference"]
    assert 0 < mean < parity["rounding_max_probability_difference"]
    assert parity["rounding_max_probability_difference"] > 3 * parity["max_probability_difference"]
    assert (bundle / "model.onnx").stat().st_size < 0.6 * (whole / "model.onnx").stat().st_size


@pytest.mark.parametrize("flat", [False, True])
def test_onnx_runtime_multiplies_integers(
    flat: bool, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """Were the pattern not found, the same scores would come, four times as slowly."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    folder = make_bundle(precision="int8", flat=flat, **SIZES)
    onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert counts["MatMulIntegerToFloat"] == 4 * SIZES["layers"] + 1
    assert counts["DequantizeLinear"] == 1  # of the words that were looked up, not of the table
    assert counts["MatMul"] == counts["Transpose"] == 0


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (1e-9, "the exported graph differs from PyTorch: probabilities by "),
        (0.005, "rounding to int8 takes the scores too far from PyTorch: probabilities by "),
    ],
)
def test_a_network_that_does_not_bear_it_is_refused(
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: float,
    said: str,
) -> None:
    monkeypatch.setattr(verify, "INT8_PROBABILITY_LIMIT", limit)
    with pytest.raises(
        BundleError, match=rf"{said}\d\.\d\de-0\d \(limit {limit}\), logits by .* \(limit 0.25"
    ):
        export_checkpoint(make_checkpoint(), tmp_path / "out", precision="int8")
    assert not any(tmp_path.iterdir())


def test_the_padded_layout_is_refused(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="precision: int8 is for the packed layout"):
        export_checkpoint(make_checkpoint(), tmp_path / "out", precision="int8", layout="padded")


def test_a_score_is_near_float32_and_the_same_in_any_batch(
    bundle: Path, make_bundle: Callable[..., Path]
) -> None:
    with Engine.load(bundle, threads=2) as engine, Engine.load(make_bundle(**SIZES)) as exact:
        assert (engine.info.precision, engine.info.stored, engine.info.device) == ("int8", "int8", "cpu")
        found = engine.score(PAIRS)
        distance = np.abs(found - exact.score(PAIRS))
        assert 1e-6 < distance.max() < 0.1
        alone = np.array([engine.score([pair])[0] for pair in PAIRS])
        assert np.abs(found - alone).max() <= 2e-6


def test_what_cannot_be_had_of_int8_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, said in (
        ({"precision": "float32"}, "precision='float32': the weights of this bundle are int8"),
        ({"precision": "bfloat16"}, "precision='bfloat16': the weights"),
        ({"executor": "triton"}, "executor='triton': the weights of this bundle are int8, which is computed"),
        ({"device": "cuda:1"}, "device='cuda:1': the weights of this bundle are int8"),
    ):
        with pytest.raises(ExecutorUnavailable, match=said):
            Engine.load(bundle, **options)
    monkeypatch.setattr("segue.cache.exported", lambda *_: pytest.fail("exported in vain"))
    for options, said in (
        ({"device": "cuda"}, "device='cuda': int8 is asked for, which is computed with as it is, on a CPU"),
        ({"executor": "triton"}, "executor='triton': int8 is asked for"),
    ):
        with pytest.raises(ExecutorUnavailable, match=said):
            Engine.load(precision="int8", **options)
    monkeypatch.setattr("segue.executors._triton_works", lambda device: True)
    assert Engine.load(bundle).info.device == "cpu", "where there is a GPU, auto leaves it alone"
    assert Engine.load(bundle, precision="int8").info.executor == "onnxruntime"


def test_asked_for_by_precision_a_checkpoint_and_a_bundle_are_exported_once(
    make_checkpoint: Callable[..., Path],
    make_bundle: Callable[..., Path],
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    made = []
    for path in (make_checkpoint(**SIZES), make_bundle(**SIZES)):
        info = Engine.load(path, precision="int8").info
        assert (Path(info.path).parent, info.precision) == (tmp_path, "int8")
        assert info.path == Engine.load(path, precision="int8").info.path
        made.append(Path(info.path) / "model.onnx")
    assert {path.read_bytes() for path in made} == {(bundle / "model.onnx").read_bytes()}
    assert Engine.load(make_checkpoint(**SIZES)).info.precision == "float32"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_bundle_is_exported_in_another_form(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    whole = make_bundle(architecture="BertForSequenceClassification", labels=["no", "yes"])
    half = export_checkpoint(whole, tmp_path / "half", precision="float16")
    before = read_bundle(whole)
    assert (half.precision, half.head, half.source) == ("float16", before.head, before.source)
    assert half.max_tokens == before.max_tokens
    again = export_checkpoint(tmp_path / "half", tmp_path / "flat", flat=True)
    assert again.source == before.source | {"through": "a bundle in float16"}
    assert again.parity["max_probability_difference"] <= verify.PROBABILITY_LIMIT
    padded = export_checkpoint(tmp_path / "flat", tmp_path / "padded", layout="padded")
    assert padded.layout == "padded"
    found, expected = (Engine.load(path).score(PAIRS) for path in (tmp_path / "flat", whole))
    assert 0 < np.abs(found - expected).max() < 0.01, "the weights were rounded on the way"


def test_what_a_bundle_cannot_give_is_refused(
    bundle: Path, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="its weights are rounded to int8: export what it came from"):
        export_checkpoint(bundle, tmp_path / "out")
    for option in ({"head": "regression"}, {"positive": "NotNext"}):
        with pytest.raises(InputError, match="is a bundle, which has its head already"):
            export_checkpoint(make_bundle(**SIZES), tmp_path / "out", **option)
    assert not any(tmp_path.iterdir())


def test_onnx_runtime_is_asked_whether_products_of_int8_overflow() -> None:
    """The model that asks is written by hand; what it would give without overflow is onnx's own answer."""
    model = onnx.load_from_string(overflow._product())
    onnx.checker.check_model(model, full_check=True)
    (exact,) = ReferenceEvaluator(model).run(None, {"x": np.full((1, 64), 255, np.uint8)})
    assert (exact == 255 * 127 * 64).all()
    flags = Path("/proc/cpuinfo")
    if flags.is_file() and "_vnni" in flags.read_text(encoding="utf-8"):
        assert not overflow.overflows()


def _entry(options: Any, name: str) -> str | None:
    try:
        return options.get_session_config_entry(name)
    except RuntimeError:  # it was never set
        return None


@pytest.mark.parametrize(("overflows", "mode"), [(True, "1"), (False, None)])
def test_a_cpu_on_which_they_do_takes_the_exact_mode(
    bundle: Path,
    make_bundle: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    overflows: bool,
    mode: Any,
) -> None:
    name = overflow.EXACT_INT8[0]
    monkeypatch.setattr("segue.executors.onnxruntime.overflows", lambda: overflows)
    with Engine.load(bundle, threads=2) as engine, Engine.load(make_bundle(**SIZES), threads=2) as exact:
        engine.warmup()  # opens the session for batches side by side, too
        for session in (engine._executor._session, engine._executor._single):
            assert _entry(session.get_session_options(), name) == mode
        assert ("16 bits" in engine.info.plan[0]) is overflows
        assert "16 bits" not in exact.info.plan[0]
        assert np.abs(engine.score(PAIRS) - exact.score(PAIRS)).max() < 0.1


def test_so_does_the_export_that_is_verified_there(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sessions = onnxruntime.InferenceSession, []

    def noted(path: str, options: Any, **rest: Any) -> Any:
        sessions.append(_entry(options, overflow.EXACT_INT8[0]))
        return real(path, options, **rest)

    monkeypatch.setattr(verify.onnxruntime, "InferenceSession", noted)
    monkeypatch.setattr(verify, "overflows", lambda: True)
    checkpoint = make_checkpoint(layers=1)
    export_checkpoint(checkpoint, tmp_path / "int8", precision="int8")
    export_checkpoint(checkpoint, tmp_path / "float32")
    assert sessions == ["1", None]


def _edited(bundle: Path, out: Path, edit: Callable[[Any, dict[str, Any]], None]) -> Path:
    """A copy of a bundle whose graph and manifest were changed, its sums being right all the same."""
    shutil.copytree(bundle, out)
    graph, manifest = onnx.load(out / "model.onnx"), json.loads((out / "segue.json").read_text())
    edit(graph, manifest)
    onnx.save(graph, out / "model.onnx")
    manifest["files"]["model.onnx"] = sha256(out / "model.onnx")
    (out / "segue.json").write_text(json.dumps(manifest))
    return out


def _other_heads(graph: Any, manifest: dict[str, Any]) -> None:
    manifest["dimensions"]["heads"] *= 2


def _wider(graph: Any, manifest: dict[str, Any]) -> None:
    manifest["dimensions"]["intermediate_size"] += 1


def _two_epsilons(graph: Any, manifest: dict[str, Any]) -> None:
    (epsilon,) = (a for n in graph.graph.node if n.op_type == "Embed" for a in n.attribute)
    epsilon.f = 0.5


def _renamed(graph: Any, manifest: dict[str, Any]) -> None:
    for node in graph.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = name.replace("head.pooler.bias", "other")
    for weight in graph.graph.initializer:
        weight.name = weight.name.replace("head.pooler.bias", "other")


def _said_to_be_float32(graph: Any, manifest: dict[str, Any]) -> None:
    manifest["precision"] = "float32"


@pytest.mark.parametrize(
    ("precision", "edit", "said"),
    [
        ("float32", _other_heads, r"model\.onnx: not what its weights and segue\.json say: .* differs from"),
        (
            "float32",
            _wider,
            r"model\.onnx: layers\.0\.intermediate\.weight: expected .* \[257, 64\], got float32",
        ),
        ("float32", _two_epsilons, r"model\.onnx: expected one epsilon for every LayerNorm, got \[.*0\.5\]"),
        ("float32", _renamed, r"model\.onnx: no weight is called head\.pooler\.bias"),
        ("int8", _said_to_be_float32, r"embeddings\.word\.weight: expected float32 or float16 .* got int8"),
    ],
)
def test_a_bundle_that_is_not_what_it_says_is_not_exported_again(
    make_bundle: Callable[..., Path],
    tmp_path: Path,
    precision: str,
    edit: Callable[[Any, dict[str, Any]], None],
    said: str,
) -> None:
    folder = _edited(make_bundle(precision=precision, heads=1), tmp_path / "edited", edit)
    with pytest.raises(BundleError, match=said):
        export_checkpoint(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["edited"]


def test_a_tokenizer_that_is_none_is_named(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_bundle(heads=1), tmp_path / "edited"))
    (folder / "tokenizer.json").write_text("{}")
    manifest = json.loads((folder / "segue.json").read_text())
    manifest["files"]["tokenizer.json"] = sha256(folder / "tokenizer.json")
    (folder / "segue.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"tokenizer\.json: not a readable tokenizer"):
        export_checkpoint(folder, tmp_path / "out")


def test_weights_in_a_file_of_their_own_are_found(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_bundle(heads=1)
    monkeypatch.setattr("segue.export.graph.EXTERNAL_DATA_BYTES", 100_000)
    export_checkpoint(whole, tmp_path / "apart")
    assert (tmp_path / "apart" / "model.onnx.data").is_file()
    export_checkpoint(tmp_path / "apart", tmp_path / "int8", precision="int8")
    distance = Engine.load(tmp_path / "int8").score(PAIRS) - Engine.load(whole).score(PAIRS)
    assert 1e-6 < np.abs(distance).max() < 0.1


def test_a_precision_that_is_none_is_refused(bundle: Path, tmp_path: Path) -> None:
    def edit(graph: Any, manifest: dict[str, Any]) -> None:
        manifest["precision"] = "int3"

    with pytest.raises(BundleError, match=r"precision: expected one of float32, float16, int8, got 'int3'"):
        Engine.load(_edited(bundle, tmp_path / "edited", edit))


def test_evaluation_of_int8(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "cache"))
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(" ".join(SENTENCES[i : i + 6]) for i in range(0, 60, 6)), encoding="utf-8")
    with pytest.raises(
        InputError, match=r"reference: .* holds int8 weights alone: evaluate what it came from"
    ):
        evaluate(corpus, model=bundle, pairs=8, reference=True)
    found = evaluate(corpus, pairs=20, precision="int8", reference=True)
    assert found["model"]["precision"] == "int8"
    assert found["reference"]["by"] == "onnxruntime, float32, cpu"
    assert 1e-5 < found["reference"]["largest_difference"] < 0.3
