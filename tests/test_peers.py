"""The comparison with other engines: it runs from end to end, refuses wrong scores, says who is missing."""

from __future__ import annotations

import copy
import inspect
import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peers as script
import peers_engines
import peers_environments
import peers_int8
import peers_int8_model
import peers_list
import peers_measure
import peers_process
import peers_report
import pytest
import workloads

FAULTY = """
def constant(checkpoint, threads, order):
    return lambda pairs, batch: [0.5] * len(pairs)

def not_a_number(checkpoint, threads, order):
    return lambda pairs, batch: [0.5, float("nan"), 0.5]

def missing(checkpoint, threads, order):
    import a_library_that_nobody_has

def dying(checkpoint, threads, order):
    import os
    print("this goes to the log")
    return lambda pairs, batch: os._exit(3)

def busy(checkpoint, threads, order):
    import threading
    def spin():
        while True:
            pass
    threading.Thread(target=spin, daemon=True).start()
    return lambda pairs, batch: [0.5] * len(pairs)

def asleep(checkpoint, threads, order):
    import time
    return lambda pairs, batch: time.sleep(0.5) or [0.5] * len(pairs)

def by_company(checkpoint, threads, order):
    return lambda pairs, batch: [0.5 + 0.01 * len(pairs)] * len(pairs)

def told(checkpoint, threads, order, *, value):
    return lambda pairs, batch: [float(value)] * len(pairs)

def likes_eight(checkpoint, threads, order):
    import time
    return lambda pairs, batch: time.sleep(0.01 * abs(batch - 8)) or [0.5] * len(pairs)
"""


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What `--smoke --write` leaves behind."""
    return smoked(tmp_path_factory.mktemp("peers"), "float32", "peers-1-cores.json")


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The same with `--precision int8`."""
    return smoked(tmp_path_factory.mktemp("int8"), "int8", "peers-int8-1-cores.json")


def smoked(folder: Path, precision: str, name: str) -> SimpleNamespace:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "_RESULTS", folder)
        options = (
            f"--precision {precision} --smoke --write --workloads mixed --pairs 12 --rounds 2 --threads 1"
        )
        script.main([*options.split(), "--work", str(folder / "work")])
    return SimpleNamespace(folder=folder, record=json.loads((folder / name).read_text()))


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """Start a worker on three pairs with a function of `FAULTY`."""
    module, pairs = tmp_path / "faulty.py", tmp_path / "pairs.json"
    module.write_text(FAULTY)
    pairs.write_text(json.dumps([["a", "b"], ["c", "d"], ["e", "f"]]))

    def started(peer: Any) -> Any:
        return peers_process.Worker(
            replace(peer, module=module),
            Path(sys.executable),
            checkpoint=tmp_path,
            pairs=pairs,
            threads=1,
            logs=tmp_path,
        )

    return started


def faulty(function: str, **options: Any) -> Any:
    options = {"batches": (1,), **options}
    return peers_list.Peer(function, function, function, peers_list.PRESENT, (), **options)


def test_a_run_times_every_peer_that_scores_alike_and_writes_what_it_found(smoke: SimpleNamespace):
    workload = smoke.record["workloads"]["mixed"]
    assert list(workload["results"]) == ["segue", "transformers", "ort-32-sorted"]
    for result in workload["results"].values():
        assert len(result["seconds"]) == 2
        assert min(result["seconds"]) > 0
        assert result["difference"] < 1e-4
        assert 1e7 < result["peak"] < 1e10
    assert workload["pairs"] == 12
    assert set(smoke.record["cold"]) == {"segue", "ort-32-sorted"}
    for cold in smoke.record["cold"].values():
        assert cold["total"][0] > cold["load"][0] > 0
    assert smoke.record["peers"]["transformers"]["versions"]["torch"]
    assert smoke.record["machine"]["cpu"]
    assert (smoke.folder / "peers-1-cores.png").read_bytes().startswith(b"\x89PNG")
    assert "| **segue** | its own |" in (smoke.folder / "peers-1-cores.md").read_text()


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ([0.1, 0.2, 0.3], None),
        ([0.1, 0.2, 0.30009], None),
        ([0.1, 0.2, 0.3002], "differ from PyTorch's by up to 0.0002"),
        ([0.1, float("nan"), 0.3], "nan"),
        ([0.3, 0.2, 0.1], "0.2"),
        ([0.1, 0.2], "2 scores for 3 pairs"),
    ],
)
def test_scores_are_compared_before_anything_is_timed(scores: list[float], says: str | None):
    found = peers_measure.check(scores, [0.1, 0.2, 0.3])
    assert found is None if says is None else says in found


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ([0.2, 0.2, 0.2], None),
        ([0.1, 0.2, 0.9], None),
        ([0.9, 0.9, 0.3], "by 0.5 in the mean"),
        ([0.1, float("nan"), 0.3], "nan"),
        ([0.1, float("inf"), 0.3], "inf"),
        ([0.1, 0.2], "2 scores for 3 pairs"),
    ],
)
def test_of_rounded_scores_a_gross_failure_alone_is_refused(scores: list[float], says: str | None):
    found = peers_measure.check(scores, [0.1, 0.2, 0.3], exact=False)
    assert found is None if says is None else says in found


