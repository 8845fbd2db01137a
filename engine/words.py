"""Words to token ids: each is tokenised when it is new and remembered, within bounds.

BERT's tokenizers never look across a space, so the ids of a text are those of its words, end to end, and a
lookup costs a seventh to an eighteenth of tokenising. After thousands of new words, a plain word that is
whole in the vocabulary, with or without a mark at its end, needs no tokenizer at all. What is remembered
depends on the word alone, so any number of threads may use it at once. Where a tokenizer does look across
spaces, whole sentences take the place of words. Knows nothing about pairs.
"""

from __future__ import annotations

import sys
from itertools import chain, repeat
from string import punctuation

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from segue.errors import SegueError

__all__ = ["Words"]

_SENTENCES_AT_ONCE = 1024  # bounds the lists of their words, and how far room is overrun
_RUN = 64  # new words tokenised as one text, which itself costs as much as a word, 4 us
_TEXTS = 256  # such texts per call, for the tokenizer's threads to share; its objects take 70 bytes a token
_WORTH = 8192  # new words after which reading the vocabulary pays: it takes 20 ms and 5 MB
_REMEMBERED = 1 << 18  # characters, plus _EACH per word: some 11,000 words of prose, twice, in 3 MB
_EACH = 16


def _word_by_word(tokenizer: Tokenizer) -> bool:
    """Tell whether the ids of a text are those of its parts between spaces, end to end.

    BERT's three steps never look across a space; an added token might, or be looked for in normalised text.
    """
    steps = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.model)
    added = tokenizer.get_added_tokens_decoder().values()
    return tuple(map(type, steps)) == (BertNormalizer, BertPreTokenizer, WordPiece) and not any(
        " " in token.content or token.normalized or token.lstrip or token.rstrip or token.single_word
        for token in added
    )


def _bar(tokenizer: Tokenizer) -> int | None:
    """The id of "|", which stands between words of a text to separate their ids: that of [UNK] where the
    vocabulary has no "|", as one trained on prose; None where it has neither."""
    number: int | None = tokenizer.token_to_id("|")
    if number is None:
        number = tokenizer.token_to_id(tokenizer.model.unk_token)
    return number


