"""The metrics of an evaluation as text for a terminal. Computes nothing."""

from __future__ import annotations

__all__ = ["report"]

from collections.abc import Mapping
from typing import Any

from segue.export.evaluation import ALL, PACKED
from segue.terminal import aligned

_HEADER = ("negatives", "documents", "pairs", "IsNext", "truncated", "accuracy", "AUC", "calibration")
_REFERENCE = ("differ", "by at most")


def report(metrics: Mapping[str, Any]) -> str:
    """A table of the sets of pairs, then a line each on masked words and the reference, if any.

    In it, "calibration" is its expected error; "differ" and "by at most" compare decisions and probabilities
    with the reference.
    """
    sets, model, reference = metrics["next_sentence"], metrics["model"], metrics["reference"]
    header = _HEADER + (_REFERENCE if reference else ())
    names = {ALL: "all of these", PACKED: f"packed to {metrics['options']['max_tokens']} tokens"}
    lines = [
        f"corpus: {metrics['corpus']}, {_number(metrics['documents'], 'document')}, "
        f"{_number(metrics['sentences'], 'sentence')}",
        f"model: {metrics['options']['model'] or model['path']}, "
        f"{model['executor']} on {model['device']}, {model['precision']}",
        "",
        *aligned([header, *(_row(names.get(name, name), found) for name, found in sets.items())], left=(0,)),
        *(f"left out: {kind}: {why}" for kind, why in metrics["left_out"].items()),
        "",
        f"masked words: {_words(metrics['masked_words'])}",
    ]
    if reference:
        lines.append(
            f"reference: {reference['by']}: {reference['decisions_differ']} of "
            f"{_number(reference['pairs'], 'decision')} differ, probabilities by "
            f"{reference['largest_difference']:.1e} at most"
        )
    if out := metrics["options"]["out"]:
        lines.append(f"written to {out}")
    return "\n".join(lines)


def _row(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    area = "none" if found["auc"] is None else f"{found['auc']:.3f}"
    counts = (found[column] for column in ("documents", "pairs", "is_next", "truncated"))
    cells = (name, *map(str, counts), f"{found['accuracy']:.3f}", area, f"{found['calibration_error']:.3f}")
    if reference := found["reference"]:
        cells += (str(reference["decisions_differ"]), f"{reference['largest_difference']:.1e}")
    return cells


def _words(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "the model has no head for them"
    if not found["masked_tokens"]:
        return f"nothing to measure, no token of {_number(found['instances'], 'packed pair')} could be masked"
    return (
        f"{found['accuracy']:.3f} right, loss {found['loss']:.3f} nats, of "
        f"{_number(found['masked_tokens'], 'token')} in {_number(found['instances'], 'packed pair')}"
    )


def _number(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"
