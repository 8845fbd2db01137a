"""The scenarios on a clock that the scorer moves: what is asked, what counts, what queueing theory says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from segue.benchmark.scenarios import Clock, Pair, grid, offline, percentile, queries, stream
from segue.benchmark.server import TRIALS, arrivals, highest_rate, server, trial

PAIRS = [(f"a{number}", f"b{number}") for number in range(10)]


class Fake:
    """Time that passes only by scoring and sleeping; `service` gives the seconds of each call."""

    def __init__(self, service: Callable[[int], float]) -> None:
        self.time = 1000.0
        self.asked: list[list[Pair]] = []
        self._service = service
        self.clock = Clock(lambda: self.time, self._sleep)

    def score(self, pairs: Sequence[Pair]) -> None:
        self.time += self._service(len(self.asked))
        self.asked.append(list(pairs))

    def _sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.time += seconds


@pytest.mark.parametrize("count", [1, 2, 9, 10, 99, 100, 101, 1000])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
def test_a_percentile_is_the_measured_value_that_enough_do_not_exceed(count: int, share: float):
    values = np.random.default_rng(count).permutation(count).astype(float).tolist()
    before = list(values)
    found = percentile(values, share)
    assert sum(value <= found for value in values) / count >= share
    assert sum(value < found for value in values) / count < share
    assert values == before


def test_single_stream_asks_the_next_query_when_one_is_answered():
    fake = Fake(lambda _: 0.25)
    found = stream(fake.score, PAIRS, per_query=1, seconds=1, clock=fake.clock)
    assert fake.asked == [[pair] for pair in PAIRS[:4]]
    assert found["latencies"] == [0.25] * 4
    assert found["queries"] == 4
    assert found["pairs_per_second"] == 4
    assert (found["p50"], found["p99"], found["mean"]) == (0.25, 0.25, 0.25)


def test_a_query_longer_than_the_time_given_is_measured_all_the_same():
    fake = Fake(lambda _: 60)
    assert stream(fake.score, PAIRS, per_query=1, seconds=1, clock=fake.clock)["latencies"] == [60]


def test_multi_stream_asks_eight_pairs_and_starts_again_after_the_last():
    fake = Fake(lambda number: (1 + number) / 8)
    found = stream(fake.score, PAIRS, per_query=8, seconds=0.5, clock=fake.clock)
    assert fake.asked == [PAIRS[:8], PAIRS[8:] + PAIRS[:6], PAIRS[6:] + PAIRS[:4]]
    assert found["latencies"] == [0.125, 0.25, 0.375]
    assert found["pairs_per_second"] == 24 / 0.75
    assert found["figure"] == {"name": "latency p90", "value": 0.375, "unit": "s", "better": "lower"}


def test_one_pair_fills_a_query_of_eight():
    asked = queries(PAIRS[:1], 8)
    assert next(asked) == next(asked) == PAIRS[:1] * 8


@pytest.mark.parametrize(
    ("service", "calls"),
    [(0.125, 8), (0.5, 3), (1, 3), (1.5, 2), (10, 1)],  # enough; to a median; not past thrice the time
)
def test_offline_asks_for_all_at_once_and_often_enough(service: float, calls: int):
    fake = Fake(lambda _: service)
    found = offline(fake.score, PAIRS, tokens=500, seconds=1, clock=fake.clock)
    assert fake.asked == [PAIRS] * calls
    assert found["seconds"] == [service] * calls
    assert found["calls"] == calls
    assert (found["pairs_per_second"], found["tokens_per_second"]) == (10 / service, 500 / service)
    assert found["figure"]["value"] == 10 / service


def test_offline_counts_the_median_call():
    fake = Fake(lambda number: [1, 32, 2][number])
    found = offline(fake.score, PAIRS, tokens=1, seconds=30, clock=fake.clock)
    assert (found["seconds"], found["pairs_per_second"]) == ([1, 32, 2], 5)


def test_grid_scores_each_batch_alone_and_averages_so_that_each_weighs_the_same():
    fake = Fake(lambda number: 1 if number < 3 else 4)
    batches = {(1, 16): PAIRS[:1], (8, 16): PAIRS[:8]}
    found = grid(fake.score, batches, seconds=2, clock=fake.clock)
    assert fake.asked == [PAIRS[:1]] * 3 + [PAIRS[:8]]
    assert [(c["batch"], c["length"], c["pairs_per_second"]) for c in found["cells"]] == [
        (1, 16, 1),
        (8, 16, 2),
    ]
    assert found["figure"]["value"] == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("rate", [0.001, 0.6, 7, 250])
def test_arrivals_have_the_rate_they_are_named_by(rate: float):
    moments = arrivals(rate, 4, 0)
    assert len(moments) == max(1, round(4 * rate))
    assert (np.diff(moments) > 0).all()
    assert 0 < moments[0] <= moments[-1] < 4


def test_arrivals_are_a_poisson_process():
    """Given their count, its moments are uniform; its gaps are exponential, and none predicts the next."""
    moments = arrivals(1000, 20, 1)
    size = len(moments)
    uniform = np.arange(1, size + 1) / size
    assert np.abs(moments / 20 - uniform).max() < 1.63 / math.sqrt(size)  # Kolmogorov, at 1 %
    gaps = np.sort(np.diff(moments)) * 1000
    assert np.abs(1 - np.exp(-gaps) - uniform[:-1]).max() < 1.63 / math.sqrt(size)
    gaps = np.diff(moments)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 3 / math.sqrt(size)


def test_one_seed_gives_one_pattern_and_another_another():
    assert np.array_equal(arrivals(50, 2, 7), arrivals(50, 2, 7))
    assert np.allclose(arrivals(50, 2, 7), 2 * arrivals(100, 1, 7))
    assert not np.allclose(arrivals(50, 2, 7), arrivals(50, 2, 8))


def test_a_query_waits_for_those_before_it_and_the_wait_counts():
    service = np.random.default_rng(5).exponential(0.9 / 20, 400).tolist()
    fake = Fake(service.__getitem__)
    found = trial(fake.score, PAIRS, rate=20, bound=100, seconds=20, seed=3, clock=fake.clock)
    free, expected = 0.0, []
    for arrival, taken in zip(arrivals(20, 20, 3).tolist(), service, strict=True):
        free = max(free, arrival) + taken
        expected.append(free - arrival)
    assert np.allclose(found["latencies"], expected)
    assert found["held"]
    assert fake.asked == [[PAIRS[number % 10]] for number in range(400)]
    assert max(expected) > 3 * max(service), "nothing waited, so nothing was tested"


@pytest.mark.parametrize("bound", [0.1, 0.2])
def test_the_rate_found_is_that_of_theory_where_service_times_are_exponential(bound: float):
    """M/M/1: the time in the system is exponential with rate mu - lambda."""
    draw = np.random.default_rng(0)
    fake = Fake(lambda _: draw.exponential(0.01))
    found = server(fake.score, PAIRS, bound=bound, seconds=600, seed=0, clock=fake.clock)
    assert found["figure"]["value"] == pytest.approx(100 - math.log(100) / bound, abs=4)
    assert found["capacity"] == pytest.approx(100, rel=0.02)
    assert found["p99"] <= bound


@pytest.mark.parametrize("bound", [0.03, 0.06])
def test_the_rate_found_is_that_of_theory_where_all_queries_take_the_same(bound: float):
    """M/D/1: the distribution of the wait is Erlang's."""

    def answered_in_time(rate: float) -> float:
        wait, load = bound - 0.01, rate * 0.01
        terms = ((rate * (k * 0.01 - wait), k) for k in range(int(wait / 0.01 + 1e-9) + 1))
        return (1 - load) * sum(x**k / math.factorial(k) * math.exp(-x) for x, k in terms)

    low, high = 1.0, 99.9
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if answered_in_time(middle) >= 0.99 else (low, middle)
    fake = Fake(lambda _: 0.01)
    found = server(fake.score, PAIRS, bound=bound, seconds=400, seed=0, clock=fake.clock)
    assert found["figure"]["value"] == pytest.approx(low, abs=4)


