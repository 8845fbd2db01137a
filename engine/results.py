"""Rows and their scores, written as TSV, CSV or JSONL: each row as it was read, its scores after it.

From JSONL to JSONL a line keeps its characters, so that no number, escape or space changes. A text that a
format cannot hold is an error, never altered: TSV has no way to write a tab or a line break. Scores have the
fewest digits that give the same number again. Knows nothing about what they mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, BinaryIO

import numpy as np

from segue.errors import InputError
from segue.tables import Row, Table

__all__ = ["write_scores"]

Scored = Iterable[tuple[Row, Sequence[float | np.float32]]]


def write_scores(
    file: BinaryIO,
    table: Table,
    scored: Scored,
    score_names: Sequence[str],
    *,
    format: str,
    header: bool = False,
    scores_only: bool = False,
) -> None:
    """Write every row of `scored` and its scores to `file` as it comes, as UTF-8.

    Args:
        table: where the rows are from.
        score_names: the scores' columns, in order.
        format: "tsv", "csv" or "jsonl". Values from JSONL that are no strings stand in TSV and CSV as JSON.
        header: whether a TSV begins with the columns' names; a CSV always does.
        scores_only: leave the rows out.

    Raises:
        InputError: this format cannot hold a row, or a column already has a score's name.
    """
    names = [] if scores_only else table.names
    titled = format != "tsv" or header
    if titled:
        for name in score_names:
            _refuse_double(name, names, table.name)
            if format == "tsv":
                _tsv_line([name], f"the score's name {name!r}")
    if format == "jsonl":
        lines = _json_lines(table, scored, score_names, scores_only=scores_only)
    else:
        lines = _cell_lines(table, scored, format, scores_only=scores_only)
    if titled and format != "jsonl" and table.names:
        titles = _LINES[format]([*names, *score_names], table.name)
        lines = chain([(f"{table.name}: the columns' names", titles)], lines)
    for where, line in lines:
        try:
            file.write(line.encode())
        except UnicodeEncodeError as error:
            raise InputError(f"{where}: half a surrogate pair, which UTF-8 cannot hold") from error


def _json_lines(
    table: Table, scored: Scored, score_names: Sequence[str], *, scores_only: bool
) -> Iterator[tuple[str, str]]:
    keys = [json.dumps(name, ensure_ascii=False) for name in score_names]
    if table.format != "jsonl" and not scores_only:
        for name in table.names:
            if table.names.count(name) > 1:
                raise InputError(f"{table.name}: two columns are called {name!r}: JSONL can hold only one")
    for row, scores in scored:
        where = f"{table.name}:{row.line}"
        numbers = [str(score) for score in scores]
        members = ", ".join([f"{key}: {number}" for key, number in zip(keys, numbers, strict=True)])
        if scores_only:
            yield where, f"{{{members}}}\n"
        elif table.format != "jsonl":
            record = json.dumps(dict(zip(table.names, row.record, strict=True)), ensure_ascii=False)
            yield where, f"{record[:-1]}, {members}}}\n"
        elif isinstance(row.record, dict):
            for name in score_names:
                _refuse_double(name, row.record, where)
            yield where, f"{row.source[:-1].rstrip()}, {members}}}\n"
        else:
            yield where, f"{row.source[:-1].rstrip()}, {', '.join(numbers)}]\n"


def _cell_lines(table: Table, scored: Scored, format: str, *, scores_only: bool) -> Iterator[tuple[str, str]]:
    join = _LINES[format]
    for row, scores in scored:
        where = f"{table.name}:{row.line}"
        cells = [] if scores_only else _cells(row.record, table, where)
        yield where, join([*cells, *map(str, scores)], where)


def _cells(record: list[Any] | dict[str, Any], table: Table, where: str) -> list[str]:
    if table.format != "jsonl":
        return list(record)
    if isinstance(record, dict):
        if odd := record.keys() ^ set(table.names):
            raise InputError(
                f"{where}: {min(odd)!r} is not a key of every line: only JSONL can hold such rows"
            )
        record = [record[name] for name in table.names]
    return [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in record]


def _tsv_line(cells: list[str], where: str) -> str:
    line = "\t".join(cells)
    if "\n" in line or line.count("\t") >= len(cells):
        what = "line break" if "\n" in line else "tab"
        raise InputError(f"{where}: a text holds a {what}, which TSV cannot: write CSV or JSONL")
    return f"{line}\n"


def _csv_line(cells: list[str], where: str) -> str:
    return ",".join([_quoted(cell) if _CSV_SPECIAL.search(cell) else cell for cell in cells]) + "\n"


def _quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


_CSV_SPECIAL = re.compile(r'[,"\r\n]')
_LINES = {"tsv": _tsv_line, "csv": _csv_line}


def _refuse_double(name: str, names: Iterable[str], where: str) -> None:
    if name in names:
        raise InputError(f"{where}: has a column {name!r} already: give the scores another name")
