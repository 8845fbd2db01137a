"""The folder of a pre-training run: what it was started with, and its last complete checkpoint.

A run may be killed at any moment: the record comes first, a checkpoint counts once it is marked complete, and
what came after the last mark is done again. Knows nothing about models.
"""

from __future__ import annotations

__all__ = ["last_checkpoint", "mark_complete", "open_run"]

import json
import os
import shutil
from pathlib import Path
from typing import Any

from segue.errors import BundleError, InputError

_RECORD = "pretraining.json"
_MARK = "complete"


def open_run(out: Path, options: dict[str, Any], *, resume: bool) -> None:
    """Start a run in `out`, which does not exist or is empty; or go on with the one that is there.

    Raises `InputError` where `out` is taken, where there is nothing to resume, or where it was started with
    other options; `BundleError` where its record is unreadable.
    """
    if not resume:
        part = out / f"{_RECORD}.part"  # all there is of a run killed at its very start
        if out.exists() and (not out.is_dir() or any(path != part for path in out.iterdir())):
            what = "holds a run; --resume goes on with it" if (out / _RECORD).is_file() else "is taken"
            raise InputError(f"out: expected a folder that does not exist or is empty, {str(out)!r} {what}")
        out.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(options, indent=1) + "\n", encoding="utf-8")
        os.replace(part, out / _RECORD)
        return
    if not (out / _RECORD).is_file():
        raise InputError(f"resume: nothing to resume in {str(out)!r}: it has no {_RECORD}")
    try:
        started: dict[str, Any] = dict(json.loads((out / _RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(f"{out / _RECORD}: no record of a run: {error}") from error
    for name in sorted({*started, *options}):
        if started.get(name) != options.get(name):
            raise InputError(
                f"resume: {name}: the run in {str(out)!r} was started with {started.get(name)!r}, "
                f"got {options.get(name)!r}"
            )


def mark_complete(checkpoint: Path) -> None:
    """Say that all of the checkpoint is written."""
    (checkpoint / _MARK).touch()


def last_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint, or None; newer ones that were cut off are removed."""
    found = {int(p.name.split("-")[1]): p for p in out.glob("checkpoint-*") if p.name.split("-")[1].isdigit()}
    for step in sorted(found, reverse=True):
        if (found[step] / _MARK).is_file():
            return found[step]
        shutil.rmtree(found[step])
    return None
