"""Records of a benchmark: as Markdown, as JSON, as a picture, and one compared with another."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segue.benchmark.compare import compared, read_record, refuse_another
from segue.benchmark.options import SCENARIOS
from segue.benchmark.plot import draw
from segue.benchmark.report import markdown, to_json
from segue.benchmark.scenarios import Clock, grid, offline, stream
from segue.benchmark.server import server
from segue.errors import InputError

PAIRS = [(f"a{number}", f"b{number}") for number in range(16)]
PNG = b"\x89PNG\r\n\x1a\n"


def made(service: float = 1 / 64) -> dict[str, Any]:
    """Return a record as `segue bench` makes it, of a model that takes `service` seconds a pair."""
    time = [0.0]

    def spend(seconds: float) -> None:
        time[0] += seconds

    def score(pairs: Any) -> None:
        spend(service * len(pairs))

    clock = Clock(lambda: time[0], spend)
    batches = {(size, length): PAIRS[:size] for size in (1, 8) for length in (16, 64)}
    scenarios = {
        "SingleStream": stream(score, PAIRS, per_query=1, seconds=200 * service, clock=clock),
        "MultiStream": stream(score, PAIRS, per_query=8, seconds=200 * service, clock=clock),
        "Offline": offline(score, PAIRS, tokens=16 * 60, seconds=1, clock=clock)
        | {
            "distinct": 16,
            "steps": {"tokenise": [0.02], "plan": [0.0], "execute": [0.06], "head": [0.0]},
        },
        "Server": server(score, PAIRS, bound=0.13, seconds=5, seed=0, clock=clock),
        "Grid": grid(score, batches, seconds=1, clock=clock),
        "ColdStart": {
            "figure": {"name": "to the first score", "value": 0.35, "unit": "s", "better": "lower"},
            "import": [0.2, 0.21, 0.19],
            "load": [0.1, 0.1, 0.1],
            "first_score": [0.05, 0.05, 0.06],
            "process": [0.5, 0.5, 0.5],
        },
        "Memory": {
            "figure": {"name": "peak memory", "value": 300 << 20, "unit": "bytes", "better": "lower"},
            "pairs": 16,
            "memory_loaded": 200 << 20,
            "memory_peak": 300 << 20,
            "gpu_allocated": None,
            "gpu_reserved": None,
        },
    }
    return {
        "format": 1,
        "date": "2026-01-01T00:00:00+00:00",
        "model": {
            "name": "nsp-minilm",
            "path": "/models/nsp-minilm",
            "sha256": "ab" * 32,
            "files": {"model.onnx": "ab" * 32, "tokenizer.json": "cd" * 32},
            "precision": "float16",
            "dimensions": {"layers": 6, "hidden_size": 384},
        },
        "engine": {
            "executor": "onnxruntime",
            "device": "cpu",
            "precision": "float32",
            "threads": 2,
            "max_batch_tokens": 2048,
            "batch_invariant": True,
        },
        "workload": {
            "source": "the vocabulary's words, seed 0",
            "pairs": 16,
            "distinct": 16,
            "truncated": 0,
            "tokens": 960,
            "shortest": 5,
            "mean": 60.0,
            "longest": 300,
            "sha256": "ef" * 32,
        },
        "settings": {"scenarios": list(SCENARIOS), "seed": 0, "p99": 0.13, "batches and lengths": ["1 x 16"]},
        "seconds": 5.0,
        "load": 0.5,
        "warm_up": 1.25,
        "scenarios": scenarios,
        "versions": {"python": "3.11.7", "numpy": "2.4.6"},
        "machine": {
            "cpu": "Some CPU",
            "cores": 2,
            "host_cores": 4,
            "memory": 8 << 30,
            "os": "Linux",
            "gpus": [],
        },
    }


RECORD = made()


@pytest.fixture
def record() -> dict[str, Any]:
    return copy.deepcopy(RECORD)


def tables(text: str) -> dict[str, list[list[str]]]:
    """Return the rows of each Markdown table by its first header cell, and check that it is one."""
    found: dict[str, list[list[str]]] = {}
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if not lines or not lines[0].startswith("|"):
            continue
        assert len({len(line) for line in lines}) == 1, "a ragged table"
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
        assert len({len(row) for row in rows}) == 1
        assert set("".join(rows[1])) <= set("-:")
        found[rows[0][0]] = [rows[0], *rows[2:]]
    return found


def test_the_report_says_what_was_measured_on_what(record: dict[str, Any]):
    text = markdown(record)
    for words in (
        "# segue bench: nsp-minilm",
        "6 layers of 384, weights in float16, sha256 abababababab",
        "onnxruntime, cpu, float32, 2 threads",
        "Some CPU, 2 of 4 cores, 8.0 GiB",
        "numpy 2.4.6",
        "16 of the vocabulary's words, seed 0, all different, 5 to 300 tokens, mean 60.0",
        "load 500 ms, then warm-up 1.25 s",
    ):
        assert words in text


def test_the_report_has_the_figures(record: dict[str, Any]):
    found = tables(markdown(record))
    assert found["latency, ms"][1:3] == [
        ["SingleStream", "15.6", "15.6", "15.6", "15.6", "64.0", "200"],
        ["MultiStream", "125", "125", "125", "125\\*", "64.0", "25"],
    ]
    assert found["latency, ms"][3][0] == "Server"
    assert found["Offline"][1] == ["16 pairs", "64.0", "3,840", "0.250", "4"]
    assert found["of a call"] == [
        ["of a call", "tokenise", "plan", "execute", "head"],
        ["ms", "20.0", "0.00", "60.0", "0.00"],
        ["%", "25.0", "0.0", "75.0", "0.0"],
    ]
    assert found["pairs/s (ms a call)"] == [
        ["pairs/s (ms a call)", "16 tokens", "64 tokens"],
        ["1 pair", "64.0 (15.6)", "64.0 (15.6)"],
        ["8 pairs", "64.0 (125)", "64.0 (125)"],
    ]
    assert found["cold start, ms"][1] == ["median", "200", "100", "50.0", "500", "3"]
    assert found["memory, MiB"] == [["memory, MiB", "loaded", "peak"], ["16 pairs", "200", "300"]]


def test_a_percentile_of_too_few_queries_is_marked(record: dict[str, Any]):
    for queries, marks in ((100, 0), (99, 1), (20, 1), (19, 2), (9, 3), (1, 4)):
        record["scenarios"] = {"SingleStream": made()["scenarios"]["SingleStream"] | {"queries": queries}}
        text = markdown(record)
        assert "".join(tables(text)["latency, ms"][1]).count("\\*") == marks
        assert ("of too few queries: p99 wants 100, p95 wants 20" in text) == bool(marks)


def test_the_server_is_said_to_hold_a_rate_or_none(record: dict[str, Any]):
    found = record["scenarios"]["Server"]
    assert f"p99 is within 130 ms up to {found['figure']['value']:.1f} queries/s" in markdown(record)
    found["queries"] = 99
    assert "p99 (of 99 queries only) is within 130 ms" in markdown(record)
    record["scenarios"]["Server"] = made(service=0.5)["scenarios"]["Server"]
    text = markdown(record)
    assert "no rate keeps p99 within 130 ms" in text
    assert "Server" not in [row[0] for row in tables(text)["latency, ms"]]


def test_equal_pairs_and_truncated_ones_are_counted(record: dict[str, Any]):
    assert "equal" not in markdown(record)
    assert "truncated" not in markdown(record)
    record["workload"] |= {"distinct": 4, "truncated": 3}
    record["scenarios"]["Offline"]["distinct"] = 4
    text = markdown(record)
    assert "4 different" in text
    assert "equal pairs of one call once" in text
    assert "Computed are 16.0 different pairs/s" in text
    assert "3 of them are longer than the model reads" in text
    assert "for some of these more than once" in text


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_scenario_is_reported_and_drawn_alone(name: str, record: dict[str, Any]):
    others = {word.split()[0] for word in tables(markdown(record))}
    record["scenarios"] = {name: record["scenarios"][name]}
    text = markdown(record)
    assert 1 <= len(tables(text)) < len(others)
    picture = io.BytesIO()
    draw(record, picture)
    assert picture.getvalue().startswith(PNG)


def test_a_gpu_has_its_memory_named(record: dict[str, Any]):
    record["scenarios"]["Memory"] |= {"gpu_allocated": 3 << 30, "gpu_reserved": 4 << 30}
    record["machine"]["gpus"] = ["Some GPU"]
    text = markdown(record)
    assert tables(text)["memory, MiB"][1] == ["16 pairs", "200", "300", "3,072", "4,096"]
    assert "Some CPU; Some GPU" in text


def test_a_system_that_does_not_say_its_memory(record: dict[str, Any]):
    record["machine"]["memory"] = None
    record["scenarios"]["Memory"] |= {"memory_loaded": None, "memory_peak": None}
    text = markdown(record)
    assert "Memory: this system does not say." in text
    assert "GiB" not in text
    record["scenarios"] = {"Memory": record["scenarios"]["Memory"]}
    draw(record, io.BytesIO())


def test_json_holds_every_time_a_list_to_a_line(record: dict[str, Any], tmp_path: Path):
    record["scenarios"]["SingleStream"]["latencies"][0] = 0.01234567890123
    record["model"]["name"] = "x [1,  2]"
    text = to_json(record)
    read = json.loads(text)
    assert read["scenarios"]["SingleStream"]["latencies"][:2] == [0.0123457, 0.015625]
    assert len(read["scenarios"]["SingleStream"]["latencies"]) == 200
    assert read["scenarios"]["MultiStream"] == record["scenarios"]["MultiStream"]
    assert read["model"] == record["model"]
    assert sum('"latencies"' in line for line in text.splitlines()) == text.count('"latencies": [') > 5
    assert all("]" in line for line in text.splitlines() if '"latencies"' in line)
    (tmp_path / "r.json").write_text(text, encoding="utf-8")
    assert read_record(str(tmp_path / "r.json")) == read


def test_a_picture_has_the_kind_asked_for(record: dict[str, Any]):
    record["comparison"] = compared(record, record, 0.9)
    record["scenarios"] = {"ColdStart": record["scenarios"]["ColdStart"]}
    for format, start in (("png", PNG), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        picture = io.BytesIO()
        draw(record, picture, format=format)
        assert picture.getvalue().startswith(start)


def test_the_same_again_has_the_ratio_one(record: dict[str, Any]):
    found = compared(record, record, 1.0)
    assert [row["scenario"] for row in found["rows"]] == list(SCENARIOS)
    assert [row["ratio"] for row in found["rows"]] == [1.0] * len(SCENARIOS)
    assert not any(row["failed"] for row in found["rows"])
    assert found["doubts"] == found["changes"] == []


def test_more_is_better_for_rates_and_times_alike(record: dict[str, Any]):
    """A model of half the speed: every ratio that depends on it is one half."""
    slow = made(service=1 / 32)
    ratios = {row["scenario"]: row["ratio"] for row in compared(record, slow)["rows"]}
    for name in ("SingleStream", "MultiStream", "Offline", "Grid"):
        assert ratios[name] == pytest.approx(0.5), name
    assert 0.1 < ratios["Server"] < 0.5  # the bound has stayed where it was
    back = {row["scenario"]: row["ratio"] for row in compared(slow, record)["rows"]}
    for name, ratio in ratios.items():
        assert back[name] == pytest.approx(1 / ratio)


@pytest.mark.parametrize(
    ("new", "limit", "failed"),
    [(100, 0.95, False), (95, 0.95, False), (94, 0.95, True), (94, None, False), (300, 0.95, False)],
)
def test_a_figure_fails_below_the_limit_and_only_where_there_is_one(
    new: float, limit: float | None, failed: bool, record: dict[str, Any]
):
    old = copy.deepcopy(record)
    old["scenarios"]["Offline"]["figure"]["value"] = 100
    record["scenarios"]["Offline"]["figure"]["value"] = new
    rows = {row["scenario"]: row for row in compared(old, record, limit)["rows"]}
    assert rows["Offline"]["failed"] is failed
    assert not any(row["failed"] for name, row in rows.items() if name != "Offline")


@pytest.mark.parametrize(
    ("old", "new", "failed"), [(None, None, False), (None, 5.0, False), (5.0, None, True)]
)
def test_a_figure_that_has_gone_is_a_failure_and_one_that_has_come_is_none(
    old: float | None, new: float | None, failed: bool, record: dict[str, Any]
):
    before = copy.deepcopy(record)
    hopeless = made(service=0.5)["scenarios"]["Server"]  # one query alone breaks its bound
    for one, value in ((before, old), (record, new)):
        if value is None:
            one["scenarios"]["Server"] = hopeless
    row = next(row for row in compared(before, record, 0.95)["rows"] if row["scenario"] == "Server")
    assert (row["ratio"], row["failed"]) == (None, failed)
    record["comparison"] = compared(before, record, 0.95)
    assert tables(markdown(record))["compared"][4][4] == ("- below" if failed else "-")
    record["scenarios"] = {"Server": record["scenarios"]["Server"]}
    draw(record, io.BytesIO())


def test_the_comparison_is_reported(record: dict[str, Any]):
    old = copy.deepcopy(record)
    old["scenarios"]["Offline"]["figure"]["value"] = 160.0
    old["machine"]["cpu"] = "Another CPU"
    old["versions"]["numpy"] = "1.0"
    record["comparison"] = compared(old, record, 0.95)
    text = markdown(record)
    rows = {row[0]: row for row in tables(text)["compared"]}
    assert rows["Offline"] == ["Offline", "throughput", "160 pairs/s", "64.0 pairs/s", "0.400 below"]
    assert rows["SingleStream"] == ["SingleStream", "latency p90", "15.6 ms", "15.6 ms", "1.000"]
    assert rows["Memory"][2:4] == ["300 MiB", "300 MiB"]
    assert "Below 0.95 is a failure." in text
    assert "- processor: Another CPU, now Some CPU" in text
    assert "- numpy 1.0, now 2.4.6" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["machine"].update(cpu="Z"), "processor: Z, now Some CPU"),
        (lambda r: r["machine"].update(cores=64), "cores: 64, now 2"),
        (lambda r: r["machine"].update(gpus=["A", "B"]), "GPUs: A, B, now none"),
        (lambda r: r["engine"].update(threads=1), "threads: 1, now 2"),
        (lambda r: r["engine"].update(executor="triton"), "executor: triton, now onnxruntime"),
        (lambda r: r["engine"].update(batch_invariant=False), "batch_invariant: False, now True"),
        (lambda r: r.update(seconds=60.0), "seconds a scenario: 60.0, now 5.0"),
    ],
)
def test_what_makes_a_ratio_doubtful_is_said(
    change: Callable[[Any], None], words: str, record: dict[str, Any]
):
    old = copy.deepcopy(record)
    change(old)
    refuse_another(old, record)
    assert compared(old, record)["doubts"] == [words]


def test_a_package_that_has_come_or_gone_is_a_change(record: dict[str, Any]):
    old = copy.deepcopy(record)
    old["versions"]["gone"] = "1.0"
    del old["versions"]["numpy"]
    assert compared(old, record)["changes"] == ["gone 1.0, now none", "numpy none, now 2.4.6"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["model"]["files"].update({"model.onnx": "0"}), "the models differ: nsp-minilm"),
        (lambda r: r["model"]["files"].update({"tokenizer.json": "0"}), "the models differ"),
        (lambda r: r["workload"].update(sha256="0"), "the pairs differ: 16 of the vocabulary's words"),
        (lambda r: r["settings"].update(seed=1), "seed differ: 1, now 0"),
        (lambda r: r["settings"].update(p99=0.1), "p99 differ: 0.1, now 0.13"),
        (
            lambda r: r["settings"].update(scenarios=["Offline"]),
            "scenarios differ: Offline, now SingleStream",
        ),
        (lambda r: r["settings"].pop("batches and lengths"), "batches and lengths differ: none, now 1 x 16"),
    ],
)
def test_what_makes_a_ratio_meaningless_is_refused(
    change: Callable[[Any], None], words: str, record: dict[str, Any]
):
    old = copy.deepcopy(record)
    change(old)
    with pytest.raises(InputError, match=f"^compare: .*{words}"):
        refuse_another(old, record)


def broken(change: Callable[[Any], Any]) -> str:
    record = made()
    change(record)
    return json.dumps(record)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not readable as JSON"),
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("[]", "not what this segue bench writes"),
        ("{}", "not what this segue bench writes"),
        (broken(lambda r: r.update(format=2)), "format 1"),
        (broken(lambda r: r.pop("workload")), "not what"),
        (broken(lambda r: r.update(machine=None)), "not what"),
        (broken(lambda r: r["model"].pop("sha256")), "not what"),
        (broken(lambda r: r.update(scenarios=[])), "not what"),
        (broken(lambda r: r["scenarios"].pop("Server")), "not what"),
        (broken(lambda r: r["scenarios"]["Server"].pop("figure")), "not what"),
        (broken(lambda r: r["scenarios"]["Server"]["figure"].update(value="9")), "not what"),
        (broken(lambda r: r.update(settings=[])), "not what"),
        (broken(lambda r: r.update(versions=["numpy"])), "not what"),
        (broken(lambda r: r["workload"].pop("sha256")), "not what"),
        *(
            (broken(lambda r, v=value: r["scenarios"]["Server"]["figure"].update(value=v)), "not what")
            for value in (0, -1, float("nan"), float("inf"), 10**400)
        ),
    ],
)
def test_a_file_that_is_no_record_is_refused(text: str, words: str, tmp_path: Path):
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(InputError, match=rf"old\.json: .*{words}"):
        read_record(str(tmp_path / "old.json"))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        read_record(str(tmp_path / "old.json"))
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="not readable as JSON"):
        read_record(str(tmp_path / "binary.json"))
