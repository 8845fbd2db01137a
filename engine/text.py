"""Pairs of strings to token ids: the first of the four steps.

Each distinct sentence is put together once, from the ids of its words, and each distinct pair kept once;
pairs are told apart by the numbers of their sentences and assembled later, as `[CLS] A [SEP] B [SEP]`. The
tokenizer reads a word when it is new, and not again while it is remembered. It is configured when it is read
and never changed, and what it makes of a word depends on nothing else, so any number of threads may encode at
once. Knows nothing about batches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from segue.errors import BundleError, InputError
from segue.words import Words

__all__ = [
    "MIN_TOKENS",
    "TRUNCATIONS",
    "Encoded",
    "PairEncoder",
    "check_iterable",
    "number_pairs",
    "truncated_lengths",
]

MIN_TOKENS = 3  # [CLS], [SEP] and [SEP] are always there
TRUNCATIONS = ("longest_first", "only_first", "only_second", "error")

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """N pairs, P of them distinct, made of U distinct sentences."""

    ids: NDArray[np.int32]  # token ids of all sentences, end to end
    starts: Ints  # [U+1], where each sentence begins in `ids`
    pairs: Ints  # [P, 2], the sentences of each distinct pair
    kept: Ints  # [P, 2], tokens of each that truncation leaves
    inverse: Ints  # [N], the distinct pair of each pair asked for
    cls_id: int
    sep_id: int

    @property
    def lengths(self) -> Ints:
        """[P]: tokens of each distinct pair, the three special ones included."""
        return self.kept[:, 0] + self.kept[:, 1] + MIN_TOKENS

    @property
    def cut(self) -> Ints:
        """[P, 2]: tokens of each sentence that truncation took away."""
        return np.diff(self.starts)[self.pairs] - self.kept


class PairEncoder:
    """The tokenizer of one bundle, with the model's limit on tokens."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        """Read a tokenizer.json.

        Raises:
            BundleError: it cannot be read, or does not make `[CLS] A [SEP] B [SEP]` of a pair.
        """
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers package raises plain Exception
            raise BundleError(f"{path}: not a readable tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.max_tokens = max_tokens
        a, b = (self._tokenizer.encode(text, add_special_tokens=False).ids for text in ("a", "b"))
        probe = self._tokenizer.encode("a", "b")
        cls_id, sep_id = probe.ids[0], probe.ids[-1]
        if (probe.ids, probe.type_ids) != (
            [cls_id, *a, sep_id, *b, sep_id],
            [0] * (len(a) + 2) + [1] * (len(b) + 1),
        ):
            raise BundleError(
                f"{path}: makes {probe.tokens} with segments {probe.type_ids} of a pair, "
                "not [CLS] A [SEP] B [SEP] with segments 0 and 1"
            )
        self.cls_id, self.sep_id = cls_id, sep_id
        self._words = Words(self._tokenizer)

    def encode(
        self, pairs: Iterable[Any], *, truncation: str = "longest_first", max_tokens: int | None = None
    ) -> Encoded:
        """Tokenise pairs of strings.

        Args:
            pairs: any iterable of lists, tuples or numpy rows of two strings; each pair is read once.
            truncation: what to shorten, from the right, where a pair is longer than `max_tokens`; "error":
                nothing.
            max_tokens: 3 to the model's limit, which is also the default.

        Raises:
            InputError: names the pair or the option, and what is wrong with it.
        """
        limit = self._limit(truncation, max_tokens)
        sentences, numbered = number_pairs(pairs)
        distinct, inverse = _distinct(numbered, len(sentences))
        try:
            ids, starts = self._words.spell(sentences)
        except TypeError:  # all are str, so one of them has no UTF-8 form
            raise _surrogate(sentences, numbered) from None
        sizes = np.diff(starts)[distinct]
        try:
            kept = truncated_lengths(sizes, limit - MIN_TOKENS, truncation)
        except InputError as error:  # it names the distinct pair; the caller knows the one it gave
            raise InputError(error.reason, index=int(np.argmax(inverse == error.index))) from None
        return Encoded(ids, starts, distinct, kept, inverse, self.cls_id, self.sep_id)

    def warm_up(self) -> None:
        """Do beforehand what would otherwise wait until thousands of words were new."""
        self._words.read_vocabulary()

    def tokens(self, ids: Ints) -> list[str]:
        """Return the vocabulary's spelling of each id."""
        return [self._tokenizer.id_to_token(number) or "" for number in ids.tolist()]

    def _limit(self, truncation: str, max_tokens: int | None) -> int:
        if truncation not in TRUNCATIONS:
            raise InputError(f"truncation: expected one of {', '.join(TRUNCATIONS)}, got {truncation!r}")
        if max_tokens is None:
            return self.max_tokens
        whole = isinstance(max_tokens, (int, np.integer)) and not isinstance(max_tokens, bool)
        if not whole or not MIN_TOKENS <= max_tokens <= self.max_tokens:
            raise InputError(f"max_tokens: expected {MIN_TOKENS} to {self.max_tokens}, got {max_tokens!r}")
        return int(max_tokens)


