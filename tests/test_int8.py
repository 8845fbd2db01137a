"""The engine on weights of 8 bits: what it takes and refuses, also where products of them overflow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from segue import Engine, ExecutorUnavailable, InputError
from segue.executors import overflow
from segue.export import export_checkpoint, verify
from segue.export.evaluate import evaluate
from segue.export.sentences import SENTENCES

SIZES = {"hidden_size": 96, "heads": 3, "layers": 2}
PAIRS = [(SENTENCES[i], " ".join(SENTENCES[i + 1 : i + 1 + i % 4])) for i in range(24)]


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(precision="int8", **SIZES)


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
        ({"executor": "triton"}, "executor='triton': the weights of this bundle are int8, which segue"),
        ({"device": "cuda:1"}, "device='cuda:1': the weights of this bundle are int8"),
    ):
        with pytest.raises(ExecutorUnavailable, match=said):
            Engine.load(bundle, **options)
    monkeypatch.setattr("segue.cache.exported", lambda *_: pytest.fail("exported in vain"))
    for options, said in (
        ({"device": "cuda"}, "device='cuda': int8 is asked for, which segue computes in int8 alone,"),
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
    assert len(list(tmp_path.glob("[!.]*"))) == 3


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
