"""A stream of any length, cut into windows of bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["windows"]

_FIRST, _MOST = (
    64,
    8192,
)  # pairs; windows double, so that the first scores of a slow stream do not wait for long
_CHARACTERS = 1 << 23  # a window closes past this many, whatever its pairs


def windows(items: Iterable[Any]) -> Iterator[tuple[int, list[Any]]]:
    """Yield (number of the first item, items). Where the stream raises, what came before is yielded first."""
    start, size, characters = 0, _FIRST, 0
    window: list[Any] = []
    try:
        for item in items:
            window.append(item)
            if isinstance(item, (list, tuple)):
                characters += sum(len(text) for text in item if isinstance(text, str))
            if len(window) == size or characters > _CHARACTERS:
                yield start, window
                start, size, characters = start + len(window), min(2 * size, _MOST), 0
                window = []
    except Exception:
        if window:
            yield start, window
        raise
    if window:
        yield start, window
