"""The record of a run as Markdown: one table a section, from the record alone.

For a missing figure it says why; what was skipped, cut short or failed is listed by name at the end.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["markdown"]

Found = dict[str, Any]
Rows = Iterator[tuple[Any, ...]]


def markdown(record: Found) -> str:
    """The whole report."""
    sections = record["sections"]
    about = sections.get("machine", {}).get("found", {})
    lines = [f"# {about.get('name', 'unknown machine')}, {record['date']}", ""]
    if record["smoke"]:
        lines += ["**Interpreted on a CPU, in toy sizes: every time below is meaningless.**", ""]
    versions = ", ".join(f"{name} {v}" for name, v in about.get("versions", {}).items() if v)
    lines += [f"`{shlex.join(['python', 'bench/gpu.py', *record['arguments']])}`", ""]
    lines += [f"{versions}; driver {about.get('driver')}; commit {about.get('commit')}", ""]
    for name, (columns, rows) in _TABLES.items():
        entry = sections.get(name, {})
        found = entry.get("found", {})
        body = [f"| {' | '.join(map(_cell, row))} |" for row in rows(found, sections)] if found else []
        if body:
            rule = "|" + "---|" * (columns.count("|") + 1)
            lines += [f"## {name.capitalize()}", "", f"| {columns} |", rule, *body, ""]
    lines += ["## Sections", "", "| section | status | s | |", "|---|---|---|---|"]
    for name, entry in sections.items():
        why = str(entry.get("why", "")).strip().splitlines()
        lines.append(
            f"| {name} | {entry['status']} | {entry.get('seconds', 0):.1f} | {_cell((why or [''])[-1])} |"
        )
    return "\n".join(lines) + "\n"


def _ceilings(found: Found, _: Found) -> Rows:
    for name, entry in found.items():
        if name == "copy":
            yield name, f"{entry['bytes/s'] / 1e12:.2f} TB/s"
        elif entry and "operations/s" in entry:
            yield name, f"{entry['operations/s'] / 1e12:.0f} TFLOP/s"


def _kernel_parity(found: Found, _: Found) -> Rows:
    for op, dtypes in found.items():
        for dtype, entry in dtypes.items():
            yield op, dtype, entry["cases"], "as exact" if entry["ok"] else entry["why"]


def _model_parity(found: Found, _: Found) -> Rows:
    for model, entry in found.items():
        for executor, about in entry["executors"].items():
            verdict = "as exact" if about["ok"] else about.get("why")
            bits = {True: "same", False: "differ"}.get(about.get("bits", {}).get("same"), "")
            yield (
                model, executor, _small(entry.get("from PyTorch in float64")), _small(about.get("error")),
                _small(about.get("eager error")), bits, verdict,
            )  # fmt: skip


def _kernels(found: Found, sections: Found) -> Rows:
    copy = sections.get("ceilings", {}).get("found", {}).get("copy", {}).get("bytes/s")
    for row in found["rows"]:
        if "not timed" in row:
            yield row["op"], row["shape"], "", "", "", "", row["not timed"]
        for name, side in row["sides"].items():
            if "us" not in side:
                yield row["op"], row["shape"], name, "", "", "", side["error"]
                continue
            moved = row["bytes"] / side["us"] / 1e6  # TB/s
            done = row["operations"] / side["us"] / 1e6
            share = f"{1e12 * moved / copy:.0%}" if copy else ""
            yield row["op"], row["shape"], name, f"{side['us']:.1f}", f"{moved:.2f}", f"{done:.0f}", share


def _throughput(found: Found, _: Found) -> Rows:
    for (model, workload), rows in _grouped(found["rows"], "model", "workload").items():
        for side in dict.fromkeys(name for row in rows for name in row["sides"]):
            yield (
                model,
                workload,
                side,
                *_best([(row["sides"].get(side, {}), str(row["tokens"])) for row in rows]),
            )


def _profile(found: Found, _: Found) -> Rows:
    for model, sides in found.items():
        for side, entry in sides.items() if isinstance(sides, dict) else ():
            for kernel, took in entry["kernels"].items() if isinstance(entry, dict) else ():
                share = took["us"] / entry["us in all"]
                yield model, side, f"`{kernel}`", took["launches"], f"{took['us']:.0f}", f"{share:.1%}"


def _latency(found: Found, _: Found) -> Rows:
    for row in found["rows"]:
        p50, p95 = (f"{1e3 * row[key]:.3f}" for key in ("p50", "p95"))
        yield row["model"], row["side"], row["tokens"], row["from"], p50, p95


def _end_to_end(found: Found, _: Found) -> Rows:
    for row in found["rows"]:
        for name, side in row.get("sides", {}).items():
            share = f"{row['of the model alone']:.1%}" if name == "from text" else ""
            yield row["model"], row["workload"], name, f"{side['pairs/s']:,.0f}", share
        if "not timed" in row:
            yield row["model"], row["workload"], row["not timed"], "", ""


def _warm_up(found: Found, _: Found) -> Rows:
    for row in found["rows"]:
        figures = (row.get(key) for key in ("load", "warmup", "slowest call after"))
        yield (
            row["model"], row["kernels"], *(f"{x:.2f}" if x is not None else "" for x in figures),
            row.get("compiled after", row.get("error", "")),
        )  # fmt: skip


def _peers(found: Found, _: Found) -> Rows:
    for (model, workload), rows in _grouped(found["rows"], "model", "workload").items():
        sides = {name: side for row in rows for name, side in row["sides"].items()}
        ours = [
            side["pairs/s"] for name, side in sides.items() if name.startswith("segue") and "pairs/s" in side
        ]
        for family in dict.fromkeys(name.split(" @ ")[0] for name in sides):
            some = [(s, name.split(" @ ")[1]) for name, s in sides.items() if name.split(" @ ")[0] == family]
            rate, setting, _ = _best(some)
            theirs = [side["pairs/s"] for side, _ in some if "pairs/s" in side]
            times = f"{max(ours) / max(theirs):.2f}" if ours and theirs else ""
            yield model, workload, family, rate, setting, times
    for name, there in found.get("there", {}).items():
        if not there:
            yield "", "", name, "", "not there", ""
    for row in found.get("one pair", []):
        yield row["model"], "1 pair", row["side"], "", f"p50 {1e3 * row['p50']:.3f} ms", ""


def _memory(found: Found, _: Found) -> Rows:
    for tool, entry in found.items():
        verdict = {True: "nothing found", False: "faults found", None: entry.get("why")}[entry["ok"]]
        yield tool, verdict, " ".join(entry.get("said", [])[-1:])


def _tests(found: Found, _: Found) -> Rows:
    for what, entry in found.items():
        verdict = {True: "passed", False: "failed", None: entry.get("why")}[entry["ok"]]
        counts = ", ".join(
            f"{entry[word]} {word}" for word in ("passed", "failed", "errors") if word in entry
        )
        yield what, verdict, counts, "; ".join(entry.get("which", []))


def _best(sides: list[tuple[Found, str]]) -> tuple[str, str, str]:
    """Pairs a second, the setting, and the share of the roofline, of the fastest; or why there is none."""
    timed = [(side["pairs/s"], setting, side) for side, setting in sides if "pairs/s" in side]
    if not timed:
        return "", next((side["not timed"] for side, _ in sides if "not timed" in side), ""), ""
    rate, setting, side = max(timed, key=lambda entry: entry[0])
    share = side.get("of the roofline")
    return f"{rate:,.0f}", setting, f"{share:.0%}" if share else ""


def _grouped(rows: list[Found], *keys: str) -> dict[tuple[Any, ...], list[Found]]:
    groups: dict[tuple[Any, ...], list[Found]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _small(number: float | None) -> str:
    return "" if number is None else f"{number:.2g}"


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "/").split())[:160]


# section -> the table's columns, and its rows by what the section and all sections found
_TABLES: dict[str, tuple[str, Callable[[Found, Found], Rows]]] = {
    "ceilings": ("what | measured", _ceilings),
    "parity of kernels": ("op | dtype | cases | verdict", _kernel_parity),
    "parity of models": ("model | executor | from PyTorch | error | eager's | bits in any batch | verdict",
                         _model_parity),
    "kernels": ("op | shape | side | µs | TB/s | TFLOP/s | of the copy's bandwidth", _kernels),
    "throughput": ("model | workload | side | pairs/s | at tokens | of the roofline", _throughput),
    "profile": ("model | side | kernel | launches | µs | of the whole", _profile),
    "latency": ("model | side | tokens | from | p50 ms | p95 ms", _latency),
    "end to end": ("model | workload | side | pairs/s | of the model alone", _end_to_end),
    "warm-up": ("model | kernels | load s | warm-up s | slowest call s | compiled after", _warm_up),
    "memory": ("tool | verdict | it said", _memory),
    "tests": ("what | verdict | counts | which failed", _tests),
    "peers": ("model | workload | side | pairs/s | at | segue's best is so many times that", _peers),
    "compiled peers": ("model | workload | side | pairs/s | at | segue's best is so many times that", _peers),
}  # fmt: skip
