"""Tables of texts, read row by row from TSV, CSV and JSONL; always UTF-8, a byte order mark is skipped.

    tsv     columns between tabs, no quoting at all: a quote is a character. No header unless asked for.
    csv     RFC 4180: quoted fields may hold commas, quotes and line breaks. The first record is the header.
    jsonl   an object a line, columns by key, or an array a line, columns by place.

Every row has as many columns as the first (JSONL objects: at least the ones that are read). Blank lines at
the end are ignored and an error elsewhere; where documents are read from a TSV, a blank line is an empty
one. Memory holds one row. Knows nothing about models, nor where the bytes come from.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from segue.errors import InputError

__all__ = ["DOCUMENT", "FORMATS", "PAIR", "Row", "Table", "format_of", "read_table"]

FORMATS = ("tsv", "csv", "jsonl")
_ENDINGS = {".txt": "tsv", ".tab": "tsv", ".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}

# The names by which columns are found when none are asked for; nameless columns are called by the first.
PAIR = (
    ("a", "b"),
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question", "answer"),
    ("query", "passage"),
    ("query", "document"),
)
DOCUMENT = (("text",), ("document",), ("passage",))

# Characters. The csv module's own limit of 131,072 would refuse a long passage; without any, a quote that is
# never closed would take the rest of the file into memory.
_LONGEST_CSV_FIELD = 1 << 26

_Record = list[Any] | dict[str, Any]
_Parsed = tuple[
    int, _Record, str
]  # the line it begins on, the columns ([] for a blank line), JSONL: the line itself


def format_of(path: str, given: str | None = None) -> str:
    """Return the format of the file at `path`: the one given, or else what its ending says (none: TSV).

    Raises:
        InputError: the ending names no format.
    """
    ending = Path(path).suffix.lower()
    found = given or (_ENDINGS.get(ending) if ending else "tsv")
    if found is None:
        raise InputError(f"{path}: {ending} names no format: say one of {', '.join(FORMATS)}")
    return found


def read_table(
    file: BinaryIO,
    name: str,
    *,
    format: str,
    known: Sequence[tuple[str, ...]] = PAIR,
    columns: str | None = None,
    header: bool = False,
) -> Table:
    """Open a table on `file` and read its first row; the others are read as `rows` is iterated.

    Args:
        name: what errors call the file.
        format: one of FORMATS.
        known: PAIR or DOCUMENT: the texts a row holds, and their usual names.
        columns: which they are, "A,B": names (or keys), or numbers from 1. None: those with usual names, or
            the only ones there are.
        header: whether the first line of a TSV names the columns; the other formats settle that themselves.

    Raises:
        InputError: now, or later from `rows`; names the file, the line (from 1) and what is wrong with it.
    """
    parsed = _PARSERS[format](_lines(file, name), name)
    if format != "tsv" or known is not DOCUMENT:
        parsed = _without_last_blanks(parsed, name)
    first = next(parsed, None)
    if first is None:
        return Table(name, format, [], iter(()))
    line, record, _ = first
    if isinstance(record, dict):
        names = list(record)
        picked = _pick(columns, names, known, f"{name}:{line}", numbered=False)
        places: list[Any] = [names[index] for index in picked]
        return Table(name, format, names, _rows(chain([first], parsed), places, None, name))
    width = max(len(record), 1)  # a blank first document is one column
    named = format == "csv" or (format == "tsv" and header)
    names = record if named else [""] * width
    picked = _pick(columns, names, known, f"{name}:{line}", numbered=True)
    if not named:
        names, parsed = _invented_names(width, picked, known[0]), chain([first], parsed)
    return Table(name, format, names, _rows(parsed, picked, width, name))


def _lines(file: BinaryIO, name: str) -> Iterator[str]:
    for number, raw in enumerate(file, 1):
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            yield raw.decode()
        except UnicodeDecodeError as error:
            where = f"0x{raw[error.start]:02x} at byte {error.start + 1}"
            raise InputError(f"{name}:{number}: not UTF-8: {where} of the line") from error


def _parse_tsv(lines: Iterator[str], name: str) -> Iterator[_Parsed]:
    for line, raw in enumerate(lines, 1):
        text = raw.removesuffix("\n").removesuffix("\r")
        yield line, text.split("\t") if text else [], ""


def _parse_csv(lines: Iterator[str], name: str) -> Iterator[_Parsed]:
    csv.field_size_limit(_LONGEST_CSV_FIELD)  # the module has one limit for the whole process
    reader = csv.reader(lines, strict=True)
    while True:
        line = reader.line_num + 1  # counts what it has taken from `lines`, several for one record at times
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{name}:{line}: not CSV: {error}") from error
        yield line, record, ""


def _parse_jsonl(lines: Iterator[str], name: str) -> Iterator[_Parsed]:
    for line, raw in enumerate(lines, 1):
        text = raw.strip(" \t\r\n")
        try:
            record = json.loads(text) if text else []
        except json.JSONDecodeError as error:
            raise InputError(f"{name}:{line}: not JSON: {error.msg} at column {error.colno}") from error
        except (ValueError, RecursionError) as error:  # an integer of 5,000 digits, a thousand open brackets
            raise InputError(f"{name}:{line}: not readable as JSON: {error}") from error
        if not isinstance(record, list | dict):
            raise InputError(f"{name}:{line}: expected an object or an array, got {_json_type(record)}")
        yield line, record, text


_PARSERS = {"tsv": _parse_tsv, "csv": _parse_csv, "jsonl": _parse_jsonl}


def _without_last_blanks(parsed: Iterator[_Parsed], name: str) -> Iterator[_Parsed]:
    blank = 0
    for line, record, text in parsed:
        if not record and not text:
            blank = blank or line
        elif blank:
            raise InputError(f"{name}:{blank}: a blank line")
        else:
            yield line, record, text


def _rows(parsed: Iterable[_Parsed], places: list[Any], width: int | None, name: str) -> Iterator[Row]:
    """Yield the rows: arrays of `width` columns, or (None) objects; `places` are the indices or keys read."""
    kind, kinds = (dict, "object") if width is None else (list, "array")
    for line, record, text in parsed:
        if type(record) is not kind:
            raise InputError(
                f"{name}:{line}: expected an {kinds}, as on the first line, got {_json_type(record)}"
            )
        if width is not None and len(record or [""]) != width:
            raise InputError(f"{name}:{line}: {_columns(len(record))}, expected {width}")
        try:
            texts = tuple([(record or [""])[place] for place in places])
        except KeyError as error:
            raise InputError(f"{name}:{line}: no key {error.args[0]!r}") from error
        for place, value in zip(places, texts, strict=True):
            if not isinstance(value, str):
                where = place if width is None else f"item {place + 1}"
                raise InputError(f"{name}:{line}: {where}: expected a string, got {_json_type(value)}")
        yield Row(line, texts, record or [""], text)


def _pick(
    wanted: str | None, names: list[str], known: Sequence[tuple[str, ...]], where: str, *, numbered: bool
) -> list[int]:
    """Return the places of the columns to read; `names` are "" where there are none, keys not `numbered`."""
    count = len(known[0])
    if wanted is not None:
        parts = [part.strip() for part in wanted.split(",")]
        if len(parts) != count:
            expected = "one name or number" if count == 1 else "two names or numbers, A,B"
            raise InputError(f"columns: expected {expected}, got {wanted!r}")
        return [_place(part, names, where, numbered=numbered) for part in parts]
    usual = [texts for texts in known if all(names.count(text) == 1 for text in texts)]
    if len(usual) == 1:
        return [names.index(text) for text in usual[0]]
    if numbered and len(names) == count:  # the place of a key means nothing
        return list(range(count))
    given = _columns(len(names)) + (f" ({', '.join(names)})" if any(names) else "")
    if len(names) < count:
        raise InputError(f"{where}: {given}, expected {count}")
    raise InputError(f"{where}: {given}: say with --columns which to read")


def _place(part: str, names: list[str], where: str, *, numbered: bool) -> int:
    if part and names.count(part) > 1:
        raise InputError(f"{where}: {names.count(part)} columns are called {part!r}: give a number")
    if part and part in names:
        return names.index(part)
    if numbered and part.isdecimal() and 1 <= int(part) <= len(names):
        return int(part) - 1
    there = ", ".join(names) if any(names) else f"{_columns(len(names))} without names"
    raise InputError(f"{where}: no column {part!r}: there are {there}")


def _invented_names(width: int, picked: list[int], usual: tuple[str, ...]) -> list[str]:
    names = [f"column_{number}" for number in range(1, width + 1)]
    for place, name in zip(picked, usual, strict=True):
        names[place] = name
    return names


def _columns(count: int) -> str:
    return "1 column" if count == 1 else f"{count} columns"


def _json_type(value: Any) -> str:
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}
    return "null" if value is None else kinds.get(type(value), "an object")


class Row(NamedTuple):
    """A row: the line it begins on, from 1; the texts to score; all columns; from JSONL its whole line."""

    line: int
    texts: tuple[str, ...]
    record: _Record
    source: str


@dataclass(frozen=True)
class Table:
    """A table. `names`: one for each column, made up where the file gives none; [] for an empty file."""

    name: str
    format: str
    names: list[str]
    rows: Iterator[Row]
