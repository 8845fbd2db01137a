"""The scenarios of MLPerf inference that ask one query after another, and what is made of their times.

    SingleStream   a query of one pair, the next when it is answered: the latency that a caller waits
    MultiStream    the same with eight pairs a query
    Offline        one query of all pairs: pairs and tokens a second
    Grid           not MLPerf's: queries of so many pairs of so many tokens

Each takes something that scores a list of pairs, and a clock, so that neither an engine nor real time is
needed to say what it means. The fourth, Server, is in `server`. All times are seconds; every one that
was measured is in the record returned, which is ready for JSON.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from statistics import median
from typing import Any, NamedTuple

__all__ = [
    "ENOUGH",
    "MULTI_STREAM",
    "REAL",
    "Clock",
    "Pair",
    "Score",
    "figure",
    "grid",
    "latency_record",
    "offline",
    "percentile",
    "queries",
    "stream",
]

Pair = tuple[str, str]
Score = Callable[[Sequence[Pair]], object]

MULTI_STREAM = 8  # pairs a query, as MLPerf has it
ENOUGH = 100  # with fewer, the hundredth slower than p99 is less than one query
_CALLS = 3  # the median of fewer is no better than one of them
_OVERTIME = 3  # times the seconds meant that these calls may take
_SHARES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}


class Clock(NamedTuple):
    """now: seconds since some moment. sleep: wait so many."""

    now: Callable[[], float]
    sleep: Callable[[float], object]


REAL = Clock(time.perf_counter, time.sleep)


def stream(
    score: Score, pairs: Sequence[Pair], *, per_query: int, seconds: float, clock: Clock = REAL
) -> dict[str, Any]:
    """Ask queries of `per_query` pairs, one at a time, for so many seconds, at least one; count latencies.

    The figure is the 90th percentile, SingleStream's in MLPerf; the 99th, MultiStream's, would take ten times
    the queries to be as steady.
    """
    asked = queries(pairs, per_query)
    latencies: list[float] = []
    started = clock.now()
    while not latencies or clock.now() - started < seconds:
        latencies.append(_timed(score, next(asked), clock))
    record = latency_record(latencies)
    return {
        "figure": figure("latency p90", record["p90"], "s", higher_is_better=False),
        "pairs_per_query": per_query,
        "pairs_per_second": per_query * len(latencies) / sum(latencies),
        **record,
    }


def offline(
    score: Score, pairs: Sequence[Pair], *, tokens: int, seconds: float, clock: Clock = REAL
) -> dict[str, Any]:
    """Ask for all pairs at once, and again for so many seconds; the median call counts.

    Args:
        tokens: of all pairs together, as the model reads them.
    """
    taken = _repeated(score, pairs, seconds, clock)
    middle = median(taken)
    return {
        "figure": figure("throughput", len(pairs) / middle, "pairs/s", higher_is_better=True),
        "pairs": len(pairs),
        "tokens": tokens,
        "calls": len(taken),
        "pairs_per_second": len(pairs) / middle,
        "tokens_per_second": tokens / middle,
        "seconds": taken,
    }


def grid(
    score: Score,
    batches: Mapping[tuple[int, int], Sequence[Pair]],
    *,
    seconds: float,
    clock: Clock = REAL,
) -> dict[str, Any]:
    """Score each batch alone, and again for its part of the seconds; the median call counts.

    The figure is the geometric mean over the batches, so that each weighs the same.

    Args:
        batches: by (pairs, tokens of each).
        seconds: for all batches together.
    """
    cells: list[dict[str, Any]] = []
    for (size, length), pairs in batches.items():
        taken = _repeated(score, pairs, seconds / len(batches), clock)
        middle = median(taken)
        cells.append(
            {
                "batch": size,
                "length": length,
                "calls": len(taken),
                "median": middle,
                "pairs_per_second": size / middle,
                "seconds": taken,
            }
        )
    mean = math.exp(sum(math.log(cell["pairs_per_second"]) for cell in cells) / len(cells))
    return {"figure": figure("mean throughput", mean, "pairs/s", higher_is_better=True), "cells": cells}


def queries(pairs: Sequence[Pair], per_query: int) -> Iterator[list[Pair]]:
    """Yield queries of `per_query` pairs in the order given, for ever: after the last comes the first."""
    endless = cycle(pairs)
    while True:
        yield list(islice(endless, per_query))


def latency_record(latencies: Sequence[float]) -> dict[str, Any]:
    """Return what is said of latencies: count, mean, extremes, percentiles, and all of them."""
    return {
        "queries": len(latencies),
        "mean": sum(latencies) / len(latencies),
        "min": min(latencies),
        **{name: percentile(latencies, share) for name, share in _SHARES.items()},
        "max": max(latencies),
        "latencies": list(latencies),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of all do not exceed: one that was measured."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def figure(name: str, value: float | None, unit: str, *, higher_is_better: bool) -> dict[str, Any]:
    """Return the one number that a scenario is compared by; None where it has none."""
    return {"name": name, "value": value, "unit": unit, "better": "higher" if higher_is_better else "lower"}


def _repeated(score: Score, pairs: Sequence[Pair], seconds: float, clock: Clock) -> list[float]:
    """Return the seconds of each call: one at least, and three unless they take far longer than was meant."""
    taken: list[float] = []
    started = clock.now()
    while not taken or clock.now() - started < seconds * (_OVERTIME if len(taken) < _CALLS else 1):
        taken.append(_timed(score, pairs, clock))
    return taken


def _timed(score: Score, pairs: Sequence[Pair], clock: Clock) -> float:
    started = clock.now()
    score(pairs)
    return clock.now() - started
