"""The folder of a pre-training run: what it was started with, and its last complete checkpoint.

A run may be killed at any moment: the record comes first, a checkpoint counts once it is marked complete, and
what came after the last mark is done again. The mark has the checksum of each file, as the trainer silently
starts afresh what it does not find. Knows nothing about models.
"""

from __future__ import annotations

__all__ = ["RECORD", "checkpoints", "drop_older", "last_checkpoint", "mark_complete", "open_run"]

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from segue.bundle import read_object, sha256
from segue.errors import BundleError, InputError

RECORD = "pretraining.json"
_MARK = "complete"  # an object: name of each file, its SHA-256
_CHECKPOINT = re.compile("checkpoint-([1-9][0-9]*)")  # as the trainer names them; all else is the user's
_KEPT = 2  # checkpoints


def open_run(out: Path, options: dict[str, Any], *, resume: bool) -> None:
    """Start a run in `out`, which does not exist or is empty; or go on with the one that is there.

    Raises `InputError` where `out` is taken, where there is nothing to resume, or where it was started with
    other options; `BundleError` where its record is unreadable.
    """
    if not resume:
        part = out / f"{RECORD}.part"  # all there is of a run killed at its very start
        if out.exists() and (not out.is_dir() or any(path != part for path in out.iterdir())):
            what = "holds a run; --resume goes on with it" if (out / RECORD).is_file() else "is taken"
            raise InputError(f"out: expected a folder that does not exist or is empty, {str(out)!r} {what}")
        out.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(options, indent=1) + "\n", encoding="utf-8")
        os.replace(part, out / RECORD)
        return
    if not (out / RECORD).is_file():
        raise InputError(f"resume: nothing to resume in {str(out)!r}: it has no {RECORD}")
    try:
        started: dict[str, Any] = dict(json.loads((out / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(f"{out / RECORD}: no record of a run: {error}") from error
    for name in sorted({*started, *options}):
        if started.get(name) != options.get(name):
            raise InputError(
                f"resume: {name}: the run in {str(out)!r} was started with {started.get(name)!r}, "
                f"got {options.get(name)!r}"
            )


def checkpoints(out: Path) -> list[Path]:
    """The folders of the run's checkpoints, complete or not, the newest first."""
    folders = (path for path in out.iterdir() if path.is_dir() and not path.is_symlink())
    names = ((_CHECKPOINT.fullmatch(path.name), path) for path in folders)
    found = {int(name[1]): path for name, path in names if name}
    return [found[step] for step in sorted(found, reverse=True)]


def mark_complete(checkpoint: Path) -> None:
    """Record that the checkpoint is complete, with checksums."""
    files = (file for file in sorted(checkpoint.iterdir()) if file.is_file() and file.name != _MARK)
    digests = {file.name: sha256(file) for file in files}
    part = checkpoint / f"{_MARK}.part"
    part.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
    os.replace(part, checkpoint / _MARK)


def drop_older(out: Path) -> None:
    """Remove all checkpoints but the newest two. The trainer's own way would remove users' folders."""
    for checkpoint in checkpoints(out)[_KEPT:]:
        shutil.rmtree(checkpoint, ignore_errors=True)  # what is left of one is only in the way


def last_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint, or None; newer ones that were cut off are removed.

    Raises `BundleError` where a file of it is missing, or is not what was saved.
    """
    for checkpoint in checkpoints(out):
        if (checkpoint / _MARK).is_file():
            _check(checkpoint)
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def _check(checkpoint: Path) -> None:
    for name, digest in read_object(checkpoint / _MARK).items():
        file = checkpoint / name
        if not file.is_file() or sha256(file) != digest:
            what = "is not what was saved" if file.is_file() else "is missing"
            raise BundleError(
                f"resume: {file} {what}; without {checkpoint.name} the run goes on from the one before"
            )
