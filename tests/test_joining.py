"""Requests that are computed together: each gets its own numbers, none waits for longer than it must."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_tools import SECONDS, Gate, until

from segue import Engine, InputError, Overloaded, SegueError
from segue.joining import Answer, Closed, Joiner

A, B = "the man went to the store", "he bought a gallon of milk"
LONG = "a river ran past the old mill " * 100


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(layers=1)


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Iterator[Engine]:
    with Engine.load(bundle, threads=1, device="cpu") as engine:
        yield engine


@pytest.fixture
def joiner(engine: Engine) -> Iterator[Joiner]:
    joiner = Joiner(engine, max_waiting=1000)
    yield joiner
    joiner.close()


@pytest.fixture
def gate(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(engine, monkeypatch)


def occupied(joiner: Joiner, gate: Gate) -> Future[Answer]:
    """Ask for one pair, and return once it is being computed and the gate holds it."""
    first = joiner.ask([("first", "of all")])
    assert gate.reached.wait(SECONDS)
    return first


def check(answer: Answer, engine: Engine, pairs: list[tuple[str, str]], **options: Any) -> None:
    explained = [engine.explain(*pair, **options) for pair in pairs]
    expected = engine.predict(pairs, output="logit", **options)
    np.testing.assert_allclose(answer.logits, expected, rtol=0, atol=2e-5)
    assert answer.tokens.tolist() == [len(one.tokens) for one in explained]
    assert answer.truncated.tolist() == [any(one.truncated) for one in explained]
    assert answer.waited >= 0
    assert answer.computed >= 0


def test_an_answer_has_what_the_engine_gives(engine: Engine, joiner: Joiner) -> None:
    pairs = [(A, B), (LONG, B), (A, LONG), ("", ""), (A, B)]
    check(joiner.ask(pairs).result(SECONDS), engine, pairs)
    options = {"truncation": "only_first", "max_tokens": 20}
    pairs = [(A, B), (LONG, B), (A, "milk")]
    check(joiner.ask(pairs, **options).result(SECONDS), engine, pairs, **options)


def test_no_pairs_are_answered_at_once(engine: Engine, joiner: Joiner) -> None:
    answer = joiner.ask([]).result(0)
    assert answer.logits.shape == (0, 2)
    assert (len(answer.tokens), len(answer.truncated), joiner.turns) == (0, 0, 0)


def test_what_waits_is_computed_together(engine: Engine, joiner: Joiner, gate: Gate) -> None:
    first = occupied(joiner, gate)
    asked = [[(f"query {i}", f"text {j}") for j in range(i)] for i in range(1, 5)]
    futures = [joiner.ask(pairs) for pairs in asked]
    assert joiner.waiting == 10
    gate.open.set()
    wait([first, *futures], SECONDS)
    assert gate.turns == [1, 10]
    assert joiner.turns == 2
    until(lambda: joiner.waiting == 0)
    for pairs, future in zip(asked, futures, strict=True):
        check(future.result(), engine, pairs)


def test_a_short_request_does_not_wait_for_the_end_of_a_long_one(joiner: Joiner, gate: Gate) -> None:
    first = occupied(joiner, gate)
    long = joiner.ask([(f"{i}", LONG) for i in range(40)])
    short = joiner.ask([(A, B), (B, A)])
    unfinished: list[bool] = []
    short.add_done_callback(lambda _: unfinished.append(not long.done()))
    gate.open.set()
    wait([first, long, short], SECONDS)
    until(lambda: unfinished == [True])
    assert len(gate.turns) > 4
    assert 3 < gate.turns[1] < 20  # some of the long one, and both of the short one


def test_requests_that_differ_in_options_get_turns_of_their_own(
    engine: Engine, joiner: Joiner, gate: Gate
) -> None:
    first = occupied(joiner, gate)
    kinds: list[dict[str, Any]] = [{}, {"max_tokens": 9}, {"max_tokens": 20, "truncation": "only_second"}]
    asked = [(kinds[i % 3], [(A, f"{i} {LONG}"), (f"{i}", B)]) for i in range(9)]
    futures = [joiner.ask(pairs, **options) for options, pairs in asked]
    gate.open.set()
    wait([first, *futures], SECONDS)
    assert gate.turns == [1, 6, 6, 6]
    for (options, pairs), future in zip(asked, futures, strict=True):
        check(future.result(), engine, pairs, **options)


def test_a_bad_pair_fails_its_own_request_alone(engine: Engine, joiner: Joiner, gate: Gate) -> None:
    first = occupied(joiner, gate)
    good = [(A, B), (B, A)]
    bad = [(A, B), (A, B), (A, LONG), (LONG, B)]
    before, wrong, after = (joiner.ask(pairs, truncation="error") for pairs in (good, bad, good))
    gate.open.set()
    wait([first, before, wrong, after], SECONDS)
    with pytest.raises(InputError, match=r"^pairs\[2\]: 1009 tokens, more than 512") as caught:
        wrong.result()
    assert caught.value.index == 2
    assert gate.turns == [1, 8, 4]  # what is left of the turn is computed together
    for future in (before, after):
        check(future.result(), engine, good)
    assert joiner.broken is None


def test_characters_of_several_bytes_count_for_more(joiner: Joiner, gate: Gate) -> None:
    """Each of these is a token of its own, and a letter is a fifth of one."""
    first = occupied(joiner, gate)
    futures = [joiner.ask([(f"{i}", 200 * letter)] * 150) for i, letter in enumerate(("山", "a"))]
    gate.open.set()
    wait([first, *futures], SECONDS)
    assert gate.turns[1] == 47  # 4096 tokens, at 3 + 120 and at 3 + 40, and a 20th of the bytes


def test_the_place_of_a_bad_pair_counts_from_the_start_of_its_request(joiner: Joiner) -> None:
    """It is computed turns later than the first."""
    pairs = [(f"{i}", "a river ran past the old mill " * 30) for i in range(40)]
    assert joiner.ask(pairs, truncation="error").result(SECONDS).logits.shape == (40, 2)
    pairs[35] = (LONG, "b")
    with pytest.raises(InputError, match=r"^pairs\[35\]: "):
        joiner.ask(pairs, truncation="error").result(SECONDS)
    until(lambda: joiner.waiting == 0)


def test_a_model_that_fails_is_told_to_each_and_forgotten_when_it_works(
    engine: Engine, joiner: Joiner, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = occupied(joiner, gate)
    monkeypatch.setattr(engine, "_logits", fail := Failing(RuntimeError("no memory")))
    futures = [joiner.ask([(A, B)]) for _ in range(3)]
    gate.open.set()
    first.result(SECONDS)
    for future in futures:
        with pytest.raises(RuntimeError, match="no memory"):
            future.result(SECONDS)
    assert fail.calls == 4  # together, and each alone
    assert str(joiner.broken) == "no memory"
    monkeypatch.undo()
    check(joiner.ask([(A, B)]).result(SECONDS), engine, [(A, B)])
    assert joiner.broken is None


def test_logits_that_are_no_numbers_fail_the_request_they_belong_to(
    engine: Engine, joiner: Joiner, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = occupied(joiner, gate)
    compute = type(engine)._logits

    def poisoned(encoded: Any, progress: bool = False) -> Any:
        logits = compute(engine, encoded, progress)
        if (long := (encoded.lengths == 512)[encoded.inverse]).any():
            raise SegueError("the model's logits are not finite", index=int(np.argmax(long)))
        return logits

    monkeypatch.setattr(engine, "_logits", poisoned)
    good, bad = joiner.ask([(A, B), (B, A)]), joiner.ask([(A, B), (LONG, A)])
    gate.open.set()
    wait([first, good, bad], SECONDS)
    assert good.result().logits.shape == (2, 2)
    with pytest.raises(SegueError, match=r"^pairs\[1\]: the model's logits are not finite"):
        bad.result()
    assert joiner.broken is None
    with pytest.raises(SegueError):
        joiner.ask([(LONG, A)]).result(SECONDS)
    assert joiner.broken is not None  # no telling whether other pairs would do better


class Failing:
    """A step of the engine that raises."""

    def __init__(self, error: BaseException) -> None:
        self.error, self.calls = error, 0

    def __call__(self, *_: Any) -> Any:
        self.calls += 1
        raise self.error


def test_what_is_cancelled_is_not_computed(joiner: Joiner, gate: Gate) -> None:
    first = occupied(joiner, gate)
    gone, stays = joiner.ask([(A, B)] * 5), joiner.ask([(B, A)] * 3)
    held = joiner._held
    assert gone.cancel()
    assert joiner.waiting == 3
    assert joiner._held == held // 2
    gate.open.set()
    stays.result(SECONDS)
    assert gate.turns == [1, 3]
    assert first.result().logits.shape == (1, 2)


def test_cancelling_what_is_computed_already_hurts_nobody(joiner: Joiner, gate: Gate) -> None:
    first = occupied(joiner, gate)
    assert first.cancel()
    gate.open.set()
    assert joiner.ask([(A, B)]).result(SECONDS).logits.shape == (1, 2)


def test_so_many_may_wait_and_no_more(engine: Engine, gate: Gate) -> None:
    joiner = Joiner(engine, max_waiting=10)
    first = occupied(joiner, gate)
    large = joiner.ask([(A, B)] * 25)  # more than that, but nobody waits
    with pytest.raises(Overloaded, match=r"^25 pairs are waiting, and 1 more would be over 10$"):
        joiner.ask([(A, B)])
    large.cancel()
    held = [joiner.ask([(A, B)] * 5) for _ in range(2)]
    with pytest.raises(Overloaded):
        joiner.ask([(A, B)])
    gate.open.set()
    wait([first, *held], SECONDS)
    assert joiner.ask([(A, B)]).result(SECONDS).logits.shape == (1, 2)
    joiner.close()


def test_so_many_bytes_may_wait_and_no_more(
    joiner: Joiner, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segue.joining._HELD", 1000)
    first = occupied(joiner, gate)
    large = joiner.ask([("山" * 300, "a" * 50)])
    with pytest.raises(Overloaded, match=r"^pairs of 950 bytes are waiting, and these would be over 1000$"):
        joiner.ask([("a" * 51, "")])
    fits = joiner.ask([("a" * 50, "")])
    gate.open.set()
    wait([first, large, fits], SECONDS)
    until(lambda: joiner.waiting == 0)
    assert joiner._held == 0


def test_a_text_in_many_pairs_is_held_once(
    joiner: Joiner, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segue.joining._HELD", 1000)
    first = occupied(joiner, gate)
    query = "a" * 500
    documents = joiner.ask([(query, str(number)) for number in range(100)])
    fits = joiner.ask([(A, B)])
    assert documents.cancel()
    gate.open.set()
    wait([first, fits], SECONDS)
    assert joiner._held == 0


def test_a_request_with_other_options_comes_next_and_not_last(joiner: Joiner, gate: Gate) -> None:
    first = occupied(joiner, gate)
    done: list[str] = []
    long, other, last = (
        joiner.ask([(f"{name} {number}", LONG) for number in range(count)], **options)
        for name, count, options in (("long", 30, {}), ("other", 1, {"max_tokens": 20}), ("last", 1, {}))
    )
    for name, future in (("long", long), ("other", other), ("last", last)):
        future.add_done_callback(lambda _, name=name: done.append(name))
    gate.open.set()
    wait([first, long, other, last], SECONDS)
    assert done == ["last", "other", "long"], "last joins the first turn, other has the second for itself"
    assert gate.turns[2] == 1


def test_nothing_ends_the_thread(engine: Engine, joiner: Joiner, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_logits", Failing(SystemExit("from within")))
        with pytest.raises(SystemExit):
            joiner.ask([(A, B)]).result(SECONDS)
    check(joiner.ask([(A, B)]).result(SECONDS), engine, [(A, B)])


def test_where_the_system_grants_no_thread_a_request_says_so_and_a_later_one_is_answered(
    engine: Engine, joiner: Joiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        with pytest.raises(SegueError, match=r"^no thread to compute in: can't start new thread$"):
            joiner.ask([(A, B)])
        joiner.close()
    joiner.open()
    check(joiner.ask([(A, B)]).result(SECONDS), engine, [(A, B)])


def test_a_request_is_answered_although_the_one_before_was_interrupted(
    engine: Engine, joiner: Joiner
) -> None:
    """As by KeyboardInterrupt within `Condition.notify`, when the thread had been woken and was still listed
    as waiting."""
    joiner.ask([(A, B)]).result(SECONDS)
    until(lambda: len(joiner._changed._waiters) == 1)
    left = threading.Lock()
    left.acquire()
    joiner._changed._waiters.appendleft(left)
    check(joiner.ask([(A, B)]).result(SECONDS), engine, [(A, B)])


class Pairs(list[Any]):  # a plain list allows no weak references
    pass


def test_nothing_of_a_request_stays_once_it_is_answered(joiner: Joiner) -> None:
    pairs = Pairs([(A, B)] * 3)
    alive = weakref.ref(pairs)
    future = joiner.ask(pairs)
    del pairs
    future.result(SECONDS)
    until(lambda: alive() is None)


def test_nothing_of_a_request_waits_for_a_turn_once_it_is_cancelled(joiner: Joiner, gate: Gate) -> None:
    occupied(joiner, gate)
    pairs = Pairs([(A, B)] * 3)
    alive = weakref.ref(pairs)
    gone = joiner.ask(pairs)
    del pairs
    assert gone.cancel()
    assert alive() is None
    gate.open.set()


def test_options_are_refused_at_the_call(joiner: Joiner) -> None:
    with pytest.raises(InputError, match=r"^max_tokens: expected 3 to 512, got 513$"):
        joiner.ask([(A, B)], max_tokens=513)
    with pytest.raises(InputError, match=r"^truncation: "):
        joiner.ask([(A, B)], truncation="both")


def test_closing_ends_the_turn_and_fails_the_rest(engine: Engine, gate: Gate) -> None:
    joiner = Joiner(engine, max_waiting=10)
    first = occupied(joiner, gate)
    later = joiner.ask([(A, B)])
    closing = threading.Thread(target=joiner.close)
    closing.start()
    until(lambda: joiner._closed)
    with pytest.raises(Closed, match=r"^closed: no pairs"):
        joiner.ask([(A, B)])
    gate.open.set()
    closing.join(SECONDS)
    assert first.result(0).logits.shape == (1, 2)
    with pytest.raises(Closed, match=r"^closed: no pairs"):
        later.result(0)
    joiner.close()  # a second time does nothing


def test_whoever_closes_waits_for_the_turn_to_end(engine: Engine, gate: Gate) -> None:
    joiner = Joiner(engine, max_waiting=10)
    first = occupied(joiner, gate)
    closing = [threading.Thread(target=joiner.close) for _ in range(2)]
    for thread in closing:
        thread.start()
    closing[0].join(0.1)
    closing[1].join(0.1)
    assert [thread.is_alive() for thread in closing] == [True, True]
    gate.open.set()
    for thread in closing:
        thread.join(SECONDS)
    assert first.done()


def test_closing_one_that_was_never_asked(engine: Engine) -> None:
    Joiner(engine, max_waiting=1).close()


def test_a_process_ends_well_in_the_middle_of_a_turn(bundle: Path) -> None:
    """And one that was forked from it, though the thread stayed behind."""
    code = f"""
