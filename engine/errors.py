"""The errors segue raises. Each message names what is wrong, where, and what to do about it."""

from __future__ import annotations

from typing import Any, Self

__all__ = [
    "BundleError",
    "ExecutorUnavailable",
    "InputError",
    "Overloaded",
    "SegueError",
    "install",
    "json_kind",
]


def install(package: str | None, extra: str) -> str:
    """Say how to install a missing package: onnxruntime by an extra of its own, others by `extra`."""
    return f"pip install 'segue[{'cpu' if package == 'onnxruntime' else extra}]'"


def json_kind(value: Any) -> str:
    """Return what JSON calls a value that was read from it."""
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}
    return "null" if value is None else kinds.get(type(value), "an object")


class SegueError(Exception):
    """The base class of all errors that segue raises on purpose.

    `index` is the pair's index in the caller's input, from 0, or None if no pair is to blame; `reason` is the
    message without it.
    """

    def __init__(self, reason: str, *, index: int | None = None) -> None:
        self.reason, self.index = reason, index
        super().__init__(reason if index is None else f"pairs[{index}]: {reason}")

    def at(self, index: int) -> Self:
        """Return the same error about the pair at another index."""
        return type(self)(self.reason, index=index)

    def of(self, name: str) -> Self:
        """Return the same error with the pair called `name`; unchanged if it is about no pair."""
        return self if self.index is None else type(self)(f"{name}: {self.reason}")


class InputError(SegueError, ValueError):
    """A pair, line or option that the caller gave is not usable."""


class BundleError(SegueError):
    """A bundle or checkpoint is incomplete, altered, or in a form that this version cannot run exactly."""


class Overloaded(SegueError):
    """Too many pairs or too much text waits already. The same call may succeed later."""


class ExecutorUnavailable(SegueError, ImportError, RuntimeError):
    """Something asked for by name needs a package or device that is missing; the message says which."""
