"""A stream of any length, cut into windows of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

__all__ = ["MOST_PAIRS", "characters", "windows"]

# pairs; windows double, so that the first scores of a slow stream do not wait for long
_FIRST, MOST_PAIRS = 64, 8192
_CHARACTERS = 1 << 23  # a window closes past this many, whatever its pairs


def characters(item: Any) -> int:
    """Return the number of characters in the texts of a pair; 0 for what is no pair."""
    if not isinstance(item, (list, tuple)) and not (isinstance(item, np.ndarray) and item.ndim):
        return 0
    return sum(len(text) for text in item if isinstance(text, str))


def windows(
    items: Iterable[Any], weigh: Callable[[Any], int] = characters, most: int = MOST_PAIRS
) -> Iterator[tuple[int, list[Any]]]:
    """Yield (number of the first item, items). Where the stream raises, what came before is yielded first.
    Lists and arrays are copied, as the stream may fill the same one again.

    Args:
        weigh: how many characters are held for an item that was just taken from the stream.
        most: items of a window.
    """
    start, size, held = 0, _FIRST, 0
    window: list[Any] = []
    try:
        for item in items:
            window.append(item.copy() if isinstance(item, list | np.ndarray) else item)
            held += weigh(item)
            if len(window) == size or held > _CHARACTERS:
                yield start, window
                start, size, held = start + len(window), min(2 * size, most), 0
                window = []
    except Exception:
        if window:
            yield start, window
        raise
    if window:
        yield start, window
