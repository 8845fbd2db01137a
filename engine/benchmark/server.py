"""MLPerf's Server scenario: queries of one pair arrive at random, and 99 of 100 must be answered in time.

Arrivals are a Poisson process. One thread answers them in order; a query that comes while another is computed
waits, and its latency counts from its arrival. The figure is the highest rate at which the 99th percentile
keeps within a bound, found by bisection: below it there is time to spare, above it the queue grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segue.benchmark.scenarios import REAL, Clock, Pair, Score, figure, latency_record, queries

__all__ = ["TRIALS", "arrivals", "highest_rate", "server", "trial"]

TRIALS = 6  # halvings of what the engine can answer at all: the figure is that, to a 64th of it
_SHARE = 0.99
_ARRIVALS = 3  # keeps their random numbers apart from those of made-up pairs


def server(
    score: Score,
    pairs: Sequence[Pair],
    *,
    bound: float,
    seconds: float,
    seed: int,
    clock: Clock = REAL,
) -> dict[str, Any]:
    """Find the highest rate that holds the bound.

    Args:
        bound: of the 99th percentile, seconds.
        seconds: of arrivals in each trial. The more, the closer to what holds for ever: a queue that grows
            slowly takes time to reach the bound.
        seed: of the arrivals.

    Returns:
        The figure, None where not even the lowest rate held; `trials`, in their order; and, of the best, what
        `latency_record` says.
    """
    capacity = _capacity(score, pairs, seconds, clock)
    trials: list[dict[str, Any]] = []

    def holds(rate: float) -> bool:
        trials.append(trial(score, pairs, rate=rate, bound=bound, seconds=seconds, seed=seed, clock=clock))
        return bool(trials[-1]["held"])

    rate = highest_rate(holds, capacity)
    best = next((one for one in trials if one["rate"] == rate), None)
    return {
        "figure": figure("rate in bound", rate, "queries/s", higher_is_better=True),
        "bound": bound,
        "capacity": capacity,
        "seconds_per_trial": seconds,
        **(latency_record(best["latencies"]) if best else {}),
        "trials": trials,
    }


def highest_rate(holds: Callable[[float], bool], capacity: float) -> float | None:
    """Return the highest rate below `capacity` that was seen to hold, by bisection; None where none was."""
    best, above = 0.0, capacity
    for _ in range(TRIALS):
        rate = (best + above) / 2
        if holds(rate):
            best = rate
        else:
            above = rate
    return best or None


def trial(
    score: Score,
    pairs: Sequence[Pair],
    *,
    rate: float,
    bound: float,
    seconds: float,
    seed: int,
    clock: Clock = REAL,
) -> dict[str, Any]:
    """Answer the queries that arrive in so many seconds; give up once too many of them are late.

    Returns:
        `held`, and `latencies` of the queries answered, which are fewer than `queries` where it was given up.
    """
    due = arrivals(rate, seconds, seed)
    forgiven = len(due) - math.ceil(_SHARE * len(due))
    asked = queries(pairs, 1)
    latencies: list[float] = []
    late = 0
    started = clock.now()
    for arrival in (started + due).tolist():
        early = arrival - clock.now()
        if early > 0:
            clock.sleep(early)
        score(next(asked))
        latencies.append(clock.now() - arrival)
        late += latencies[-1] > bound
        if late > forgiven:
            break
    return {"rate": rate, "queries": len(due), "held": late <= forgiven, "latencies": latencies}


def arrivals(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Return when queries arrive, in order, in [0, seconds): a Poisson process of which the count is known.

    The count is the mean, at least 1, so that a trial has the rate it is named by; given the count, a Poisson
    process is that many uniform moments, and so are sums of exponential gaps scaled to the last of them. One
    seed gives the same pattern at any rate, compressed as the rate grows.
    """
    count = max(1, round(rate * seconds))
    moments = np.random.default_rng((_ARRIVALS, seed)).exponential(size=count + 1).cumsum()
    return np.asarray(moments[:-1] / moments[-1] * seconds)


def _capacity(score: Score, pairs: Sequence[Pair], seconds: float, clock: Clock) -> float:
    """Return the queries per second of a caller that never waits: no higher rate holds for long."""
    asked = queries(pairs, 1)
    answered = 0
    started = clock.now()
    while not answered or clock.now() - started < seconds:
        score(next(asked))
        answered += 1
    return answered / (clock.now() - started)
