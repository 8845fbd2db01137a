"""Checks that several doors share."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from segue.errors import InputError

__all__ = ["positive_whole"]

_Default = TypeVar("_Default", int, None)


def positive_whole(name: str, value: Any, default: _Default, *, most: int | None = None) -> int | _Default:
    """Return a whole number from 1, or `default` for None.

    Raises:
        InputError: `value` is no such number, or more than `most`; the message calls it `name`.
    """
    if value is None:
        return default
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1 or (most is not None and value > most):
        bounds = "from 1" if most is None else f"from 1 to {most}"
        raise InputError(f"{name}: expected a whole number {bounds}, got {value!r}")
    return int(value)