def test_rounding_is_measured_and_so_is_what_a_batch_does_to_a_score(start: Any):
    rounded = faulty("by_company", exact=False)
    other = replace(faulty("told"), options={"value": "0.9"})
    peers = [rounded, replace(other, key="exact"), replace(other, key="gross", exact=False)]
    results = peers_measure.run_workload(peers, start, [0.5, 0.5, 0.52], 1, alone=True)
    assert results["by_company"]["alone"] == pytest.approx(0.02)
    assert results["by_company"]["mean_difference"] == pytest.approx(0.07 / 3)
    assert results["by_company"]["difference"] == pytest.approx(0.03)
    assert "by up to 0.4" in results["exact"]["refused"]
    assert "by 0.39 in the mean" in results["gross"]["refused"]
    alike = peers_measure.run_workload([rounded], start, [0.5, 0.5, 0.52], 1)
    assert "alone" not in alike["by_company"]


def test_a_peer_that_is_wrong_or_cannot_be_had_is_named_with_the_reason(start: Any):
    names = ("constant", "not_a_number", "missing", "dying", "asleep")
    peers = [faulty(name) for name in names]
    results = peers_measure.run_workload(peers, start, [0.5, 0.5, 0.5 + 5e-5], 1)
    assert list(results) == list(names)
    assert "seconds" in results["constant"]
    assert "nan" in results["not_a_number"]["refused"]
    assert "a_library_that_nobody_has" in results["missing"]["absent"]
    assert "ended with 3: this goes to the log" in results["dying"]["absent"]
    wrong = peers_measure.run_workload(peers[:1], start, [0.5, 0.5, 0.6], 1)
    assert "differ" in wrong["constant"]["refused"]


def test_an_environment_that_cannot_be_built_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(peers_environments.REQUIREMENTS, "light", (str(tmp_path / "no-such.whl"),))
    with pytest.raises(peers_environments.Unavailable, match=r"environment light: .*no-such\.whl"):
        peers_environments.python_of("light", tmp_path)
    assert not (tmp_path / "light" / "requirements.txt").exists()


def test_the_fastest_batch_is_found_and_hopeless_ones_are_left_out(start: Any):
    peer = faulty("likes_eight", batches=(1, 8, 16, 32, 64))
    tried = peers_measure.calibrate(peer, start, 200)
    assert min(tried, key=tried.get) == 8
    assert list(tried) == [1, 8, 16]
    assert list(peers_measure.calibrate(peer, start, 3)) == [1]
    tokens = replace(peer, order="budget")
    assert list(peers_measure.calibrate(tokens, start, 3)) == [1, 8, 16], "they are not a number of pairs"


def test_a_budget_fills_batches_with_as_many_tokens_padding_counted():
    lengths = [3, 9, 40, 8, 2, 8]
    batches = list(peers_engines._batches(lengths, 16, "budget"))
    assert batches == [[2], [1], [3, 5], [0, 4]]
    assert list(peers_engines._batches(lengths, 4, "sorted")) == [[2, 1, 3, 5], [0, 4]]
    assert list(peers_engines._batches(lengths, 4, "given")) == [[0, 1, 2, 3], [4, 5]]


def test_a_worker_that_is_busy_while_others_work_is_noticed(start: Any):
    with start(faulty("busy")) as busy, start(faulty("asleep")) as asleep:
        timed = peers_measure.time_rounds({"busy": (busy, 1), "asleep": (asleep, 1)}, 2)
    assert timed["busy"]["idle"] > 0.05  # 1, but for what other processes take
    assert timed["asleep"]["idle"] < 0.02
    assert min(timed["asleep"]["seconds"]) >= 0.5


def test_segue_is_always_compared_and_unknown_peers_are_refused():
    chosen, peers, int8 = peers_list.chosen, peers_list.PEERS, peers_int8.INT8
    for every in (peers, int8):
        assert [peer.key for peer in chosen(["ort"], every)] == ["segue", "ort"]
        assert len({peer.key for peer in chosen(None, every)}) == len(every)
    with pytest.raises(ValueError, match="no nobody; there are segue, "):
        chosen(["nobody"], peers)
    with pytest.raises(ValueError, match="no flashrank; there are segue, segue-float32, "):
        chosen(["flashrank"], int8)
    for peer in (*peers, *int8):
        assert callable(getattr(import_module(peer.module.stem), peer.function))
        known = (peers_list.PRESENT, *peers_environments.REQUIREMENTS)
        assert peer.environment in known


