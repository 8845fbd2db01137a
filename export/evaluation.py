"""What `segue evaluate` judges a next sentence model by: sets of pairs, and measures of its scores.

Draws pairs and counts; knows no model. Needs no PyTorch.
"""

from __future__ import annotations

__all__ = ["ALL", "KINDS", "PACKED", "PairSet", "distance", "drawn_set", "measured", "packed_set"]

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders

from segue.errors import InputError
from segue.export.corpus import Document
from segue.export.instances import IS_NEXT, Pair, Recipe, Source, draw_pairs
from segue.export.measures import accuracy, auc, calibration_bins, calibration_error
from segue.export.packing import pack_epoch
from segue.export.token_store import TokenStore

# name of a kind of negatives: how they are drawn
KINDS = {
    "other document": Recipe(),
    "same document, not adjacent": Recipe(same_document=1.0),
    "swapped": Recipe(swapped=1.0),
}
ALL, PACKED = "all", "packed"
_DRAWN_AS = {"same document, not adjacent": "not adjacent"}  # where `Pair.kind` has another word for it


def drawn_set(
    documents: Sequence[Document], kind: str, *, pairs: int, sides: int, seed: int = 0
) -> PairSet | str:
    """A set of `pairs` pairs, half IsNext (the odd one too), the rest negatives of one of the `KINDS`, with 1
    to `sides` sentences a side; or, in words, why the documents give none. Drawn with replacement, so a small
    corpus gives a pair twice.

    Each number of sentences is equally likely, but a side ends with its document: with `sides=3`, 29 % of the
    sides have three in documents of 16 sentences, 31 % in those of 40. Negatives that are not adjacent come
    from documents so long that every place in them has one, and so do the positives beside them.

    Neither side alone tells the label where side B comes from another document. Where it comes from the same
    one, a side's place tells something, the less the longer the document. A side B that is not adjacent lies
    further from the middle than one that follows, and is cut short more often: the area under the curve of
    that distance alone is .63 in documents of 16 sentences and .51 in those of 40; of B's length .53 and .50.
    Of swapped sides A is the later one: for A's place alone it is .62 and .55, and 1 in documents of two
    sentences, where A is the second.
    """
    least = 3 * sides + 7 if kind in _DRAWN_AS else 2  # with one fewer, the middle place has none
    fitting = tuple(document for document in documents if len(document.sentences) >= least)
    if len(fitting) < 2:
        return f"it takes two documents of {least} sentences or more, and there are {len(fitting)}"
    source, recipe = Source(kind, fitting), replace(KINDS[kind], sides=(1,) * sides)
    number = seed * len(KINDS) + list(KINDS).index(kind)  # no two kinds share their draws
    drawn = [
        pair
        for share, count in ((1.0, (pairs + 1) // 2), (0.0, pairs // 2))
        for pair in islice(draw_pairs([source], replace(recipe, positives=share), seed=number), count)
    ]
    assert {pair.kind for pair in drawn} <= {"next", _DRAWN_AS.get(kind, kind)}
    return PairSet(kind, drawn, len(fitting))


def packed_set(
    store: TokenStore, tokenizer: Tokenizer, *, pairs: int, max_tokens: int, seed: int = 0
) -> PairSet:
    """The first `pairs` instances of BERT's own packing to `max_tokens` tokens, as text, or all there are.

    A word that the packing cut is scored as it stands: "play ##ing", cut at its front, gives the text "ing",
    which may be tokenised differently. All other tokens come back as they were.
    """
    plain = Tokenizer.from_str(tokenizer.to_str())
    if plain.decoder is None or isinstance(plain.decoder, decoders.WordPiece):
        plain.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # cleaning glues marks to words

    def text(start: int, tokens: int) -> str:
        ids = store.ids[start : start + tokens].tolist()
        return str(plain.decode(ids, skip_special_tokens=False)).removeprefix("##")

    packed = [
        Pair(text(a, a_tokens), text(b, b_tokens), label, PACKED)
        for a, b, a_tokens, b_tokens, label in pack_epoch(store, max_tokens=max_tokens, seed=seed)[
            :pairs
        ].tolist()
    ]
    return PairSet(PACKED, packed, len(store.documents) - 1)


def measured(
    probabilities: NDArray[np.floating], truth: NDArray[np.bool_], truncated: NDArray[np.bool_]
) -> dict[str, Any]:
    """How well the P(IsNext) of N pairs fits the truth (True: IsNext), and how many were truncated; all [N].
    auc is None if either label is missing; `bins` are calibration_error's, without empty ones.
    """
    if not len(truth):
        raise InputError("pairs: none to measure on")
    area = auc(probabilities, truth)
    bins = zip(*(values.tolist() for values in calibration_bins(probabilities, truth)), strict=True)
    return {
        "pairs": len(truth),
        "is_next": int(truth.sum()),
        "truncated": int(truncated.sum()),
        "accuracy": round(accuracy(probabilities, truth), 6),
        "auc": None if np.isnan(area) else round(area, 6),
        "calibration_error": round(calibration_error(probabilities, truth), 6),
        "bins": [
            {"pairs": count, "probability": round(mean, 6), "is_next": round(share, 6)}
            for count, mean, share in bins
            if count
        ],
    }


def distance(found: NDArray[np.floating], expected: NDArray[np.floating]) -> dict[str, Any]:
    """In how many of N pairs the decision differs (above 0.5 or not), and the largest difference of their
    probabilities [N]."""
    return {
        "pairs": len(found),
        "decisions_differ": int(((found > 0.5) != (expected > 0.5)).sum()),
        "largest_difference": float(np.abs(found.astype(np.float64) - expected).max(initial=0)),
    }


@dataclass(frozen=True)
class PairSet:
    """Pairs to judge by under one name, and how many documents they could come from."""

    name: str
    pairs: list[Pair]
    documents: int

    @property
    def truth(self) -> NDArray[np.bool_]:
        """[N]: whether each pair is IsNext."""
        return np.array([pair.label == IS_NEXT for pair in self.pairs], dtype=bool)
