"""Reliability diagrams: of the pairs that got about this probability, what share was IsNext?"""

from __future__ import annotations

__all__ = ["draw_reliability"]

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_COLUMNS = 3
_Z = 1.96  # standard errors either side that hold 95 %
_BLUE, _GREY = "#2f6db3", "#8a8f98"


def draw_reliability(sets: Mapping[str, Mapping[str, Any]], file: Path) -> bool:
    """Write a PNG with a diagram for each set of pairs, as `evaluation.measured` gives them by name; False
    where matplotlib is missing.

    Above, the share of IsNext over the mean probability of each bin: a point's area grows with its pairs, the
    line through it is Wilson's 95 % interval, and on the diagonal both agree. Below, how many pairs a bin
    holds.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot, which would look for a display
    except ModuleNotFoundError:
        return False
    columns = min(_COLUMNS, len(sets))
    rows = -(-len(sets) // columns)
    figure = Figure(figsize=(3.6 * columns, 4.8 * rows), layout="constrained")
    heights = [3, 1] * rows
    grid = figure.subplots(2 * rows, columns, sharex=True, squeeze=False, height_ratios=heights)
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        above, below = grid[2 * row : 2 * row + 2, column]
        if place >= len(sets):
            above.set_axis_off()
            below.set_axis_off()
            continue
        name = list(sets)[place]
        _draw(above, below, name, sets[name])
        if column == 0:
            above.set_ylabel("share of IsNext")
            below.set_ylabel("pairs")
    figure.savefig(file, dpi=120)
    return True


def _draw(above: Any, below: Any, name: str, found: Mapping[str, Any]) -> None:
    counts = [one["pairs"] for one in found["bins"]]
    means = [one["probability"] for one in found["bins"]]
    shares = [one["is_next"] for one in found["bins"]]
    above.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1, zorder=1)
    ends = zip(*(_interval(one["is_next"], one["pairs"]) for one in found["bins"]), strict=True)
    above.vlines(means, *ends, color=_BLUE, alpha=0.3, linewidth=1, zorder=2)
    above.plot(means, shares, color=_BLUE, linewidth=1.2, zorder=2)
    sizes = [20 + 180 * count / max(counts) for count in counts]
    above.scatter(means, shares, s=sizes, color=_BLUE, alpha=0.75, linewidths=0, zorder=3)
    above.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    above.set_title(name, fontsize=11, pad=20)
    area = "none" if found["auc"] is None else f"{found['auc']:.3f}"
    said = f"accuracy {found['accuracy']:.3f}, AUC {area}, calibration error {found['calibration_error']:.3f}"
    above.text(0.5, 1.03, said, transform=above.transAxes, ha="center", va="bottom", fontsize=7.5)
    below.set_xlabel("P(IsNext), mean of a bin")
    below.tick_params(labelbottom=True)
    below.bar(means, counts, width=0.05, color=_BLUE, alpha=0.75)
    below.set_ylim(0, 1.3 * max(counts))
    for mean, count in zip(means, counts, strict=True):
        below.annotate(str(count), (mean, count), (0, 2), textcoords="offset points", ha="center", fontsize=6)
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)


def _interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's interval for a share of `count`: unlike the usual one, never empty and never beyond 0 or 1."""
    square = _Z**2 / count
    middle, half = share + square / 2, math.sqrt(square * (share * (1 - share) + square / 4))
    return (middle - half) / (1 + square), (middle + half) / (1 + square)
