"""Pairs of strings to token ids: the first of the four steps.

Each distinct sentence is put together once, from the ids of its words, and each distinct pair is kept once,
as the numbers of its sentences, and assembled later, as `[CLS] A [SEP] B [SEP]`. The tokenizer reads a new
word, and not again while it is remembered. It is configured when loaded and never changed, and a word's ids
depend on nothing else, so any number of threads may encode at once. Knows nothing about batches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from segue.encoded import MIN_TOKENS, Encoded, Growing, Ints, Step, sizes_of, truncated_lengths
from segue.errors import BundleError, InputError
from segue.words import Words

__all__ = [
    "TRUNCATIONS",
    "PairEncoder",
    "check_iterable",
    "check_unicode",
    "number_pairs",
    "open_tokenizer",
    "read_pairs",
]

_FAR = 8  # characters per token beyond which a text is examined; English has 5
_TOKENS = 4  # that a character may become: decomposition makes as many of one

TRUNCATIONS = ("longest_first", "only_first", "only_second", "error")


def open_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer that a file holds.

    Raises:
        BundleError: it cannot be read.
    """
    try:
        return Tokenizer.from_buffer(path.read_bytes())
    except Exception as error:  # the tokenizers package raises plain Exception
        raise BundleError(f"{path}: not a readable tokenizer: {error}") from error


