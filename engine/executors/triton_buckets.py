"""Which GPU graph a batch runs in: sizes rounded up to those of a bounded set. Pure.

A graph is captured for so many tokens, pairs and tokens of the longest pair. What a batch does not fill
is skipped on the device, which has the true counts, but for two products of the last attention and the
head's, of a row for each pair. So rounding up costs little: buckets may be wide, and few.
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


def buckets(max_tokens: int, longest: int, *, fine: bool = False) -> list[Bucket]:
    """All buckets for batches of up to max_tokens tokens, or of one longer pair, of pairs of up to `longest`.

    Tokens double from one to the next, with another half-way where they are to be `fine`; the longest pair
    doubles too, pairs grow fourfold. From small to large; those that no batch needs, because none is both
    small enough and too large for the one before, are left out.
    """
    found = []
    before = 0
    most_tokens = max(max_tokens, longest)
    doubled = _sizes(_LEAST_TOKENS, 2, most_tokens)
    between = [size + size // 2 for size in _sizes(_LEAST_TOKENS, 2, most_tokens)] if fine else []
    for tokens in _up_to(sorted({*doubled, *between}), most_tokens):
        shorter = 0
        for most in _up_to(_LONGEST, min(longest, tokens)):
            fewer = 0
            for pairs in _sizes(1, 4, max(1, tokens // _SPECIAL)):
                fullest, emptiest = pairs * most, max(shorter + 1, _SPECIAL) + fewer * _SPECIAL
                if fullest > before and emptiest <= tokens:
                    found.append(Bucket(tokens, pairs, most))
                fewer = pairs
            shorter = most
        before = tokens
    return sorted(found)


def bucket_of(among: Iterable[Bucket], tokens: int, pairs: int, longest: int) -> Bucket | None:
    """The first of the buckets that holds such a batch, or None."""
    return next((b for b in among if b.tokens >= tokens and b.pairs >= pairs and b.longest >= longest), None)


def _sizes(least: int, factor: int, most: int) -> list[int]:
    """From `least`, times `factor`, up to `most`, which is the last."""
    sizes = [least]
    while sizes[-1] < most:
        sizes.append(sizes[-1] * factor)
    return _up_to(sizes, most)


def _up_to(sizes: Iterable[int], most: int) -> list[int]:
    return [*(size for size in sizes if size < most), most]
