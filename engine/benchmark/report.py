"""A record of `segue bench` for people, as Markdown, and for machines, as JSON with every measured time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from segue.benchmark.scenarios import ENOUGH, MULTI_STREAM
from segue.benchmark.split import STEPS

__all__ = ["markdown", "number", "to_json"]

_NUMBERS = re.compile(r"\[\n[-+\d\s,.e]*\]")
_DIGITS = 7  # decimals of seconds: a tenth of a microsecond
_PERCENTILES = {"p50": 2, "p90": 10, "p95": 20, "p99": ENOUGH}  # queries for one to lie beyond it
_MIB = 1 << 20


def to_json(record: Mapping[str, Any]) -> str:
    """Return JSON with each list of numbers on a line, however long."""
    text = json.dumps(_rounded(record), ensure_ascii=False, indent=1)
    return _NUMBERS.sub(lambda found: " ".join(found[0].split()), text) + "\n"


def markdown(record: Mapping[str, Any]) -> str:
    """Return the report: what was measured on what, then a table for each kind of scenario there is."""
    found = record["scenarios"]
    parts = [f"# segue bench: {record['model']['name']}", "\n".join(_circumstances(record))]
    parts += _queries(record)
    for name, section in _SECTIONS.items():
        if name in found:
            parts += section(record)
    if "comparison" in record:
        parts += _comparison(record["comparison"])
    return "\n\n".join(parts) + "\n"


def number(value: float) -> str:
    """Return three significant digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:#.3g}"


def _circumstances(record: Mapping[str, Any]) -> Iterator[str]:
    model, engine, machine = record["model"], record["engine"], record["machine"]
    size = model["dimensions"]
    yield (
        f"- model: {size['layers']} layers of {size['hidden_size']}, weights in {model['precision']}, "
        f"sha256 {model['sha256'][:12]}"
    )
    yield (
        f"- runs on: {engine['executor']}, {engine['device']}, {engine['precision']}, "
        f"{_counted(engine['threads'], 'thread')}, {engine['max_batch_tokens']} tokens a batch"
    )
    memory = "" if machine["memory"] is None else f", {machine['memory'] / (1 << 30):.1f} GiB"
    cores = f"{machine['cores']} of {_counted(machine['host_cores'], 'core')}"
    yield f"- machine: {'; '.join([machine['cpu'], *machine['gpus']])}, {cores}{memory}, {machine['os']}"
    yield f"- versions: {', '.join(f'{name} {version}' for name, version in record['versions'].items())}"
    yield from _pairs(record["workload"], record["scenarios"])
    yield f"- load {_time(record['load'])}, then warm-up {_time(record['warm_up'])}, in no figure below"


def _pairs(work: Mapping[str, Any], scenarios: Mapping[str, Any]) -> Iterator[str]:
    different = "all different" if work["distinct"] == work["pairs"] else f"{work['distinct']} different"
    lengths = f"{work['shortest']} to {work['longest']} tokens, mean {work['mean']:.1f}"
    yield f"- pairs: {work['pairs']} of {work['source']}, {different}, {lengths}"
    if work["truncated"]:
        yield f"- {work['truncated']} of them are longer than the model reads, and are truncated"
    if work["distinct"] < work["pairs"]:
        yield "- segue computes equal pairs of one call once, which saves Offline work"
    if "MultiStream" in scenarios and work["distinct"] < MULTI_STREAM:
        yield f"- a MultiStream query asks for {MULTI_STREAM} pairs, so for some of these more than once"


def _queries(record: Mapping[str, Any]) -> list[str]:
    rows = []
    few = False
    for name in ("SingleStream", "MultiStream", "Server"):
        found = record["scenarios"].get(name)
        if not found or "latencies" not in found:
            continue
        values = []
        for share, needed in _PERCENTILES.items():
            few = few or found["queries"] < needed
            values.append(_milliseconds(found[share]) + ("\\*" if found["queries"] < needed else ""))
        rate = found["figure"]["value"] if name == "Server" else found["pairs_per_second"]
        rows.append([name, *values, number(rate), str(found["queries"])])
    parts = []
    if rows:
        header = ["latency, ms", *_PERCENTILES, "pairs/s", "queries"]
        parts.append(_table([header, *rows]))
    if few:
        wanted = ", ".join(f"{share} wants {count}" for share, count in reversed(_PERCENTILES.items()))
        parts.append(f"\\* merely the slowest of too few queries: {wanted}")
    if "Server" in record["scenarios"]:
        parts.append(_server(record["scenarios"]["Server"]))
    return parts


