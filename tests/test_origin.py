"""A bundle as what an export starts from: another form of it, and what it has to be for that."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from segue import BundleError, Engine, InputError
from segue.bundle import read_bundle, sha256
from segue.export import export_checkpoint, verify
from segue.export.sentences import SENTENCES

PAIRS = [(SENTENCES[i], " ".join(SENTENCES[i + 1 : i + 1 + i % 4])) for i in range(24)]


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


def test_what_a_bundle_cannot_give_is_refused(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="its weights are rounded to int8: export what it came from"):
        export_checkpoint(make_bundle(precision="int8", heads=1), tmp_path / "out")
    for option in ({"head": "regression"}, {"positive": "NotNext"}):
        with pytest.raises(InputError, match="is a bundle, which has its head already"):
            export_checkpoint(make_bundle(heads=1), tmp_path / "out", **option)
    assert not any(tmp_path.iterdir())


def _edited(bundle: Path, out: Path, edit: Callable[[Any, dict[str, Any]], None]) -> Path:
    """A copy of a bundle whose graph and manifest were changed, but whose sums are right."""
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


def test_a_precision_that_is_none_is_refused(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    def edit(graph: Any, manifest: dict[str, Any]) -> None:
        manifest["precision"] = "int3"

    with pytest.raises(BundleError, match=r"precision: expected one of float32, float16, int8, got 'int3'"):
        Engine.load(_edited(make_bundle(heads=1), tmp_path / "edited", edit))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json"])
def test_a_checkpoint_with_a_file_that_may_not_be_read_is_refused_by_its_name(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    checkpoint, opened = make_checkpoint(), Path.open

    def forbidden(path: Path, *mode: Any, **options: Any) -> Any:
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *mode, **options)

    monkeypatch.setattr(Path, "open", forbidden)  # root ignores the mode of a file
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: path.open(encoding=encoding).read())
    with pytest.raises(BundleError, match=f"{re.escape(str(checkpoint / name))}: Permission denied"):
        export_checkpoint(checkpoint, tmp_path / "out")
