"""Next sentence prediction pairs drawn from documents: side A, side B, and whether B really follows.

Label 0 is IsNext, 1 is NotNext. Works on sentences; knows nothing about tokens. Every stream is endless,
never repeats an epoch's pairs, and is a pure function of its sources, recipe and seed.
"""

from __future__ import annotations

__all__ = ["IS_NEXT", "NOT_NEXT", "Pair", "Recipe", "Source", "draw_pairs"]

import random
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from segue.errors import InputError
from segue.export.corpus import Document

IS_NEXT, NOT_NEXT = 0, 1
_GAP = 3  # sentences that must lie between the two sides of a not-adjacent pair
_FINAL_MARK = re.compile(r"[.!?\u2026]+[\"'\u201d\u2019)\]]*$")
_CLAUSE = re.compile(r"(?<=[,;:—])\s*")


def draw_pairs(sources: Sequence[Source], recipe: Recipe, *, seed: int = 0) -> Iterator[Pair]:
    """An endless stream of pairs. A source is chosen by share, then a place between two neighbouring
    sentences, all equally likely. Side A ends there; side B starts there (IsNext) or at another place.

    Both sides of negatives from other documents come from the same distribution as those of positives, so
    that neither side alone gives the label away. For those from the same document this nearly holds, if it
    has some 40 sentences or more; in shorter ones a side's place and length tell something of the label
    (`evaluation.drawn_set` says how much). Raises `InputError` where no negative can be drawn.
    """
    if not sources:
        raise InputError("sources: expected at least one")
    places = [_Places(source) for source in sources]
    weights = list(accumulate(source.share for source in sources))
    return _stream(places, weights, recipe, random.Random(seed))


def _stream(
    places: list[_Places], weights: list[float], recipe: Recipe, rng: random.Random
) -> Iterator[Pair]:
    while True:
        here = _choose(places, weights, rng)
        document, at = here.pick(rng)
        sizes = rng.choices(range(1, len(recipe.sides) + 1), recipe.sides, k=2)
        before = document.sentences[max(at - sizes[0], 0) : at]
        kind, start = "next", (document, at)
        if rng.random() >= recipe.positives:
            kind, start = _elsewhere(here, places, document, at, sizes, recipe, rng)
        after = start[0].sentences[start[1] : start[1] + sizes[1]]
        label = IS_NEXT if kind == "next" else NOT_NEXT
        if kind == "swapped":
            before, after = after, before
        yield Pair(_vary(before, recipe, rng, -1), _vary(after, recipe, rng, 0), label, kind, (before, after))


def _elsewhere(here, places, document, at, sizes, recipe, rng) -> tuple[str, tuple[Document, int]]:
    """(kind of negative, where its side B starts). A document too short for a not-adjacent pair gives one
    with another document."""
    if recipe.swapped and rng.random() < recipe.swapped:
        return "swapped", (document, at)
    if rng.random() < recipe.same_document:
        first, last = at - sizes[0] - _GAP - sizes[1], at + sizes[1] + _GAP
        starts = [i for i in range(1, len(document.sentences)) if i <= first or i >= last]
        if starts:
            return "not adjacent", (document, rng.choice(starts))
    if len(places) > 1 and rng.random() < recipe.other_source:
        return "other source", rng.choice([other for other in places if other is not here]).pick(rng)
    return "other document", here.pick(rng, but=document)


def _choose(places: list[_Places], weights: list[float], rng: random.Random) -> _Places:
    return rng.choices(places, cum_weights=weights)[0]


def _vary(sentences: Sequence[str], recipe: Recipe, rng: random.Random, near: int) -> str:
    """A side's text. `near` is the index of the clause next to the place where the sides meet."""
    text = " ".join(sentences)
    if rng.random() < recipe.clause:
        clause = _CLAUSE.split(text)[near].rstrip(",;:— ")
        text = clause if len(clause.split()) >= 4 else text
    if rng.random() < recipe.unmarked:
        text = _FINAL_MARK.sub("", text) or text
    return text


@dataclass(frozen=True)
class Pair:
    """Two texts; label 0 if b follows a, else 1; kind: next, other document, not adjacent, swapped (true
    neighbours in the wrong order), other source; for drawn pairs, the whole sentences of a and of b."""

    a: str
    b: str
    label: int
    kind: str
    sentences: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


@dataclass(frozen=True)
class Source:
    """Documents of one sort, among which negatives are drawn, and their share of the pairs."""

    name: str
    documents: tuple[Document, ...]
    share: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """How pairs are drawn; every number but `sides` is a probability.

    A negative is swapped, or else from the same document, or else from another source, or else from another
    document of the same source.
    """

    positives: float = 0.5  # that a pair is IsNext
    same_document: float = 0.0  # that a negative's side B is from the same document, not adjacent
    other_source: float = 0.0  # that it is from another source
    sides: tuple[float, ...] = (1, 1, 1)  # the weights of 1, 2, 3 ... sentences a side
    clause: float = 0.0  # that a side is cut to the one clause next to the other side
    unmarked: float = 0.0  # that a side loses its final punctuation
    swapped: float = 0.0  # that a negative is two neighbours in the wrong order


class _Places:
    """The places between neighbouring sentences of a source's documents, numbered from first to last."""

    def __init__(self, source: Source) -> None:
        self.documents = [document for document in source.documents if len(document.sentences) > 1]
        if len(self.documents) < 2:
            raise InputError(
                f"sources[{source.name!r}]: expected two documents or more with two sentences or more, got "
                f"{len(self.documents)}; a negative needs a different document"
            )
        self.ends = list(accumulate(len(document.sentences) - 1 for document in self.documents))
        self.index = {id(document): i for i, document in enumerate(self.documents)}

    def pick(self, rng: random.Random, but: Document | None = None) -> tuple[Document, int]:
        """(document, index of the sentence after the place), uniform over all places not in `but`."""
        size = start = 0
        if but is not None:
            i = self.index[id(but)]
            size, start = len(but.sentences) - 1, self.ends[i] - len(but.sentences) + 1
        place = rng.randrange(self.ends[-1] - size)
        place += size if place >= start else 0
        i = bisect_right(self.ends, place)
        return self.documents[i], place - (self.ends[i - 1] if i else 0) + 1
