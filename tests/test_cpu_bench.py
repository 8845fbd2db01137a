"""The script that compares segue on a CPU with the machine's matrix products."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import budget
import cpu
import numpy as np
import pytest

from segue.bundle import Dimensions


@pytest.mark.parametrize("lengths", [[128], [3, 9, 512], [60] * 50])
def test_useful_operations_are_those_of_the_plan(lengths):
    """What every kernel says that it computes, of which the products are nearly all."""
    dimensions = Dimensions(6, 384, 12, 1536, 30_522, 512, 2)
    planned = budget.cost(budget.launches(dimensions), lengths)
    products = ("linear", "linear_gelu", "packed_attention", "cls_attention", "pool_classify")
    found = cpu.useful(dimensions, np.array(lengths))
    assert found == pytest.approx(sum(planned[op].operations for op in products), rel=0.01)


def test_twice_the_pairs_are_twice_the_work_and_a_longer_one_is_more_than_its_tokens():
    dimensions = Dimensions(2, 64, 4, 128, 100, 512, 2)
    one, two, long = (cpu.useful(dimensions, np.array(n)) for n in ([100], [100, 100], [200]))
    assert two == 2 * one
    last = 2 * 64 * (4 * 64 + 2 * 128) + 2 * 64 * 64  # of the last layer and the pooler, once a pair
    assert long - last > 2 * (one - last)


def test_it_measures_all_ways_and_says_where_time_goes(make_bundle: Callable[..., Path], tmp_path, capsys):
    out = tmp_path / "cpu.json"
    cpu.main(["--bundle", str(make_bundle()), "--pairs", "12", "--rounds", "2", "--json", str(out)])
    found = json.loads(out.read_text())
    assert found["pairs"] == 12
    assert found["useful_operations"] > 0
    for way in ("prepared", "text"):
        assert len(found["rates"][way]) == len(found["ratios"][way]) == 2
        assert min(found["rates"][way]) > 0
    assert len(found["rates"]["matmul"]) == 4
    shares = {name: share for name, _, share in found["profile"]}
    assert sum(shares.values()) == pytest.approx(1)
    assert {"Gemm", "Attention", "LayerNormalization"} <= set(shares)
    text = capsys.readouterr().out
    assert text == cpu.report(found)
    assert "| segue, from text |" in text
    assert "| Gemm |" in text
