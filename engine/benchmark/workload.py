"""The pairs that a benchmark scores: made of the model's own vocabulary, or the user's.

Synthetic pairs are of whole words that are one token each, so a pair has exactly the length asked for, and no
two are equal. The same tokenizer, seed and numbers give the same pairs on any machine. To describe
pairs, an engine's encoder reads them, so the words that it remembers are known before the first query, as
most words in a stream of prose are.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from segue.benchmark.scenarios import Pair
from segue.encoded import MIN_TOKENS
from segue.errors import InputError, SegueError
from segue.files import source
from segue.tables import format_of, read_table
from segue.text import PairEncoder

__all__ = [
    "SHORTEST",
    "Workload",
    "drawn_lengths",
    "read_pairs",
    "synthetic_pairs",
    "whole_words",
    "workload",
]

SHORTEST = MIN_TOKENS + 2  # a word on either side
_MEAN, _SIGMA = 60, 0.8  # tokens, and the spread of their logarithm: sentences, with a tail of passages
_TRIES = 100
_LENGTH_ORDER, _DRAWN_WORDS = 1, 2  # keep their random numbers apart, whatever the seed

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Workload:
    """Pairs, and what the model makes of them; `lengths` [N] are tokens, after truncation."""

    source: str
    pairs: list[Pair]
    lengths: Ints
    distinct: int
    truncated: int

    @property
    def tokens(self) -> int:
        """Of all pairs."""
        return int(self.lengths.sum())

    def record(self) -> dict[str, Any]:
        """Return the description, ready for JSON; `sha256` is that of the pairs themselves."""
        text = json.dumps(self.pairs, ensure_ascii=True, separators=(",", ":"))
        return {
            "source": self.source,
            "pairs": len(self.pairs),
            "distinct": self.distinct,
            "truncated": self.truncated,
            "tokens": self.tokens,
            "shortest": int(self.lengths.min()),
            "mean": round(float(self.lengths.mean()), 2),
            "longest": int(self.lengths.max()),
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }


def workload(pairs: Sequence[Pair], encoder: PairEncoder, *, source: str) -> Workload:
    """Describe pairs as a model reads them."""
    encoded = encoder.encode(pairs)
    return Workload(
        source=source,
        pairs=list(pairs),
        lengths=encoded.lengths[encoded.inverse],
        distinct=len(encoded.pairs),
        truncated=encoded.truncated,
    )


def drawn_lengths(count: int, max_tokens: int, seed: int) -> Ints:
    """Return tokens of pairs, [count]: log-normal with mean 60, between SHORTEST and the model's limit.

    They are that distribution's quantiles, so that a few hundred have its mean and its tail whatever the
    seed, which decides the order.
    """
    normal = NormalDist(math.log(_MEAN) - _SIGMA**2 / 2, _SIGMA)
    lengths = np.exp([normal.inv_cdf((place + 0.5) / count) for place in range(count)])
    np.random.default_rng((_LENGTH_ORDER, seed)).shuffle(lengths)
    return np.clip(np.rint(lengths), SHORTEST, max_tokens).astype(np.int64)


def synthetic_pairs(
    words: Sequence[str], lengths: Sequence[int] | Ints, encoder: PairEncoder, *, seed: Sequence[int]
) -> list[Pair]:
    """Return a pair of each length, [CLS] and two [SEP] counted, no two equal.

    Args:
        words: of one token each.
        lengths: SHORTEST to the encoder's limit.

    Raises:
        SegueError: the tokenizer does not allow it.
    """
    draw = np.random.default_rng((_DRAWN_WORDS, *seed))
    made: dict[Pair, None] = {}
    for length in map(int, lengths):
        room = length - MIN_TOKENS
        for _ in range(_TRIES if words else 0):
            drawn = [words[number] for number in draw.integers(len(words), size=room)]
            pair = (" ".join(drawn[: room // 2]), " ".join(drawn[room // 2 :]))
            if pair not in made:
                made[pair] = None
                break
        else:
            raise SegueError(
                f"this tokenizer has {len(words)} whole words of one token, "
                f"too few to make up {len(lengths)} different pairs"
            )
    pairs = list(made)
    if not np.array_equal(encoder.encode(pairs).lengths, lengths):
        raise SegueError(
            "this tokenizer splits words differently beside others, so made-up pairs have no known length"
        )
    return pairs


def whole_words(path: Path) -> list[str]:
    """Return the words of which the tokenizer.json at `path` makes one token, in its vocabulary's order."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    numbers = sorted(tokenizer.get_vocab(with_added_tokens=False).values())
    texts = tokenizer.decode_batch([[number] for number in numbers])
    words = [(number, text.strip()) for number, text in zip(numbers, texts, strict=True)]
    words = [(number, text) for number, text in words if text.isalpha()]
    encodings = tokenizer.encode_batch_fast([text for _, text in words], add_special_tokens=False)
    return [text for (number, text), made in zip(words, encodings, strict=True) if made.ids == [number]]


def read_pairs(
    path: str, count: int, *, format: str | None = None, columns: str | None = None, header: bool = False
) -> list[Pair]:
    """Return the first `count` pairs of a table, read as `segue score` reads it.

    Raises:
        InputError: it cannot be read, or has no pairs.
    """
    with source(path) as (file, name):
        table = read_table(file, name, format=format_of(path, format), columns=columns, header=header)
        pairs = [(a, b) for a, b in (row.texts for row in islice(table.rows, count))]
    if not pairs:
        raise InputError(f"{name}: no pairs to score")
    return pairs
