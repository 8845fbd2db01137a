"""The workloads that engines are timed on are as long as they say, of different pairs, and the same again."""

from __future__ import annotations

import pytest
import workloads

NAMES = ("short", "query-passage", "long", "mixed")


@pytest.mark.parametrize("name", NAMES)
def test_every_pair_is_within_the_lengths_that_are_stated(name: str):
    pairs = workloads.make_pairs(name, 400)
    lengths, stated = workloads.token_counts(pairs), workloads.WORKLOADS[name]
    assert len(set(pairs)) == len(pairs) == 400
    assert stated.shortest <= lengths.min() < lengths.max() <= stated.longest
    assert lengths.mean() == pytest.approx(stated.mean, rel=0.1)
    assert all(first.strip() and second.strip() for first, second in pairs)


def test_the_sides_are_as_long_as_they_are_drawn():
    """By counting each alone: a query of 6 to 14 tokens beside a passage of 90 to 150."""
    for side, shortest, longest in ((0, 6, 14), (1, 90, 150)):
        texts = [pair[side] for pair in workloads.make_pairs("query-passage", 100)]
        alone = workloads.token_counts([(text, "") for text in texts]) - 3
        assert shortest <= alone.min() <= alone.max() <= longest


def test_a_workload_is_the_same_again_and_another_with_another_seed():
    first = workloads.make_pairs("mixed", 30)
    assert workloads.make_pairs("mixed", 30) == first
    assert not set(workloads.make_pairs("mixed", 30, seed=1)) & set(first)
    assert workloads.make_pairs("short", 30) != first


def test_workloads_hold_about_the_same_number_of_tokens():
    totals = [
        workloads.token_counts(workloads.make_pairs(name, workloads.pairs_of(name, 256))).sum()
        for name in NAMES
    ]
    assert max(totals) < 1.15 * min(totals)
