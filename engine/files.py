"""Where the command line reads and writes: files and the standard streams, as bytes.

A file is written whole or not at all: under another name in the same folder, then renamed. So the output may
also be the file that is being read. Knows nothing about what is inside.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from segue.errors import InputError

__all__ = ["FULL", "STDOUT", "STREAM", "destination", "discard_output", "full_disk_named", "source"]

STREAM = "-"
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)  # the disk, a limit on files, or a user's quota
STDOUT = (STREAM, "/dev/stdout")  # the second, on a file, would lead to its name, and replace what it holds
_RIGHTS = 0o666  # of a new file, less the umask


@contextmanager
def source(path: str) -> Iterator[tuple[BinaryIO, str]]:
    """Open `path` for reading, "-" for stdin; give the open file and its name for messages.

    Raises:
        InputError: it cannot be opened.
    """
    if path == STREAM:
        yield _standard(sys.stdin, "stdin"), "stdin"
        return
    with _opened(path, path, "rb") as file:
        yield file, path


@contextmanager
def destination(path: str) -> Iterator[BinaryIO]:
    """Open `path` for writing, "-" or /dev/stdout for stdout.

    A file appears when the block ends well, and never otherwise. It then replaces one that is there already,
    keeping its permissions. Links are followed; a device or a pipe is written to directly.

    Raises:
        InputError: it is a folder, there is no such folder, or no permission to write.
    """
    if path in STDOUT:
        stream = _standard(sys.stdout, "stdout")
        with full_disk_named("stdout"):
            yield stream
            stream.flush()
        return
    with full_disk_named(path), _file(path) as file:
        yield file


@contextmanager
def full_disk_named(path: str | Path) -> Iterator[None]:
    """Name `path` in the error of a write for which there is no room; by itself it names no file."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def _file(path: str) -> Iterator[BinaryIO]:
    """As `destination`, but for stdout."""
    given, target = Path(path), Path(os.path.realpath(path))
    if given.is_dir():
        raise InputError(f"{path}: is a directory")
    if given.exists() and not given.is_file():  # /dev/fd/N on a pipe: a link to what has no path
        with _opened(given, path, "wb") as file:
            yield file
        return
    if target.exists() and not os.access(target, os.W_OK):
        raise InputError(f"{path}: permission denied")
    partial = target.with_name(f".segue-{secrets.token_hex(6)}.part")
    rights = target.stat().st_mode if target.exists() else _RIGHTS  # while it grows, no more than in the end
    with _opened(partial, path, "xb", rights) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            file.close()  # Windows renames no open file
            if target.exists():
                shutil.copymode(target, partial)
            os.replace(partial, target)
        except BaseException:
            with suppress(OSError):  # closing writes what is left, which a full disk refuses again
                file.close()
            partial.unlink(missing_ok=True)
            raise


def discard_output() -> None:
    """Discard what stdout still holds when its reader is gone: Python would complain as it exits."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # a stdout with no file beneath it
        return


def _standard(stream: Any, name: str) -> BinaryIO:
    if stream is None:  # Python's value if the process was started without one
        raise InputError(f"{name}: is closed")
    found: BinaryIO = stream.buffer
    return found


def _opened(path: str | Path, name: str, mode: str, rights: int = _RIGHTS) -> BinaryIO:
    try:
        return open(path, mode, opener=lambda file, flags: os.open(file, flags, rights))  # type: ignore[return-value]
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        why = error.strerror if isinstance(error, OSError) else None
        raise InputError(f"{name}: {(why or str(error)).lower()}") from error
