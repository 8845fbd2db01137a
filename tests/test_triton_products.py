"""Linear layers by a matrix library, where an engine's scores may depend on the batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel_tools import assert_as_exact, launches
from triton_tools import LONGEST, NSP, ONE_LABEL, judge, open_triton, packed, run, run_eagerly

from segue import Engine
from segue.executors import triton_launches, triton_products
from segue.executors.triton_products import LIBRARY_ROWS, library
from segue.kernels.launching import TARGETS

MIXED = (3, LONGEST, 17, 33, 5)
SWITCHES = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(**ONE_LABEL)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what the library computed."""
    seen: list[tuple[int, ...]] = []
    compute = triton_launches.linear

    def noted(*inputs: Any, out: torch.Tensor) -> None:
        compute(*inputs, out=out)
        seen.append(tuple(out.shape))

    monkeypatch.setattr(triton_launches, "linear", noted)
    return seen


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_it_is_no_less_exact(make_bundle, products, precision):
    batch, dtype = packed(MIXED), getattr(torch, precision)
    executor = open_triton(make_bundle(**NSP), precision, sum(MIXED), batch_invariant=False)
    found = torch.from_numpy(run(executor, batch))
    plan = executor._launches.plan
    eager = run_eagerly(plan, batch, dtype, arithmetic=dtype)
    exact = run_eagerly(plan, batch, dtype, arithmetic=torch.float64)
    assert_as_exact(found.to(dtype), eager, exact)
    assert len(products) == sum(step.op == "linear" for step in plan.steps)


def test_it_computes_every_linear_layer_and_nothing_else(bundle, products):
    batch = packed([5, 9])
    with launches() as without:
        run(open_triton(bundle, "float16"), batch)
    assert products == []
    with launches() as beside:
        run(open_triton(bundle, "float16", batch_invariant=False), batch)
    assert products == [(2, 32), (2, 32), (2, 32)]  # query; output; feed-forward
    kernels = [launch.kernel for launch in without]
    linear = kernels.count("linear_kernel") - 1  # the one that ends in a GELU
    assert linear == len(products)
    assert len(beside) == len(without) - linear


def test_the_table_says_from_how_many_rows(make_bundle, products, monkeypatch):
    monkeypatch.setitem(LIBRARY_ROWS, ("sm_80", 2), 10)  # interpreted kernels go by this target
    run(open_triton(make_bundle(**NSP), "float16", batch_invariant=False), packed([5, 9]), packed([9]))
    assert products == [(14, 144), (14, 48), (14, 48)]


def test_float32_is_ours_alone(bundle, products):
    assert {target for target, _ in LIBRARY_ROWS} <= set(TARGETS)
    executor = open_triton(bundle, "float32", batch_invariant=False)
    batch = packed(MIXED[:1])
    assert np.abs(run(executor, batch) - judge(bundle, batch)).max() <= 1e-4
    assert products == []


def test_rows_that_are_not_live_harm_nothing(make_bundle, products):
    executor = open_triton(make_bundle(**NSP), "float16", batch_invariant=False)
    batch = packed([5, 9])
    wanted = run(executor, batch)
    executor._rounds = True
    executor._launches.arena.fill_(torch.nan)
    assert np.abs(run(executor, batch) - wanted).max() < 5e-3
    assert products[-6:] == [(64, 144), (64, 48), (64, 48), (4, 48), (4, 48), (4, 48)]


def test_sizes_lie_closer_as_the_rows_between_are_computed(bundle):
    coarse, fine = (
        {bucket.tokens for bucket in open_triton(bundle, "float16", 512, batch_invariant=each)._buckets}
        for each in (True, False)
    )
    assert coarse == {64, 128, 256, 512}
    assert fine == {64, 96, 128, 192, 256, 384, 512}


def test_sums_are_float32_while_it_computes_and_only_then():
    backend = torch.backends.cuda.matmul
    before = [getattr(backend, name) for name in SWITCHES]
    within = None
    with suppress(KeyError), library():
        within = [getattr(backend, name) for name in SWITCHES]
        assert triton_products._switched.locked(), "another thread would switch them back"
        raise KeyError
    assert within == [False, False]
    assert [getattr(backend, name) for name in SWITCHES] == before
    assert True in before, "nothing would have been switched"
    assert not triton_products._switched.locked()


def test_whether_sums_may_be_split_stays_as_it_was():
    backend = torch.backends.cuda.matmul
    splits = [f"{name}_split_k" for name in SWITCHES]
    for name in SWITCHES:
        setattr(backend, name, (False, False))
    try:
        with library():
            assert [getattr(backend, name) for name in splits] == [False, False]
        assert [getattr(backend, name) for name in splits] == [False, False]
    finally:
        for name in SWITCHES:
            setattr(backend, name, True)
    with library():
        assert [getattr(backend, name) for name in splits] == [True, True]


def test_an_engine_is_asked_for_it_by_name_and_says_so(bundle):
    pairs = [("the man", "a b c"), ("x y", "z w")]
    with Engine.load(bundle, executor="triton", batch_invariant=False, max_batch_tokens=64) as engine:
        assert ", linear by PyTorch from 1 rows" in engine.info.plan[0]
        found = engine.score(pairs)
    with Engine.load(bundle, executor="triton", max_batch_tokens=64) as engine:
        assert "PyTorch" not in engine.info.plan[0]
        assert np.abs(engine.score(pairs) - found).max() < 2e-3