class PairEncoder:
    """The tokenizer of one bundle, with the model's limit on tokens."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        """Read a tokenizer.json.

        Raises:
            BundleError: it cannot be read, or does not make `[CLS] A [SEP] B [SEP]` of a pair.
        """
        self._tokenizer = open_tokenizer(path)
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
        return self.begin(pairs, truncation=truncation, max_tokens=max_tokens).all()

    def begin(
        self,
        pairs: Iterable[Any],
        *,
        truncation: str = "longest_first",
        max_tokens: int | None = None,
        at_once: int | None = None,
        whole: bool = False,
    ) -> Encoded:
        """As `encode`, but only read the pairs and tell them apart: `Encoded.more` does the rest, in steps.

        Args:
            at_once: sentences of the first step, at least 2; later steps take twice as many. None: all in one
                step.
            whole: read all of a text that is far too long, so that `Encoded.cut` counts every token.
        """
        limit = self._limit(truncation, max_tokens)
        sentences, numbered = number_pairs(pairs)
        distinct, inverse = _distinct(numbered, len(sentences))
        enough = None if whole or self._words.tail is None else limit + self._words.tail
        steps = self._steps(sentences, distinct, inverse, limit - MIN_TOKENS, truncation, at_once, enough)
        return Encoded(distinct, inverse, steps, cls_id=self.cls_id, sep_id=self.sep_id)

    def _steps(
        self,
        sentences: list[str],
        pairs: Ints,
        inverse: Ints,
        budget: int,
        truncation: str,
        at_once: int | None,
        enough: int | None,
    ) -> Iterator[Step]:
        """Yield what `Encoded` holds for the sentences so far; `enough` tokens of a long one do."""
        far = set() if enough is None else _far_too_long(sentences, pairs, budget, _FAR * enough)
        ids, starts, kept = (Growing(a) for a in (np.empty(0, np.int32), np.zeros(1, np.int64), pairs[:0]))
        last = None
        stop = done = 0
        while done < len(pairs):
            first, size = stop, len(sentences) if at_once is None else at_once * (1 + (stop > 0))
            stop = min(first + size, len(sentences))
            try:
                new, bounds = self._spell(sentences, first, stop, far, enough or 0)
            except TypeError:  # all are str, so one of them has no UTF-8 form
                raise _surrogate(sentences, pairs[inverse]) from None
            begins = starts.extend(bounds[1:] + starts.values[-1])
            whole = len(pairs)
            if stop < len(sentences):
                if last is None:  # sentence that each pair waits for
                    last = np.maximum.accumulate(pairs.max(axis=1))
                whole = int(np.searchsorted(last, stop))
            sizes = sizes_of(begins, pairs[done:whole])
            try:
                left = truncated_lengths(sizes, budget, truncation)
            except InputError as error:  # its index is a row of this step; the caller's is another
                row = done + (error.index or 0)
                reason = self._reason([sentences[n] for n in pairs[row]], budget, truncation)
                raise InputError(reason, index=int(np.argmax(inverse == row))) from None
            done = whole
            yield ids.extend(new), begins, kept.extend(left)

    def _spell(
        self, sentences: list[str], first: int, stop: int, far: set[int], enough: int
    ) -> tuple[NDArray[np.int32], Ints]:
        """As `Words.spell`, for sentences[first:stop]. Of those in `far` only the beginning is read if it has
        `enough` tokens."""
        some = sentences[first:stop]
        cut = [n - first for n in far if first <= n < stop]
        for place in cut:
            some[place] = some[place][: _FAR * enough]
        ids, bounds = self._words.spell(some)
        few = [place for place in cut if bounds[place + 1] - bounds[place] < enough]
        if few:
            for place in few:
                some[place] = sentences[first + place]
            ids, bounds = self._words.spell(some)
        return ids, bounds

    def _reason(self, pair: list[str], budget: int, truncation: str) -> str:
        """Say why a pair cannot be truncated, with the tokens of its whole texts."""
        _, bounds = self._words.spell(pair)
        try:
            truncated_lengths(np.diff(bounds)[None], budget, truncation)
        except InputError as error:
            return error.reason
        raise AssertionError("a part of a text was too long, and the whole is not")

    def warm_up(self) -> None:
        """Do in advance what would otherwise wait for thousands of new words."""
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


def _far_too_long(sentences: list[str], pairs: Ints, budget: int, reach: int) -> set[int]:
    """Return the sentences of more than `reach` characters whose beginning is enough.

    Truncation leaves the same of these, whatever follows. It may not where both sides of a pair might have
    more than half of the budget: then their lengths are compared, and both must be read whole.
    """
    long = {n for n, text in enumerate(sentences) if len(text) > reach}
    if long:
        most = np.array([len(text) if text.isascii() else _TOKENS * len(text) for text in sentences])
        long.difference_update(pairs[most[pairs[:, ::-1]] > budget // 2].tolist())
    return {n for n in long if _lone_surrogate(sentences[n]) is None}


def check_iterable(name: str, value: Any, of: str) -> None:
    """Raise InputError where `value` is no collection; strings and dicts iterate, but not over pairs."""
    scalar = isinstance(value, np.ndarray) and value.ndim == 0
    if isinstance(value, (str, bytes, dict)) or not isinstance(value, Iterable) or scalar:
        raise InputError(f"{name}: expected an iterable of {of}, got {_shown(value)}")


def read_pairs(pairs: Iterable[Any]) -> list[tuple[str, str]]:
    """Return the pairs as tuples.

    Raises:
        InputError: `pairs` is no iterable of pairs, or one of them is not two strings.
    """
    return [(first, second) for first, second in _rows(pairs)]


def number_pairs(pairs: Iterable[Any]) -> tuple[list[str], Ints]:
    """Return the distinct sentences in order of appearance, and each pair as their numbers, `[N, 2]`.

    Raises:
        InputError: `pairs` is no iterable of pairs, or one of them is not two strings.
    """
    rows = _rows(pairs)
    numbers: defaultdict[str, int] = defaultdict(count().__next__)
    numbered = np.fromiter(map(numbers.__getitem__, chain.from_iterable(rows)), dtype=np.int64)
    return list(numbers), numbered.reshape(-1, 2)


def _distinct(numbered: Ints, sentences: int) -> tuple[Ints, Ints]:
    """Return the distinct rows of [N, 2] in order of appearance, and which of them each row is, [N]."""
    keys = numbered[:, 0] * sentences + numbered[:, 1]
    if (keys[1:] > keys[:-1]).all():  # as where every pair has a sentence of its own: no need to sort
        return numbered, np.arange(len(keys), dtype=np.int64)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    appearance = np.argsort(first)
    return numbered[first[appearance]], np.argsort(appearance)[inverse]


def _rows(pairs: Any) -> Iterable[Any]:
    """Return an iterable of two str each, raising at the first item that is none."""
    check_iterable("pairs", pairs, "(str, str)")
    return pairs if _plain(pairs) else _checked(pairs)


def _plain(pairs: Iterable[Any]) -> bool:
    """Tell, at the speed of C, whether these are lists and tuples of two str in a list or tuple."""
    return (
        type(pairs) in (list, tuple)
        and set(map(type, pairs)) <= {list, tuple}
        and set(map(len, pairs)) <= {2}
        and set(map(type, chain.from_iterable(pairs))) <= {str}
    )


def _checked(pairs: Iterable[Any]) -> Iterator[Any]:
    """Yield the pairs before the first bad one, and raise what is wrong with that one."""
    for index, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list, np.ndarray)):
            hint = "; one pair alone goes into a list: [(a, b)]" if isinstance(pair, str) else ""
            raise InputError(f"expected (str, str), got {_shown(pair)}{hint}", index=index)
        if (isinstance(pair, np.ndarray) and pair.ndim == 0) or len(pair) != 2:
            raise InputError(f"expected two strings, got {_shown(pair)}", index=index)
        first, second = pair
        if not (isinstance(first, str) and isinstance(second, str)):
            raise InputError(f"expected (str, str), got ({_kind(first)}, {_kind(second)})", index=index)
        yield first, second


def check_unicode(name: str, text: str) -> None:
    """Raise InputError if `text` has no UTF-8 form: no tokenizer reads it then."""
    if found := _lone_surrogate(text):
        raise InputError(f"{name}: {found}")


def _lone_surrogate(text: str) -> str | None:
    """Say where a text has half a character, which UTF-8 cannot hold; None: nowhere."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = error.start
        return f"a lone surrogate, {text[place]!r}, at character {place}: it is no valid Unicode"
    return None


def _surrogate(sentences: list[str], numbered: Ints) -> InputError:
    for number, sentence in enumerate(sentences):
        if found := _lone_surrogate(sentence):
            index, side = np.argwhere(numbered == number)[0]
            return InputError(f"the {('first', 'second')[side]} text has {found}", index=int(index))
    raise AssertionError("the tokenizer refused a string that has a UTF-8 form")


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{_kind(value)} {text if len(text) <= 40 else text[:37] + '...'}"


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
