"""What a forward pass costs on a GPU is committed: a regression shows here, on a machine without one."""

from __future__ import annotations

import budget
import pytest


def test_the_committed_budget_is_what_the_plan_and_the_kernels_say():
    """If a change is intended: `python bench/budget.py --write` and a line in the commit."""
    assert budget.report() == budget.RESULT.read_text(encoding="utf-8")


def test_the_batches_are_those_that_are_named():
    *_, (name, mixed) = budget.batches().items()
    assert len(mixed) == 270
    assert abs(sum(mixed) - 270 * 60) < 270 / 2
    assert name == f"270 pairs of {min(mixed)} to {max(mixed)}, mean {sum(mixed) / 270:.1f}"
    assert 3 <= min(mixed) < max(mixed) <= 512


def test_the_roofline_is_the_longer_time_launch_by_launch():
    """Of a tiny model by hand: 1 token to a pair, E 16, F 32, 1 layer, everything bound by memory."""
    steps = budget.launches(budget.Dimensions(1, 16, 2, 32, 50, 8, 2))
    rows = budget.cost(steps, [1, 1, 1])
    assert rows["all"].launches == len(steps) + 3 == 13  # ClsAttention is three, PoolClassify two
    assert rows["all"].bytes == sum(row.bytes for op, row in rows.items() if op != "all")
    assert rows["all"].seconds == pytest.approx(rows["all"].bytes / budget.BANDWIDTH)
    one = 2 * (3 * 16 + 16 * 16 + 16 + 3 * 16)  # the query's and the attention's product
    assert rows["linear"].bytes == 2 * one + 2 * (3 * 32 + 16 * 32 + 16 + 3 * 16)
