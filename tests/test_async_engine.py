"""An engine that is awaited: what `Engine` gives, computed together, and calls that can be given up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_tools import SECONDS, Gate

from segue import AsyncEngine, Engine, InputError, Overloaded, SegueError

A, B = "the man went to the store", "he bought a gallon of milk"
LONG = "a river ran past the old mill " * 100
PAIRS = [(A, B), (LONG, B), ("", ""), (A, B), [B, "a river"]]


@pytest.fixture(scope="module")
def engine(make_bundle: Callable[..., Path]) -> Iterator[Engine]:
    with Engine.load(make_bundle(layers=1), threads=1, device="cpu") as engine:
        yield engine


@pytest.fixture
def gate(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(engine, monkeypatch)


def run(engine: Engine, use: Callable[[AsyncEngine], Awaitable[Any]], **options: Any) -> Any:
    """Return what comes of using an engine while it is open."""

    async def whole() -> Any:
        async with asyncio.timeout(SECONDS), AsyncEngine(engine, **options) as shared:
            return await use(shared)

    return asyncio.run(whole())


async def occupied(shared: AsyncEngine, gate: Gate) -> asyncio.Task[Any]:
    """Return a call of one pair once it is being computed and the gate holds it."""
    task = asyncio.create_task(shared.score([("first", "of all")]))
    assert await asyncio.to_thread(gate.reached.wait, SECONDS)
    return task


def close(found: Any, expected: Any) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("pairs", [PAIRS, [], np.array([(A, B), (B, A)])], ids=["pairs", "none", "rows"])
@pytest.mark.parametrize("options", [{}, {"output": "logit"}, {"truncation": "only_first", "max_tokens": 20}])
def test_it_gives_what_the_engine_gives(engine: Engine, pairs: Any, options: dict[str, Any]) -> None:
    close(run(engine, lambda shared: shared.score(pairs, **options)), engine.score(pairs, **options))
    close(
        run(engine, lambda shared: shared.predict(iter(pairs), **options)), engine.predict(pairs, **options)
    )


def test_it_ranks_as_the_engine_does(engine: Engine) -> None:
    documents = [B, "a river", LONG, B]
    for query, options in (
        (A, {}),
        (LONG, {}),
        (A, {"top_k": 2, "return_documents": True}),
        (A, {"truncation": "only_second"}),
    ):
        expected = engine.rank(query, documents, **options)
        found = run(engine, lambda e, q=query, o=options: e.rank(q, iter(documents), **o))
        assert [one.pop("score") for one in found] == pytest.approx([one.pop("score") for one in expected])
        assert found == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.score([(A, B), (A, None)]), r"^pairs\[1\]: expected \(str, str\), got \(str, None\)$"),
        (lambda e: e.predict((A, B)), r"^pairs\[0\]: expected \(str, str\), got str .*one pair alone"),
        (lambda e: e.score(A), r"^pairs: expected an iterable of \(str, str\)"),
        (lambda e: e.score([(A, B), (A, "\ud800")]), r"^pairs\[1\]: the second text has a lone surrogate"),
        (lambda e: e.score([(A, B)], output="score"), r"^output: expected one of probability, logit"),
        (lambda e: e.score([(A, B)], max_tokens=2), r"^max_tokens: expected 3 to "),
        (lambda e: e.score([(LONG, B)], truncation="error"), r"^pairs\[0\]: \d+ tokens, more than"),
        (lambda e: e.rank(A, [B, 3]), r"^documents\[1\]: expected str, got int$"),
        (lambda e: e.rank(A, [B, "\ud800"]), r"^documents\[1\]: the second text has a lone surrogate"),
        (lambda e: e.rank(A, [B], top_k=0), r"^top_k: expected a whole number from 1, got 0$"),
    ],
)
def test_bad_input_is_named_as_by_the_engine(engine: Engine, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(engine, call)


def test_max_waiting_is_checked(engine: Engine) -> None:
    with pytest.raises(InputError, match=r"^max_waiting: expected a whole number from 1, got 0$"):
        AsyncEngine(engine, max_waiting=0)


def test_calls_that_wait_are_computed_together_and_the_loop_is_free(engine: Engine, gate: Gate) -> None:
    pairs = [(A, f"{B} {number}") for number in range(50)]

    async def use(shared: AsyncEngine) -> Any:
        first = await occupied(shared, gate)
        calls = [asyncio.create_task(shared.score([pair])) for pair in pairs]
        await asyncio.sleep(0)  # each has asked by then, while the engine computes the first
        gate.open.set()
        await first
        return np.concatenate(await asyncio.gather(*calls))

    close(run(engine, use), engine.score(pairs))
    assert gate.turns[:2] == [1, len(pairs)]


def test_a_call_given_up_is_not_computed(engine: Engine, gate: Gate) -> None:
    async def use(shared: AsyncEngine) -> Any:
        first = await occupied(shared, gate)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(shared.score([(LONG, LONG)] * 100), 0.01)
        gate.open.set()
        await first
        return await shared.score([(A, B)])

    close(run(engine, use), engine.score([(A, B)]))
    assert gate.turns[:2] == [1, 1]


def test_more_than_may_wait_is_refused_and_any_number_waits_where_there_is_no_limit(
    engine: Engine, gate: Gate
) -> None:
    async def limited(shared: AsyncEngine) -> None:
        first = await occupied(shared, gate)
        waiting = asyncio.create_task(shared.score([(A, B)] * 3))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=r"^3 pairs are waiting, and 1 more would be over 3$"):
            await shared.score([(A, B)])
        gate.open.set()
        await asyncio.gather(first, waiting)

    run(engine, limited, max_waiting=3)
    gate.open.clear()
    gate.reached.clear()

    async def unlimited(shared: AsyncEngine) -> list[Any]:
        first = await occupied(shared, gate)
        calls = [asyncio.create_task(shared.score([(A, B)] * 1000)) for _ in range(20)]
        await asyncio.sleep(0)
        gate.open.set()
        await first
        return await asyncio.gather(*calls)

    assert [len(one) for one in run(engine, unlimited)] == [1000] * 20


def test_closed_it_fails_what_waits_and_leaves_the_engine_open(engine: Engine, gate: Gate) -> None:
    async def use(shared: AsyncEngine) -> None:
        first = await occupied(shared, gate)
        waiting = asyncio.create_task(shared.score([(A, B)]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(shared.close())
        await asyncio.sleep(0.01)
        gate.open.set()
        assert (await first).shape == (1,)
        for late in (waiting, shared.score([(A, B)]), shared.rank(A, [B])):
            with pytest.raises(SegueError, match=r"^closed: no pairs are taken any more$"):
                await late
        await closing

    run(engine, use)
    assert engine.score([(A, B)]).shape == (1,)


def test_the_end_of_its_block_closes_it(engine: Engine) -> None:
    async def late() -> None:
        async with asyncio.timeout(SECONDS), AsyncEngine(engine) as shared:
            await shared.score([(A, B)])
        await shared.score([(A, B)])

    with pytest.raises(SegueError, match="closed"):
        asyncio.run(late())


def test_a_closed_engine_says_so() -> None:
    engine = Engine.load(device="cpu")
    engine.close()
    with pytest.raises(SegueError, match=r"^this engine is closed$"):
        run(engine, lambda shared: shared.score([(A, B)]))


def test_truncation_is_logged(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="segue"):
        run(engine, lambda shared: shared.score([(LONG, B), (A, B), (A, LONG)]))
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 3 pairs were longer than the limit and were truncated"
    ]


def test_event_loops_of_several_threads_may_share_it(engine: Engine) -> None:
    shared = AsyncEngine(engine)
    pairs = [(f"{A} {number}", B) for number in range(64)]

    async def some(start: int) -> Any:
        calls = [shared.score([pair]) for pair in pairs[start : start + 16]]
        return np.concatenate(await asyncio.gather(*calls))

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda start: asyncio.run(some(start)), range(0, 64, 16)))
    asyncio.run(shared.close())
    close(np.concatenate(found), engine.score(pairs))