import atexit, os, sys
from segue import Engine
from segue.joining import Joiner
engine = Engine.load({str(bundle)!r}, threads=1, device="cpu")
joiner = Joiner(engine, max_waiting=1000)
here = os.getpid()
atexit.register(lambda: os.getpid() == here and print(joiner._closed))  # runs after what is registered later
joiner.ask([("a", "b")]).result()
child = os.fork()
if not child:
    joiner._changed.acquire()  # as the thread may have had it
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
for _ in range(100):
    joiner.ask([("a " * 600, "b")])
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],  # of Python 3.12 on, about the fork
        capture_output=True,
        text=True,
        cwd="/",
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_many_threads_get_their_own_numbers(engine: Engine, joiner: Joiner) -> None:
    words = (A + " " + B + " river mill old ran past").split()
    draw = random.Random(0)
    pool = [tuple(" ".join(draw.choices(words, k=draw.randint(0, 40))) for _ in "ab") for _ in range(60)]
    expected = dict(zip(pool, engine.predict(pool, output="logit"), strict=True))

    def ask(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(20):
            pairs = draw.choices(pool, k=draw.choice((1, 1, 2, 7, 30)))
            future = joiner.ask(pairs)
            if draw.random() < 0.2:
                future.cancel()
                continue
            found = future.result(SECONDS).logits
            np.testing.assert_allclose(found, [expected[pair] for pair in pairs], rtol=0, atol=2e-5)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(ask, range(12)))
    joiner.ask([(A, B)]).result(SECONDS)
    until(lambda: joiner.waiting == 0)


def test_under_triton_an_answer_is_the_same_to_the_bit_whoever_it_is_computed_with(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interpreted here. It encodes while it computes, so that a bad pair is found in the middle of a turn."""
    bundle = make_bundle(layers=1, hidden_size=32)
    with Engine.load(bundle, executor="triton", precision="float32", max_batch_tokens=64) as engine:
        alone = engine.predict([(A, B), ("a river", "ran past"), (B, "")], output="logit")
        joiner, gate = Joiner(engine, max_waiting=100), Gate(engine, monkeypatch)
        options = {"truncation": "error", "max_tokens": 60}
        first = joiner.ask([(A, B)], **options)
        assert gate.reached.wait(SECONDS)
        others = [joiner.ask([pair], **options) for pair in (("a river", "ran past"), (B, ""))]
        bad = joiner.ask([("the old", "mill"), (A, LONG)], **options)
        gate.open.set()
        wait([first, *others, bad], SECONDS)
        for row, future in zip(alone, [first, *others], strict=True):
            np.testing.assert_array_equal(future.result().logits, row[None])
        with pytest.raises(InputError, match=r"^pairs\[1\]: 1009 tokens, more than 60"):
            bad.result()
        joiner.close()
