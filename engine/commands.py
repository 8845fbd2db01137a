"""The commands that load a model. Each takes the arguments that `segue.cli` has parsed."""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np

from segue.columns import DOCUMENT, PAIR
from segue.engine import Engine
from segue.errors import SegueError
from segue.files import STDOUT, destination, source
from segue.head import positive_column
from segue.options import load_options
from segue.results import write_scores
from segue.tables import Row, Table, format_of, read_table
from segue.terminal import Progress, describe, explanation_text, say

__all__ = ["explain", "info", "rank", "score"]

_Numbers = Sequence[np.float32]


def score(arguments: argparse.Namespace) -> None:
    """Score the pairs of a file, in its order, in memory that does not grow with the file."""
    with _tables(arguments, PAIR) as (file, table, out), _engine(arguments) as engine:
        options = {"output": arguments.output, **_limits(arguments)}
        names = [arguments.score_name]
        if arguments.all_labels:
            names = [f"{arguments.score_name}_{label}" for label in engine.labels]
        columns = range(len(engine.labels)) if arguments.all_labels else [positive_column(engine.info.head)]

        def numbers(pairs: Iterable[tuple[str, ...]], weigh: Callable[[Any], int]) -> Iterator[_Numbers]:
            for values in engine._predict_iter(pairs, weigh=weigh, **options):
                yield [values[column] for column in columns]

        screen = arguments.out in STDOUT and sys.stdout.isatty()
        with Progress(file, wanted=not screen) as progress:
            _write(arguments, out, table, _in_step(numbers, table, out, progress), names)


def rank(arguments: argparse.Namespace) -> None:
    """Write the documents of a file that best fit the query, best first. Holds the whole file in memory."""
    with _tables(arguments, DOCUMENT) as (_, table, out), _engine(arguments) as engine:
        rows = list(table.rows)
        texts = [row.texts[0] for row in rows]
        ranked = engine.rank(arguments.query, texts, arguments.top_k, **_limits(arguments))
        scored = ((rows[entry["corpus_id"]], (entry["score"],)) for entry in ranked)
        _write(arguments, out, table, scored, [arguments.score_name])


def explain(arguments: argparse.Namespace) -> None:
    """Show one pair as the model sees it, and its scores."""
    with _engine(arguments) as engine:
        explanation = engine.explain(arguments.a, arguments.b, **_limits(arguments))
    say(_json(asdict(explanation)) if arguments.json else explanation_text(explanation))


def info(arguments: argparse.Namespace) -> None:
    """Describe the model and how it runs here."""
    with _engine(arguments) as engine:
        record = asdict(engine.info)
    say(_json(record) if arguments.json else describe(record))


def _engine(arguments: argparse.Namespace) -> Engine:
    return Engine.load(arguments.model, **load_options(arguments))


def _limits(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"truncation": arguments.truncation, "max_tokens": arguments.max_tokens}


@contextmanager
def _tables(
    arguments: argparse.Namespace, known: Sequence[tuple[str, ...]]
) -> Iterator[tuple[BinaryIO, Table, BinaryIO]]:
    """Open input and output before the model is loaded, so that mistakes show at once."""
    with destination(arguments.out) as out, source(arguments.file) as (file, name):
        table = read_table(
            file,
            name,
            format=format_of(arguments.file, arguments.format),
            known=known,
            columns=arguments.columns,
            header=arguments.header,
        )
        yield file, table, out


def _write(
    arguments: argparse.Namespace,
    out: BinaryIO,
    table: Table,
    scored: Iterable[tuple[Row, Sequence[float | np.float32]]],
    names: list[str],
) -> None:
    write_scores(
        out,
        table,
        scored,
        names,
        format=format_of(arguments.out, arguments.output_format, otherwise=table.format),
        header=arguments.header,
        scores_only=arguments.scores_only,
    )


def _in_step(
    numbers: Callable[[Iterable[tuple[str, ...]], Callable[[Any], int]], Iterator[_Numbers]],
    table: Table,
    out: BinaryIO,
    progress: Progress,
) -> Iterator[tuple[Row, _Numbers]]:
    """Yield each row with its scores. The engine reads ahead; only the rows that it has read are held."""
    waiting: deque[tuple[Row, int]] = deque()
    done = 0

    def texts() -> Iterator[tuple[str, ...]]:
        for row in table.rows:
            waiting.append((row, progress.position()))
            yield row.texts

    def weigh(_: Any) -> int:
        """Count the characters of the last row read: of its line, or of its columns."""
        row, _ = waiting[-1]
        return len(row.source) or sum(map(len, row.record))

    try:
        for values in numbers(texts(), weigh):
            row, position = waiting.popleft()
            yield row, values
            done += 1
            progress.reach(position)
            if not waiting:
                out.flush()  # whoever reads a pipe sees each window as it is done
    except SegueError as error:
        if error.index is None:
            raise
        row, _ = waiting[error.index - done]
        raise error.of(f"{table.name}:{row.line}") from error


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, indent=2) + "\n"
