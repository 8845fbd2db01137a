"""Exports once, and finds again, what `Engine.load` cannot load as it is: a Hugging Face checkpoint folder,
or a bundle that is wanted in int8."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time

from segue import __version__
from segue.bundle import MANIFEST
from segue.errors import BundleError, ExecutorUnavailable, SegueError, install
from segue.files import FULL

__all__ = ["cache_folder", "exported"]

_NAME_BYTES = 100  # of the checkpoint's name in the bundle's: file systems take 255, and more is added
_DAY = 86400  # seconds, which no export takes


def cache_folder() -> Path:
    """Return the folder of exported models: SEGUE_CACHE, or `segue` in the user's cache folder.

    Raises:
        SegueError: the user has no home.
    """
    if named := os.environ.get("SEGUE_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segue"
    except RuntimeError as error:
        raise _no_place("~/.cache", "there is no home folder") from error


def exported(source: Path, precision: str) -> Path:
    """Return the bundle, in this precision, of a checkpoint folder or of another bundle, exported now unless
    this very state of it was before. If several processes ask for it, one exports and the others wait.

    The state is the name, size and time of change of every file, so that a gigabyte need not be read to know
    it.

    Raises:
        ExecutorUnavailable: the packages that exporting needs are missing.
        BundleError: the checkpoint cannot be read, or not exported exactly.
        SegueError: the cache's folder cannot be made or written to.
    """
    folder = cache_folder()
    kind = "" if precision == "float32" else f"-{precision}"
    bundle = folder / f"{_name(source)}{kind}-{_state(source)}"
    try:
        if (bundle / MANIFEST).is_file():
            return bundle
        # The user's own cache is private, as weights may be; a folder that was named may be for others too.
        mode = 0o777 if os.environ.get("SEGUE_CACHE") else 0o700
        folder.mkdir(mode, parents=True, exist_ok=True)
        TemporaryDirectory(dir=folder).cleanup()  # a folder that exists may not be writable
    except OSError as error:
        raise _no_place(folder, error.strerror) from error
    try:
        from segue.export import export_checkpoint
    except ImportError as error:
        raise ExecutorUnavailable(
            f"exporting {source} needs the package {error.name}: {install(error.name, 'export')}"
        ) from error
    with _alone(folder / ".lock"):
        if (bundle / MANIFEST).is_file():  # another exported it meanwhile
            return bundle
        _sweep(folder)
        logging.getLogger("segue").info("exporting %s in %s, once: kept as %s", source, precision, bundle)
        try:
            export_checkpoint(source, bundle, precision=precision)
        except BundleError:
            if not (bundle / MANIFEST).is_file():  # else another exported it where nothing locks: use that
                raise
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise _no_place(folder, error.strerror) from error
    return bundle


def _sweep(folder: Path) -> None:
    """Remove what exports left behind that were killed, as for want of memory. One that is under way may be
    a user's own, which does not lock."""
    for workshop in folder.glob(".segue-*"):
        with suppress(OSError):  # another's, or gone
            if time() - workshop.stat().st_mtime > _DAY:
                shutil.rmtree(workshop)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process in at a time, where possible: not on Windows, nor in every network folder."""
    with ExitStack() as stack:
        with suppress(ImportError, OSError):
            import fcntl

            file = stack.enter_context(path.open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _name(source: Path) -> str:
    """Return the folder's name as far as it is text and not too long."""
    encoding = sys.getfilesystemencoding()
    name = source.resolve().name.encode(encoding, errors="ignore")
    return name[:_NAME_BYTES].decode(encoding, errors="ignore")


def _state(source: Path) -> str:
    state = hashlib.sha256(os.fsencode(f"{__version__} {source.resolve()}"))
    try:
        for path in sorted(path for path in source.iterdir() if path.is_file()):
            status = path.stat()
            state.update(os.fsencode(f"{path.name} {status.st_size} {status.st_mtime_ns}"))
    except OSError as error:
        raise BundleError(f"{source}: {error.strerror}") from error
    return state.hexdigest()[:16]


def _no_place(folder: Path | str, reason: str | None) -> SegueError:
    return SegueError(
        f"{folder}: no place for exported models ({reason}): "
        "the environment variable SEGUE_CACHE may name another folder"
    )
