"""How a network is rounded to 8 bits, how far that may take its scores, and the bundle that comes of it."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from segue import BundleError, Engine, InputError
from segue.batching import PackedBatch
from segue.bundle import read_bundle
from segue.cli import main
from segue.export import export_checkpoint, verify
from segue.export.checkpoint import load_bert, read_checkpoint
from segue.export.quantization import QuantizedLinear, _input_peaks, quantize
from segue.export.sentences import SENTENCES
from segue.export.tokenizer import read_tokenizer

SIZES = {"hidden_size": 96, "heads": 3, "layers": 2}
PAIRS = [(SENTENCES[i], " ".join(SENTENCES[i + 1 : i + 1 + i % 4])) for i in range(24)]


@pytest.fixture(scope="module")
def networks(make_checkpoint: Callable[..., Path]) -> tuple[Any, Any, list[PackedBatch]]:
    """The float32 network, the same in int8, and the text that its columns were measured on."""
    checkpoint = make_checkpoint(**SIZES)
    model = load_bert(read_checkpoint(checkpoint))
    text = verify.sample(read_tokenizer(checkpoint, model.embeddings.word.num_embeddings), 512)
    return model, quantize(model, text), text


def test_what_is_stored_is_the_network_to_half_a_step(networks: tuple[Any, Any, Any]) -> None:
    model, quantized, _ = networks
    names = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    kept = ("head.", "layers.1.key", "layers.1.value")  # which multiply a row for each pair
    rounded = [name for name in names if not name.startswith(kept)]
    assert len(rounded) == 4 * SIZES["layers"]
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
    networks: tuple[Any, Any, list[PackedBatch]], monkeypatch: pytest.MonkeyPatch
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


def test_a_column_that_is_large_is_made_small_and_its_weights_large() -> None:
    """By its maximum to the power of the share, so that the others keep their steps."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 32)
    x = torch.randn(200, 64)
    x[:, 5] *= 100
    wanted = linear(x).detach()

    def distance(layer: QuantizedLinear) -> float:
        return float((layer(x).detach() - wanted).abs().mean())

    smooth, plain = (QuantizedLinear(linear, peak, 128) for peak in (x.abs().amax(0), None))
    assert smooth.smooth is not None
    assert 0.5 < float(smooth.smooth[5] / smooth.smooth.median()) * 100**0.6 < 2
    assert distance(smooth) < distance(plain) / 3


def test_columns_are_measured_on_all_of_the_text_and_nothing_stays_behind(
    networks: tuple[Any, Any, list[PackedBatch]],
) -> None:
    model, _, text = networks
    every = _input_peaks(model, text)
    for batch in text:
        assert all((peak <= every[name]).all() for name, peak in _input_peaks(model, [batch]).items())
    assert torch.equal(every["layers.0.qkv"], torch.stack([_embedded(model, b) for b in text]).amax(0))
    assert not any(part._forward_pre_hooks for part in model.modules())


def _embedded(model: Any, batch: PackedBatch) -> torch.Tensor:
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
    """If the pattern were not found, the same scores would take four times as long."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    folder = make_bundle(precision="int8", flat=flat, **SIZES)
    onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert counts["MatMulIntegerToFloat"] == 4 * SIZES["layers"]
    assert counts["DequantizeLinear"] == 1  # of the words that were looked up, not of the table
    # of the last attention, in float32
    assert (counts["MatMul"], counts["FusedMatMul"], counts["Transpose"]) == (1, 3, 4)


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
