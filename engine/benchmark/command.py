"""`segue bench`: what latency and throughput a model has on this machine. The order of the work."""

from __future__ import annotations

import logging
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segue.benchmark.compare import FORMAT, compared, read_record, refuse_another
from segue.benchmark.options import LENGTHS, Options
from segue.benchmark.process import cold_start, peak_memory
from segue.benchmark.report import markdown, to_json
from segue.benchmark.scenarios import MULTI_STREAM, Pair, grid, offline, stream
from segue.benchmark.server import server
from segue.benchmark.split import split
from segue.benchmark.workload import (
    SHORTEST,
    Workload,
    drawn_lengths,
    read_pairs,
    synthetic_pairs,
    whole_words,
    workload,
)
from segue.bundle import MODEL, TOKENIZER
from segue.engine import Engine
from segue.errors import InputError
from segue.files import STDOUT, STREAM, destination
from segue.machine import machine, versions
from segue.options import load_options

__all__ = ["run"]

_PACKAGES = ("numpy", "tokenizers", "onnxruntime", "onnxruntime-gpu")
_TRIAL_SHARE = 1 / 3  # of a scenario's seconds, for each of Server's trials, some of which are cut short


def run(arguments: Namespace) -> int:
    """Measure, print, write; return 1 where a figure is below what was asked for.

    Anything wrong with what was asked shows before anything is measured.
    """
    options = Options.of(arguments)
    old = None if options.compare is None else read_record(options.compare)
    given = None
    if arguments.pairs is not None:
        given = read_pairs(
            arguments.pairs,
            options.count,
            format=arguments.format,
            columns=arguments.columns,
            header=arguments.header,
        )
    record: dict[str, Any] = {}
    try:
        with ExitStack() as outputs:
            out = None if arguments.out is None else outputs.enter_context(destination(arguments.out))
            if options.plot is not None:
                from segue.benchmark.plot import draw  # matplotlib, which few have

                picture = outputs.enter_context(destination(options.plot))
            record = _measured(arguments, options, given, old)
            if old is not None:
                record["comparison"] = compared(old, record, options.fail_below)
            if out is not None:
                out.write(to_json(record).encode())
            if options.plot is not None:
                draw(record, picture, format=Path(options.plot).suffix.lower().removeprefix("."))
    finally:
        if record and arguments.out not in STDOUT:  # even where the disk was full: the figures are not lost
            with destination(STREAM) as stdout:
                stdout.write(markdown(record).encode())
    comparison = record.get("comparison", {"rows": [], "doubts": []})
    for doubt in comparison["doubts"]:
        logging.getLogger("segue").warning("not measured alike: %s", doubt)
    return int(any(row["failed"] for row in comparison["rows"]))


def _measured(
    arguments: Namespace, options: Options, given: list[Pair] | None, old: dict[str, Any] | None
) -> dict[str, Any]:
    """Load, warm up and measure; return the record."""
    if arguments.folder is not None and arguments.model is not None:
        raise InputError("model: given twice, as MODEL and as --model")
    load = {"path": arguments.folder or arguments.model, **load_options(arguments)}
    started = time.perf_counter()
    with Engine.load(**load) as engine, _quiet():
        loaded = time.perf_counter()
        made_up = given is None or "Grid" in options.scenarios
        words = whole_words(Path(engine.info.path) / TOKENIZER) if made_up else []
        work = _workload(options, engine, words, given, arguments.pairs)
        batches = _batches(options, engine, words) if "Grid" in options.scenarios else {}
        record = _header(options, engine, work, batches)
        if old is not None:
            refuse_another(old, record)
        began = time.perf_counter()
        engine.warmup(progress=sys.stderr.isatty())
        record["load"], record["warm_up"] = loaded - started, time.perf_counter() - began
        record["scenarios"] = _scenarios(options, engine, work, batches, load)
    used = [name for name in ("torch", "triton") if name in sys.modules]
    return record | {"versions": versions(*_PACKAGES, *used), "machine": machine()}


