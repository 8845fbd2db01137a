"""Which columns of a table hold the texts: those asked for by name or number, else those with usual names."""

from __future__ import annotations

from collections.abc import Sequence

from segue.errors import InputError

__all__ = ["DOCUMENT", "PAIR", "counted", "invented_names", "pick"]

# The names by which columns are found when none are asked for; nameless columns get the first ones.
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


def pick(
    wanted: str | None, names: list[str], known: Sequence[tuple[str, ...]], where: str, *, numbered: bool
) -> list[int]:
    """Return the places of the columns to read.

    Args:
        wanted: what was asked for, "A,B", names or numbers from 1. None: those with known names, or the only
            ones there are.
        names: of all columns; "" where they have none.
        known: PAIR or DOCUMENT.
        where: the file and line, for messages.
        numbered: false for the keys of an object, whose place means nothing.

    Raises:
        InputError: there is no such column, or nothing says which to read.
    """
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
    if numbered and len(names) == count:
        return list(range(count))
    given = counted(len(names)) + (f" ({', '.join(names)})" if any(names) else "")
    if len(names) < count:
        raise InputError(f"{where}: {given}, expected {count}")
    raise InputError(f"{where}: {given}: say with --columns which to read")


def _place(part: str, names: list[str], where: str, *, numbered: bool) -> int:
    if part and names.count(part) > 1:
        raise InputError(f"{where}: {names.count(part)} columns are called {part!r}: give a number")
    if part and part in names:
        return names.index(part)
    if numbered and part.isdecimal() and len(part) < 10 and 1 <= int(part) <= len(names):
        return int(part) - 1
    there = ", ".join(names) if any(names) else f"{counted(len(names))} without names"
    raise InputError(f"{where}: no column {part!r}: there are {there}")


def invented_names(width: int, picked: list[int], usual: tuple[str, ...]) -> list[str]:
    """Return names for columns that have none; those read get the `usual` ones."""
    names = [f"column_{number}" for number in range(1, width + 1)]
    for place, name in zip(picked, usual, strict=True):
        names[place] = name
    return names


def counted(count: int) -> str:
    """Return "1 column" or "N columns"."""
    return "1 column" if count == 1 else f"{count} columns"
