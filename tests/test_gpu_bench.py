"""bench/gpu.py, interpreted in toy sizes: every section runs, what is wrong is not timed, time is kept."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import gpu
import gpu_kernels
import gpu_memory
import gpu_model
import gpu_models
import gpu_parity
import gpu_parity_models
import gpu_path
import gpu_peers
import gpu_prepare
import gpu_report
import gpu_run
import gpu_tests
import gpu_timing
import numpy as np
import onnx
import pytest
import torch
from kernel_tools import run_python

from segue import kernels
from segue.executors.triton import TritonExecutor
from segue.kernels import reference

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    gpu_prepare.prepare(folder, smoke=True)
    return folder


@pytest.fixture
def work(prepared: Path, tmp_path: Path) -> Any:
    return gpu_models.Work(prepared, tmp_path, torch.device("cpu"), None, ("float16",))


@pytest.fixture
def run(tmp_path: Path) -> Any:
    return gpu_run.Run(tmp_path / "record.json", 600, date="today", smoke=True, arguments=[])


def test_the_smoke_run_takes_every_section_without_the_exporter(prepared: Path, tmp_path: Path) -> None:
    """Text to table, in a process in which nothing can be exported."""
    for name in ("onnx_ir", "onnxscript"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not on this machine')\n")
    out = tmp_path / "out"
    command = [
        sys.executable,
        str(BENCH / "gpu.py"),
        "--smoke",
        "--prepared",
        str(prepared),
        "--out",
        str(out),
    ]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    (written,) = out.glob("smoke-*.json")
    record = json.loads(written.read_text())
    every = gpu.sections(None, argparse.Namespace(autotune=False, sanitize=False, tests=False, only=None))
    assert list(record["sections"]) == [section.name for section in every]
    assert {entry["status"] for entry in record["sections"].values()} == {"done"}, done.stdout
    found = {name: entry["found"] for name, entry in record["sections"].items()}
    assert not found["compiling ahead"]["failed"]
    _check_parity(found)
    _check_times(found)
    table = written.with_suffix(".md").read_text()
    assert "meaningless" in table
    for name in set(found) - {"machine", "compiling ahead", "profile", "compiled peers"}:
        assert f"\n## {name.capitalize()}\n\n| " in table
    for name in found:
        assert f"\n| {name} | done |" in table


def _check_parity(found: dict[str, Any]) -> None:
    assert set(found["parity of kernels"]) == set(kernels.__all__) - {"first_rows"}
    for op, dtypes in found["parity of kernels"].items():
        assert {dtype: entry["ok"] for dtype, entry in dtypes.items()} == dict.fromkeys(
            ("float32", "float16", "bfloat16"), True
        ), op
    toy = found["parity of models"]["toy"]
    assert 0 < toy["from PyTorch in float64"] < 1e-9
    assert set(toy["executors"]) == {"float16, batch-invariant", "float16, not invariant"}
    assert all(about["ok"] and about["error"] > 0 for about in toy["executors"].values())
    assert toy["executors"]["float16, batch-invariant"]["bits"] == {"same": True, "largest difference": 0.0}


def _check_times(found: dict[str, Any]) -> None:
    timed = {row["op"]: row["sides"] for row in found["kernels"]["rows"]}
    attentions = {"packed_attention", "cls_attention"}
    assert set(timed) == attentions | {"linear", "linear_gelu", "add_layer_norm", "embed", "softmax"}
    assert all("us" in sides["segue"] for sides in timed.values())
    sides = {"segue, float16", "segue, float16, batch_invariant=False"}
    for row in found["throughput"]["rows"]:
        assert set(row["sides"]) == sides
        assert all(side["pairs/s"] > 0 for side in row["sides"].values())
        assert row["roofline"]["seconds"] > 0
    assert {row["from"] for row in found["latency"]["rows"]} == {"ids", "text"}
    assert all("of the model alone" in row for row in found["end to end"]["rows"])
    assert [row["compiled after"] for row in found["warm-up"]["rows"]] == [0]
    (row,) = found["peers"]["rows"]
    families = {name.split(" @ ")[0] for name, side in row["sides"].items() if "pairs/s" in side}
    assert families == sides | {"transformers, SDPA, sorted", "a loop of SDPA, packed"}


# Correct first


def test_a_kernel_that_is_wrong_is_not_timed(work: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def softmax(x: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        return reference.softmax(x * 1.02, out=out)

    monkeypatch.setattr(kernels, "softmax", softmax)
    monkeypatch.setattr(gpu_parity, "DTYPES", (torch.float16,))
    monkeypatch.setattr(gpu_kernels, "_contests", _only("softmax", "add_layer_norm", gpu_kernels._contests))
    run.take(gpu_run.Section("parity of kernels", lambda w, f: gpu_parity.check_kernels(run, w, f), 99), work)
    run.take(gpu_run.Section("kernels", lambda w, f: gpu_kernels.time_kernels(run, w, f), 99), work)
    verdicts = {op: entry["float16"]["ok"] for op, entry in run.found("parity of kernels").items()}
    assert [op for op, ok in verdicts.items() if not ok] == ["softmax"]
    right, wrong = run.found("kernels")["rows"]
    assert (right["op"], wrong["op"]) == ("add_layer_norm", "softmax")
    assert "us" in right["sides"]["segue"]
    assert wrong["sides"] == {}
    assert "not timed" in wrong
    assert "wrong by" in gpu_report.markdown(run.record)


def test_compute_sanitizer_sees_every_kernel() -> None:
    """Those that an H100 or H200 launches; here they are only counted."""
    code = f"""
        import importlib, pkgutil, sys
        import segue.kernels, torch
        from segue.kernels import launching
        launching._target = lambda *_: "sm_90"
        seen = set()
        launching.run = lambda kernel, *_: seen.add(kernel.__name__)
        sys.path.insert(0, {str(BENCH)!r})
        from gpu_path import reach
        reach()
        import gpu_memory
        gpu_memory.launch_all(torch.device("cpu"))
        names = [module.name for module in pkgutil.iter_modules(segue.kernels.__path__, "segue.kernels.")]
        there = {{name for module in map(importlib.import_module, names) for name in vars(module)}}
        print(sorted({{name for name in there if name.endswith("_kernel")}} - seen))
    """
    assert run_python(dedent(code), interpreted=False) == "[]\n"


@pytest.mark.parametrize(
    ("code", "verdict"), [(0, "nothing found"), (9, "faults found"), (1, "it ended with 1")]
)
def test_what_keeps_compute_sanitizer_from_looking_is_no_fault(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, verdict: str
) -> None:
    program = tmp_path / "compute-sanitizer"
    lines = ["Invalid __global__ read of size 2 bytes", "at _kernel", *["host frame"] * 60, "its last word"]
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + f"exit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    section = gpu_run.Section("memory", lambda w, f: gpu_memory.check_memory(run, w, f), 99)
    run.take(section, SimpleNamespace(smoke=False))
    for tool in ("memcheck", "racecheck"):
        assert f"| {tool} | {verdict} | its last word |" in gpu_report.markdown(run.record)
        assert run.found("memory")[tool]["said"][:2] == lines[:2]


def test_a_side_that_is_wrong_at_the_timed_shape_is_not_timed(
    work: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.record["sections"]["parity of kernels"] = {"found": {"softmax": {"float16": {"ok": True}}}}
    (contest,) = _only("softmax", "", gpu_kernels._contests)(work.device, True, False)
    contest = contest._replace(peers={"half": lambda x: torch.softmax(x, -1) / 2, **contest.peers})
    monkeypatch.setattr(gpu_kernels, "_contests", lambda *_: [contest])
    found: dict[str, Any] = {}
    gpu_kernels.time_kernels(run, work, found)
    sides = found["rows"][0]["sides"]
    assert {name: "us" in side for name, side in sides.items()} == {
        "half": False, "segue": True, "torch.softmax": True,
    }  # fmt: skip
    assert "wrong by" in sides["half"]["error"]


def test_a_kernel_that_does_not_run_at_the_timed_shape_leaves_the_other_contests(
    work: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = {"float16": {"ok": True, "cases": 1}}
    found = {"softmax": right, "add_layer_norm": right}
    run.record["sections"]["parity of kernels"] = {"status": "done", "found": found}
    monkeypatch.setattr(gpu_kernels, "_contests", _only("softmax", "add_layer_norm", gpu_kernels._contests))
    monkeypatch.setattr(kernels, "add_layer_norm", lambda *_, **__: 1 / 0)
    section = gpu_run.Section("kernels", lambda w, f: gpu_kernels.time_kernels(run, w, f), 99)
    run.take(section, work)
    first, second = run.found("kernels")["rows"]
    assert first["not timed"] == "ZeroDivisionError: division by zero"
    assert "us" in second["sides"]["segue"]
    assert (
        "| add_layer_norm | 20 x 64 |  |  |  |  | ZeroDivisionError: division by zero |"
        in gpu_report.markdown(run.record)
    )


def test_a_bundle_of_few_words_is_compared_like_any_other(
    prepared: Path,
    tmp_path: Path,
    run: Any,
    make_bundle: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = make_bundle(hidden_size=32, layers=1)
    work = gpu_models.Work(prepared, tmp_path, torch.device("cpu"), bundle, ("float16",))
    monkeypatch.setattr(gpu_parity_models, "_executors", lambda work: [])
    found: dict[str, Any] = {}
    gpu_parity_models.check_models(run, work, found)
    assert 0 < found[bundle.name]["from PyTorch in float64"] < 1e-9


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda logits: logits * 0 + 0.1, "wrong by"),
        (lambda logits: logits + 1e-5 * len(logits), "bits hang"),
    ],
    ids=["wrong", "as its batch is"],
)
def test_a_model_that_is_wrong_is_not_timed(
    work: Any, run: Any, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Any], Any], said: str
) -> None:
    genuine = TritonExecutor.run
    monkeypatch.setattr(TritonExecutor, "run", lambda self, batches: map(fault, genuine(self, batches)))
    monkeypatch.setattr(gpu_parity_models, "_executors", lambda smoke: [("float16", (True,))])
    run.take(
        gpu_run.Section("parity of models", lambda w, f: gpu_parity_models.check_models(run, w, f), 99),
        work,
    )
    run.take(gpu_run.Section("throughput", lambda w, f: gpu_model.throughput(run, w, f), 99), work)
    about = run.found("parity of models")["toy"]["executors"]["float16, batch-invariant"]
    assert not about["ok"]
    assert said in about["why"]
    assert {(name, *side) for name, side in run.found("throughput")["rows"][0]["sides"].items()} == {
        ("segue, float16", "not timed"),
        ("segue, float16, batch_invariant=False", "not timed"),
    }


def test_a_peer_that_scores_something_else_is_not_timed(work: Any) -> None:
    exact = torch.linspace(-2, 2, 10, dtype=torch.float64).view(5, 2)
    row: dict[str, Any] = {"pairs": 5, "sides": {}}
    called = []

    def scorer(logits: np.ndarray) -> Callable[[], np.ndarray]:
        return lambda: [called.append(logits), logits][1]

    right, wrong = exact.float().numpy(), exact.float().numpy()[::-1].copy()
    gpu_peers._time(work, {"right": scorer(right), "wrong": scorer(wrong)}, (exact.half(), exact), row)
    assert "pairs/s" in row["sides"]["right"]
    assert set(row["sides"]["wrong"]) == {"not timed"}
    assert sum(logits is wrong for logits in called) == 1, "it was called to check it, and never again"


def test_what_a_side_cannot_do_is_said_and_the_others_are_timed() -> None:
    sides = {"broken": [lambda: 1 / 0], "works": [lambda: time.sleep(1e-3), lambda: time.sleep(3e-3)]}
    found = gpu_timing.compare(sides, torch.device("cpu"), repeats=3)
    assert found["broken"] == {"error": "ZeroDivisionError: division by zero"}
    assert 2000 <= found["works"]["us"] < 20_000
    assert len(found["works"]["all_us"]) == 3
    assert gpu_timing.rotations(60_000_000) == 4


# Time and record


def test_every_section_leaves_a_word_in_the_record_whatever_becomes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_run, "_GRACE", 0.0)
    monkeypatch.setattr(gpu_run, "_LEAST", 0.1)
    run = gpu_run.Run(
        tmp_path / "record.json", 2.0, date="today", smoke=True, arguments=["--only", "two words"]
    )
    on_disk = []

    def patient(_: Any, found: dict[str, Any]) -> None:
        for step in range(1000):
            run.check_time()
            if step == 2:
                on_disk.append(json.loads(run.path.read_text())["sections"])
            found["step"] = step
            time.sleep(0.02)

    def deaf(_: Any, found: dict[str, Any]) -> None:
        found["begun"] = True
        time.sleep(60)

    def faulty(_: Any, found: dict[str, Any]) -> None:
        on_disk.append(json.loads(run.path.read_text())["sections"])
        raise ValueError("no such luck")

    for name, act, seconds, needs in (
        ("patient", patient, 0.3, None), ("deaf", deaf, 0.3, None), ("faulty", faulty, 9, None),
        ("relying", faulty, 9, "faulty"), ("long", deaf, 9, None), ("late", faulty, 9, None),
    ):  # fmt: skip
        run.take(gpu_run.Section(name, act, seconds, needs), None)
    sections = json.loads(run.path.read_text())["sections"]
    assert {name: entry["status"] for name, entry in sections.items()} == {
        "patient": "cut short", "deaf": "cut short", "faulty": "failed",
        "relying": "skipped", "long": "cut short", "late": "skipped",
    }  # fmt: skip
    assert sections["patient"]["found"]["step"] > 3
    assert sections["deaf"]["found"] == {"begun": True}
    assert sections["faulty"]["why"].endswith("ValueError: no such luck")
    assert sections["late"]["why"] == "0 s of the whole time were left"
    going, seen = on_disk
    assert going == {"patient": {"status": "running", "seconds": 0.0, "found": {"step": 1}}}
    assert {name: entry["status"] for name, entry in seen.items()} == {
        "patient": "cut short", "deaf": "cut short", "faulty": "running",
    }  # fmt: skip
    table = gpu_report.markdown(run.record)
    assert "`python bench/gpu.py --only 'two words'`" in table
    assert "| late | skipped | 0.0 | 0 s of the whole time were left |" in table
    assert "ValueError: no such luck" in table


def test_a_second_run_of_a_day_leaves_the_first_s_record_and_neither_names_folders(
    prepared: Path, tmp_path: Path
) -> None:
    given = ["--smoke", "--prepared", str(prepared), "--out", str(tmp_path), "--only", "machine"]
    arguments = gpu._parser().parse_args(given)
    first, second = (gpu.run_sections(arguments, given, torch.device("cpu"))[0] for _ in range(2))
    assert second.name == f"{first.stem}-2.json"
    for written in (first, second):
        record = json.loads(written.read_text())
        assert record["arguments"] == [
            "--smoke", "--prepared", prepared.name, "--out", tmp_path.name, "--only", "machine",
        ]  # fmt: skip
        assert written.with_suffix(".md").exists()


def test_only_takes_along_what_a_section_relies_on() -> None:
    options = {"autotune": False, "sanitize": False, "tests": False}
    chosen = gpu.sections(None, argparse.Namespace(only=["compiled peers", "kernels"], **options))
    assert [section.name for section in chosen] == [
        "machine", "parity of kernels", "parity of models", "peers", "kernels", "compiled peers",
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="no section thruput; there are machine, "):
        gpu.sections(None, argparse.Namespace(only=["thruput"], **options))


def test_what_is_compiled_ahead_is_shared_out_among_the_processors(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = gpu_models.Work(prepared, tmp_path, torch.device("cpu"), None, ("float16", "float32"))
    work.smoke = False
    compiling = importlib.import_module("gpu_compile")
    monkeypatch.setattr(compiling.os, "cpu_count", lambda: 16)
    jobs = list(compiling._jobs(work))
    for precision in work.precisions:
        shares = [job["share"] for job in jobs if job.get("precision") == precision]
        assert shares == [(0, 3), (1, 3), (2, 3)]
        assert sum(job.get("kernels", ("",))[-1] == precision for job in jobs) == 2  # model sizes
    assert len(jobs) == 10


def test_the_tests_of_kernels_are_run_and_counted(
    run: Any, work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}
    gpu_tests.run_tests(run, work, found)
    assert found["pytest"]["ok"] is True
    assert found["pytest"]["passed"] > 20
    assert "failed" not in found["pytest"]
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    gpu_tests.run_tests(run, work, found)
    assert found["pytest"]["ok"] is False, "no tests there"
    run.record["sections"]["tests"] = {"status": "done", "seconds": 1.0, "found": found}
    assert "\n## Tests\n" in gpu_report.markdown(run.record)


# What is prepared


def test_a_prepared_graph_gets_its_weights_and_nothing_else_changes(prepared: Path, work: Any) -> None:
    assert sum(path.stat().st_size for path in prepared.iterdir()) < 500_000
    model = work.model("toy")
    graph = (prepared / "toy.onnx").read_bytes()
    assert (model.bundle / "model.onnx").read_bytes() == graph
    weights = onnx.load(str(model.bundle / "model.onnx")).graph.initializer
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in weights}
    word = model.module.bert.embeddings.word_embeddings.weight.detach().numpy()
    assert np.array_equal(stored["embeddings.word.weight"], word)
    query = model.module.bert.encoder.layer[1].attention.self.query.weight.detach().numpy()
    assert np.array_equal(stored["layers.1.query.weight"], query)


def test_the_real_workloads_are_those_of_the_budget() -> None:
    import budget

    workloads = gpu_prepare._workloads(budget)
    *_, mixed = budget.batches().values()
    assert sorted(workloads.pop("mixed")) == sorted(mixed * 16)
    assert workloads == {"S = 128": [128] * 2048, "S = 512": [512] * 512}


def test_batches_hold_every_pair_once_as_it_was() -> None:
    whole = gpu_models.batch_of([5, 12, 3, 9])
    rows, batches = gpu_models.batches_of(whole, 15)
    assert [some.tolist() for some in rows] == [[1], [3, 0], [2]]
    assert [batch.cu_seqlens.tolist() for batch in batches] == [[0, 12], [0, 9, 14], [0, 3]]
    assert np.array_equal(batches[1].input_ids, np.r_[whole.input_ids[20:], whole.input_ids[:5]])
    assert np.array_equal(batches[1].position_ids, [*range(9), *range(5)])


def test_texts_have_as_many_tokens_as_asked_for(work: Any) -> None:
    from segue.text import PairEncoder

    path = work.model("toy").bundle / "tokenizer.json"
    lengths = [3, 4, 60, 128]
    assert PairEncoder(path, 512).encode(gpu_models.texts(path, lengths)).lengths.tolist() == lengths


def test_the_packed_peer_does_not_wait_for_a_batch_to_arrive(
    work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, padded = (importlib.import_module(f"gpu_{name}_peer") for name in ("packed", "padded"))
    module = work.model("toy").module.eval()
    whole = gpu_models.batch_of([5, 12, 3, 9])
    peer = packed.PackedPeer(module, packed.attentions(True)["a loop of SDPA"])
    ready = packed.packed(*gpu_models.batches_of(whole, 15), pinned=False)
    classic = padded.padded(whole, 2, pinned=False)
    to, sent = torch.Tensor.to, []

    def watched(tensor: Any, *args: Any, **options: Any) -> Any:
        if args and isinstance(args[0], torch.device):
            sent.append(options.get("non_blocking"))
        return to(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", watched)
    logits = peer.score(ready)
    assert sent == [True, True] * 3
    assert np.allclose(logits, padded.score_padded(module, classic, work.device), atol=1e-5)


def test_one_pair_is_timed_by_transformers_and_by_the_packed_pass(work: Any) -> None:
    rows: list[dict[str, Any]] = []
    gpu_peers._one_pair(work, "toy", work.model("toy").module.eval(), rows)
    assert [row["side"] for row in rows] == ["transformers, SDPA", "a loop of SDPA, packed"]
    assert all(row["p50"] > 0 for row in rows)


def test_compiled_modules_come_last_and_beside_batch_invariant_executors(
    work: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the others' GPU graphs write to memory that a compiled module frees."""
    every = gpu.sections(None, argparse.Namespace(autotune=False, sanitize=False, tests=False, only=None))
    assert every[-1].name == "compiled peers"
    invariant, not_invariant = (
        "segue, float16 @ 16 tokens",
        "segue, float16, batch_invariant=False @ 16 tokens",
    )
    padded = "transformers, SDPA, sorted @ 2 pairs"
    rates = {invariant: 2.0, not_invariant: 3.0, padded: 1.0}
    sides = {name: {"pairs/s": rate} for name, rate in rates.items()}
    row = {"model": "toy", "workload": "S = 8", "sides": sides}
    run.record["sections"]["peers"] = {"found": {"rows": [row]}}
    work.smoke, scorer = False, lambda *_, **__: None
    monkeypatch.setattr(gpu_peers, "_scorers", lambda *_: [(name, scorer) for name in rates])
    monkeypatch.setattr(gpu_peers, "_yardstick", scorer)
    monkeypatch.setattr(gpu_peers, "padded", scorer)
    monkeypatch.setattr(gpu_peers, "_time", lambda _, scorers, __, row: row["sides"].update(scorers))
    found: dict[str, Any] = {}
    gpu_peers.compare_compiled(run, work, found)
    assert [list(row["sides"]) for row in found["rows"]] == [
        [invariant, padded, f"transformers, torch.compile {mode} @ 2 pairs"]
        for mode in ("default", "reduce-overhead")
    ]


def test_a_checkout_that_is_not_installed_is_importable(tmp_path: Path) -> None:
    gpu_path.link(tmp_path)
    code = (
        "import segue, segue.kernels.reference, segue.export.checkpoint, segue.executors.triton_plan as p\n"
        "from segue.engine import DEFAULT_MODEL as model\n"
        "files = segue.__file__, segue.kernels.__file__, p.__file__\n"
        "print(*files, (model / 'model.onnx').exists(), sep='\\n')"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd="/", env=environment, check=True
    )
    *files, exists = done.stdout.splitlines()
    assert all(Path(file).is_relative_to(tmp_path / "segue") for file in files)
    assert exists == "True"


def _only(first: str, second: str, contests: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *a: [contest for contest in contests(*a) if contest.op in (first, second)]
