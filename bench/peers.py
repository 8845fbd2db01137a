"""segue beside what one could use instead: the same pairs, the same machine, one run, turn by turn.

    python bench/peers.py [--precision float32|int8] [--workloads NAME ...] [--peers KEY ...] [--pairs 256]
                          [--rounds 7] [--threads N] [--checkpoint DIR] [--write] [--smoke]

Each peer has its own process, and its own environment where its pins clash with the others'; all are built
below build/peers in the first run, some 4 GB of packages. First its batch size is chosen, on every second
pair, and its scores are compared with PyTorch's; then all are timed, one at a time, each round starting with
another. A peer that cannot be installed or loaded is listed with the reason; one whose scores are wrong is
refused. No model hub is used.

`--precision int8` compares the int8 versions of segue and its peers, each quantised by its own tool. It also
measures what rounding does to their scores, and how far a score depends on the rest of its batch; cold starts
are left out.

`--write` puts JSON (every round), Markdown and, of float32, a picture into bench/results. `--smoke` runs two
peers on a tiny model: with few --pairs and --rounds it shows that the parts fit; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from peers_environments import Unavailable, python_of
from peers_int8 import INT8, INT8_SMOKE, QUANTISED
from peers_int8_model import make_int8, make_openvino_int8
from peers_list import PEERS, PRESENT, REFERENCE, SMOKE, Peer, chosen
from peers_measure import cold_starts, run_workload
from peers_model import make_model, make_openvino
from peers_process import Worker
from peers_report import draw, markdown
from workloads import WORKLOADS, make_pairs, pairs_of, token_counts

from segue.machine import machine, versions
from segue.threads import available_threads

__all__ = ["main", "run"]

_ROOT = Path(__file__).resolve().parent.parent
_RESULTS = _ROOT / "bench" / "results"
_STARTS = 5
_LEAST_SPREAD = 0.01  # standard deviation of the reference's scores: below it, wrong ones would pass


def main(argv: list[str] | None = None) -> None:
    """Run, print the Markdown, write what is asked for."""
    arguments = _parser().parse_args(argv)
    every, few = (INT8, INT8_SMOKE) if arguments.precision == "int8" else (PEERS, SMOKE)
    record = run(arguments, list(few) if arguments.smoke else chosen(arguments.peers, every))
    text = markdown(record, _RESULTS)
    print(text)
    if arguments.write:
        kind = "" if arguments.precision == "float32" else f"{arguments.precision}-"
        out = _RESULTS / f"peers-{kind}{record['threads']}-cores"
        out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        out.with_suffix(".md").write_text(text, encoding="utf-8")
        if arguments.precision == "float32":
            draw(record, out.with_suffix(".png"))


def run(arguments: argparse.Namespace, peers: list[Peer]) -> dict[str, Any]:
    """Prepare everything, measure, and return the record, which the work folder also has at any time."""
    work: Path = arguments.work.resolve()
    threads = arguments.threads or available_threads()
    model = f"given-{arguments.checkpoint.name}" if arguments.checkpoint else "minilm"
    model = "tiny" if arguments.smoke else model
    checkpoint = make_model(work / model, arguments.checkpoint, tiny=arguments.smoke)
    int8 = arguments.precision == "int8"
    if int8:
        make_int8(checkpoint)
    convert = partial(make_openvino_int8 if int8 else make_openvino, checkpoint)
    pythons = _environments(peers, arguments.environments or work / "environments", convert)
    record: dict[str, Any] = {
        "command": shlex.join(["python", "bench/peers.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": versions("numpy", "torch"),
        "threads": threads,
        "precision": arguments.precision,
        "quantised": QUANTISED if int8 else {},
        "model": _describe(checkpoint, arguments.precision),
        "peers": {peer.key: {"name": peer.name, "versions": {}} for peer in peers},
        "workloads": {},
        "cold": {},
    }

    def starter(pairs: Path) -> Callable[[Peer], Worker]:
        def start(peer: Peer) -> Worker:
            python = pythons[peer.environment]
            if isinstance(python, Unavailable):
                raise python
            return Worker(
                peer, python, checkpoint=checkpoint, pairs=pairs, threads=threads, logs=work / "logs"
            )

        return start

    for name in arguments.workloads:
        pairs = make_pairs(name, pairs_of(name, arguments.pairs))
        file = work / f"{name}.json"
        file.write_text(json.dumps(pairs), encoding="utf-8")
        _say(f"{name}: {len(pairs)} pairs")
        start = starter(file)
        with start(REFERENCE) as worker:
            reference = worker.score(1, scores=True)["scores"]
        _check_spread(reference)
        timed = [peer for peer in peers if peer.timed]
        results = run_workload(timed, start, reference, arguments.rounds, alone=int8)
        record["workloads"][name] = {
            "describes": WORKLOADS[name].describes,
            "pairs": len(pairs),
            "tokens": int(token_counts(pairs).sum()),
            "rounds": arguments.rounds,
            "results": results,
        }
        for key, result in results.items():
            record["peers"][key]["versions"].update(result.pop("versions", {}))
        _keep(record, work)
    if cold := [peer for peer in peers if peer.cold]:
        _say("cold starts")
        record["cold"] = cold_starts(cold, starter(file), 1 if arguments.smoke else _STARTS)
    _keep(record, work)
    return record


def _environments(
    peers: list[Peer], folder: Path, convert: Callable[[Path], None]
) -> dict[str, Path | Unavailable]:
    """Return the interpreter of each environment, or why there is none; `convert` with those of OpenVINO."""
    pythons: dict[str, Path | Unavailable] = {PRESENT: python_of(PRESENT, folder)}
    for peer in peers:
        name = peer.environment
        if name in pythons:
            continue
        _say(f"environment {name}")
        try:
            pythons[name] = python = python_of(name, folder)
            if "openvino" in name:
                convert(python)
        except Unavailable as error:
            pythons[name] = error
    return pythons


def _check_spread(reference: list[float]) -> None:
    mean = sum(reference) / len(reference)
    spread = (sum((value - mean) ** 2 for value in reference) / len(reference)) ** 0.5
    if spread < _LEAST_SPREAD:
        raise SystemExit(f"this model's scores hardly differ (by {spread:.1g}): a wrong one would not show")


def _describe(checkpoint: Path, precision: str) -> str:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return (
        f"A cross-encoder of {config['num_hidden_layers']} layers, {config['hidden_size']} wide, "
        f"{config['num_attention_heads']} heads, one label, {precision}"
    )


def _keep(record: dict[str, Any], work: Path) -> None:
    """A run of an hour that ends halfway has not been for nothing."""
    (work / "last.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--precision", choices=["float32", "int8"], default="float32")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--peers", nargs="+", metavar="KEY", help="segue is always among them")
    parser.add_argument("--pairs", type=int, default=256, help="mixed ones; of others as many tokens")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default: as many as are granted")
    parser.add_argument("--checkpoint", type=Path, help="a Hugging Face cross-encoder with one label")
    parser.add_argument("--environments", type=Path, help="where they are, or are built")
    parser.add_argument("--work", type=Path, default=_ROOT / "build" / "peers", help="for models and logs")
    parser.add_argument("--write", action="store_true", help="into bench/results")
    parser.add_argument("--smoke", action="store_true")
    return parser


if __name__ == "__main__":
    main()
