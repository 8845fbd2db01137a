"""Tables of texts, read row by row from TSV, CSV and JSONL; always UTF-8, a byte order mark is skipped.

    tsv     columns between tabs, no quoting at all: a quote is a character. No header unless asked for.
    csv     RFC 4180: quoted fields may hold commas, quotes and line breaks. The first record is the header.
    jsonl   an object a line, columns by key, or an array a line, columns by place.

Every row has as many columns as the first (JSONL objects: at least the ones that are read). Blank lines at
the end are ignored and an error elsewhere; in a TSV of one column of documents, a blank line is an empty
document. Memory holds one row. Knows nothing about models, nor where the bytes come from.
"""

from __future__ import annotations

import codecs
import csv
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from segue.columns import DOCUMENT, PAIR, counted, invented_names, pick
from segue.errors import InputError, json_kind

__all__ = ["FORMATS", "Row", "Table", "format_of", "read_table"]

FORMATS = ("tsv", "csv", "jsonl")
_ENDINGS = {".txt": "tsv", ".tab": "tsv", ".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}

# Characters. The csv module's own limit of 131,072 would refuse a long passage; with none, an unclosed quote
# would take the rest of the file into memory.
_LONGEST_CSV_FIELD = 1 << 26

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # what only a JSON escape can bring into a text

_Record = list[Any] | dict[str, Any]
# The line it begins on, the columns ([] for a blank line), and for JSONL the line.
_Parsed = tuple[int, _Record, str]


def format_of(path: str, given: str | None = None, *, otherwise: str | None = None) -> str:
    """Return the format of the file at `path`: the one given, or what its ending says, or `otherwise`.

    Raises:
        InputError: none of them says; a path without an ending, as stdin's, is TSV.
    """
    ending = Path(path).suffix.lower()
    found = given or _ENDINGS.get(ending) or otherwise or (None if ending else "tsv")
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
    one_text_a_line = format == "tsv" and known is DOCUMENT
    parsed = _documents(parsed, name) if one_text_a_line else _without_last_blanks(parsed, name)
    first = next(parsed, None)
    if first is None:
        return Table(name, format, [], iter(()))
    line, record, _ = first
    if isinstance(record, dict):
        names = list(record)
        picked = pick(columns, names, known, f"{name}:{line}", numbered=False)
        places: list[Any] = [names[index] for index in picked]
        return Table(name, format, names, _rows(chain([first], parsed), places, None, name))
    width = len(record)
    named = format == "csv" or (format == "tsv" and header)
    if format == "tsv" and not header and any(set(texts) <= set(record) for texts in known):
        logging.getLogger("segue").warning(
            "%s:%d: scored as texts, though they look like names of columns; --header says they are",
            name,
            line,
        )
    names = record if named else [""] * width
    picked = pick(columns, names, known, f"{name}:{line}", numbered=True)
    if not named:
        names, parsed = invented_names(width, picked, known[0]), chain([first], parsed)
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
        line = reader.line_num + 1  # it counts lines taken from `lines`, sometimes several per record
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
            raise InputError(f"{name}:{line}: expected an object or an array, got {json_kind(record)}")
        yield line, record, text


_PARSERS = {"tsv": _parse_tsv, "csv": _parse_csv, "jsonl": _parse_jsonl}


def _documents(parsed: Iterator[_Parsed], name: str) -> Iterator[_Parsed]:
    """Make blank lines empty documents if the first line has no more than one column."""
    first = next(parsed, None)
    if first is None:
        return parsed
    every = chain([first], parsed)
    if len(first[1]) > 1:
        return _without_last_blanks(every, name)
    return ((line, record or [""], text) for line, record, text in every)


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
    """Yield the rows: arrays of `width` columns, or objects (None); `places`: the indices or keys to read."""
    kind, kinds = (dict, "object") if width is None else (list, "array")
    for line, record, text in parsed:
        if type(record) is not kind:
            raise InputError(
                f"{name}:{line}: expected an {kinds}, as on the first line, got {json_kind(record)}"
            )
        if width is not None and len(record) != width:
            raise InputError(f"{name}:{line}: {counted(len(record))}, expected {width}")
        try:
            texts = tuple([record[place] for place in places])
        except KeyError as error:
            raise InputError(f"{name}:{line}: no key {error.args[0]!r}") from error
        for place, value in zip(places, texts, strict=True):
            if not isinstance(value, str) or ("\\u" in text and _LONE_SURROGATE.search(value)):
                where = place if width is None else f"item {place + 1}"
                got = "half a surrogate pair" if isinstance(value, str) else json_kind(value)
                raise InputError(f"{name}:{line}: {where}: expected a string, got {got}")
        yield Row(line, texts, record, text)


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
