"""Exporting: the bundle that comes out, and that nothing comes out when anything is wrong."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from segue.bundle import read_bundle
from segue.errors import BundleError, InputError
from segue.executors.overflow import EXACT_INT8, overflows
from segue.export import command, export_checkpoint, graph, publish, verify
from segue.export.checkpoint import load_bert, read_checkpoint
from segue.export.sentences import SENTENCES


@pytest.fixture(scope="module")
def traced(make_checkpoint: Callable[..., Path]) -> Any:
    return graph.packed_graph(load_bert(read_checkpoint(make_checkpoint())))


@pytest.fixture
def quick(traced: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace the default checkpoint once: it takes seconds, and these tests are about what follows."""
    monkeypatch.setattr(publish, "packed_graph", lambda model, flat: traced.clone())


def test_the_manifest_says_what_was_exported(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    labels = ["contradiction", "entailment", "neutral"]
    checkpoint = make_checkpoint(architecture="BertForSequenceClassification", labels=labels, positions=40)
    manifest = export_checkpoint(checkpoint, tmp_path / "out", positive="entailment")
    assert manifest == read_bundle(tmp_path / "out")
    assert (manifest.head.kind, manifest.head.labels) == ("multiclass", tuple(labels))
    assert manifest.head.positive == 1
    assert manifest.max_tokens == manifest.dimensions.positions == 40
    assert (manifest.dimensions.layers, manifest.dimensions.hidden_size, manifest.dimensions.heads) == (
        2,
        64,
        2,
    )
    assert (manifest.layout, manifest.flat, manifest.precision) == ("packed", False, "float32")
    assert manifest.source["architecture"] == "BertForSequenceClassification"
    assert manifest.source["name"] == checkpoint.name
    assert set(manifest.files) == {"model.onnx", "tokenizer.json"}
    assert set(manifest.versions) == {"segue", "torch", "onnx", "onnxscript", "onnxruntime"}
    assert (manifest.parity["shortest"], manifest.parity["longest"]) == (3, 40)
    assert 0 <= manifest.parity["max_probability_difference"] <= verify.PROBABILITY_LIMIT
    assert 0 <= manifest.parity["max_relative_logit_difference"] <= verify.LOGIT_LIMIT


def test_rounding_to_float16_is_measured_apart(make_bundle: Callable[..., Path]) -> None:
    parity = read_bundle(make_bundle(precision="float16")).parity
    assert parity["max_probability_difference"] <= verify.PROBABILITY_LIMIT
    assert parity["rounding_max_probability_difference"] > 10 * parity["max_probability_difference"]
    assert parity["rounding_max_relative_logit_difference"] < 0.05


def test_verification_has_real_text_of_many_lengths(make_bundle: Callable[..., Path]) -> None:
    from tokenizers import Tokenizer

    assert verify.pair_lengths(512)[:6] == [3, 4, 5, 6, 7, 8]
    assert verify.pair_lengths(512)[-1] == 512
    assert len(verify.pair_lengths(512)) >= 18
    assert verify.pair_lengths(3) == [3]
    tokenizer = Tokenizer.from_file(str(make_bundle() / "tokenizer.json"))
    short, long, longest = verify.sample(tokenizer, 512)
    lengths = [np.diff(batch.cu_seqlens).tolist() for batch in (short, long, longest)]
    assert lengths[2] == [512]
    assert sorted({*lengths[0], *lengths[1]}) == verify.pair_lengths(512)
    assert min(lengths[1]) == 3
    assert SENTENCES[0].lower().split()[1] in tokenizer.decode(long.input_ids.tolist())


def test_where_a_pair_has_no_room_for_text_it_is_verified_all_the_same(
    make_bundle: Callable[..., Path],
) -> None:
    folder = make_bundle(positions=3)
    assert read_bundle(folder).parity["pairs"] == 3


def test_a_regression_is_measured_by_its_logit() -> None:
    logits = np.array([[-40.0], [0.5]], np.float32)
    found = logits + np.array([[4e-4], [1e-5]], np.float32)
    probability, logit = verify.differences((found, found), (logits, logits), regression=True)
    assert probability == logit == pytest.approx(1e-5, rel=0.1)


@pytest.mark.usefixtures("quick")
def test_a_mismatch_is_not_published(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = verify._run_onnx
    shift = 2e-5

    def wrong(*arguments: Any, **options: Any) -> Any:
        logits, probabilities = real(*arguments, **options)
        return logits, probabilities + np.float32(shift)

    monkeypatch.setattr(verify, "_run_onnx", wrong)
    with pytest.raises(
        BundleError, match=r"differs from PyTorch: probabilities by [12]\.\d\de-05 \(limit 1e-05\)"
    ):
        export_checkpoint(make_checkpoint(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    shift = float("nan")
    with pytest.raises(BundleError, match="probabilities by nan"):
        export_checkpoint(make_checkpoint(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()], ids=str)
@pytest.mark.usefixtures("quick")
def test_a_failure_at_the_last_step_leaves_nothing(
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(publish, "write_manifest", fail)
    (tmp_path / "out").mkdir()
    with pytest.raises(type(error)) as caught:
        export_checkpoint(make_checkpoint(), tmp_path / "out")
    assert getattr(caught.value, "filename", str(tmp_path / "out")) == str(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not any((tmp_path / "out").iterdir())


def test_out_must_be_free(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="the name is not UTF-8"):
        export_checkpoint(make_checkpoint(), tmp_path / "m\udcfc")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for name, said in (("file", "already there"), ("full", "not an empty"), ("a/b", "parent folder")):
        with pytest.raises(BundleError, match=said):
            export_checkpoint(make_checkpoint(), tmp_path / name)
    assert (tmp_path / "full" / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
    with pytest.raises(BundleError, match=r"out: 'a\\x00b' can name no folder: "):
        export_checkpoint(make_checkpoint(), Path("a\0b"))
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(BundleError, match="circle"):
        export_checkpoint(make_checkpoint(), tmp_path / "circle")
    with pytest.raises(BundleError, match=r"xxx: cannot be made: File name too long"):
        export_checkpoint(make_checkpoint(), tmp_path / ("x" * 300))


def test_a_parent_folder_that_takes_nothing_is_refused_under_the_name_of_out(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", forbidden)  # root ignores the mode of a folder
    with pytest.raises(BundleError) as caught:
        export_checkpoint(make_checkpoint(), tmp_path / "out")
    assert str(caught.value) == f"{tmp_path / 'out'}: cannot be made: Permission denied"


@pytest.mark.usefixtures("quick")
def test_out_taken_meanwhile_is_left_alone(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = publish.write_manifest

    def another_was_faster(folder: Path, manifest: Any) -> None:
        real(folder, manifest)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "file").write_text("theirs")

    monkeypatch.setattr(publish, "write_manifest", another_was_faster)
    with pytest.raises(BundleError, match="taken while the export ran"):
        export_checkpoint(make_checkpoint(), tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]


@pytest.mark.usefixtures("quick")
def test_out_that_cannot_be_replaced_is_not_called_taken(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(path: Path) -> None:  # as the root of a mounted file system is
        raise OSError(errno.EBUSY, "Device or resource busy", str(path))

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "rmdir", busy)
    with pytest.raises(BundleError, match="out: cannot be made: Device or resource busy"):
        export_checkpoint(make_checkpoint(), tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


@pytest.mark.usefixtures("quick")
def test_threads_export_one_after_the_other(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trace alone is not enough: what another thread measures meanwhile is wrong."""
    steps = []

    def slowly(name: str) -> Callable[..., Any]:
        real = getattr(publish, name)

        def noted(*arguments: Any, **options: Any) -> Any:
            steps.append(name)
            time.sleep(0.2)
            return real(*arguments, **options)

        return noted

    for name in ("packed_graph", "measure"):
        monkeypatch.setattr(publish, name, slowly(name))
    with ThreadPoolExecutor(3) as pool:
        exports = [
            pool.submit(export_checkpoint, make_checkpoint(), tmp_path / name)
            for name in ("one", "other", "one")
        ]
    assert steps == ["packed_graph", "measure"] * 2
    assert [str(export.exception()) for export in exports if export.exception()] == [
        f"{tmp_path / 'one'}: already there, and not an empty folder"
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there")
@pytest.mark.usefixtures("quick")
def test_a_name_that_is_not_utf8_is_stored_as_far_as_it_is(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(make_checkpoint(), os.fsdecode(bytes(tmp_path) + b"/m\xfc")))
    weights = load_file(make_checkpoint() / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    for name in ("model.safetensors", "tokenizer.json"):  # their libraries read from no such folder
        (folder / name).unlink()
    assert export_checkpoint(folder, tmp_path / "out").source["name"] == "m?"
    assert read_bundle(tmp_path / "out").source["name"] == "m?"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "int4"}, "precision: expected one of float32, float16, int8, got 'int4'"),
        ({"layout": "ragged"}, "layout: expected packed or padded, got 'ragged'"),
        ({"head": "binary"}, "head: expected 'regression' or nothing"),
        ({"positive": "NotNext"}, "positive: BertForNextSentencePrediction"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(
    make_checkpoint: Callable[..., Path], tmp_path: Path, options: dict[str, str], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        export_checkpoint(make_checkpoint(), tmp_path / "out", **options)
    assert not any(tmp_path.iterdir())


def test_a_weight_beyond_float16_is_refused(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_checkpoint(), tmp_path / "checkpoint"))
    weights = load_file(folder / "model.safetensors")
    weights["bert.pooler.dense.bias"][3] = 7e4
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(BundleError, match=r"precision: head\.pooler\.bias holds values that float16 cannot"):
        export_checkpoint(folder, tmp_path / "out", precision="float16")


@pytest.mark.usefixtures("quick")
def test_large_weights_go_to_a_file_of_their_own(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "EXTERNAL_DATA_BYTES", 100_000)
    manifest = export_checkpoint(make_checkpoint(), tmp_path / "out")
    assert set(manifest.files) == {"model.onnx", "model.onnx.data", "tokenizer.json"}
    assert manifest == read_bundle(tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 100_000
    stored = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph.initializer
    places = {entry.value for weight in stored for entry in weight.external_data if entry.key == "location"}
    assert places == {"model.onnx.data"}


RUN = [
    ({}, 1e-5),
    ({"flat": True}, 1e-5),
    ({"layout": "padded"}, 1e-5),
    (
        {"precision": "int8"},
        verify.INT8_LOGIT_LIMIT,
    ),  # the judge sums in another order: other steps are taken
]


@pytest.mark.parametrize(("options", "limit"), RUN, ids=str)
def test_the_file_runs_where_segue_is_not(
    make_bundle: Callable[..., Path], options: dict[str, Any], limit: float
) -> None:
    """Plain onnxruntime, ReferenceEvaluator and onnx.checker, with `segue` made impossible to import."""
    code = """
import sys
sys.modules["segue"] = None
import numpy as np, onnx, onnxruntime
from onnx.reference import ReferenceEvaluator
path = sys.argv[1]
onnx.checker.check_model(path, full_check=True)
options = onnxruntime.SessionOptions()
if len(sys.argv) > 3:
    options.add_session_config_entry(*sys.argv[3:])
session = onnxruntime.InferenceSession(path, options)
lengths = np.array([9, 4, 17])
mask = np.arange(17) < lengths[:, None]
ids = np.where(mask, np.arange(51).reshape(3, 17) % 40 + 5, 0)
if session.get_inputs()[1].name == "attention_mask":
    feed = {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": ids % 2}
else:
    positions = np.broadcast_to(np.arange(17), mask.shape)[mask]
    bounds = np.array([0, *np.cumsum(lengths)])
    feed = {"input_ids": ids[mask], "token_type_ids": ids[mask] % 2, "position_ids": positions}
    feed["cu_seqlens"] = bounds
found = session.run(["logits", "probabilities"], feed)
judge = ReferenceEvaluator(path).run(["logits", "probabilities"], feed)
for one, other in zip(found, judge):
    assert one.shape == other.shape == (3, 2) and one.dtype == other.dtype == np.float32
    assert np.abs(one - other).max() < float(sys.argv[2]), (one, other)
print(*found[0].ravel())
"""
    entry = EXACT_INT8 if options.get("precision") == "int8" and overflows() else ()
    done = subprocess.run(
        [sys.executable, "-c", code, str(make_bundle(**options) / "model.onnx"), str(limit), *entry],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    logits = np.array(done.stdout.split(), dtype=np.float64)
    assert len(logits) == 6
    assert np.ptp(logits) > 0.1


def test_the_command(
    make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    checkpoint = make_checkpoint(architecture="BertForSequenceClassification", labels=["x\x1b[2J"], layers=1)
    out = tmp_path / "out"
    arguments = parser.parse_args(
        [str(checkpoint), str(out), "--precision", "float16", "--head", "regression"]
    )
    capsys.readouterr()
    assert command.run(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{out}: 0.")
    assert "float16, packed" in printed.out
    assert "head: regression, labels x\\x1b[2J; score reports x\\x1b[2J" in printed.out
    assert "pairs of 3 to 512 tokens: logits within" in printed.out
    assert printed.err == ""  # the exporter's remarks stay inside
    assert json.loads((out / "segue.json").read_text())["head"]["kind"] == "regression"


@pytest.mark.usefixtures("quick")
def test_the_command_writes_to_the_current_folder(
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    assert command.run(parser.parse_args([str(make_checkpoint()), "."])) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(".: 0.")
    assert "pairs of 3 to 512 tokens: probabilities within" in printed
    assert read_bundle(tmp_path / "out").head.kind == "nsp"


def test_training_does_not_import_onnx() -> None:
    code = "import sys, segue.export; print(*{'onnx', 'onnxscript', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
