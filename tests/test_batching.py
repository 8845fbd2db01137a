"""Planning and packing as pure functions of numbers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue.batching import plan

lengths_lists = st.lists(st.integers(3, 512), max_size=200)


@given(lengths=lengths_lists, budget=st.integers(1, 4096), grid=st.one_of(st.none(), st.integers(1, 8192)))
def test_every_pair_runs_once_within_the_budget(lengths, budget, grid):
    lengths = np.array(lengths, dtype=np.int64)
    batches = plan(lengths, budget, grid)
    assert sorted(np.concatenate(batches).tolist() if batches else []) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) == 1 or lengths[rows].sum() <= budget
        assert grid is None or len(rows) == 1 or len(rows) * lengths[rows].max() <= grid


@given(lengths=lengths_lists)
def test_longest_pairs_come_first_and_equal_ones_keep_their_order(lengths):
    lengths = np.array(lengths, dtype=np.int64)
    order = [row for rows in plan(lengths, 1024) for row in rows.tolist()]
    assert order == sorted(order, key=lambda row: (-lengths[row], row))


@given(lengths=st.lists(st.integers(3, 512), min_size=1, max_size=200))
def test_no_batch_could_have_taken_the_next_pair(lengths):
    lengths = np.array(lengths, dtype=np.int64)
    batches = plan(lengths, 1024)
    for rows, following in pairwise(batches):
        assert lengths[rows].sum() + lengths[following[0]] > 1024


def test_the_plan_is_the_same_every_time():
    lengths = np.random.default_rng(0).integers(3, 512, 1000)
    first, second = (plan(lengths, 4096, 8192) for _ in range(2))
    assert [rows.tolist() for rows in first] == [rows.tolist() for rows in second]


def test_one_long_pair_does_not_stretch_the_grid_of_many_short_ones():
    """A 512-token pair among 400 of 8 tokens: as one batch its attention grid would be 401 x 512."""
    lengths = np.array([8] * 400 + [512])
    assert len(plan(lengths, 4096)) == 1
    assert max(len(rows) * lengths[rows].max() for rows in plan(lengths, 4096, 8192)) <= 8192


@pytest.mark.parametrize("length", [5, 511])
def test_a_pair_longer_than_the_budget_runs_alone(length):
    assert [rows.tolist() for rows in plan(np.array([length] * 3), 4, 4)] == [[0], [1], [2]]