def test_a_trial_is_given_up_once_too_many_are_late():
    fake = Fake(lambda _: 1.0)
    found = trial(fake.score, PAIRS, rate=10, bound=1.5, seconds=100, seed=0, clock=fake.clock)
    assert not found["held"]
    assert found["queries"] == 1000
    assert sum(latency > 1.5 for latency in found["latencies"]) == 11  # ten of a thousand are forgiven
    assert len(found["latencies"]) < 20


def test_a_hundredth_may_be_late():
    slow = {150, 450}
    fake = Fake(lambda number: 2.0 if number in slow else 1e-6)
    found = trial(fake.score, PAIRS, rate=0.1, bound=1, seconds=2000, seed=0, clock=fake.clock)
    assert found["held"]
    assert len(found["latencies"]) == 200


def test_no_rate_holds_a_bound_that_one_query_alone_breaks():
    fake = Fake(lambda _: 0.2)
    found = server(fake.score, PAIRS, bound=0.1, seconds=10, seed=0, clock=fake.clock)
    assert found["figure"]["value"] is None
    assert len(found["trials"]) == TRIALS
    assert not any(one["held"] for one in found["trials"])
    assert "latencies" not in found


def test_a_bound_that_nothing_breaks_leaves_the_capacity():
    fake = Fake(lambda _: 0.01)
    found = server(fake.score, PAIRS, bound=1e6, seconds=10, seed=0, clock=fake.clock)
    assert found["figure"]["value"] == pytest.approx(100 * (1 - 1 / 2**TRIALS), rel=0.01)


@pytest.mark.parametrize("truth", [0.0, 1.6, 37.0, 98.0, 100.0])
def test_bisection_comes_as_close_as_its_trials_allow(truth: float):
    tried = []

    def holds(rate: float) -> bool:
        tried.append(rate)
        return rate <= truth

    found = highest_rate(holds, 100)
    assert len(tried) == TRIALS
    assert 0 <= truth - (found or 0) <= 100 / 2**TRIALS
    assert found is None or found in tried
