"""The ONNX Runtime executor: one batch at a time on all threads, or many side by side."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from segue import BundleError, Engine, SegueError
from segue.batching import PackedBatch
from segue.bundle import sha256
from segue.executors.onnxruntime import OnnxRuntimeExecutor

THREADS, MANY = 2, 8


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle()


@pytest.fixture
def executor(bundle: Path) -> Iterator[OnnxRuntimeExecutor]:
    opened = _open(bundle)
    yield opened
    opened.close()


def _open(bundle: Path, threads: int = THREADS, **options: Any) -> OnnxRuntimeExecutor:
    settings = {"device": "cpu", "precision": None, "batch_tokens": None} | options
    return OnnxRuntimeExecutor.open(bundle / "model.onnx", threads=threads, **settings)


def _batches(count: int) -> list[PackedBatch]:
    """Batches of one to three pairs, no two alike."""
    made = []
    for number in range(count):
        lengths = np.random.default_rng(number).integers(3, 20, 1 + number % 3)
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
        ids = np.random.default_rng(number).integers(5, 60, bounds[-1])
        made.append(PackedBatch(ids, (positions > 1).astype(np.int64), positions, bounds))
    return made


def _one_by_one(executor: OnnxRuntimeExecutor, batches: list[PackedBatch]) -> list[np.ndarray]:
    return [next(executor.run([batch])) for batch in batches]


@pytest.mark.parametrize("count", [0, 1, MANY - 1, MANY, 5 * MANY])
def test_any_number_of_batches_comes_back_in_order(executor, count):
    batches = _batches(count)
    wanted = _one_by_one(executor, batches)
    found = list(executor.run(iter(batches)))
    assert [logits.shape for logits in found] == [logits.shape for logits in wanted]
    assert all(np.abs(a - b).max() <= 2e-6 for a, b in zip(found, wanted, strict=True))
    assert (executor._single is not None) == (count >= MANY)


def test_many_batches_run_side_by_side_and_few_are_begun_ahead(executor, monkeypatch):
    together = threading.Barrier(THREADS, timeout=20)  # broken if one had to wait for another to end
    taken: list[int] = []
    real = OnnxRuntimeExecutor._logits

    def waiting(session: Any, batch: PackedBatch) -> np.ndarray:
        assert session is executor._single
        together.wait()
        return real(session, batch)

    monkeypatch.setattr(OnnxRuntimeExecutor, "_logits", staticmethod(waiting))
    results = executor.run(taken.append(n) or batch for n, batch in enumerate(_batches(4 * MANY)))
    next(results)
    assert len(taken) <= MANY + 2 * THREADS
    assert len(list(results)) == 4 * MANY - 1
    assert together.n_waiting == 0


def _rename(graph: onnx.GraphProto) -> None:
    graph.input[0].name = "ids"
    for node in graph.node:
        node.input[:] = ["ids" if name == "input_ids" else name for name in node.input]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_rename, r"expected a graph of input_ids, .* all int64, got \{'ids'"),
        (lambda graph: graph.output.pop(0), r"that gives logits, float32 \[B, C\], got \{'probabilities'"),
        (
            lambda graph: graph.input.append(onnx.helper.make_tensor_value_info("attention_mask", 7, ["T"])),
            "got .*attention_mask",
        ),
    ],
)
def test_a_graph_with_another_face_is_refused_when_it_is_opened(bundle, tmp_path, change, said):
    model = onnx.load(str(bundle / "model.onnx"))
    change(model.graph)
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(BundleError, match=said):
        _open(tmp_path)


def test_logits_of_one_pair_are_not_those_of_all(bundle, tmp_path):
    model = onnx.load(str(bundle / "model.onnx"))
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["all" if name == "logits" else name for name in node.output]
        node.input[:] = ["all" if name == "logits" else name for name in node.input]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "first"))
    graph.node.append(onnx.helper.make_node("Gather", ["all", "first"], ["logits"]))
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    onnx.save(model, str(folder / "model.onnx"))
    manifest = json.loads((folder / "segue.json").read_text())
    manifest["files"]["model.onnx"] = sha256(folder / "model.onnx")
    (folder / "segue.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"logits \[1, 2\] for 2 pairs"):
        Engine.load(folder, device="cpu").score([("a", "b"), ("b", "a")])


def test_one_thread_needs_no_second_session(bundle):
    executor = _open(bundle, threads=1)
    assert len(list(executor.run(_batches(5 * MANY)))) == 5 * MANY
    assert executor._single is None
    assert list(executor.warm_up()) == []
    assert "side by side" not in executor.description[0]


def test_the_second_session_has_one_thread_for_each_batch(executor):
    list(executor.warm_up())
    assert executor._session.get_session_options().intra_op_num_threads == THREADS
    assert executor._single.get_session_options().intra_op_num_threads == 1


@pytest.mark.parametrize("change", ["replaced", "written over", "gone"])
def test_a_file_that_is_another_than_was_loaded_is_not_opened_again(
    bundle: Path,
    make_bundle: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: str,
):
    """Many pairs, like few, are scored by the loaded model, and the log says that this is slower."""
    folder, batches = shutil.copytree(bundle, tmp_path / "bundle"), _batches(2 * MANY)
    executor, early = _open(folder), _open(folder)
    wanted = _one_by_one(executor, batches)
    list(early.warm_up())
    if change != "written over":
        (folder / "model.onnx").unlink()
    if change != "gone":
        shutil.copy(make_bundle(seed=1) / "model.onnx", folder)  # of the same size
    for _ in range(2):
        found = list(executor.run(batches))
        assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    (told,) = (record.getMessage() for record in caplog.records if record.name == "segue")
    assert told.startswith("the model's file is another than was loaded, or gone: ")
    assert executor._single is None
    assert list(executor.warm_up()) == []
    found = list(early.run(batches))
    assert max(np.abs(a - b).max() for a, b in zip(found, wanted, strict=True)) <= 2e-6
    executor.close()
    early.close()


def test_a_warm_up_opens_the_second_session_once(executor):
    assert list(executor.warm_up()) == [(1, 1)]
    single = executor._single
    assert list(executor.warm_up()) == [(1, 1)]
    list(executor.run(_batches(MANY)))
    assert executor._single is single


def test_a_batch_that_fails_ends_the_run_and_begins_no_more(executor, monkeypatch):
    batches = _batches(10 * MANY)
    begun: list[int] = []
    real = OnnxRuntimeExecutor._logits

    def failing(session: Any, batch: PackedBatch) -> np.ndarray:
        begun.append(len(batch.input_ids))
        if batch is batches[3]:
            raise SegueError("no")
        return real(session, batch)

    monkeypatch.setattr(OnnxRuntimeExecutor, "_logits", staticmethod(failing))
    results = executor.run(batches)
    assert len([next(results) for _ in range(3)]) == 3
    with pytest.raises(SegueError, match="no"):
        next(results)
    monkeypatch.undo()
    assert len(list(executor.run(batches[:MANY]))) == MANY, "usable again"
    assert len(begun) <= 3 + 2 * THREADS + THREADS


def test_batches_that_nobody_wants_any_more_are_not_begun(executor, monkeypatch):
    begun: list[PackedBatch] = []
    go = threading.Event()

    def held(session: Any, batch: PackedBatch) -> np.ndarray:
        begun.append(batch)
        if len(begun) > 1:
            assert go.wait(60)
        return np.zeros((len(batch.cu_seqlens) - 1, 2), np.float32)

    monkeypatch.setattr(OnnxRuntimeExecutor, "_logits", staticmethod(held))
    results = executor.run(_batches(10 * MANY))
    next(results)  # 2 * THREADS are begun by then or wait; each thread holds one
    while len(begun) < 1 + THREADS:
        time.sleep(0.001)
    results.close()
    go.set()
    executor.close()  # waits for what was begun
    assert len(begun) == 1 + THREADS


def test_callers_share_the_threads(executor):
    batches = _batches(2 * MANY)
    wanted = _one_by_one(executor, batches)
    with ThreadPoolExecutor(4) as callers:
        for found in callers.map(lambda _: list(executor.run(batches)), range(4)):
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)
    assert sum(thread.name.startswith("segue_") for thread in threading.enumerate()) == THREADS


def test_closed_it_has_no_threads_left(bundle):
    engine = Engine.load(bundle, threads=THREADS, max_batch_tokens=16)
    engine.score([(f"a {letter}", "b c d e f g") for letter in "abcdefghijklmnop"])
    assert any(thread.name.startswith("segue_") for thread in threading.enumerate())
    engine.close()
    assert not any(thread.name.startswith("segue_") for thread in threading.enumerate())


def test_closed_meanwhile_it_ends_a_few_batches_and_says_so_of_many(bundle):
    def closing(executor: OnnxRuntimeExecutor, batches: list[PackedBatch]) -> Iterator[PackedBatch]:
        yield from batches[:-1]
        executor.close()
        yield batches[-1]

    few, many = _batches(3), _batches(3 * MANY)
    executor = _open(bundle)
    wanted = _one_by_one(executor, few)
    found = list(executor.run(closing(executor, few)))
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    with pytest.raises(SegueError, match="this engine is closed"):
        next(executor.run(few))
    executor = _open(bundle)
    with pytest.raises(SegueError, match="this engine is closed"):
        list(executor.run(closing(executor, many)))


def test_the_handler_of_a_signal_may_close_it_while_it_opens_the_second_session(bundle):
    """As on SIGTERM. The handler runs in the thread that opens it, and must not wait for that."""
    executor, said = _open(bundle), []
    another = executor._another

    def interrupted() -> Any:
        opened = another()
        executor.close()
        return opened

    def warm_up() -> None:
        with pytest.raises(SegueError, match="this engine is closed") as caught:
            list(executor.warm_up())
        said.append(caught)

    executor._another = interrupted
    opening = threading.Thread(target=warm_up, daemon=True)
    opening.start()
    opening.join(20)
    assert said
    assert executor._single is executor._pool is None


@pytest.mark.parametrize(("threads", "tokens"), [(1, 512), (2, 512), (4, 1024), (8, 2048), (64, 2048)])
def test_a_batch_has_tokens_for_its_threads(bundle, threads, tokens):
    executor = _open(bundle, threads=threads)
    assert executor.batch_tokens == tokens
    executor.close()
    assert _open(bundle, threads=1, batch_tokens=77).batch_tokens == 77


@pytest.mark.parametrize(("threads", "shared"), [(1, 512), (2, 512), (4, 1024), (8, 2048)])
def test_where_batches_run_side_by_side_each_has_tokens_for_one_thread(bundle, threads, shared):
    """So that there are enough for all threads as soon as possible."""
    executor = _open(bundle, threads=threads)
    enough = 4 * threads * 512
    assert [executor.tokens_at_once(total) for total in (0, enough - 1, enough, 10**9)] == [
        shared,
        shared,
        512,
        512,
    ]
    executor.close()
    asked = _open(bundle, threads=threads, batch_tokens=700)
    assert {asked.tokens_at_once(total) for total in (0, enough, 10**9)} == {700}
    asked.close()


@pytest.mark.parametrize("threads", [2, 8])
def test_once_all_is_open_for_it_fewer_batches_run_side_by_side(bundle, threads):
    executor = _open(bundle, threads=threads)
    totals = [tokens * threads for tokens in (1023, 1024, 2047, 2048)]
    assert [executor.lanes(total) for total in totals] == [1, 1, 1, threads]
    list(executor.warm_up())
    assert [executor.lanes(total) for total in totals] == [1, threads, threads, threads]
    executor.close()
    assert [executor.lanes(total) for total in totals] == [1, 1, 1, 1]


def test_one_thread_has_one_lane(bundle):
    executor = _open(bundle, threads=1)
    list(executor.warm_up())
    assert executor.lanes(10**9) == 1
    executor.close()


def test_as_many_batches_as_run_side_by_side_are_planned_of_enough_tokens(bundle, monkeypatch):
    with Engine.load(bundle, threads=4, device="cpu") as engine:
        executor, begun = engine._executor, []
        beside = executor._side_by_side
        monkeypatch.setattr(executor, "_side_by_side", lambda *some: begun.append("beside") or beside(*some))
        pairs = [(f"the man went {number}", "it likes sleeping " * 10) for number in range(250)]
        lengths = engine._encode(pairs, "longest_first", None).all().lengths
        enough = int(np.searchsorted(np.cumsum(lengths), 4 * 4 * 512)) + 1
        few, many = engine.score(pairs[: enough - 1]), None
        assert not begun
        many = engine.score(pairs[:enough])
        assert begun == ["beside"]
        assert np.abs(few - many[:-1]).max() <= 2e-6


@pytest.mark.parametrize("given", [None, "0"])
def test_onnx_runtime_reports_nothing_unless_it_is_told_to(bundle: Path, tmp_path: Path, given: str | None):
    """It would keep this device's name, and what it has to report, in the user's cache folder."""
    code = f"""
import os
from segue import Engine
Engine.load({str(bundle)!r}, device="cpu").score([("a", "b")])
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path)} | ({} if given is None else {"ORT_DISABLE_TELEMETRY": given})
    environment.pop("XDG_CACHE_HOME", None)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == (given or "1")
    if given is None:
        assert list(tmp_path.iterdir()) == []
