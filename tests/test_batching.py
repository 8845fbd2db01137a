"""Planning and packing as pure functions of numbers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue.batching import pack, plan, plan_stepwise
from segue.encoded import Encoded

lengths_lists = st.lists(st.integers(3, 512), max_size=200)


@given(
    lengths=lengths_lists,
    budget=st.integers(1, 4096),
    grid=st.one_of(st.none(), st.integers(1, 8192)),
    squares=st.one_of(st.none(), st.integers(1, 1 << 20)),
    lanes=st.integers(1, 8),
)
def test_every_pair_runs_once_within_the_budget(lengths, budget, grid, squares, lanes):
    lengths = np.array(lengths, dtype=np.int64)
    batches = plan(lengths, budget, grid, squares, lanes)
    assert sorted(np.concatenate(batches).tolist() if batches else []) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) == 1 or lengths[rows].sum() <= budget
        assert grid is None or len(rows) == 1 or len(rows) * lengths[rows].max() <= grid
        assert squares is None or len(rows) == 1 or len(rows) * lengths[rows].max() ** 2 <= squares


@given(lengths=lengths_lists, lanes=st.integers(1, 8))
def test_longest_pairs_come_first_and_equal_ones_keep_their_order(lengths, lanes):
    lengths = np.array(lengths, dtype=np.int64)
    order = [row for rows in plan(lengths, 1024, lanes=lanes) for row in rows.tolist()]
    assert order == sorted(order, key=lambda row: (-lengths[row], row))


@given(lengths=st.lists(st.integers(3, 512), min_size=1, max_size=200))
def test_no_batch_could_have_taken_the_next_pair(lengths):
    lengths = np.array(lengths, dtype=np.int64)
    batches = plan(lengths, 1024)
    for rows, following in pairwise(batches):
        assert lengths[rows].sum() + lengths[following[0]] > 1024


@given(lengths=st.lists(st.integers(3, 256), min_size=1, max_size=2000), lanes=st.integers(2, 16))
def test_lanes_end_within_a_small_batch_of_each_other(lengths, lanes):
    """Each takes the next batch when it is free, and needs a moment a token."""
    lengths = np.array(lengths, dtype=np.int64)
    ends = [0] * lanes
    for rows in plan(lengths, 512, lanes=lanes):
        ends[ends.index(min(ends))] += int(lengths[rows].sum())
    assert max(ends) <= lengths.sum() / lanes + 256


def test_only_the_last_batches_are_smaller_where_several_run_at_a_time():
    lengths = np.full(1000, 20)
    tokens = [int(lengths[rows].sum()) for rows in plan(lengths, 512, lanes=4)]
    assert tokens == [*[500] * 33, 420, 380, 320, 280, 260, *[240] * 7, 160]


def test_one_long_pair_does_not_stretch_the_grid_of_many_short_ones():
    """A 512-token pair among 400 of 8 tokens: as one batch its attention grid would be 401 x 512."""
    lengths = np.array([8] * 400 + [512])
    assert len(plan(lengths, 4096)) == 1
    assert max(len(rows) * lengths[rows].max() for rows in plan(lengths, 4096, 8192)) <= 8192


def test_scores_are_bounded_where_pairs_are_long_and_nowhere_else():
    lengths = np.array([512] * 8 + [32] * 64)
    batches = plan(lengths, 2048, 4096, 350_000)  # 512 squared are 262,144
    assert [len(rows) for rows in batches] == [*[1] * 8, 64]


@pytest.mark.parametrize("length", [5, 511])
def test_a_pair_longer_than_the_budget_runs_alone(length):
    assert [rows.tolist() for rows in plan(np.array([length] * 3), 4, 4)] == [[0], [1], [2]]


def test_lengths_beyond_16_bits_are_sorted_too():
    lengths = np.array([3, 70_000, 65_535, 65_536, 3, 0])
    assert np.concatenate(plan(lengths, 1)).tolist() == [1, 3, 2, 0, 4, 5]


def _encoded(
    sentences: list[list[int]], pairs: list[tuple[int, int]], kept: list[tuple[int, int]]
) -> Encoded:
    ids = np.array([number for ids in sentences for number in ids], dtype=np.int32)
    step = ids, np.cumsum([0, *map(len, sentences)]), np.array(kept)
    return Encoded(np.array(pairs), np.arange(len(pairs)), iter([step]), cls_id=1, sep_id=2).all()


@given(data=st.data(), budget=st.integers(1, 600))
def test_batches_are_made_of_what_is_encoded_while_the_rest_is_not(data, budget):
    """Each pair once, none before it is encoded, none after more is than it takes; no batch but the last
    could have taken the next pair."""
    lengths = np.array(data.draw(st.lists(st.integers(3, 200), max_size=60)), dtype=np.int64)
    ends = sorted({*data.draw(st.lists(st.integers(0, len(lengths)), max_size=6)), len(lengths)})
    nothing = np.zeros(0, np.int32), np.zeros(1, np.int64)
    kept = np.stack((lengths - 3, np.zeros_like(lengths)), axis=1)
    steps = ((*nothing, kept[:end]) for end in ends)
    pairs = np.zeros((len(lengths), 2), np.int64)
    encoded = Encoded(pairs, np.arange(len(pairs)), steps, cls_id=1, sep_id=2)
    ran: list[int] = []
    for rows in plan_stepwise(encoded, lambda some: plan(some, budget)):
        assert len(rows) == 1 or lengths[rows].sum() <= budget
        assert max(rows) < len(encoded.kept)
        before = [*rows.tolist(), *ran]
        waiting = [lengths[row] for row in range(len(encoded.kept)) if row not in before]
        if len(encoded.kept) < len(lengths):
            assert waiting, "the last batch of a step waits for the next"
        shorter = [length for length in waiting if length <= lengths[rows].min()]
        assert not shorter or lengths[rows].sum() + max(shorter) > budget
        ran += rows.tolist()
    assert sorted(ran) == list(range(len(lengths)))


def test_encoded_at_once_a_plan_is_the_plan_of_all():
    lengths = np.random.default_rng(0).integers(3, 512, 1000)
    kept = np.stack((lengths - 3, np.zeros_like(lengths)), axis=1)
    step = np.zeros(0, np.int32), np.zeros(1, np.int64), kept
    for finish in (Encoded.all, lambda encoded: encoded):
        encoded = Encoded(np.zeros((1000, 2), np.int64), np.arange(1000), iter([step]), cls_id=1, sep_id=2)
        found = plan_stepwise(finish(encoded), lambda some: plan(some, 4096))
        assert [rows.tolist() for rows in found] == [rows.tolist() for rows in plan(lengths, 4096)]


@given(data=st.data())
def test_a_batch_is_its_pairs_end_to_end(data):
    """As written out by hand, with sentences of no token and sentences cut short among them."""
    sentences = data.draw(st.lists(st.lists(st.integers(3, 99), max_size=5), min_size=1, max_size=5))
    numbers = st.integers(0, len(sentences) - 1)
    pairs = data.draw(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6))
    kept = [tuple(data.draw(st.integers(0, len(sentences[side]))) for side in pair) for pair in pairs]
    rows = data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=1, max_size=8))
    batch = pack(_encoded(sentences, pairs, kept), np.array(rows))
    ids, types, positions, bounds = [], [], [], [0]
    for row in rows:
        first, second = (sentences[side][:count] for side, count in zip(pairs[row], kept[row], strict=True))
        ids += [1, *first, 2, *second, 2]
        types += [0] * (len(first) + 2) + [1] * (len(second) + 1)
        positions += range(len(first) + len(second) + 3)
        bounds.append(len(ids))
    assert batch.input_ids.tolist() == ids
    assert batch.token_type_ids.tolist() == types
    assert batch.position_ids.tolist() == positions
    assert batch.cu_seqlens.tolist() == bounds
    assert all(array.dtype == np.int64 and array.flags.c_contiguous for array in vars(batch).values())


def test_pairs_without_a_single_token_are_packed():
    batch = pack(_encoded([[]], [(0, 0)], [(0, 0)]), np.array([0, 0]))
    assert batch.input_ids.tolist() == [1, 2, 2] * 2
