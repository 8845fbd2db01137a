"""What only a fresh process can tell: how long a first score takes from nothing, and what memory it needs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from segue.benchmark.scenarios import Pair, figure
from segue.errors import SegueError

__all__ = ["REPEATS", "cold_start", "peak_memory"]

REPEATS = 5
_STEPS = ("import", "load", "first_score")


def cold_start(load: Mapping[str, Any], pair: Pair, *, repeats: int = REPEATS) -> dict[str, Any]:
    """Start `repeats` processes that load the model and score a pair.

    Args:
        load: the arguments of `Engine.load`, ready for JSON.

    Returns:
        The figure: seconds from the first import to the first score, the median. Seconds of each repeat:
        `import`, `load`, `first_score`, and `process`, from its start to its end, Python's own included.
    """
    found: dict[str, list[float]] = {name: [] for name in (*_STEPS, "process")}
    for _ in range(repeats):
        started = time.perf_counter()
        told = _child(load, [pair])
        found["process"].append(time.perf_counter() - started)
        for name in _STEPS:
            found[name].append(told[name])
    totals = [sum(steps) for steps in zip(*(found[name] for name in _STEPS), strict=True)]
    return {"figure": figure("to the first score", median(totals), "s", higher_is_better=False), **found}


def peak_memory(load: Mapping[str, Any], pairs: Sequence[Pair]) -> dict[str, Any]:
    """Start a process that loads the model and scores all pairs in one call.

    Returns:
        The figure: peak bytes of RAM. `memory_loaded` is that before the first score. `gpu_allocated` and
        `gpu_reserved` are PyTorch's bytes, None where the executor does not use it.
    """
    told = _child(load, pairs)
    kept = {name: value for name, value in told.items() if name not in _STEPS}
    return {
        "figure": figure("peak memory", told["memory_peak"], "bytes", higher_is_better=False),
        "pairs": len(pairs),
        **kept,
    }


def _child(load: Mapping[str, Any], pairs: Sequence[Pair]) -> dict[str, Any]:
    """Run `segue.benchmark.child`; -P keeps the folder it is started in from hiding a package."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "segue.benchmark.child"],
        input=json.dumps({"load": dict(load), "pairs": pairs}),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise SegueError(f"a fresh process that scores ended with {done.returncode}: {last}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told
