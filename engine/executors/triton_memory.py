"""Where the values of a plan lie in one arena, in room reused from those no longer read; and how the numbers
of a batch lie side by side. Pure.

Sizes are in elements; bytes, devices and launches are none of its business.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from segue.batching import INPUTS
from segue.executors.triton_plan import PAIRS, TOKENS, Plan, Step

__all__ = ["ALIGNMENT", "arrange", "arrange_numbers", "columns_of", "scratch_of"]

ALIGNMENT = 256  # elements, so that every value begins at a multiple of 512 bytes or more
_NUMBERS = 16  # elements of 4 bytes: kernels are compiled apart for pointers that 16 does not divide


def arrange(plan: Plan, rows: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """(first element of each value, elements in all) for so many rows of TOKENS and of PAIRS.

    The logits are not among them: they leave the device. Values that are alive at the same time do not
    overlap, nor do a step's output, its scratch, named `scratch_of`, and its inputs: kernels read rows while
    others are written.
    """
    values = {step.output: step for step in plan.steps[:-1]}
    last = {name: at for at, step in enumerate(plan.steps) for name in step.inputs if name in values}
    places: dict[str, int] = {}
    alive: dict[str, tuple[int, int]] = {}
    size = 0
    for at, step in enumerate(plan.steps[:-1]):
        alive = {name: span for name, span in alive.items() if last.get(name, -1) >= at}
        for name, columns in columns_of(step).items():
            need = _up(rows[step.rows] * columns, ALIGNMENT)
            start = 0
            for begin, end in sorted(alive.values()):
                if start + need <= begin:
                    break
                start = max(start, end)
            places[name] = start
            alive[name] = start, start + need
            size = max(size, start + need)
    return places, size


def columns_of(step: Step) -> dict[str, int]:
    """What a step needs room for, its output and perhaps scratch: name → columns."""
    return {step.output: step.columns} | ({scratch_of(step): step.scratch} if step.scratch else {})


def scratch_of(step: Step) -> str:
    """What the step's scratch is called among the values."""
    return f"{step.output}/scratch"


@lru_cache(maxsize=1024)  # of as many buckets; a call has no time to lose
def arrange_numbers(tokens: int, pairs: int) -> tuple[Mapping[str, slice], int]:
    """(where each part lies, numbers in all) of a batch of up to so many tokens and pairs: how many of both
    there are, as TOKENS and PAIRS, and the graph's inputs."""
    sizes = {TOKENS: 1, PAIRS: 1} | {name: pairs + 1 if name == "cu_seqlens" else tokens for name in INPUTS}
    parts, end = {}, 0
    for name, size in sizes.items():
        parts[name] = slice(end, end + size)
        end = _up(end + size, _NUMBERS)
    return parts, end


def _up(number: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-number // to) * to
