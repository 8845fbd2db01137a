"""The record of a run as Markdown and as a picture. Knows nothing of how it was measured."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

__all__ = ["draw", "markdown", "pairs_per_second", "ratio"]

_DIFFERENCES = {  # columns, their names in a record, and their format
    "float32": ({"differs from PyTorch by": "difference"}, ".0e"),
    "int8": (
        {
            "differs from PyTorch in the mean by": "mean_difference",
            "at the most by": "difference",
            "a pair alone differs by up to": "alone",
        },
        ".1e",
    ),
}
_OWN, _OTHER = "#c8502d", "#8a97a6"


def markdown(record: dict[str, Any], results: Path) -> str:
    """Return the tables: one a workload, the cold starts, who was absent, what ran; and what `bench/gpu.py`
    wrote into the folder `results`."""
    parts = [_heading(record)]
    for name, workload in record["workloads"].items():
        parts.append(_table(name, workload, record["peers"], record["precision"]))
    if record["cold"]:
        parts.append(_cold(record["cold"], record["peers"]))
    if record["precision"] == "float32":
        parts.append(_gpu(results))
    parts.append(_versions(record))
    return "\n\n".join(parts) + "\n"


def pairs_per_second(result: dict[str, Any], pairs: int) -> float:
    """Return the median over the rounds."""
    return pairs / statistics.median(result["seconds"])


def ratio(result: dict[str, Any], own: dict[str, Any]) -> float:
    """Return how many times segue's seconds a peer took: the median over rounds of the ratio in each."""
    return statistics.median(a / b for a, b in zip(result["seconds"], own["seconds"], strict=True))


