"""Buckets of GPU graphs: every batch has one that holds it, and there are not many."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.executors.triton_buckets import Bucket, bucket_of, buckets

LIMITS = st.sampled_from([(16_384, 512), (2048, 512), (100, 40), (20_000, 131), (40, 16), (1, 512), (300, 3)])


@st.composite
def batches(draw: st.DrawFn, budget: int, longest: int) -> Bucket:
    """The sizes of a batch that the planning may make: pairs of 3 to `longest` tokens, within the budget or
    alone."""
    most = draw(st.integers(3, longest))
    pairs = draw(st.integers(1, max(1, (budget - most) // 3 + 1)))
    others = draw(st.integers(3 * (pairs - 1), max(3 * (pairs - 1), min((pairs - 1) * most, budget - most))))
    return Bucket(most + others, pairs, most)


def _holds(bucket: Bucket, batch: Bucket) -> bool:
    return all(have >= need for have, need in zip(bucket, batch, strict=True))


@given(st.data(), LIMITS)
@settings(derandomize=True, max_examples=300)
def test_every_batch_has_a_bucket_that_holds_it_and_little_more(data, limits):
    among = buckets(*limits)
    batch = data.draw(batches(*limits))
    bucket = bucket_of(among, *batch)
    assert bucket is not None
    assert _holds(bucket, batch)
    assert bucket.tokens <= max(64, 2 * batch.tokens - 1)
    assert bucket.pairs <= max(1, 4 * batch.pairs - 1)
    assert bucket.longest <= max(32, 2 * batch.longest - 1)
    assert not [b for b in among if _holds(b, batch) and b != bucket and _holds(bucket, b)]


@given(st.data(), LIMITS)
@settings(derandomize=True, max_examples=300)
def test_a_larger_batch_has_no_smaller_bucket(data, limits):
    among = buckets(*limits)
    one, other = data.draw(batches(*limits)), data.draw(batches(*limits))
    if _holds(other, one):
        assert _holds(bucket_of(among, *other), bucket_of(among, *one))


@pytest.mark.parametrize(("limits", "count"), [((16_384, 512), 150), ((2048, 512), 89), ((256, 512), 50)])
def test_there_are_not_many(limits, count):
    among = buckets(*limits)
    assert len(among) == count
    assert among == sorted(set(among))


@pytest.mark.parametrize("limits", [(16_384, 512), (2048, 512), (100, 40), (40, 16)])
def test_every_bucket_is_some_batch_s_own(limits):
    """Of pairs of equal length but for one, as many and as long as the bucket holds, or a little fewer."""
    among = buckets(*limits)
    for bucket in among:
        tokens = min(bucket.tokens, bucket.pairs * bucket.longest)
        pairs = min(bucket.pairs, (tokens - bucket.longest) // 3 + 1)
        longest = min(bucket.longest, tokens - 3 * (pairs - 1))
        found = bucket_of(among, tokens, pairs, longest)
        assert found is not None
        assert found.tokens == bucket.tokens
        assert _holds(bucket, Bucket(tokens, pairs, longest))


def test_a_batch_that_fills_the_budget_has_one():
    """17 pairs, one of 65 tokens and all others as short as can be."""
    assert bucket_of(buckets(113, 100), 113, 17, 65) == Bucket(113, 37, 100)


def test_a_batch_beyond_the_largest_has_none():
    among = buckets(2048, 512)
    assert bucket_of(among, 2048, 4, 512) is not None
    assert bucket_of(among, 2049, 5, 512) is None
    assert bucket_of(among, 2048, 683, 3) is None
    assert bucket_of(among, 600, 1, 513) is None


def test_the_largest_is_the_budget_or_one_long_pair():
    assert max(bucket.tokens for bucket in buckets(20_000, 512)) == 20_000
    assert max(bucket.tokens for bucket in buckets(40, 16)) == 40
    assert bucket_of(buckets(1, 512), 512, 1, 512) is not None
