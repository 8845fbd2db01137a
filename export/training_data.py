"""What a fine-tuning step sees: drawn pairs as token ids, batched by length, some batches masked. Knows no
model."""

from __future__ import annotations

__all__ = ["Batches", "encode_pairs"]

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from torch.utils.data import IterableDataset

from segue.export.instances import Pair, Recipe, Source, draw_pairs
from segue.export.masking import Masking, Words, mask_tokens
from segue.export.packing import SHORT, kept_tokens

_GROUP = 32  # batches whose pairs are sorted by length together: little padding, random enough
_OVERSHOOT = 40  # most tokens by which a packing's last sentence is too long


def encode_pairs(
    tokenizer: Tokenizer,
    pairs: Sequence[Pair],
    max_tokens: int,
    *,
    packed: float = 0.0,
    draw: np.random.Generator | None = None,
) -> list[dict[str, list[int]]]:
    """input_ids and token_type_ids of each pair's `[CLS] a [SEP] b [SEP]`, at most max_tokens long.

    A pair too long loses tokens from its longer side, a at its front and b at its end: the text where the two
    meet tells most about whether one follows the other. A share `packed` of the pairs, drawn by `draw`, is
    cut as by BERT's packing instead: a tenth of them to a random length, and the last excess tokens are lost
    at front or end by a coin, so that the sides no longer quite meet.
    """
    texts = [side for pair in pairs for side in (pair.a, pair.b)]
    sides = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    cls, sep, _ = tokenizer.encode("", "").ids
    encoded = []
    for first, second in zip(sides[::2], sides[1::2], strict=True):
        room = max_tokens - 3
        if packed and draw is not None and draw.random() < packed:
            room = int(draw.integers(2, room)) if draw.random() < SHORT else room
            first, second = _fit(first, second, room + int(draw.integers(_OVERSHOOT)))
            first, second = _fit(first, second, room, draw)
        else:
            first, second = _fit(first, second, room)
        segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
        encoded.append({"input_ids": [cls, *first, sep, *second, sep], "token_type_ids": segments})
    return encoded


def _fit(
    first: list[int], second: list[int], room: int, coins: np.random.Generator | None = None
) -> tuple[list[int], list[int]]:
    """Cut the longer of the two until both fit: the first at its front and the second at its end, or each
    token at either by a coin."""
    of_first, of_second = kept_tokens(len(first), len(second), room)
    lost = len(first) - of_first, len(second) - of_second
    a, b = (lost[0], 0) if coins is None else coins.binomial(lost, 0.5)
    return first[a : a + of_first], second[b : b + of_second]


class Batches(IterableDataset):
    """Endless encoded pairs, ordered so that each run of batch_size has pairs of about one length.

    An item is what `pretraining_data.Instances` gives: input_ids, token_type_ids, next_sentence_label; and,
    in the share `masks` of the runs, always whole runs, labels of the hidden words. With `sums`, a vector for
    every sentence, also similarity: the cosine of the sums over each side's whole sentences. The share
    `packed` of the pairs is cut as in `encode_pairs`.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        recipe: Recipe,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        max_tokens: int,
        masks: float = 0.0,
        packed: float = 0.0,
        sums: Mapping[str, np.ndarray] | None = None,
        seed: int,
    ) -> None:
        self.sources, self.recipe, self.tokenizer = sources, recipe, tokenizer
        self.batch_size, self.max_tokens, self.masks, self.seed = batch_size, max_tokens, masks, seed
        self.words, self.sums, self.packed = Words(tokenizer) if masks else None, sums, packed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        size, pairs = self.batch_size, draw_pairs(self.sources, self.recipe, seed=self.seed)
        draw = np.random.default_rng(self.seed)
        while True:
            examples = self._encode(list(islice(pairs, size * _GROUP)), draw)
            examples.sort(key=lambda example: len(example["input_ids"]))
            for i in draw.permutation(_GROUP).tolist():
                masked = self.words is not None and draw.random() < self.masks
                for example in examples[i * size : (i + 1) * size]:
                    yield self._mask(example, draw) if masked else example

    def _encode(self, pairs: Sequence[Pair], draw: np.random.Generator) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = [
            *encode_pairs(self.tokenizer, pairs, self.max_tokens, packed=self.packed, draw=draw)
        ]
        for item, pair in zip(items, pairs, strict=True):
            item["next_sentence_label"] = pair.label
            if self.sums is not None:
                item["similarity"] = self._similarity(pair)
        return items

    def _similarity(self, pair: Pair) -> np.float32:
        a, b = (np.sum([self.sums[sentence] for sentence in side], axis=0) for side in pair.sentences)
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    def _mask(self, example: dict[str, Any], draw: np.random.Generator) -> dict[str, Any]:
        seen, labels = mask_tokens(np.array(example["input_ids"]), self.words, Masking(), draw)
        return {**example, "input_ids": seen, "labels": labels}
