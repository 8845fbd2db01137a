"""A record of `segue bench` as a picture: a panel for each kind of scenario. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any, BinaryIO

from matplotlib.figure import Figure  # not pyplot, which would look for a display

from segue.benchmark.report import number
from segue.benchmark.scenarios import percentile
from segue.benchmark.split import STEPS

__all__ = ["draw"]

_COLUMNS = 3
_COLOURS = ("#2f6db3", "#d9822b", "#3c9d6b", "#8e5ea2", "#c0504d", "#8a8f98")
_BAD, _GREY = "#c0504d", "#8a8f98"
_MARKED = (0.5, 0.9, 0.99)


def draw(record: Mapping[str, Any], file: BinaryIO, *, format: str = "png") -> None:
    """Write the picture to `file`; `format` is one that matplotlib knows."""
    found = record["scenarios"]
    panels = [panel for name, panel in _PANELS if name in found]
    if any("latencies" in one for one in found.values()):
        panels.insert(0, _latencies)
    if "comparison" in record:
        panels.append(_comparison)
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * rows + 0.5), layout="constrained")
    engine = record["engine"]
    figure.suptitle(
        f"segue bench: {record['model']['name']}, {engine['executor']} on {engine['device']},"
        f"{' ' if columns > 1 else chr(10)}{engine['threads']} threads of {record['machine']['cpu']}",
        fontsize=10,
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.set_axis_off()
            continue
        panels[place](axes, record)
        axes.tick_params(which="both", labelsize=8)
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            text.set_fontsize(9)
    figure.savefig(file, dpi=120, format=format)


def _latencies(axes: Any, record: Mapping[str, Any]) -> None:
    """The share of queries answered within a time; dots at the percentiles."""
    for name, colour in zip(("SingleStream", "MultiStream", "Server"), _COLOURS, strict=False):
        values = sorted(record["scenarios"].get(name, {}).get("latencies", ()))
        if not values:
            continue
        shares = [(place + 1) / len(values) for place in range(len(values))]
        axes.step([1e3 * value for value in values], shares, where="post", color=colour, label=name)
        marks = [1e3 * percentile(values, share) for share in _MARKED]
        axes.scatter(marks, _MARKED, color=colour, s=18, zorder=3)
    axes.set(xscale="log", xlabel="ms", ylim=(0, 1.03), title="queries answered within (p50, p90, p99)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(_labelled)
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    axes.legend(fontsize=8)


def _labelled(value: float, _: int) -> str:
    """Label twos and fives between powers of ten; the others would run into each other."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _server(axes: Any, record: Mapping[str, Any]) -> None:
    """p99 of each trial over its rate, and the bound."""
    found = record["scenarios"]["Server"]
    for trial in found["trials"]:
        tail = 1e3 * percentile(trial["latencies"], 0.99)
        good = trial["held"]
        axes.scatter(trial["rate"], tail, marker="o" if good else "x", color=_COLOURS[0] if good else _BAD)
    axes.axhline(1e3 * found["bound"], color=_GREY, linestyle="--", linewidth=1)
    axes.axvline(found["capacity"], color=_GREY, linestyle=":", linewidth=1)
    axes.set(xlabel="queries/s (dotted: without a pause)", ylabel="p99, ms", xlim=(0, None), ylim=(0, None))
    axes.set_title("Server: rates that held (o) and did not (x)")


def _offline(axes: Any, record: Mapping[str, Any]) -> None:
    """Each step's share of a call."""
    steps = record["scenarios"]["Offline"]["steps"]
    middles = [median(steps[name]) for name in STEPS]
    whole = sum(middles)
    bars = axes.barh(STEPS, [100 * value / whole for value in middles], color=_COLOURS[0])
    axes.bar_label(bars, [f"{number(1e3 * value)} ms" for value in middles], padding=3, fontsize=8)
    axes.invert_yaxis()
    rate = record["scenarios"]["Offline"]["pairs_per_second"]
    axes.set(xlabel="% of a call", xlim=(0, 125), title=f"Offline: {number(rate)} pairs/s")


def _grid(axes: Any, record: Mapping[str, Any]) -> None:
    """Pairs/s over length, a line for each batch."""
    cells = record["scenarios"]["Grid"]["cells"]
    for place, batch in enumerate(dict.fromkeys(cell["batch"] for cell in cells)):
        points = sorted((c["length"], c["pairs_per_second"]) for c in cells if c["batch"] == batch)
        colour = _COLOURS[place % len(_COLOURS)]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=f"{batch}")
    lengths = sorted({cell["length"] for cell in cells})
    axes.set(xscale="log", yscale="log", xlabel="tokens a pair", ylabel="pairs/s", title="Grid")
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.legend(title="pairs a call", fontsize=8, title_fontsize=8)


def _cold(axes: Any, record: Mapping[str, Any]) -> None:
    """Milliseconds to the first score: a dot for each process, a line at the median."""
    found = record["scenarios"]["ColdStart"]
    names = ("import", "load", "first_score")
    for place, name in enumerate(names):
        values = [1e3 * value for value in found[name]]
        axes.scatter([place] * len(values), values, color=_COLOURS[0], alpha=0.6, s=22)
        axes.hlines(median(values), place - 0.25, place + 0.25, color=_COLOURS[1])
        axes.annotate(number(median(values)), (place + 0.28, median(values)), va="center", fontsize=8)
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set(ylabel="ms", xlim=(-0.5, len(names)), ylim=(0, None))
    axes.set_title(f"cold start, {len(found['import'])} processes, medians")


def _memory(axes: Any, record: Mapping[str, Any]) -> None:
    """MiB before the first score and at the peak; on a GPU, PyTorch's too."""
    found = record["scenarios"]["Memory"]
    names = ("memory_loaded", "memory_peak", "gpu_allocated", "gpu_reserved")
    known = {name.replace("memory_", "").replace("_", ", "): found[name] for name in names if found[name]}
    bars = axes.barh(list(known), [value / (1 << 20) for value in known.values()], color=_COLOURS[0])
    axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel="MiB", title=f"memory of a process that scores {found['pairs']} pairs")


def _comparison(axes: Any, record: Mapping[str, Any]) -> None:
    """The ratios, new over old."""
    found = record["comparison"]
    rows = [row for row in found["rows"] if row["ratio"] is not None]
    colours = [_BAD if row["failed"] else _COLOURS[0] for row in rows]
    bars = axes.barh([row["scenario"] for row in rows], [row["ratio"] for row in rows], color=colours)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.axvline(1, color=_GREY, linewidth=1)
    if found["fail_below"] is not None:
        axes.axvline(found["fail_below"], color=_BAD, linestyle="--", linewidth=1)
    axes.invert_yaxis()
    axes.set(
        xlim=(0, 1.2 * max([1.0, *(row["ratio"] for row in rows)])), title="new over old, more is better"
    )


_PANELS = (
    ("Server", _server),
    ("Offline", _offline),
    ("Grid", _grid),
    ("ColdStart", _cold),
    ("Memory", _memory),
)
