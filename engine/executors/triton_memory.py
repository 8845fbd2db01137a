"""Where the values of a plan lie in one arena, what is no longer read making room for what comes. Pure.

Sizes are in elements of a row; bytes, devices and launches are none of its business.
"""

from __future__ import annotations

from collections.abc import Mapping

from segue.executors.triton_plan import Plan

__all__ = ["arrange"]

_ALIGNMENT = 256  # elements, so that every row of any dtype begins at a multiple of 16 bytes


def arrange(plan: Plan, rows: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """(first element of each value, elements in all) for so many rows of TOKENS and of PAIRS.

    The logits are not among them: they leave the device. Values that are alive at the same time do not
    overlap, the output of a step and its inputs among them: kernels read rows while others are written.
    """
    values = {step.output: step for step in plan.steps[:-1]}
    last = {name: at for at, step in enumerate(plan.steps) for name in step.inputs if name in values}
    places: dict[str, int] = {}
    alive: dict[str, tuple[int, int]] = {}
    size = 0
    for at, step in enumerate(plan.steps[:-1]):
        alive = {name: span for name, span in alive.items() if last.get(name, -1) >= at}
        need = -(-rows[step.rows] * step.columns // _ALIGNMENT) * _ALIGNMENT
        start = 0
        for begin, end in sorted(alive.values()):
            if start + need <= begin:
                break
            start = max(start, end)
        places[step.output] = start
        alive[step.output] = start, start + need
        size = max(size, start + need)
    return places, size
