"""`segue bench` from end to end on the model in the package, and what it refuses before it measures."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segue import Engine
from segue.benchmark.command import _shown
from segue.benchmark.options import SCENARIOS, Options, add_arguments
from segue.benchmark.process import cold_start, peak_memory
from segue.benchmark.split import STEPS, split
from segue.bundle import read_bundle
from segue.cli import main
from segue.engine import DEFAULT_MODEL
from segue.errors import SegueError

Bench = Callable[..., tuple[int, str, str]]
SHORT = ("--count", 6, "--seconds", 0.02)
ONE = ("--scenarios", "SingleStream", *SHORT)


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Bench:
    """Return a function that runs the command in this process and gives exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main(["bench", *map(str, arguments)])
        except SystemExit as exit:
            code = int(str(exit.code))
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(device="cpu") as engine:
        yield engine


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run everything once, in a process of its own; return the folder of r.json and r.png, and stdout."""
    folder = tmp_path_factory.mktemp("bench")
    command = ["bench", "--json", "r.json", "--plot", "r.png", "--p99", "5000ms", "--threads", "1", *SHORT]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "segue", *map(str, command), "--batches", "1,2", "--lengths", "8,16"],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    # matplotlib may say that it has nowhere to keep its cache, or is building it
    said = [line for line in done.stderr.splitlines() if "matplotlib" not in line.lower()]
    assert (done.returncode, said) == (0, [])
    return folder, done.stdout


def test_everything_is_measured_reported_written_and_drawn(whole: tuple[Path, str]):
    folder, out = whole
    record = json.loads((folder / "r.json").read_text())
    assert list(record["scenarios"]) == list(SCENARIOS)
    for word in ("SingleStream", "MultiStream", "Server", "Offline", "cold start", "memory", "16 tokens"):
        assert word in out
    assert (folder / "r.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (folder / "r.png").stat().st_size > 20_000
    assert sorted(path.name for path in folder.iterdir()) == ["r.json", "r.png"]


def test_the_record_says_model_machine_versions_and_work(whole: tuple[Path, str]):
    record = json.loads((whole[0] / "r.json").read_text())
    manifest = read_bundle(DEFAULT_MODEL)
    assert record["model"]["sha256"] == manifest.files["model.onnx"]
    assert record["model"]["dimensions"]["layers"] == manifest.dimensions.layers
    assert {"python", "segue", "numpy", "tokenizers", "onnxruntime"} <= set(record["versions"])
    assert not {"torch", "triton"} & set(record["versions"])  # installed, but not used
    assert record["engine"]["threads"] == 1
    assert record["machine"]["cores"] >= 1
    assert (record["workload"]["pairs"], record["workload"]["distinct"]) == (6, 6)
    assert record["settings"]["batches and lengths"] == ["1 x 8", "1 x 16", "2 x 8", "2 x 16"]
    assert record["warm_up"] > 0 < record["load"]


def test_the_record_holds_every_time_that_was_measured(whole: tuple[Path, str]):
    found = json.loads((whole[0] / "r.json").read_text())["scenarios"]
    for name in ("SingleStream", "MultiStream", "Server"):
        assert len(found[name]["latencies"]) == found[name]["queries"] >= 1
        assert 0 < found[name]["min"] <= found[name]["p50"] <= found[name]["p99"] <= found[name]["max"]
    assert len(found["Offline"]["seconds"]) == found["Offline"]["calls"]
    assert set(found["Offline"]["steps"]) == set(STEPS)
    assert all(len(cell["seconds"]) == cell["calls"] for cell in found["Grid"]["cells"])
    assert all(trial["latencies"] for trial in found["Server"]["trials"])
    cold = found["ColdStart"]
    for taken in zip(cold["process"], cold["import"], cold["load"], cold["first_score"], strict=True):
        assert taken[0] > sum(taken[1:]) > 0
    totals = [sum(one) for one in zip(cold["import"], cold["load"], cold["first_score"], strict=True)]
    assert len(totals) == 5
    assert cold["figure"]["value"] == pytest.approx(sorted(totals)[2], abs=1e-6)
    assert found["Memory"]["memory_peak"] >= found["Memory"]["memory_loaded"] > 20 << 20


def test_the_same_again_is_compared_and_fails_where_it_should(
    whole: tuple[Path, str], bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    first = tmp_path / "first.json"
    code, out, err = bench(*ONE, "-o", first)
    assert (code, err) == (0, "")
    assert "latency, ms" in out
    code, out, err = bench(DEFAULT_MODEL, *ONE, "--compare", first, "--fail-below", "1e-6")
    assert (code, err) == (0, "")
    assert "| SingleStream | latency p90 |" in out
    second = tmp_path / "second.json"
    code, out, err = bench(*ONE, "--compare", first, "--fail-below", 1e6, "-o", second, "--threads", 1)
    assert code == 1
    assert " below |" in out
    row = json.loads(second.read_text())["comparison"]["rows"][0]
    assert row["failed"]
    assert row["ratio"] == pytest.approx(row["old"] / row["new"], rel=1e-3)
    threads = json.loads(first.read_text())["engine"]["threads"]
    assert caplog.messages == ([] if threads == 1 else [f"not measured alike: threads: {threads}, now 1"])
    code, out, err = bench(*ONE, "--compare", whole[0] / "r.json")
    assert (code, out) == (2, "")
    assert "scenarios differ" in err


@pytest.mark.parametrize(
    ("text", "scenarios"),
    [("a\tb\n", "SingleStream,MultiStream,Server"), ("a\tb\na\tb\nc\td\n", "Offline")],
)
def test_pairs_of_a_file_equal_ones_among_them(text: str, scenarios: str, bench: Bench, tmp_path: Path):
    (tmp_path / "p.tsv").write_text(text)
    lines = text.count("\n")
    out = tmp_path / "r.json"
    code, told, err = bench(
        "--pairs", tmp_path / "p.tsv", "--scenarios", scenarios, "--seconds", 0.02, "-o", out
    )
    assert (code, err) == (0, "")
    work = json.loads(out.read_text())["workload"]
    assert (work["pairs"], work["distinct"]) == (lines, min(lines, 2))
    assert work["source"] == str(tmp_path / "p.tsv")
    assert ("different pairs/s" in told) == (lines == 3)
    assert ("for some of these more than once" in told) == ("MultiStream" in scenarios)


def test_truncated_pairs_are_counted_once_and_not_warned_of_at_each_query(bench: Bench, tmp_path: Path):
    (tmp_path / "p.jsonl").write_text(json.dumps(["word " * 600, "b"]) + "\n")
    code, out, err = bench("--pairs", tmp_path / "p.jsonl", *ONE)
    assert (code, err) == (0, "")
    assert "1 of them are longer than the model reads" in out


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_only_the_scenarios_asked_for_are_measured_and_json_on_stdout_comes_alone(bench: Bench, name: str):
    code, out, _ = bench("--scenarios", "offline, singlestream", *SHORT, "--json", name)
    assert code == 0
    assert list(json.loads(out)["scenarios"]) == ["SingleStream", "Offline"]


def test_options_are_read_in_any_case_and_once():
    parser = ArgumentParser()
    add_arguments(parser)
    asked = ["--plot", "P.PNG", "--p99", "100MS", "--batches", "8,1,8", "--scenarios", "GRID,offline"]
    options = Options.of(parser.parse_args(asked))
    assert (options.plot, options.p99, options.batches) == ("P.PNG", 0.1, (8, 1))
    assert options.scenarios == ("Offline", "Grid")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scenarios", "Nothing"], "scenarios: expected some of SingleStream, "),
        (["--scenarios", ""], "scenarios: "),
        (["--seconds", "0"], "seconds: expected a number above 0, got '0'"),
        (["--seconds", "inf"], "seconds: "),
        (["--seconds", "soon"], "seconds: "),
        (["--p99", "-1"], "p99: expected a number above 0"),
        (["--p99", "1s"], "p99: "),
        (["--count", "0"], "count: expected a whole number from 1, got '0'"),
        (["--seed", "-1"], "seed: expected a whole number from 0"),
        (["--batches", "1,,2"], "batches: expected a whole number from 1, got ''"),
        (["--lengths", "x"], "lengths: expected a whole number from 1, got 'x'"),
        (["--lengths", "16,4"], "lengths: expected 5 to 512 tokens, got 4"),
        (["--lengths", "513"], "lengths: expected 5 to 512 tokens, got 513"),
        (["--fail-below", "0.9"], "fail-below: there is nothing to compare with"),
        (["--compare", "old.json", "--fail-below", "x"], "fail-below: expected a number above 0"),
        (["--compare", "none.json"], "none.json: no such file"),
        (["--compare", "bad.json"], "bad.json: not readable as JSON"),
        (["--plot", "p.txt"], "plot: expected a file ending in .png, .svg, .pdf, got 'p.txt'"),
        (["--plot", "p.png", "--json", "./p.png"], "plot: 'p.png' is where the JSON goes"),
        (["--plot", "none/p.png"], "none/p.png: no such file or directory"),
        (["--json", "none/r.json"], "none/r.json: no such file or directory"),
        (["--pairs", "none.tsv"], "none.tsv: no such file"),
        (["--pairs", "empty.tsv"], "empty.tsv: no pairs to score"),
        (["--pairs", "bad.tsv"], "bad.tsv:2: 1 column, expected 2"),
        (["--pairs", "bad.tsv", "--columns", "7,8"], "bad.tsv:1: no column '7'"),
        (["nowhere"], "nowhere: no such folder"),
        (["--model", "nowhere"], "nowhere: no such folder"),
        (["here", "--model", "there"], "model: given twice"),
        (["--device", "tpu"], "device: expected"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(
    arguments: list[str], words: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    files = {"bad.json": "{", "empty.tsv": "", "bad.tsv": "a\tb\nc\n"}
    for name, text in files.items():
        Path(name).write_text(text)
    out = [] if "--json" in arguments else ["--json", "r.json"]
    code, told, err = bench(*arguments, *out)
    assert (code, told) == (2, "")
    assert err.startswith("segue: ")
    assert err.count("\n") == 1
    assert words in err
    assert {path.name for path in tmp_path.iterdir()} == set(files)


def test_a_model_without_room_for_words_says_so(bench: Bench, make_bundle: Callable[..., Path]):
    code, out, err = bench(make_bundle(layers=1, positions=4), *ONE)
    assert (code, out) == (2, "")
    assert re.search(r"made-up pairs have \d+ tokens or more, and its limit is 4", err)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_does_not_take_the_table_with_it(bench: Bench):
    code, out, err = bench(*ONE, "--json", "/dev/full")
    assert code == 1
    assert "# segue bench" in out
    assert "No space left" in err


def test_without_matplotlib_a_picture_names_the_extra(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "segue.benchmark.plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    code, out, err = bench(*ONE, "--plot", "p.png")
    assert (code, out) == (1, "")
    assert "matplotlib" in err
    assert "is not installed, which this command needs: pip install 'segue[" in err


def test_the_steps_are_those_of_predict(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    """Each step runs once a call on what the one before gave, and the scores come out to the bit."""
    import segue.benchmark.split as module

    pairs = [("the cat slept", "it likes sleeping"), ("a", "b " * 90), ("the cat slept", "it likes sleeping")]
    given: list[Any] = []
    scores = module.scores
    monkeypatch.setattr(module, "scores", lambda *all: given.append(scores(*all)) or given[-1])
    moments = iter(np.cumsum(range(100)).tolist())
    clock = module.Clock(lambda: next(moments), lambda _: None)
    found = split(engine, pairs, seconds=1, clock=clock)
    assert np.array_equal(given[0], engine.predict(pairs))
    # the clock is read at the start, then five times, each reading one second longer after the last
    assert found == {"tokenise": [2], "plan": [3], "execute": [4], "head": [5]}


def test_a_fresh_process_is_charged_with_its_own_memory_only():
    """Through getrusage it would inherit the peak of this one."""
    ballast = np.ones(384 << 17)  # 384 MiB, all written
    load = {"path": None, "device": "cpu"}
    found = peak_memory(load, [("a", "b"), ("c", "d")])
    assert found["figure"]["value"] == found["memory_peak"] < ballast.nbytes
    assert found["gpu_allocated"] is None


def test_a_process_that_fails_says_why():
    with pytest.raises(SegueError, match="no such folder"):
        cold_start({"path": "nowhere"}, ("a", "b"), repeats=1)


def test_progress_is_shown_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen, pipe = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    assert list(_shown(SCENARIOS)) == list(SCENARIOS)
    assert "MultiStream" in screen.getvalue()
    monkeypatch.setattr(sys, "stderr", pipe)
    assert list(_shown(SCENARIOS)) == list(SCENARIOS)
    assert pipe.getvalue() == ""


def test_help_imports_nothing_heavy():
    code = "import sys; from segue.cli import main; main(['bench', '--help'])"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, cwd="/", check=True
    )
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in loaded
    assert not {"numpy", "tokenizers", "onnxruntime", "matplotlib", "torch"} & loaded
    for word in (*SCENARIOS, "MODEL", "--compare", "--fail-below", "--threads"):
        assert word in done.stdout
