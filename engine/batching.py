"""Which pairs run together, and how they lie in memory: the second step. Works on numbers alone, but the next
batch of `plan_stepwise` may have more text encoded first.

A batch is packed: the tokens of all its pairs end to end, with `cu_seqlens` marking where each pair starts.
Knows nothing about text or models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np

from segue.encoded import Encoded, Ints

__all__ = ["INPUTS", "PackedBatch", "pack", "plan", "plan_stepwise"]

_LEAST_TOKENS = 256  # of a batch that is kept small for the sake of others


@dataclass(frozen=True)
class PackedBatch:
    """B pairs, T tokens; the inputs of the packed graph, all int64."""

    input_ids: Ints  # [T]
    token_type_ids: Ints  # [T], 0 up to and including the first [SEP], then 1
    position_ids: Ints  # [T], from 0 in every pair
    cu_seqlens: Ints  # [B+1]


INPUTS = tuple(field.name for field in fields(PackedBatch))


def plan(
    lengths: Ints,
    max_batch_tokens: int,
    max_grid_tokens: int | None = None,
    max_grid_squares: int | None = None,
    lanes: int = 1,
) -> list[Ints]:
    """Cut P pairs into batches: the rows of each, longest pairs first, equal lengths in their given order.

    A batch holds at most `max_batch_tokens` tokens. Where attention lays the pairs out as a grid, that is
    bounded too: its tokens, pairs times the longest pair, by `max_grid_tokens`, and a head's scores, pairs
    times the square of the longest, by `max_grid_squares`. A pair beyond any of these runs alone.

    Where several run at a time, in as many `lanes`, the last batches are ever smaller, so that all lanes end
    at about the same time: of what is left, none takes more than half of its lane's share.
    """
    if len(lengths) == 1:  # nothing to sort, and a call has no time to lose
        return [np.zeros(1, dtype=np.int64)]
    longest = lengths.max(initial=0)
    # NumPy sorts 16 bits by radix, ten times as fast as 64.
    order = np.argsort((longest - lengths).astype(np.min_scalar_type(longest)), kind="stable")
    ends = np.cumsum(lengths[order])
    batches = []
    start = 0
    while start < len(order):
        before = ends[start - 1] if start else 0
        room = max_batch_tokens
        if lanes > 1:
            room = min(room, max(_LEAST_TOKENS, int(ends[-1] - before) // (2 * lanes)))
        stop = int(np.searchsorted(ends, before + room, side="right"))
        most = int(lengths[order[start]])
        if max_grid_tokens is not None:
            stop = min(stop, start + max_grid_tokens // most)
        if max_grid_squares is not None:
            stop = min(stop, start + max_grid_squares // most**2)
        stop = max(stop, start + 1)
        batches.append(order[start:stop])
        start = stop
    return batches


def plan_stepwise(encoded: Encoded, cut: Callable[[Ints], list[Ints]]) -> Iterator[Ints]:
    """Yield the rows of each batch, those of one encoding step before the next step.

    Args:
        cut: `plan`, for an executor. The last batch of a step, which has room left, waits for the next.
    """
    begun, waiting = 0, np.arange(0)
    while True:
        encoded.more()
        done = len(encoded.kept)
        rows = np.concatenate((waiting, np.arange(begun, done)))
        batches = [rows[some] for some in cut(encoded.lengths[rows])]
        begun = done
        if done == len(encoded.pairs):
            break
        waiting = batches.pop() if batches else waiting
        yield from batches
    yield from batches


def pack(encoded: Encoded, rows: Ints) -> PackedBatch:
    """Lay the distinct pairs `rows` [B] end to end, each as `[CLS] A [SEP] B [SEP]`."""
    halves = (encoded.kept[rows] + (2, 1)).ravel()  # tokens of [CLS] A [SEP], of B [SEP], and so on
    ends = np.zeros(len(halves) + 1, dtype=np.int64)
    np.cumsum(halves, out=ends[1:])
    cu_seqlens = ends[::2].copy()
    places = np.arange(ends[-1])
    positions = places - cu_seqlens[:-1].repeat(cu_seqlens[1:] - cu_seqlens[:-1])
    types = (np.arange(len(halves)) & 1).repeat(halves)
    sources = encoded.starts[encoded.pairs[rows]] - (1, 0)  # of each half's first place; [CLS] has none
    places += (sources.ravel() - ends[:-1]).repeat(halves)
    some = encoded.ids if len(encoded.ids) else np.zeros(1, dtype=np.int32)
    ids = some.take(places, mode="clip").astype(np.int64)
    ids[cu_seqlens[:-1]] = encoded.cls_id
    ids[ends[1:] - 1] = encoded.sep_id
    return PackedBatch(ids, types, positions, cu_seqlens)
