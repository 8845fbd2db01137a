"""A Hugging Face checkpoint folder given to `Engine.load` is exported once and found again here."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from segue import __version__
from segue.bundle import MANIFEST
from segue.errors import BundleError, ExecutorUnavailable, SegueError

__all__ = ["cache_folder", "exported"]


def cache_folder() -> Path:
    """Return the folder of exported checkpoints: SEGUE_CACHE, or `segue` in the user's cache folder."""
    if named := os.environ.get("SEGUE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segue"


def exported(checkpoint: Path) -> Path:
    """Return the bundle of a checkpoint folder, exported now where this very state of it was not before.

    The state is the name, size and time of change of every file, so that a gigabyte need not be read to know
    it.

    Raises:
        ExecutorUnavailable: the packages that exporting needs are missing.
        BundleError: the checkpoint cannot be exported exactly.
        SegueError: the cache's folder cannot be made.
    """
    state = hashlib.sha256(f"{__version__} {checkpoint.resolve()}".encode())
    for path in sorted(path for path in checkpoint.iterdir() if path.is_file()):
        status = path.stat()
        state.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    bundle = cache_folder() / f"{checkpoint.resolve().name}-{state.hexdigest()[:16]}"
    if (bundle / MANIFEST).is_file():
        return bundle
    try:
        from segue.export import export_checkpoint
    except ImportError as error:
        raise ExecutorUnavailable(
            f"{checkpoint} is a PyTorch checkpoint, and exporting it needs {error.name}: "
            "pip install 'segue[export]'"
        ) from error
    try:
        bundle.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SegueError(
            f"{bundle.parent}: no place for exported checkpoints ({error.strerror}): "
            "the environment variable SEGUE_CACHE may name another folder"
        ) from error
    try:
        export_checkpoint(checkpoint, bundle)
    except BundleError:
        if not (bundle / MANIFEST).is_file():  # else another process exported it meanwhile: theirs will do
            raise
    return bundle
