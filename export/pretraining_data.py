"""What a pre-training step sees: packed instances with special tokens, segment ids, masks and both labels.

An item is a pure function of the token store, the options, the seed, the epoch and its number, so that a
resumed run and any number of worker processes see the same. Knows no model.
"""

from __future__ import annotations

__all__ = ["Course", "Instances", "collate"]

from bisect import bisect_right
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from segue.errors import InputError
from segue.export.masking import IGNORED, Masking, Words, mask_tokens
from segue.export.packing import pack_epoch
from segue.export.token_store import TokenStore

_STREAM = 2  # sets these random numbers apart from the packing's of the same seed

_BERT = Masking()


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch for `BertForPreTraining`, padded to its longest, S: input_ids (padding is 0, whatever that is:
    the mask hides it), token_type_ids, attention_mask [B, S]; and, if the items have them, labels [B, S],
    next_sentence_label [B], all int64, and similarity [B] float32."""
    longest = max(len(item["input_ids"]) for item in items)

    def padded(rows: list[NDArray[np.integer]], fill: int) -> torch.Tensor:
        batch = np.full((len(rows), longest), fill, dtype=np.int64)
        for row, values in zip(batch, rows, strict=True):
            row[: len(values)] = values
        return torch.from_numpy(batch)

    batch = {
        "input_ids": padded([item["input_ids"] for item in items], 0),
        "token_type_ids": padded([item["token_type_ids"] for item in items], 0),
        "attention_mask": padded([np.ones(len(item["input_ids"]), np.int8) for item in items], 0),
    }
    if "labels" in items[0]:
        batch["labels"] = padded([item["labels"] for item in items], IGNORED)
    for name in ("next_sentence_label", "similarity"):
        if name in items[0]:
            batch[name] = torch.tensor([item[name] for item in items])
    return batch


class Instances:
    """A map-style dataset of one epoch's instances in random order; `set_epoch` turns to another.

    An item is a dict of input_ids, token_type_ids and labels, [n] int32 each with n at most max_tokens, and
    next_sentence_label, 0 where B follows A, else 1. Memory is 28 bytes an instance, twice that while an
    epoch is built; the tokens stay on disk. Epochs differ a little in length. Pickles without the tokens.
    """

    def __init__(
        self,
        store: TokenStore,
        tokenizer: Tokenizer,
        *,
        max_tokens: int = 128,
        masking: Masking = _BERT,
        seed: int = 0,
    ) -> None:
        """Raises `InputError` if the store has another tokenizer or an option is out of range."""
        store.check_tokenizer(tokenizer)
        self.store, self.words, self.masking = store, Words(tokenizer), masking
        self.options: dict[str, Any] = {"max_tokens": max_tokens, "seed": seed}
        self.cls, self.sep, _ = tokenizer.encode("", "").ids
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Turn to that epoch, counted from 0: other instances, other masks."""
        self.packed = pack_epoch(self.store, epoch=epoch, **self.options)
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        a, b, a_tokens, b_tokens, label = self.packed[i].tolist()
        ids = np.empty(a_tokens + b_tokens + 3, dtype=np.int32)
        ids[0], ids[a_tokens + 1], ids[-1] = self.cls, self.sep, self.sep
        ids[1 : a_tokens + 1] = self.store.ids[a : a + a_tokens]
        ids[a_tokens + 2 : -1] = self.store.ids[b : b + b_tokens]
        draw = np.random.default_rng([_STREAM, self.options["seed"], self.epoch, i])
        seen, labels = mask_tokens(ids, self.words, self.masking, draw)
        segments = np.zeros(len(ids), dtype=np.int32)
        segments[a_tokens + 2 :] = 1
        return {
            "input_ids": seen,
            "token_type_ids": segments,
            "labels": labels,
            "next_sentence_label": label,
        }


class Course:
    """The first `count` instances of epoch after epoch as one dataset, to be read in order.

    Its length is fixed beforehand, whatever the epochs' lengths, so a trainer's arithmetic of steps holds
    when it resumes in the middle. Reading from any index on builds all epochs before it once, to count them.
    """

    def __init__(self, instances: Instances, count: int) -> None:
        if count < 1:
            raise InputError(f"count: expected 1 instance or more, got {count}")
        self.instances, self.count = instances, count
        self.instances.set_epoch(0)
        self.ends = [len(instances)]  # of the epochs counted so far

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(self.count)[i]
        while i >= self.ends[-1]:
            self.instances.set_epoch(len(self.ends))
            self.ends.append(self.ends[-1] + len(self.instances))
        epoch = bisect_right(self.ends, i)
        if epoch != self.instances.epoch:
            self.instances.set_epoch(epoch)
        return self.instances[i - (self.ends[epoch - 1] if epoch else 0)]
