"""Which pairs run together, and how they lie in memory: the second step. Pure functions of numbers.

A batch is packed: the tokens of all its pairs end to end, with `cu_seqlens` marking where each pair starts.
Knows nothing about text or models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segue.text import Encoded, Ints

__all__ = ["PackedBatch", "pack", "plan"]


@dataclass(frozen=True)
class PackedBatch:
    """B pairs, T tokens; the inputs of the packed graph, all int64."""

    input_ids: Ints  # [T]
    token_type_ids: Ints  # [T], 0 up to and including the first [SEP], then 1
    position_ids: Ints  # [T], from 0 in every pair
    cu_seqlens: Ints  # [B+1]


def plan(lengths: Ints, max_batch_tokens: int, max_grid_tokens: int | None = None) -> list[Ints]:
    """Cut P pairs into batches: the rows of each, longest pairs first, equal lengths in their given order.

    A batch holds at most `max_batch_tokens` tokens, and its pairs times its longest pair are at most
    `max_grid_tokens`, for executors whose attention lays the pairs out as a grid. A pair longer than that
    runs alone.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    batches = []
    start = 0
    while start < len(order):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + max_batch_tokens, side="right"))
        if max_grid_tokens is not None:
            stop = min(stop, start + max_grid_tokens // int(lengths[order[start]]))
        stop = max(stop, start + 1)
        batches.append(order[start:stop])
        start = stop
    return batches


def pack(encoded: Encoded, rows: Ints) -> PackedBatch:
    """Lay the distinct pairs `rows` [B] end to end, each as `[CLS] A [SEP] B [SEP]`."""
    first, second = encoded.starts[encoded.pairs[rows]].T
    size = encoded.kept[rows, 0]
    lengths = encoded.lengths[rows]
    cu_seqlens = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=cu_seqlens[1:])
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]

    def spread(values: NDArray[np.int64]) -> Ints:
        return np.repeat(values, lengths)

    positions = np.arange(cu_seqlens[-1]) - spread(starts)
    types = (positions >= spread(size + 2)).astype(np.int64)
    # A token of A lies one place after its place in the sentence, for [CLS]; of B size + 2, for [CLS] A
    # [SEP].
    sources = positions + np.where(types == 1, spread(second - size - 2), spread(first - 1))
    ids = np.take(np.append(encoded.ids, 0), sources, mode="clip").astype(np.int64)
    ids[starts] = encoded.cls_id
    ids[starts + size + 1] = encoded.sep_id
    ids[ends - 1] = encoded.sep_id
    return PackedBatch(ids, types, positions, cu_seqlens)
