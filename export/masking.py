"""Masked language modelling: which tokens are hidden, by what, and what the model has to predict.

BERT's: 15 % of the tokens, of which 80 % become [MASK], 10 % a random word and 10 % stay. Works on the ids of
one instance; knows nothing about text, pairs or epochs.
"""

from __future__ import annotations

__all__ = ["IGNORED", "Masking", "Words", "mask_tokens"]

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from segue.errors import InputError
from segue.export.vocabulary import SPECIAL

IGNORED = -100  # the label where there is nothing to predict: PyTorch's cross-entropy skips it
_NO_WORD = re.compile(r"\[unused\d+\]")  # rows that BERT's vocabularies keep free
_HIDDEN, _REPLACED = 0.8, 0.1  # of the chosen tokens: [MASK], a random word; the others stay


def mask_tokens(
    ids: NDArray[np.integer], words: Words, masking: Masking, draw: np.random.Generator
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(what the model sees, labels) of one instance's ids, special tokens included: each [n] int32.

    `max(1, round(n * share))` tokens are chosen, n including special ones as in BERT's code, but never a
    special token, [UNK] included. With whole words, they are taken in random order as long as they fit that
    number, which they may not fill; if none fits, one is taken all the same. A label is the id of a chosen
    token, IGNORED elsewhere.
    """
    seen, labels = np.array(ids, dtype=np.int32), np.full(len(ids), IGNORED, dtype=np.int32)
    open_ = np.flatnonzero(words.ordinary[seen])
    count = min(max(1, round(len(seen) * masking.share)), len(open_))
    if masking.whole_words:
        chosen = _whole_words(open_, words.continues[seen[open_]], count, draw)
    else:
        chosen = draw.permutation(open_)[:count]
    labels[chosen] = seen[chosen]
    fate = draw.random(len(chosen))
    seen[chosen[fate < _HIDDEN]] = words.mask
    replaced = chosen[(fate >= _HIDDEN) & (fate < _HIDDEN + _REPLACED)]
    seen[replaced] = words.replacements[draw.integers(len(words.replacements), size=len(replaced))]
    return seen, labels


def _whole_words(
    places: NDArray[np.intp], continues: NDArray[np.bool_], count: int, draw: np.random.Generator
) -> NDArray[np.intp]:
    """Places of whole words, `count` or somewhat fewer. A word ends at a special token, even if what comes
    after it begins with a piece, as a sentence cut at its front may."""
    begins = np.flatnonzero(~continues | (np.diff(places, prepend=-2) > 1)).tolist()
    ends = [*begins[1:], len(places)]
    order = draw.permutation(len(begins)).tolist()
    chosen: list[int] = []
    for word in order:
        if len(chosen) + ends[word] - begins[word] <= count:
            chosen.extend(range(begins[word], ends[word]))
        if len(chosen) == count:
            break
    if not chosen and order:
        chosen.extend(range(begins[order[0]], ends[order[0]]))
    return places[chosen]


@dataclass(frozen=True)
class Masking:
    """How much is hidden. share: of an instance's tokens. whole_words: pieces go with their word."""

    share: float = 0.15
    whole_words: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"masking.share: expected more than 0 and at most 1, got {self.share}")


class Words:
    """What masking needs to know of a vocabulary of V ids.

    mask: the id of [MASK]. ordinary: [V] bool, no special token. continues: [V] bool, a piece (##) of the
    word before it. replacements: the ids a random word is drawn from: ordinary and not one of [unusedN].
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises `InputError` where the vocabulary has no [MASK] or no ordinary word."""
        tokens = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
        added = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        if "[MASK]" not in tokens.values():
            raise InputError("vocabulary: it has no [MASK], so no words can be masked")
        self.mask: int = tokenizer.token_to_id("[MASK]")
        self.ordinary = np.zeros(max(tokens) + 1, dtype=bool)
        self.continues = np.zeros(max(tokens) + 1, dtype=bool)
        replacements = []
        for i, token in sorted(tokens.items()):
            self.ordinary[i] = i not in added and token not in SPECIAL
            self.continues[i] = token.startswith("##")
            if self.ordinary[i] and not _NO_WORD.fullmatch(token):
                replacements.append(i)
        if not replacements:
            raise InputError("vocabulary: it has no word but special tokens")
        self.replacements = np.array(replacements, dtype=np.int32)
