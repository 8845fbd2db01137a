"""Pre-training instances after BERT's recipe: which tokens are side A, which are side B, does B follow A.

The recipe is that of google-research/bert, create_pretraining_data.py. Both sides of an instance are runs of
tokens in a `TokenStore`, so an instance is five numbers, 28 bytes, however long it is; no token is copied.
Knows nothing about special tokens, masks or text. An epoch is a pure function of store, seed and number.
"""

from __future__ import annotations

__all__ = ["INSTANCE", "SHORT", "kept_tokens", "pack_epoch"]

import random
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segue.errors import InputError
from segue.export.instances import IS_NEXT, NOT_NEXT
from segue.export.token_store import TokenStore

# where each side begins in the store's ids, its tokens, and the label
INSTANCE = np.dtype([("a", "<i8"), ("b", "<i8"), ("a_tokens", "<i4"), ("b_tokens", "<i4"), ("label", "<i4")])
SHORT = 0.1  # share of documents with random target length
_STREAM = 1  # sets these random numbers apart from the masks' of the same seed
_BLOCK = 1 << 14  # instances made at once
_SPECIAL = 3  # [CLS], [SEP], [SEP]


def pack_epoch(
    store: TokenStore, *, max_tokens: int = 128, short: float = SHORT, seed: int = 0, epoch: int = 0
) -> NDArray[np.void]:
    """All instances of an epoch, [N] of INSTANCE, shuffled. Takes 28 bytes each, and as much again meanwhile.

    A document's sentences are gathered until they have the target length: max_tokens less the three special
    tokens, or, for a share `short` of the documents, anything from 2 up to that (as in BERT, a document keeps
    its target for an epoch). A chunk of two sentences or more is split at random into A and the rest. With
    probability 1/2 the rest is B and the label IS_NEXT; otherwise, and always where there is no rest, B is
    from another document, the label NOT_NEXT, and the rest is gathered again. A pair too long loses tokens
    one at a time from the longer side (B if equal), at its front or its end by a coin.

    B from a different document begins at a sentence drawn uniformly from all the other documents, and goes on
    to the target length or its document's end. BERT draws a document first, and settles for the same one
    after ten failed tries; here it is never the same, and long documents give as large a part of the false Bs
    as of the true ones, so that B's origin does not give the label away.

    Raises `InputError` for options out of range.
    """
    if max_tokens < _SPECIAL + 2:
        raise InputError(f"max_tokens: expected {_SPECIAL + 2} or more, one a side, got {max_tokens}")
    if not 0 <= short <= 1:
        raise InputError(f"short: expected a probability, got {short}")
    if seed < 0 or epoch < 0:
        raise InputError(f"seed, epoch: expected 0 or more, got {seed}, {epoch}")
    blocks = _blocks(store, max_tokens - _SPECIAL, short, np.random.default_rng([_STREAM, seed, epoch]))
    instances = np.concatenate(list(blocks))
    np.random.default_rng([_STREAM, seed, epoch, 1]).shuffle(instances)
    return instances


def kept_tokens(a: Any, b: Any, room: int) -> tuple[Any, Any]:
    """The lengths left, of one pair or of arrays of them, when the longer side, B if equal, loses a token at
    a time until both fit into `room`."""
    a = np.minimum(a, np.maximum(room - b, (room + 1) // 2))
    return a, np.minimum(b, room - a)


def _blocks(
    store: TokenStore, room: int, short: float, numbers: np.random.Generator
) -> Iterator[NDArray[np.void]]:
    """The instances in blocks, document after document in random order."""
    coins = random.Random(int(numbers.integers(2**63)))  # one number at a time, which numpy is slow at
    order = numbers.permutation(len(store.documents) - 1)
    chunks = _chunks(store, order, room, short, coins)
    while block := list(islice(chunks, _BLOCK)):
        yield _instances(store, np.array(block), room, numbers)


def _chunks(
    store: TokenStore, order: Iterable[int], room: int, short: float, coins: random.Random
) -> Iterator[tuple[int, int, int, int, int]]:
    """(document, target, first token, split, end) of each chunk; end is -1 where B is of another document."""
    for document in order:
        target = coins.randint(2, room) if coins.random() < short else room
        first, last = store.documents[document : document + 2].tolist()
        starts = memoryview(store.sentences)[first : last + 1]  # its items are plain ints
        i, count = 0, last - first
        while i < count:
            # no sentence is empty, so `target` of them are enough
            end = bisect_left(starts, starts[i] + target, i + 1, min(i + target, count))
            split, follows = i + 1, False
            if end - i >= 2:
                split = coins.randrange(i + 1, end)
                follows = coins.random() < 0.5
            yield int(document), target, starts[i], starts[split], starts[end] if follows else -1
            i = end if follows else split


def _instances(
    store: TokenStore, chunks: NDArray[np.int64], room: int, numbers: np.random.Generator
) -> NDArray[np.void]:
    document, target, a, b, end = chunks.T
    made = np.empty(len(chunks), INSTANCE)
    made["label"] = np.where(end < 0, NOT_NEXT, IS_NEXT)
    false = np.flatnonzero(end < 0)
    a_tokens, b_tokens = b - a, end - b
    b = b.copy()
    b[false], b_tokens[false] = _elsewhere(store, document[false], (target - a_tokens)[false], numbers)
    a_kept, b_kept = kept_tokens(a_tokens, b_tokens, room)
    made["a"] = a + numbers.binomial(a_tokens - a_kept, 0.5)  # how many coins say front
    made["b"] = b + numbers.binomial(b_tokens - b_kept, 0.5)
    made["a_tokens"], made["b_tokens"] = a_kept, b_kept
    return made


def _elsewhere(
    store: TokenStore, document: NDArray[np.int64], tokens: NDArray[np.int64], numbers: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(first token, length) of whole sentences outside each document, of that many tokens or just more."""
    first, last = store.documents[document], store.documents[document + 1]
    place = numbers.integers(0, store.documents[-1] - (last - first))
    place += np.where(place >= first, last - first, 0)
    start = store.sentences[place]
    end = np.searchsorted(store.sentences, start + tokens)
    final = store.documents[np.searchsorted(store.documents, place, side="right")]
    return start, store.sentences[np.clip(end, place + 1, final)] - start
