"""The JSON body of a request: each field is taken with the kind it must have, and none may be left."""

from __future__ import annotations

import json
from typing import Any

from segue.errors import InputError, json_kind
from segue.text import check_unicode

__all__ = ["Body", "a_text", "some_texts"]


def a_text(name: str, value: Any) -> str:
    """Return the string that `value` must be."""
    if not isinstance(value, str):
        raise InputError(f"{name}: expected a string, got {json_kind(value)}")
    check_unicode(name, value)
    return value


def some_texts(name: str, value: Any) -> list[str]:
    """Return the strings of the array that `value` must be."""
    if not isinstance(value, list):
        raise InputError(f"{name}: expected an array of strings, got {json_kind(value)}")
    return [a_text(f"{name}[{place}]", text) for place, text in enumerate(value)]


class Body:
    """An object's fields. A null counts as absent: clients send it for options that they were not given."""

    def __init__(self, text: bytes) -> None:
        """Read JSON.

        Raises:
            InputError: it is none, or no object.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the body is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise InputError(f"the body: expected an object, got {json_kind(fields)}")
        self._fields = {name: value for name, value in fields.items() if value is not None}
        self._known: list[str] = []

    def end(self) -> None:
        """Refuse fields that were not taken, as what they ask for would be ignored.

        Raises:
            InputError: names one.
        """
        for name in self._fields:
            if name not in self._known:
                shown = name if name.isidentifier() and len(name) <= 40 else repr(name[:40])
                raise InputError(f"{shown}: no such field; there are {', '.join(self._known)}")

    def has(self, name: str) -> bool:
        """Tell whether there is such a field."""
        return name in self._fields

    def take(self, name: str, default: Any = None) -> Any:
        """Return a value of any kind."""
        self._known.append(name)
        return self._fields.get(name, default)

    def any_of(self, *names: str) -> tuple[str, Any]:
        """Return the one of these fields that is there, and its value.

        Raises:
            InputError: none of them is there, or more than one.
        """
        self._known += names
        given = [name for name in names if name in self._fields]
        if len(given) != 1:
            wrong = f"{' and '.join(given)}: give one of them" if given else f"{names[0]}: missing"
            raise InputError(wrong)
        return given[0], self._fields[given[0]]

    def text(self, name: str) -> str:
        """Return a string that must be there."""
        return a_text(*self.any_of(name))

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a boolean."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise InputError(f"{name}: expected a boolean, got {json_kind(value)}")
        return value

    def number(self, name: str, *, least: int = 1) -> int | None:
        """Return a whole number, or None."""
        value = self.take(name)
        if value is not None and (type(value) is not int or value < least):
            shown = value if type(value) in (int, float) else json_kind(value)
            raise InputError(f"{name}: expected a whole number from {least}, got {shown}")
        return value

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """Return one of these strings, by default the first."""
        value = self.take(name, choices[0])
        if value not in choices:
            shown = repr(value) if isinstance(value, str) and len(value) <= 40 else json_kind(value)
            raise InputError(f"{name}: expected one of {', '.join(choices)}, got {shown}")
        return str(value)
