"""Pairs as token ids, known step by step: what lies between text and batches. Numbers alone; knows nothing
about tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segue.errors import InputError

__all__ = ["MIN_TOKENS", "Encoded", "Growing", "Ints", "Step", "sizes_of", "truncated_lengths"]

MIN_TOKENS = 3  # [CLS], [SEP] and [SEP] are always there

Ints = NDArray[np.int64]
Step = tuple[NDArray[np.int32], Ints, Ints]  # the ids, starts and kept of `Encoded`


class Encoded:
    """N pairs, P of them distinct, made of U distinct sentences. The first u sentences are encoded, and so
    the first p pairs: all, or as many as `more` has reached."""

    ids: NDArray[np.int32]  # token ids of the sentences so far, end to end
    starts: Ints  # [u+1], where each of them begins in `ids`
    pairs: Ints  # [P, 2], the sentences of each distinct pair
    kept: Ints  # [p, 2], tokens of each that truncation leaves
    inverse: Ints  # [N], the distinct pair of each pair asked for

    def __init__(
        self,
        pairs: Ints,
        inverse: Ints,
        steps: Iterator[Step],
        *,
        cls_id: int,
        sep_id: int,
    ) -> None:
        """Nothing is encoded yet. `steps` yields ids, starts and kept, each time with what went before."""
        self.pairs, self.inverse, self._steps = pairs, inverse, steps
        self.cls_id, self.sep_id = cls_id, sep_id
        self.ids, self.starts, self.kept = np.empty(0, np.int32), np.zeros(1, np.int64), pairs[:0]

    def more(self) -> bool:
        """Encode some more; tell whether there was any left.

        Raises:
            InputError: names the pair, and what is wrong with it.
        """
        step = next(self._steps, None)
        if step is not None:
            self.ids, self.starts, self.kept = step
        return step is not None

    def all(self) -> Encoded:
        """Encode what is left. Errors as in `more`."""
        while self.more():
            pass
        return self

    @property
    def lengths(self) -> Ints:
        """[p]: tokens of each distinct pair, the three special ones included."""
        return self.kept[:, 0] + self.kept[:, 1] + MIN_TOKENS

    @property
    def cut(self) -> Ints:
        """[p, 2]: tokens of each sentence that truncation took away, of those that were read."""
        return sizes_of(self.starts, self.pairs[: len(self.kept)]) - self.kept

    @property
    def shortened(self) -> NDArray[np.bool_]:
        """[N]: whether each pair asked for has lost tokens."""
        cut: NDArray[np.bool_] = np.any(self.cut, axis=1)
        return cut[self.inverse]

    @property
    def truncated(self) -> int:
        """How many of the pairs asked for have lost tokens."""
        return int(np.count_nonzero(self.shortened))


class Growing:
    """An array that grows at its end; each time it copies what is new and, now and then, all."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = self._room = values  # the caller's own, never written to

    def extend(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the array with `values` at its end; what was returned before stays as it is."""
        before, size = len(self.values), len(self.values) + len(values)
        if not before:
            self.values = self._room = values
        elif len(values):
            if size > len(self._room):
                self._room = np.empty((2 * size, *values.shape[1:]), values.dtype)
                self._room[:before] = self.values
            self._room[before:size] = values
            self.values = self._room[:size]
        return self.values


def sizes_of(starts: Ints, pairs: Ints) -> Ints:
    """[p, 2]: tokens of each side of pairs [p, 2], whose sentences begin at `starts`."""
    return starts[pairs + 1] - starts[pairs]


def truncated_lengths(sizes: Ints, budget: int, truncation: str) -> Ints:
    """Return how many tokens of each side stay, `[P, 2]`, if both together may keep `budget`.

    The rules are those of the tokenizers library. "longest_first" shortens the longer side, and both to
    halves (the longer one gets the odd token) where that is not enough.

    Raises:
        InputError: `index` is the row that the mode cannot shorten, or, under "error", the first that is too
            long.
    """
    over = sizes[:, 0] + sizes[:, 1] - budget
    if not (over > 0).any():
        return sizes
    if truncation == "error":
        row = int(np.argmax(over > 0))
        tokens, limit = int(over[row]) + budget + MIN_TOKENS, budget + MIN_TOKENS
        raise InputError(f"{tokens} tokens, more than {limit}, and truncation='error'", index=row)
    if budget == 0:  # as in the library: nothing of either stays, whatever the mode
        return np.zeros_like(sizes)
    if truncation == "longest_first":
        less, more = budget // 2, budget - budget // 2
        halves = np.where(sizes[:, :1] <= sizes[:, 1:], (less, more), (more, less))
        return np.minimum(sizes, np.maximum(budget - sizes[:, ::-1], halves))
    side = 0 if truncation == "only_first" else 1
    kept = sizes.copy()
    kept[:, side] -= np.maximum(over, 0)
    if (bad := (over > 0) & (kept[:, side] <= 0)).any():
        row = int(np.argmax(bad))
        raise InputError(
            f"truncation={truncation!r} would leave nothing of the {('first', 'second')[side]} text: "
            f"it has {sizes[row, side]} tokens, and {over[row]} must go",
            index=row,
        )
    return kept
