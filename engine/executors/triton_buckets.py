"""Which GPU graph a batch runs in: sizes rounded up to those of a bounded set. Pure.

A graph is captured for so many tokens, pairs and tokens of the longest pair. What a batch has less of is
skipped on the device, where the true counts are, so that rounding up costs a few empty programs and no
arithmetic: buckets may be wide, and few.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Bucket", "bucket_of", "buckets"]

_LEAST_TOKENS = 64
_LONGEST = (32, 64, 128, 256)  # and the model's limit
_SPECIAL = 3  # tokens that the shortest pair has


class Bucket(NamedTuple):
    """At most so many tokens, pairs, and tokens of the longest pair."""

    tokens: int
    pairs: int
    longest: int


def buckets(max_tokens: int, longest: int) -> list[Bucket]:
    """All buckets for batches of up to max_tokens tokens, of pairs of up to `longest`: tokens double from
    one to the next, pairs fourfold; those that no batch could need are left out. From small to large."""
    found = []
    for tokens in _sizes(_LEAST_TOKENS, 2, max(max_tokens, longest)):
        for most in sorted({*(size for size in _LONGEST if size < longest), longest}):
            for pairs in _sizes(1, 4, -(-tokens // _SPECIAL)):
                # the bucket before must not do: such a batch has more than half of these tokens
                if pairs * most > tokens // 2 or tokens == _LEAST_TOKENS:
                    found.append(Bucket(tokens, pairs, most))
                if pairs * _SPECIAL >= tokens:
                    break
    return found


def bucket_of(among: Iterable[Bucket], tokens: int, pairs: int, longest: int) -> Bucket | None:
    """The smallest bucket that holds such a batch, or None."""
    fitting = (b for b in among if b.tokens >= tokens and b.pairs >= pairs and b.longest >= longest)
    return min(fitting, default=None)


def _sizes(least: int, factor: int, most: int) -> list[int]:
    """least, and so on by `factor`, the last being `most` or more."""
    sizes = [least]
    while sizes[-1] < most:
        sizes.append(sizes[-1] * factor)
    return sizes