def draw(record: dict[str, Any], path: Path) -> None:
    """Write the picture: bars of pairs a second, one panel a workload."""
    from matplotlib.figure import Figure

    workloads = record["workloads"]
    timed = [
        key
        for key in record["peers"]
        if any("seconds" in w["results"].get(key, {}) for w in workloads.values())
    ]
    figure = Figure(figsize=(10, 1 + 0.22 * len(timed) * ((len(workloads) + 1) // 2)), layout="constrained")
    panels = figure.subplots(
        (len(workloads) + 1) // 2, min(2, len(workloads)), squeeze=False, sharey=True
    ).flatten()
    for panel in panels[len(workloads) :]:
        panel.set_axis_off()
    for panel, (name, workload) in zip(panels, workloads.items(), strict=False):
        results = {key: workload["results"].get(key, {}) for key in timed}
        speeds = [
            pairs_per_second(result, workload["pairs"]) if "seconds" in result else 0.0
            for result in results.values()
        ]
        names = [record["peers"][key]["name"] for key in timed]
        colours = [_OWN if key == "segue" else _OTHER for key in timed]
        bars = panel.barh(names, speeds, color=colours)
        labels = [
            f"{speed:.0f}" if speed >= 100 else f"{speed:.1f}" if speed else "not timed" for speed in speeds
        ]
        panel.bar_label(bars, labels, padding=3, fontsize=8)
        panel.margins(x=0.15)
        panel.set_title(f"{name}: {workload['describes']}", fontsize=9, loc="left")
        panel.set_xlabel("pairs/s", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()  # of all: they share it
    figure.savefig(path, dpi=130)


def _heading(record: dict[str, Any]) -> str:
    machine, int8 = record["machine"], record["precision"] == "int8"
    checked = "compared with" if int8 else "found equal to"
    parts = [
        f"# segue and its peers{' in int8' if int8 else ''} on {record['threads']} cores",
        f"{machine['cpu']}, {record['threads']} threads each, {machine['os']}. {record['model']}. "
        f"`{record['command']}`, {record['date']}.",
        "Text to scores, all of it counted but the loading. Texts are of some 230 words, whose ids segue "
        "remembers from call to call. Equal pairs for all, one run, turn by turn; each "
        f"at the batch size that was fastest on every second pair, after its scores were {checked} "
        "PyTorch's. pairs/s: median of the rounds. The ratio is the median of each round's. Memory: the peak "
        "of the process that scored.",
    ]
    if int8:
        parts[1:1] = [
            "Engines that score with weights of 8 bits, each quantised by its own tool:",
            "\n".join(f"- {name}: {how}" for name, how in record["quantised"].items()),
        ]
        parts.append(
            "Differences are of a probability: from PyTorch in float32, one pair at a time; and of a pair in "
            "a call of its own from the same pair in the batches that were timed (of one pair, they show no "
            "difference), over every second pair."
        )
    return "\n\n".join(parts)


def _table(name: str, workload: dict[str, Any], peers: dict[str, Any], precision: str) -> str:
    columns, digits = _DIFFERENCES[precision]
    own = workload["results"].get("segue", {})
    lines = [
        f"## {name}: {workload['describes']}",
        "",
        f"{workload['pairs']} pairs, {workload['tokens']} tokens; {workload['rounds']} rounds.",
        "",
        f"| peer | batch | pairs/s | seconds, times segue's | peak memory, MB | {' | '.join(columns)} |",
        "|---|---|---|---|---|" + "---|" * len(columns),
    ]
    timed = {key: result for key, result in workload["results"].items() if "seconds" in result}
    for key, result in sorted(timed.items(), key=lambda item: statistics.median(item[1]["seconds"])):
        times = f"{ratio(result, own):.2f}" if "seconds" in own else "-"
        memory = "-" if result["peak"] is None else f"{result['peak'] / 1e6:.0f}"
        title = peers[key]["name"]
        differences = " | ".join(f"{result[column]:{digits}}" for column in columns.values())
        lines.append(
            f"| {f'**{title}**' if key == 'segue' else title} | {result['batch'] or 'its own'} "
            f"| {pairs_per_second(result, workload['pairs']):.1f} | {times} | {memory} "
            f"| {differences} |"
        )
    for key, result in workload["results"].items():
        if "seconds" not in result:
            reason = f"absent: {result['absent']}" if "absent" in result else f"refused: {result['refused']}"
            lines.append(
                f"| {peers[key]['name']} | - | - | - | - | {_cell(reason)} |{' - |' * (len(columns) - 1)}"
            )
    busy = [f"{peers[key]['name']} ({r['idle']:.0%})" for key, r in timed.items() if r["idle"] > 0.02]
    if busy:
        lines += ["", f"Kept a core busy while others were timed: {', '.join(busy)}."]
    return "\n".join(lines)


def _cold(cold: dict[str, Any], peers: dict[str, Any]) -> str:
    lines = [
        "## Cold start",
        "",
        "From the start of a process to its first score, in turn, the files in the system's cache.",
        "",
        "| peer | seconds, median | fastest | slowest | import and load | first score |",
        "|---|---|---|---|---|---|",
    ]
    there = {key: record for key, record in cold.items() if "absent" not in record}
    for key, record in sorted(there.items(), key=lambda item: item[1]["median"]):
        load, score = (statistics.median(record[name]) for name in ("load", "score"))
        title = peers[key]["name"]
        lines.append(
            f"| {f'**{title}**' if key == 'segue' else title} | {record['median']:.2f} "
            f"| {min(record['total']):.2f} | {max(record['total']):.2f} | {load:.2f} | {score:.3f} |"
        )
    for key, record in cold.items():
        if "absent" in record:
            lines.append(f"| {peers[key]['name']} | absent: {_cell(record['absent'])} | - | - | - | - |")
    return "\n".join(lines)


def _gpu(results: Path) -> str:
    """The fastest of segue's settings for each model and workload, of every GPU that was measured."""
    lines = ["## On a GPU", ""]
    found = {file: json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.glob("*.json"))}
    measured = {file: r for file, r in found.items() if "sections" in r and not r["smoke"]}
    if not measured:
        return "\n".join(
            [
                *lines,
                "No figures yet: `python bench/gpu.py` makes them, and `--write` lists them.",
            ]
        )
    lines += ["| GPU | model | workload | tokens a batch | settings | pairs/s |", "|---|---|---|---|---|---|"]
    for file, record in measured.items():
        best: dict[tuple[str, str], tuple[float, int, str]] = {}
        for row in record["sections"].get("throughput", {}).get("found", {}).get("rows", []):
            for label, side in row["sides"].items():
                key = row["model"], row["workload"]
                one = side.get("pairs/s", 0.0), row["tokens"], label
                best[key] = max(best.get(key, (0.0, 0, "")), one)
        for (model, workload), (speed, tokens, label) in best.items():
            shown = f"{speed:,.0f}" if speed else "not timed"
            lines.append(
                f"| [{file.stem}]({file.stem}.md) | {model} | {workload} | {tokens} | {label} | {shown} |"
            )
    return "\n".join(lines)


def _versions(record: dict[str, Any]) -> str:
    lines = ["## Versions", "", "| peer | packages |", "|---|---|"]
    for peer in record["peers"].values():
        packages = ", ".join(f"{name} {version}" for name, version in peer["versions"].items())
        lines.append(f"| {peer['name']} | {packages or _cell(peer.get('absent', 'not run'))} |")
    own = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join([*lines, "", f"This script: {own}."])


def _cell(text: str) -> str:
    return text.replace("|", "/")