def test_what_is_compared_in_int8_differs_from_the_others_in_its_model_alone():
    peers = {peer.key: peer for peer in peers_int8.INT8}
    assert {key for key, peer in peers.items() if peer.exact} == {"segue-float32"}
    assert not any(peer.cold for peer in peers.values())
    files = {vars(peers_int8)[f"{name}_INT8"] for name in ("ONNX", "OPENVINO", "SEGUE")}
    files.add(peers_int8.OPENVINO_WEIGHTS)
    unlike = {key for key, peer in peers.items() if not files & set(peer.options.values())}
    assert unlike == {"segue-float32", "openvino-bf16"}
    for peer in peers.values():
        function = inspect.signature(getattr(import_module(peer.module.stem), peer.function))
        function.bind(Path(), 1, peer.order, **peer.options)
    timed = workloads.make_pairs("mixed", 256)
    other = workloads.make_pairs("mixed", peers_int8_model._CALIBRATION, seed=peers_int8_model._SEED)
    assert set(timed).isdisjoint(other)


def test_an_int8_run_shows_what_rounding_and_a_batch_do_to_scores(int8: SimpleNamespace):
    results = int8.record["workloads"]["mixed"]["results"]
    assert list(results) == ["segue", "segue-float32", "ort"]
    assert results["segue-float32"]["difference"] < 1e-4 < results["segue"]["difference"]
    assert results["segue"]["mean_difference"] < results["segue"]["difference"]
    assert results["segue"]["alone"] < results["ort"]["alone"], "it rounds a batch as a whole"
    assert not int8.record["cold"]
    text = (int8.folder / "peers-int8-1-cores.md").read_text()
    heading = text.partition("##")[0]
    assert heading.startswith("# segue and its peers in int8 on 1 cores\n")
    assert "quantize_dynamic(weight_type=QInt8" in heading
    assert "nncf.quantize(" in heading
    assert "in the mean by | at the most by | a pair alone differs by up to |\n" in text
    assert f"| {results['ort']['difference']:.1e} | {results['ort']['alone']:.1e} |\n" in text
    assert "Cold start" not in text
    assert "On a GPU" not in text
    assert not list(int8.folder.glob("*.png"))


@pytest.mark.parametrize("name", ["peers-2-cores", "peers-int8-2-cores"])
def test_the_pages_in_the_repository_are_made_of_their_records(name: str):
    results = script._RESULTS
    record = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
    assert (results / f"{name}.md").read_text(encoding="utf-8") == peers_report.markdown(record, results)


def test_the_report_is_made_of_the_record(smoke: SimpleNamespace, tmp_path: Path):
    """Ratios are taken round by round: 2 and 4 times segue's, whatever the machine did in between."""
    record = copy.deepcopy(smoke.record)
    results = record["workloads"]["mixed"]["results"]
    results["segue"] |= {"seconds": [1.0, 10.0, 2.0], "idle": 0.0, "peak": 300_000_000}
    results["transformers"] |= {"seconds": [4.0, 40.0, 8.0], "idle": 0.4}
    results["ort-32-sorted"] = {"refused": "scores differ | much"}
    record["cold"]["ort-32-sorted"] = {"absent": "ort: ended with 1"}
    text = peers_report.markdown(record, tmp_path)
    assert "| **segue** | its own | 6.0 | 1.00 | 300 |" in text
    assert "| transformers on PyTorch, SDPA, sorted | 8 | 1.5 | 4.00 |" in text
    assert "32 sorted | - | - | - | - | refused: scores differ / much |" in text
    assert "Kept a core busy while others were timed: transformers on PyTorch, SDPA, sorted (40%)." in text
    assert "32 sorted | absent: ort: ended with 1 |" in text
    peers_report.draw(record, tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_figures_of_a_gpu_stand_in_the_same_report_or_are_said_to_be_absent(
    smoke: SimpleNamespace, tmp_path: Path
):
    absent = "## On a GPU\n\nNo figures yet"
    assert absent in peers_report.markdown(smoke.record, tmp_path)
    sides = {"segue, float16": {"pairs/s": 900.0}, "segue, bfloat16": {"not timed": "it failed"}}
    rows = [
        {"model": "M", "workload": "mixed", "tokens": 4096, "sides": sides},
        {"model": "M", "workload": "mixed", "tokens": 8192, "sides": {"segue, float16": {"pairs/s": 1100.0}}},
        {"model": "M", "workload": "long", "tokens": 4096, "sides": {"a": {"not timed": "it failed"}}},
    ]
    record = {"smoke": True, "sections": {"throughput": {"found": {"rows": rows}}}}
    (tmp_path / "h200.json").write_text(json.dumps(record))
    (tmp_path / "peers.json").write_text(json.dumps({"workloads": {}}))
    assert absent in peers_report.markdown(smoke.record, tmp_path), "toy sizes are no figures"
    (tmp_path / "h200.json").write_text(json.dumps(record | {"smoke": False}))
    text = peers_report.markdown(smoke.record, tmp_path)
    assert "| [h200](h200.md) | M | mixed | 8192 | segue, float16 | 1,100 |" in text
    assert "| [h200](h200.md) | M | long | 4096 | a | not timed |" in text