def check_iterable(name: str, value: Any, of: str) -> None:
    """Raise InputError where `value` is no collection; strings and dicts iterate, but not over pairs."""
    scalar = isinstance(value, np.ndarray) and value.ndim == 0
    if isinstance(value, (str, bytes, dict)) or not isinstance(value, Iterable) or scalar:
        raise InputError(f"{name}: expected an iterable of {of}, got {_shown(value)}")


def number_pairs(pairs: Iterable[Any]) -> tuple[list[str], Ints]:
    """Return the distinct sentences in order of appearance, and each pair as their numbers, `[N, 2]`.

    Raises:
        InputError: `pairs` is no iterable of pairs, or one of them is not two strings.
    """
    check_iterable("pairs", pairs, "(str, str)")
    numbers: defaultdict[str, int] = defaultdict(count().__next__)
    sides = chain.from_iterable(pairs if _plain(pairs) else _checked(pairs))
    numbered = np.fromiter(map(numbers.__getitem__, sides), dtype=np.int64)
    return list(numbers), numbered.reshape(-1, 2)


def truncated_lengths(sizes: Ints, budget: int, truncation: str) -> Ints:
    """Return how many tokens of each side stay, `[P, 2]`, where `budget` tokens may stay of both together.

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


def _distinct(numbered: Ints, sentences: int) -> tuple[Ints, Ints]:
    """Return the distinct rows of [N, 2] in order of appearance, and which of them each row is, [N]."""
    keys = numbered[:, 0] * sentences + numbered[:, 1]
    if (keys[1:] > keys[:-1]).all():  # as where every pair has a sentence of its own: no need to sort
        return numbered, np.arange(len(keys), dtype=np.int64)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    appearance = np.argsort(first)
    return numbered[first[appearance]], np.argsort(appearance)[inverse]


def _plain(pairs: Iterable[Any]) -> bool:
    """Tell, at the speed of C, whether these are lists and tuples of two str in a list or tuple."""
    return (
        type(pairs) in (list, tuple)
        and set(map(type, pairs)) <= {list, tuple}
        and set(map(len, pairs)) <= {2}
        and set(map(type, chain.from_iterable(pairs))) <= {str}
    )


def _checked(pairs: Iterable[Any]) -> Iterator[Any]:
    """Yield the pairs up to the first that is none, and say what is wrong with that one."""
    for index, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list, np.ndarray)):
            hint = "; one pair alone goes into a list: [(a, b)]" if isinstance(pair, str) else ""
            raise InputError(f"expected (str, str), got {_shown(pair)}{hint}", index=index)
        if np.ndim(pair) == 0 or len(pair) != 2:
            raise InputError(f"expected two strings, got {_shown(pair)}", index=index)
        first, second = pair
        if not (isinstance(first, str) and isinstance(second, str)):
            raise InputError(f"expected (str, str), got ({_kind(first)}, {_kind(second)})", index=index)
        yield first, second


def _surrogate(sentences: list[str], numbered: Ints) -> InputError:
    for number, sentence in enumerate(sentences):
        try:
            sentence.encode()
        except UnicodeEncodeError as error:
            index, side = np.argwhere(numbered == number)[0]
            return InputError(
                f"the {('first', 'second')[side]} text has a lone surrogate, {sentence[error.start]!r}, "
                f"at character {error.start}: it is no valid Unicode",
                index=int(index),
            )
    raise AssertionError("the tokenizer refused a string that has a UTF-8 form")


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{_kind(value)} {text if len(text) <= 40 else text[:37] + '...'}"


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