def _whole_words(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The ids, as int32, of words of ASCII letters and digits that WordPiece finds whole, and of ASCII marks;
    nothing if an added token could be found within a word and a mark after it. A cased vocabulary's capitals
    are out of reach where the text is lower-cased."""
    added = tokenizer.get_added_tokens_decoder().values()
    if any(sum(not _plain(c) for c in token.content) < 2 for token in added):
        return {}
    longest, lower = tokenizer.model.max_input_chars_per_word, tokenizer.normalizer.lowercase
    return {
        word: number.to_bytes(4, sys.byteorder)
        for word, number in tokenizer.get_vocab(with_added_tokens=False).items()
        if (_plain(word) and len(word) <= longest and not (lower and word != word.lower()))
        or (len(word) == 1 and word in punctuation)
    }


def _plain(word: str) -> bool:
    return word.isascii() and word.isalnum()


def _longest_word(tokenizer: Tokenizer) -> int:
    """The most ids of what is read as one: a word with the beginning of an added token."""
    added = tokenizer.get_added_tokens_decoder().values()
    longest: int = tokenizer.model.max_input_chars_per_word
    return longest + max((len(token.content) for token in added), default=0)


def _newest(known: dict[str, bytes]) -> dict[str, bytes]:
    """Return the newest words, as many as may be remembered."""
    kept, room = {}, _REMEMBERED
    for word in reversed(list(known)):  # at once: other threads add to it
        room -= len(word) + _EACH
        if room < 0:
            break
        kept[word] = known[word]
    return kept


def _spelt(sentences: list[str], splits: int, known: dict[str, bytes]) -> list[bytes]:
    """Return the ids of each sentence, all of whose words are known."""
    ids = known.__getitem__
    return [b"".join(map(ids, str.split(text, " ", splits))) for text in sentences]


class Words:
    """The ids of words, remembered within bounds; of whole sentences if the tokenizer reads across spaces."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bar = _bar(tokenizer) if _word_by_word(tokenizer) else None
        self._splits = 0 if self._bar is None else -1
        # How many ids at the end of a text might differ if the text went on; None: any.
        self.tail = None if self._bar is None else _longest_word(tokenizer)
        self._lower = self._bar is not None and tokenizer.normalizer.lowercase
        self._whole: dict[str, bytes] | None = None if self._bar is not None else {}
        self._met = 0  # new words so far, about: threads may lose counts
        self._known: dict[str, bytes] = {}  # as int32
        self._older: dict[str, bytes] = {}  # what was known when room last ran out; words come back from it
        self._room = _REMEMBERED

    def spell(self, sentences: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the ids of all sentences, end to end, and where each begins, [U+1].

        Raises:
            TypeError: a sentence has no UTF-8 form.
            SegueError: the tokenizer failed.
        """
        known, older, splits = self._known, self._older, self._splits  # another thread may replace these
        rows: list[bytes] = []
        for first in range(0, len(sentences), _SENTENCES_AT_ONCE):
            some = sentences[first : first + _SENTENCES_AT_ONCE]
            try:
                rows += _spelt(some, splits, known)
            except KeyError:
                words = set(chain.from_iterable(map(str.split, some, repeat(" "), repeat(splits))))
                new = words.difference(known)
                known.update((word, older[word]) for word in new if word in older)
                # Not `older` again: it may have grown since, as another thread's `known`.
                rest = self._look_up([word for word in new if word not in known], known)
                self._learn(rest, known, _RUN if splits else 1)
                self._room -= sum(map(len, new)) + _EACH * len(new)
                rows += _spelt(some, splits, known)
                if self._room < 0:
                    older = known if self._room > -_REMEMBERED else _newest(known)
                    known = dict(self._whole or ())
                    self._older, self._known, self._room = older, known, _REMEMBERED
        starts = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)) // 4, out=starts[1:])
        return np.frombuffer(b"".join(rows), dtype=np.int32), starts

    def read_vocabulary(self) -> None:
        """Do now what otherwise waits for enough new words."""
        if self._whole is None:
            self._whole = _whole_words(self._tokenizer)
            self._known.update(self._whole)

    def _look_up(self, words: list[str], known: dict[str, bytes]) -> list[str]:
        """Add the ids of the words that need no tokenizer; return the others."""
        self._met += len(words)
        if self._met >= _WORTH:
            self.read_vocabulary()
        if not (whole := self._whole):
            return words
        rest = []
        for word in words:
            ids = mark = b""
            folded = word.lower() if self._lower else word
            if _plain(word):
                ids = whole.get(folded, b"")
            elif _plain(word[:-1]) and (mark := whole.get(word[-1], b"")):
                ids = whole.get(folded[:-1], b"")
            if ids:
                known[word] = ids + mark
            else:
                rest.append(word)
        return rest

    def _learn(self, words: list[str], known: dict[str, bytes], run: int) -> None:
        """Add the ids of `words`, which are tokenised `run` at a time as one text."""
        for first in range(0, len(words), run * _TEXTS):
            some = words[first : first + run * _TEXTS]
            runs = [some[start : start + run] for start in range(0, len(some), run)]
            texts = list(map(" | ".join, runs))
            try:
                found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            except BaseException as error:
                if type(error).__name__ != "PanicException":
                    raise
                # Rust's panic, as where the system grants it no threads: no Exception, so nobody expects it.
                raise SegueError(f"the tokenizer failed: {error}") from error
            for part, encoding in zip(runs, found, strict=True):
                ids = np.array(encoding.ids, dtype=np.int32)
                bars = np.flatnonzero(ids == self._bar) if len(part) > 1 else ids[:0]
                if len(bars) > len(part) - 1:  # a word holds one, or what normalises to one
                    self._learn(part, known, 1)
                    continue
                data, start = ids.tobytes(), 0
                for word, end in zip(part, [*(4 * bars).tolist(), len(data)], strict=True):
                    known[word] = data[start:end]
                    start = end + 4
