"""What a person reads on a terminal: the progress bar, a pair's explanation, an engine's description."""

from __future__ import annotations

import os
import stat
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, BinaryIO

from segue.files import STREAM, destination

if TYPE_CHECKING:
    from segue.report import Explanation  # loads numpy, which a message need not wait for

__all__ = ["Progress", "aligned", "describe", "explanation_text", "printable", "say"]


def say(text: str) -> None:
    """Write a text to stdout as UTF-8, whatever the locale; file names as they are."""
    with destination(STREAM) as out:
        out.write(text.encode(errors="surrogateescape"))


def explanation_text(seen: Explanation) -> str:
    """Return the tokens of a pair as a table, what was cut off, and what each label got."""
    tokens = [
        (str(position), printable(token), str(number), str(segment))
        for position, token, number, segment in zip(
            seen.positions, seen.tokens, seen.token_ids, seen.token_type_ids, strict=True
        )
    ]
    labels = [
        (printable(label), f"{logit:.4f}", f"{probability:.6f}")
        for label, logit, probability in zip(seen.labels, seen.logits, seen.probabilities, strict=True)
    ]
    first, second = seen.truncated
    score = "none, as no label is the positive one" if seen.score is None else f"{seen.score:.6f}"
    return "\n".join(
        [
            *aligned([("position", "token", "id", "segment"), *tokens], left=(1,)),
            "",
            f"{len(tokens)} tokens; truncated: {first} from A, {second} from B",
            "",
            *aligned([("label", "logit", "probability"), *labels], left=(0,)),
            "",
            f"score: {score}",
            "",
        ]
    )


def describe(record: Mapping[str, Any]) -> str:
    """Return a line for each value of a nested record, `key.key  value`."""
    lines = [(printable(name), printable(value)) for name, value in _flat(record, "")]
    return "".join(f"{line}\n" for line in aligned(lines, left=(0, 1)))


def aligned(rows: Sequence[Sequence[str]], *, left: tuple[int, ...]) -> list[str]:
    """Return a line for each row, cells in columns: those in `left` aligned left, the others right."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            gap = " " * (width - _width(cell))
            cells.append(cell + gap if place in left else gap + cell)
        lines.append("  ".join(cells).rstrip())
    return lines


def _flat(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            for number, item in enumerate(value):
                yield (f"{prefix}{key}" if number == 0 else "", item)
        else:
            listed = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield f"{prefix}{key}", listed


def _width(text: str) -> int:
    """Return how many columns of a terminal the text takes: Chinese characters two, combining marks none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def printable(text: str) -> str:
    """Return the text with what would move or colour a terminal's cursor escaped."""
    return "".join(c if c.isprintable() or unicodedata.combining(c) else repr(c)[1:-1] for c in text)


class Progress:
    """A bar on stderr, where that is a terminal. Counts the bytes of a file, the rows of a pipe."""

    def __init__(self, file: BinaryIO, *, wanted: bool) -> None:
        """Watch how `file` is read. `wanted` is false where the bar would run through other output."""
        self._stack = ExitStack()
        self._bar: Any = None
        self._rows = 0
        if not (wanted and sys.stderr.isatty()):
            return
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        self._file, size = file, _size(file)
        self._by_bytes = size is not None
        unit = {"unit": "B", "unit_scale": True} if self._by_bytes else {"unit": " pairs"}
        self._bar = self._stack.enter_context(tqdm(total=size, file=sys.stderr, **unit))
        self._stack.enter_context(logging_redirect_tqdm())

    def position(self) -> int:
        """Return how far the file has been read, called once after each row."""
        if self._bar is None:
            return 0
        self._rows += 1
        return self._file.tell() if self._by_bytes else self._rows

    def reach(self, position: int) -> None:
        """Move the bar to a finished row's position."""
        if self._bar is not None:
            self._bar.update(position - self._bar.n)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _size(file: BinaryIO) -> int | None:
    """Return the bytes of a regular file, None for a pipe or a terminal."""
    try:
        status = os.fstat(file.fileno())
    except (OSError, ValueError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
