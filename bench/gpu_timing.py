"""Seconds that calls take: several sides in turn, medians, everything warmed up before.

Kernels are captured, a few milliseconds of them, and the replays timed by the device's own events; whole
scorings are timed by the clock, from an idle device to an idle one. On a CPU, where kernels are
interpreted, the clock serves for both and means nothing.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["compare", "rotations", "summary", "take_turns"]

_REPLAY = 3e-3  # seconds of work in a captured graph, so that the gap between two replays is small
_COLD = 200e6  # bytes that a rotation of input sets goes through: several times the largest cache
_MOST_SETS, _MOST_ROUNDS = 64, 100
Call = Callable[[], Any]


def rotations(moved: int) -> int:
    """How many sets of inputs to take turns with, for calls that move so many bytes, to find none cached."""
    return min(_MOST_SETS, max(1, math.ceil(_COLD / moved)))


def compare(
    sides: Mapping[str, Sequence[Call]], device: torch.device, *, repeats: int = 9
) -> dict[str, dict[str, Any]]:
    """Microseconds a call of each side, whose calls differ in their inputs alone; or why there are none."""
    found: dict[str, dict[str, Any]] = {}
    replays: dict[str, tuple[Call, int]] = {}
    for name, calls in sides.items():
        try:
            replays[name] = (
                _captured(calls) if device.type == "cuda" else (lambda c=calls: [f() for f in c], 1)
            )
            replays[name][0]()
        except Exception as error:  # what a peer does not run is part of the result
            found[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
            replays.pop(name, None)
    taken: dict[str, list[float]] = {name: [] for name in replays}
    timed = _by_events if device.type == "cuda" else _by_clock
    for _ in range(repeats):
        for name, (replay, rounds) in replays.items():
            taken[name].append(timed(replay) / rounds / len(sides[name]))
    for name, seconds in taken.items():
        found[name] = {"us": 1e6 * statistics.median(seconds), "all_us": [round(1e6 * s, 3) for s in seconds]}
    return found


def take_turns(
    sides: Mapping[str, Call], device: torch.device, *, repeats: int = 7
) -> dict[str, list[float]]:
    """Seconds of each call of each side, which ends when its results are there."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, call in sides.items():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken[name].append(_by_clock(call))
    return taken


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, 5th and 95th percentile, in seconds, and all of up to a few."""
    few = {"all": [round(s, 6) for s in seconds]} if len(seconds) <= 20 else {"count": len(seconds)}
    return {f"p{p}": float(np.percentile(seconds, p)) for p in (5, 50, 95)} | few


def _captured(calls: Sequence[Call]) -> tuple[Call, int]:
    """A GPU graph of all calls, and how often each is in it. They compile and load before it is captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in [*calls, *calls]:
            call()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        once = _by_events(lambda: [call() for call in calls])
    rounds = min(_MOST_ROUNDS, max(1, round(_REPLAY / max(once, 1e-7))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(rounds):
            for call in calls:
                call()
    return graph.replay, rounds


def _by_events(call: Call) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _by_clock(call: Call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
