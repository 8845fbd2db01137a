"""How close segue on a CPU comes to what the machine's matrix products allow, and where the rest goes.

    python bench/cpu.py [--bundle DIR] [--pairs 1024] [--rounds 7] [--threads N] [--write] [--json FILE]

Useful operations are those of the graph that computes the last layer for [CLS] alone, for real tokens: the
products of the linear layers and of attention, nothing else. Their rate, from prepared batches and from text,
is divided by that of ONNX Runtime's own MatMul of [4096, 384] and constant [384, 1536] weights, in the same
process and with the same threads; all three take turns. Then ONNX Runtime's profiler says on which operators
prepared batches spend their time. Prints Markdown; --write puts it into bench/results/cpu-2-cores.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from peers_model import make_model
from workloads import make_pairs

from segue import Engine
from segue.batching import PackedBatch, pack
from segue.bundle import Dimensions
from segue.machine import machine, versions

__all__ = ["main", "useful"]

RESULT = Path(__file__).parent / "results" / "cpu-2-cores.md"
_MODEL = Path(__file__).parent.parent / "build" / "peers" / "minilm"
_ROWS, _IN, _OUT = 4096, 384, 1536
_ABOUT = """`python bench/cpu.py --pairs {pairs} --write`. {pairs} pairs of mixed lengths (log-normal,
{tokens} tokens), float32, {threads} threads of {cpu}; {versions}.
Rates are of useful operations: products for real tokens, the last layer for [CLS] alone. ONNX Runtime's
MatMul of [4096, 384] by [384, 1536] is measured before and after each way; the ratios are to the mean of
both, and their median is given."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure in turns, profile, print."""
    arguments = _parser().parse_args(argv)
    if arguments.bundle is None:
        make_model(_MODEL)
    with Engine.load(
        arguments.bundle or _MODEL / "packed", device="cpu", threads=arguments.threads
    ) as engine:
        pairs = make_pairs("mixed", arguments.pairs)
        encoded = engine._encode(pairs, "longest_first", None).all()
        batches = [pack(encoded, rows) for rows in engine._plan(encoded)]
        work = useful(engine.info.dimensions, encoded.lengths)
        found = {
            "pairs": len(pairs),
            "tokens": int(encoded.lengths.sum()),
            "batches": len(batches),
            "useful_operations": work,
            **_measure(engine, pairs, batches, work, arguments.rounds),
            "profile": _profile(Path(engine.info.path) / "model.onnx", batches, engine.info.threads),
            "machine": machine() | {"threads": engine.info.threads},
            "versions": versions("numpy", "onnxruntime", "tokenizers"),
        }
    text = report(found)
    print(text, end="")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.write:
        RESULT.write_text(text, encoding="utf-8")


def useful(model: Dimensions, lengths: NDArray[np.int64]) -> int:
    """Operations that pairs of these lengths need; a multiplication and an addition are two."""
    e, f = model.hidden_size, model.intermediate_size
    tokens, pairs, squares = int(lengths.sum()), len(lengths), int((lengths**2).sum())
    layer = 2 * tokens * (4 * e * e + 2 * e * f) + 4 * squares * e
    last = 2 * pairs * (4 * e * e + 2 * e * f) + 4 * model.heads * tokens * e
    return (model.layers - 1) * layer + last + 2 * pairs * e * e


def report(found: dict[str, Any]) -> str:
    """The report, as Markdown."""
    facts = {
        "pairs": found["pairs"],
        "tokens": f"{found['tokens']:,}",
        "threads": found["machine"]["threads"],
        "cpu": found["machine"]["cpu"],
        "versions": ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
    }
    lines = ["# How close to the machine's matrix products", "", _ABOUT.format(**facts), ""]
    lines += ["| | GFLOP/s | times MatMul's |", "|---|---|---|"]
    for way in ("matmul", "prepared", "text"):
        rates, ratio = found["rates"][way], median(found["ratios"][way])
        lines.append(f"| {_NAMES[way]} | {median(rates) / 1e9:.1f} | {ratio:.2f} |")
    lines += ["", f"Where the time of {found['batches']} prepared batches goes:", ""]
    lines += ["| operator | calls a batch | share |", "|---|---|---|"]
    for name, calls, share in found["profile"]:
        if share >= 0.001:
            lines.append(f"| {name} | {calls:g} | {share:.1%} |")
    return "\n".join(lines) + "\n"


_NAMES = {
    "matmul": "ONNX Runtime's MatMul alone",
    "prepared": "segue, batches prepared",
    "text": "segue, from text",
}


def _measure(
    engine: Engine, pairs: list[tuple[str, str]], batches: list[PackedBatch], work: int, rounds: int
) -> dict[str, Any]:
    """Rates of useful operations in each round, and how they compare with MatMul's around them."""
    multiply = _matmul(engine.info.threads)
    ways: dict[str, Callable[[], object]] = {
        "prepared": lambda: list(engine._executor.run(batches)),
        "text": lambda: engine.predict(pairs),
    }
    for warm in (multiply, *ways.values()):
        warm()
    rates: dict[str, list[float]] = {"matmul": [], **{way: [] for way in ways}}
    ratios: dict[str, list[float]] = {"matmul": [1.0], **{way: [] for way in ways}}
    for _ in range(rounds):
        before = multiply()
        for way, run in ways.items():
            rate = work / _seconds(run)
            after = multiply()
            rates[way].append(rate)
            ratios[way].append(2 * rate / (before + after))
            rates["matmul"].append(after)
            before = after
    return {"rates": rates, "ratios": ratios}


def _matmul(threads: int) -> Callable[[], float]:
    """Operations a second of ONNX Runtime's product with constant weights, over about half a second."""
    draw = np.random.default_rng(0)
    weight, x = (draw.standard_normal(shape, np.float32) for shape in ((_IN, _OUT), (_ROWS, _IN)))
    shapes = {"x": [_ROWS, _IN], "y": [_ROWS, _OUT]}
    described = {
        name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, s)
        for name, s in shapes.items()
    }
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [described["x"]],
        [described["y"]],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    operations = 2 * _ROWS * _IN * _OUT

    def rate() -> float:
        times = 10
        return times * operations / _seconds(lambda: [session.run(None, {"x": x}) for _ in range(times)])

    return rate


def _profile(model: Path, batches: list[PackedBatch], threads: int) -> list[tuple[str, float, float]]:
    """(operator, calls a batch, share of the operators' time), the largest first."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_mem_pattern = threads, False
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        for batch in batches:
            session.run(["logits"], vars(batch))
        events = json.loads(Path(session.end_profiling()).read_text())
    taken: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            taken[event["args"]["op_name"]] += event["dur"]
            calls[event["args"]["op_name"]] += 1
    every = sum(taken.values())
    return [(name, calls[name] / len(batches), time / every) for name, time in taken.most_common()]


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--bundle", type=Path, help="default: the MiniLM cross-encoder of bench/peers.py")
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default: as many as this process may use")
    parser.add_argument("--write", action="store_true", help=f"into {RESULT.name} too")
    parser.add_argument("--json", type=Path, help="write raw values there")
    return parser


if __name__ == "__main__":
    main()
