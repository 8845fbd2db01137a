"""Where the time of a call goes: the four steps of `Engine.predict`, each timed, one after the other.

On a GPU a long call takes less than their sum: it tokenises the next pairs while others are executed.
"""

from __future__ import annotations

from collections.abc import Sequence

from segue.benchmark.scenarios import REAL, Clock, Pair
from segue.engine import Engine
from segue.executors import execute
from segue.head import scores

__all__ = ["STEPS", "split"]

STEPS = ("tokenise", "plan", "execute", "head")  # execute: lay out the batches and run them


def split(
    engine: Engine, pairs: Sequence[Pair], *, seconds: float, clock: Clock = REAL
) -> dict[str, list[float]]:
    """Score all pairs for `seconds`, at least once; return each step's seconds, one number per call."""
    taken: dict[str, list[float]] = {name: [] for name in STEPS}
    started = clock.now()
    while not taken["head"] or clock.now() - started < seconds:
        moments = [clock.now()]
        encoded = engine._encode(pairs, "longest_first", None).all()
        moments.append(clock.now())
        batches = list(engine._plan(encoded))
        moments.append(clock.now())
        logits = execute(engine._executor, encoded, batches, labels=len(engine.labels))[encoded.inverse]
        moments.append(clock.now())
        scores(logits, engine._manifest.head)
        moments.append(clock.now())
        for name, before, after in zip(STEPS, moments[:-1], moments[1:], strict=True):
            taken[name].append(after - before)
    return taken
