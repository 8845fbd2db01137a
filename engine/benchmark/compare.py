"""Two records of `segue bench` side by side: the ratio of each scenario's figure, new over old.

1 is the same and more is better, whether the figure is a rate or a time. What would make the ratio
meaningless is refused; what only makes it doubtful, as another processor, is said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from segue.errors import InputError
from segue.files import source

__all__ = ["FORMAT", "compared", "read_record", "refuse_another"]

FORMAT = 1

_SAME = ("model", "workload", "settings")
# What a machine or a run may differ in, with the ratio still worth showing: where it stands in the record.
_DOUBTFUL = {
    "processor": ("machine", "cpu"),
    "cores": ("machine", "cores"),
    "GPUs": ("machine", "gpus"),
    "threads": ("engine", "threads"),
    "executor": ("engine", "executor"),
    "device": ("engine", "device"),
    "precision": ("engine", "precision"),
    "tokens a batch": ("engine", "max_batch_tokens"),
    "batch_invariant": ("engine", "batch_invariant"),
    "seconds a scenario": ("seconds",),
}
_KEYS = ("versions", "machine", "engine", "seconds", "scenarios", *_SAME)


def read_record(path: str) -> dict[str, Any]:
    """Read what `segue bench --json` wrote.

    Raises:
        InputError: it cannot be read or is something else.
    """
    with source(path) as (file, name):
        try:
            record = json.loads(file.read())
        except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, brackets without end
            raise InputError(f"{name}: not readable as JSON: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or not _whole(record):
        raise InputError(f"{name}: not what this segue bench writes with --json (format {FORMAT})")
    return record


def refuse_another(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise InputError where the records are of different models, pairs, scenarios or settings of these.

    `new` need not have been measured yet.
    """
    if old["model"]["files"] != new["model"]["files"]:
        raise InputError(
            f"compare: the models differ: {_model(old)}, now {_model(new)}; their speeds cannot be compared"
        )
    if old["workload"]["sha256"] != new["workload"]["sha256"]:
        raise InputError(f"compare: the pairs differ: {_pairs(old)}, now {_pairs(new)}")
    for name, value in new["settings"].items():
        if (before := old["settings"].get(name)) != value:
            raise InputError(f"compare: {name} differ: {_shown(before)}, now {_shown(value)}")


def compared(
    old: Mapping[str, Any], new: Mapping[str, Any], fail_below: float | None = None
) -> dict[str, Any]:
    """Return the ratio of each scenario's figure.

    Returns:
        `rows`: scenario, figure, unit, old, new, ratio (None where either has no figure) and `failed`, which
        is never set without `fail_below`: below it, or a figure that has gone. `doubts` and `changes`: what
        else differs, in words; the latter are versions.
    """
    rows = []
    for name, found in new["scenarios"].items():
        before, now = old["scenarios"][name]["figure"], found["figure"]
        ratio = _ratio(before["value"], now["value"], now["better"])
        lost = before["value"] is not None and now["value"] is None
        rows.append(
            {
                "scenario": name,
                "figure": now["name"],
                "unit": now["unit"],
                "old": before["value"],
                "new": now["value"],
                "ratio": ratio,
                "failed": fail_below is not None and (lost or (ratio is not None and ratio < fail_below)),
            }
        )
    doubts = [
        f"{what}: {_shown(_at(old, where))}, now {_shown(_at(new, where))}"
        for what, where in _DOUBTFUL.items()
        if _at(old, where) != _at(new, where)
    ]
    versions = old["versions"], new["versions"]
    changes = [
        f"{name} {versions[0].get(name, 'none')}, now {versions[1].get(name, 'none')}"
        for name in sorted({*versions[0], *versions[1]})
        if versions[0].get(name) != versions[1].get(name)
    ]
    return {"fail_below": fail_below, "rows": rows, "doubts": doubts, "changes": changes}


def _ratio(old: float | None, new: float | None, better: str) -> float | None:
    if not old or not new:
        return None
    return new / old if better == "higher" else old / new


def _whole(record: dict[str, Any]) -> bool:
    """Tell whether all is there that a comparison reads."""
    try:
        _ = [record[key] for key in _KEYS]
        _ = [_at(record, where) for where in _DOUBTFUL.values()]
        _ = [record["model"]["files"], _model(record), _pairs(record), record["settings"].get]
        _ = [record["workload"]["sha256"], record["versions"].get]
        figures = [found["figure"] for found in record["scenarios"].values()]
        values = [figure["value"] for figure in figures]
        named = set(record["scenarios"]) == set(record["settings"]["scenarios"])
    except (KeyError, TypeError, AttributeError):
        return False
    return named and all(value is None or _is_figure(value) for value in values)


def _is_figure(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return value > 0 and math.isfinite(value)
    except OverflowError:  # a whole number of 400 digits
        return False


def _at(record: Mapping[str, Any], where: tuple[str, ...]) -> Any:
    value: Any = record
    for key in where:
        value = value[key]
    return value


def _model(record: Mapping[str, Any]) -> str:
    return f"{record['model']['name']} ({record['model']['sha256'][:12]})"


def _pairs(record: Mapping[str, Any]) -> str:
    workload = record["workload"]
    return f"{workload['pairs']} of {workload['source']}, mean {workload['mean']} tokens"


def _shown(value: Any) -> str:
    listed = isinstance(value, list | tuple)
    return (", ".join(map(str, value)) or "none") if listed else "none" if value is None else str(value)