def _server(found: Mapping[str, Any]) -> str:
    rate, bound = found["figure"]["value"], f"{found['bound'] * 1e3:g} ms"
    alone = f"without a pause it answers {number(found['capacity'])}/s"
    tried = f"{len(found['trials'])} rates tried, {found['seconds_per_trial']:.3g} s each"
    if rate is None:
        return f"Server: no rate keeps p99 within {bound} ({alone}; {tried})."
    few = f" (of {found['queries']} queries only)" if found["queries"] < ENOUGH else ""
    return f"Server: p99{few} is within {bound} up to {number(rate)} queries/s ({alone}; {tried})."


def _offline(record: Mapping[str, Any]) -> list[str]:
    found = record["scenarios"]["Offline"]
    rows = [
        ["Offline", "pairs/s", "tokens/s", "s a call", "calls"],
        [
            _counted(found["pairs"], "pair"),
            number(found["pairs_per_second"]),
            number(found["tokens_per_second"]),
            number(median(found["seconds"])),
            str(found["calls"]),
        ],
    ]
    middles = {name: median(found["steps"][name]) for name in STEPS}
    whole = sum(middles.values())
    steps = [
        ["of a call", *STEPS],
        ["ms", *(_milliseconds(value) for value in middles.values())],
        ["%", *(f"{100 * value / whole:.1f}" for value in middles.values())],
    ]
    parts = [_table(rows), _table(steps)]
    if found["distinct"] < found["pairs"]:
        computed = found["pairs_per_second"] * found["distinct"] / found["pairs"]
        parts.insert(1, f"Computed are {number(computed)} different pairs/s; the others are equal to them.")
    return parts


def _grid(record: Mapping[str, Any]) -> list[str]:
    cells = {(cell["batch"], cell["length"]): cell for cell in record["scenarios"]["Grid"]["cells"]}
    batches, lengths = (list(dict.fromkeys(key[side] for key in cells)) for side in (0, 1))
    rows = [["pairs/s (ms a call)", *(f"{length} tokens" for length in lengths)]]
    for batch in batches:
        row = [_counted(batch, "pair")]
        for length in lengths:
            cell = cells[batch, length]
            row.append(f"{number(cell['pairs_per_second'])} ({_milliseconds(cell['median'])})")
        rows.append(row)
    calls = [cell["calls"] for cell in cells.values()]
    return [_table(rows), f"Each is the median of {min(calls)} to {max(calls)} calls."]


def _cold(record: Mapping[str, Any]) -> list[str]:
    found = record["scenarios"]["ColdStart"]
    names = {"import": "import", "load": "load", "first_score": "first score", "process": "whole process"}
    rows = [
        ["cold start, ms", *names.values(), "processes"],
        ["median", *(_milliseconds(median(found[name])) for name in names), str(len(found["import"]))],
    ]
    return [_table(rows)]


def _memory(record: Mapping[str, Any]) -> list[str]:
    found = record["scenarios"]["Memory"]
    names = {
        "memory_loaded": "loaded",
        "memory_peak": "peak",
        "gpu_allocated": "GPU, allocated",
        "gpu_reserved": "GPU, reserved",
    }
    known = {name: title for name, title in names.items() if found[name] is not None}
    if not known:
        return ["Memory: this system does not say."]
    rows = [
        ["memory, MiB", *known.values()],
        [_counted(found["pairs"], "pair"), *(f"{found[name] / _MIB:,.0f}" for name in known)],
    ]
    return [_table(rows)]


def _comparison(found: Mapping[str, Any]) -> list[str]:
    rows = [["compared", "figure", "old", "new", "ratio"]]
    for row in found["rows"]:
        values = [_valued(row[when], row["unit"]) for when in ("old", "new")]
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.3f}"
        rows.append([row["scenario"], row["figure"], *values, ratio + " below" * row["failed"]])
    limit = "" if found["fail_below"] is None else f" Below {found['fail_below']:g} is a failure."
    parts = [_table(rows, left=2), f"A ratio of 1 is the same, more is better.{limit}"]
    if found["doubts"]:
        parts.append("Not measured alike:\n" + "\n".join(f"- {line}" for line in found["doubts"]))
    if found["changes"]:
        parts.append("Versions:\n" + "\n".join(f"- {line}" for line in found["changes"]))
    return parts


_SECTIONS = {"Offline": _offline, "Grid": _grid, "ColdStart": _cold, "Memory": _memory}


def _table(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return a Markdown table, aligned for reading it raw: `left` columns set left, the others right."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width if place < left else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    lines = []
    for row in (rows[0], rule, *rows[1:]):
        cells = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _valued(value: float | None, unit: str) -> str:
    if value is None:
        return "none"
    if unit == "s":
        return _time(value)
    return f"{value / _MIB:,.0f} MiB" if unit == "bytes" else f"{number(value)} {unit}"


def _time(seconds: float) -> str:
    return f"{number(seconds)} s" if seconds >= 1 else f"{_milliseconds(seconds)} ms"


def _milliseconds(seconds: float) -> str:
    return number(seconds * 1e3)


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, _DIGITS) if isinstance(value, float) else value
