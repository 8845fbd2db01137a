"""What a training step sees: drawn pairs as token ids, batched by length, padded. Knows no model."""

from __future__ import annotations

__all__ = ["Batches", "collate", "encode_pair"]

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.utils.data import IterableDataset

from segue.export.instances import Pair, Recipe, Source, draw_pairs

_GROUP = 32  # batches whose pairs are sorted by length together: little padding, random enough


def encode_pair(tokenizer: Tokenizer, a: str, b: str, max_tokens: int) -> tuple[list[int], list[int]]:
    """(token ids, segment ids) of `[CLS] a [SEP] b [SEP]`, at most max_tokens long.

    What is too long loses tokens from the longer side, a at its front and b at its end: what is said where
    the two meet tells most about whether one follows the other.
    """
    first, second = (side.ids for side in tokenizer.encode_batch([a, b], add_special_tokens=False))
    over = max(len(first) + len(second) - (max_tokens - 3), 0)
    longer = len(first) - len(second)
    uneven = min(over, abs(longer))
    from_first = (uneven if longer > 0 else 0) + (over - uneven) // 2
    first, second = first[from_first:], second[: len(second) - (over - from_first)]
    cls, sep, _ = tokenizer.encode("", "").ids
    return [cls, *first, sep, *second, sep], [0] * (len(first) + 2) + [1] * (len(second) + 1)


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad a batch to its longest pair. ids, segments, mask: [B, S]; labels: [B]."""
    longest = max(len(example["input_ids"]) for example in examples)

    def padded(rows: list[list[int]]) -> torch.Tensor:
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])

    return {
        "input_ids": padded([example["input_ids"] for example in examples]),
        "token_type_ids": padded([example["token_type_ids"] for example in examples]),
        "attention_mask": padded([[1] * len(example["input_ids"]) for example in examples]),
        "labels": torch.tensor([example["labels"] for example in examples]),
    }


class Batches(IterableDataset):
    """Encoded pairs without end, so ordered that each run of batch_size has pairs of about one length."""

    def __init__(
        self,
        sources: Sequence[Source],
        recipe: Recipe,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        max_tokens: int,
        seed: int,
    ) -> None:
        self.sources, self.recipe, self.tokenizer = sources, recipe, tokenizer
        self.batch_size, self.max_tokens, self.seed = batch_size, max_tokens, seed
        self.tokens = 0  # handed out so far

    def __iter__(self) -> Iterator[dict[str, Any]]:
        size, pairs = self.batch_size, draw_pairs(self.sources, self.recipe, seed=self.seed)
        order = torch.Generator().manual_seed(self.seed)
        while True:
            examples = [self._encode(pair) for pair in islice(pairs, size * _GROUP)]
            examples.sort(key=lambda example: len(example["input_ids"]))
            for i in torch.randperm(_GROUP, generator=order).tolist():
                for example in examples[i * size : (i + 1) * size]:
                    self.tokens += len(example["input_ids"])
                    yield example

    def _encode(self, pair: Pair) -> dict[str, Any]:
        ids, segments = encode_pair(self.tokenizer, pair.a, pair.b, self.max_tokens)
        return {"input_ids": ids, "token_type_ids": segments, "labels": pair.label}