def _scenarios(
    options: Options,
    engine: Engine,
    work: Workload,
    batches: dict[tuple[int, int], list[Pair]],
    load: dict[str, Any],
) -> dict[str, Any]:
    seconds, pairs, score = options.seconds, work.pairs, engine.predict
    one_trial = seconds * _TRIAL_SHARE
    measure: dict[str, Callable[[], dict[str, Any]]] = {
        "SingleStream": lambda: stream(score, pairs, per_query=1, seconds=seconds),
        "MultiStream": lambda: stream(score, pairs, per_query=MULTI_STREAM, seconds=seconds),
        "Offline": lambda: {
            **offline(score, pairs, tokens=work.tokens, seconds=seconds),
            "distinct": work.distinct,
            "steps": split(engine, pairs, seconds=seconds / 2),
        },
        "Server": lambda: server(score, pairs, bound=options.p99, seconds=one_trial, seed=options.seed),
        "Grid": lambda: grid(score, batches, seconds=seconds),
        "ColdStart": lambda: cold_start(load, pairs[0]),
        "Memory": lambda: peak_memory(load, pairs),
    }
    return {name: measure[name]() for name in _shown(options.scenarios)}


def _workload(
    options: Options, engine: Engine, words: list[str], given: list[Pair] | None, path: str | None
) -> Workload:
    encoder = engine._encoder
    if given is not None:
        first = f"the first of {path}" if len(given) == options.count else str(path)
        return workload(given, encoder, source=first)
    if encoder.max_tokens < SHORTEST:
        raise InputError(
            f"model: made-up pairs have {SHORTEST} tokens or more, and its limit is {encoder.max_tokens}"
        )
    lengths = drawn_lengths(options.count, encoder.max_tokens, options.seed)
    pairs = synthetic_pairs(words, lengths, encoder, seed=(options.seed,))
    return workload(pairs, encoder, source=f"the vocabulary's words, seed {options.seed}")


def _batches(options: Options, engine: Engine, words: list[str]) -> dict[tuple[int, int], list[Pair]]:
    """Return Grid's batches by (pairs, tokens of each)."""
    limit = engine.info.max_tokens
    for length in options.lengths or ():
        if not SHORTEST <= length <= limit:
            raise InputError(f"lengths: expected {SHORTEST} to {limit} tokens, got {length}")
    lengths = options.lengths or [length for length in LENGTHS if length <= limit] or [limit]
    return {
        (size, length): synthetic_pairs(
            words, [length] * size, engine._encoder, seed=(options.seed, size, length)
        )
        for size in options.batches
        for length in lengths
    }


def _header(
    options: Options, engine: Engine, work: Workload, batches: Collection[tuple[int, int]]
) -> dict[str, Any]:
    """Return what is known before anything is measured."""
    info, manifest = engine.info, engine._manifest
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "name": Path(info.path).name,
            "path": info.path,
            "sha256": manifest.files[MODEL],
            "files": manifest.files,
            "head": info.head.kind,
            "max_tokens": info.max_tokens,
            "precision": info.stored,
            "dimensions": asdict(info.dimensions),
        },
        "engine": {
            "executor": info.executor,
            "device": info.device,
            "precision": info.precision,
            "threads": info.threads,
            "max_batch_tokens": info.max_batch_tokens,
            "batch_invariant": engine._arguments["batch_invariant"],
            "plan": info.plan,
        },
        "workload": work.record(),
        "settings": {
            "scenarios": list(options.scenarios),
            "seed": options.seed,
            "p99": options.p99 if "Server" in options.scenarios else None,
            "batches and lengths": [f"{size} x {length}" for size, length in batches],
        },
        "seconds": options.seconds,
    }


def _shown(names: Sequence[str]) -> Iterator[str]:
    """Yield the names while a bar on stderr, where that is a terminal, counts them."""
    from tqdm import tqdm

    # None disables it where stderr is no terminal.
    with tqdm(names, unit="scenario", leave=False, file=sys.stderr, disable=None) as bar:
        for name in bar:
            bar.set_description(name)
            yield name


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the engine from warning of truncated pairs at every query: the report says how many there are."""
    logger = logging.getLogger("segue")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
