"""Four kinds of pairs to time engines on: English prose of exactly known lengths, the same on every machine.

    short           8 + 9 tokens or so    two sentences, as in STS
    query-passage   10 + 120              reranking
    long            400 to 512            a passage beside a document
    mixed           mean 60, up to 512    log-normal: what a queue of pairs looks like

A text is a stretch of the export's own sentences in random order, with words left out where they would
overshoot. Tokens are those of the tokenizer in the package, the three special ones of a pair counted. No two
pairs of a workload are equal, but all are made of some 230 words, whose ids segue remembers from its first
call on; `host.py` has texts of many words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from segue.encoded import MIN_TOKENS
from segue.engine import DEFAULT_MODEL
from segue.export.sentences import SENTENCES
from segue.text import PairEncoder

__all__ = ["WORKLOADS", "Pair", "Workload", "make_pairs", "pairs_of", "token_counts"]

Pair = tuple[str, str]
Ints = NDArray[np.int64]
_LONGEST = 512


@dataclass(frozen=True)
class Workload:
    """How long the two sides are. `draw(generator, count)` gives `[count, 2]` tokens without special ones."""

    describes: str
    shortest: int  # tokens of a whole pair
    longest: int
    mean: int  # of many pairs, about
    draw: Callable[[np.random.Generator, int], Ints]


def make_pairs(name: str, count: int, *, seed: int = 0) -> list[Pair]:
    """Return `count` different pairs of the workload called `name`."""
    draw = np.random.default_rng([seed, *name.encode()])
    made: dict[Pair, None] = {}
    sizes = WORKLOADS[name].draw(draw, count)
    for first, second in sizes.tolist():
        pair = (_text(draw, first), _text(draw, second))
        while pair in made:
            pair = (_text(draw, first), _text(draw, second))
        made[pair] = None
    return list(made)


def pairs_of(name: str, mixed: int) -> int:
    """Return how many pairs of a workload hold about as many tokens as `mixed` pairs of the mixed one."""
    return max(2, round(mixed * WORKLOADS["mixed"].mean / WORKLOADS[name].mean))


def token_counts(pairs: list[Pair]) -> Ints:
    """Return the tokens of each pair, `[N]`, by the tokenizer in the package, none cut off."""
    encoded = PairEncoder(DEFAULT_MODEL / "tokenizer.json", 1 << 20).encode(pairs)
    return encoded.lengths[encoded.inverse]


def _uniform(first: tuple[int, int], second: tuple[int, int]) -> Callable[[np.random.Generator, int], Ints]:
    """Both sides between their two limits, which are included."""
    return lambda draw, count: draw.integers(
        [first[0], second[0]], [first[1], second[1]], size=(count, 2), endpoint=True
    )


def _log_normal(draw: np.random.Generator, count: int) -> Ints:
    """Two halves of a length of mean 60 and a spread of 0.8 in its logarithm, cut at 8 and 512.

    The lengths are the distribution's quantiles, shuffled: a few hundred drawn at random may miss the mean by
    a tenth.
    """
    normal = NormalDist(np.log(60) - 0.8**2 / 2, 0.8)
    lengths = np.exp([normal.inv_cdf((rank + 0.5) / count) for rank in draw.permutation(count)])
    room = np.clip(np.rint(lengths), 8, _LONGEST).astype(np.int64) - MIN_TOKENS
    return np.stack([room // 2, room - room // 2], axis=1)


def _text(draw: np.random.Generator, tokens: int) -> str:
    """Return words that make exactly so many tokens, in the order of sentences that were shuffled."""
    words, sizes = _words()
    taken: list[str] = []
    while tokens:
        sentence = int(draw.integers(len(words)))
        start = int(draw.integers(len(words[sentence]))) if not taken else 0
        for word, size in zip(words[sentence][start:], sizes[sentence][start:], strict=True):
            if size <= tokens:
                taken.append(word)
                tokens -= size
    return " ".join(taken)


@cache
def _words() -> tuple[list[list[str]], list[list[int]]]:
    """Words by sentence, and the tokens of each; a text's are the sum, for BERT splits at blanks first."""
    words = [sentence.split() for sentence in SENTENCES]
    every = sorted({word for sentence in words for word in sentence})
    encoded = PairEncoder(DEFAULT_MODEL / "tokenizer.json", 1 << 20).encode([(word, "") for word in every])
    tokens = dict(zip(every, (encoded.lengths[encoded.inverse] - MIN_TOKENS).tolist(), strict=True))
    return words, [[tokens[word] for word in sentence] for sentence in words]


WORKLOADS = {
    "short": Workload("two sentences, 13 to 27 tokens", 13, 27, 20, _uniform((5, 12), (5, 12))),
    "query-passage": Workload("6 to 14 tokens and 90 to 150", 99, 167, 133, _uniform((6, 14), (90, 150))),
    "long": Workload("400 to 512 tokens", 400, _LONGEST, 456, _uniform((48, 68), (349, 441))),
    "mixed": Workload("log-normal, mean 60, 8 to 512 tokens", 8, _LONGEST, 60, _log_normal),
}
