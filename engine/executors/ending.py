"""The end of the process while daemon threads compute, as a server's may.

Python ends such a thread where it comes back from a library, and in C++, as of ONNX Runtime and PyTorch, this
aborts the process (not since Python 3.14, whose threads stop for ever instead). So the process waits for the
steps under way, a batch or the loading of a model each, and then only the thread that ends it begins more.
Knows nothing about executors.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from time import monotonic, sleep
from typing import TypeVar

from segue.errors import SegueError

__all__ = ["each_whole", "whole"]

_T = TypeVar("_T")
_SECONDS = 1  # after which others are refused; by then most processes are gone, and nobody need read of it
_PATIENCE = 60  # seconds for a step, which a device that is lost would never end
# No locks: the handler of a signal may interrupt this anywhere, compute too, or fork.
_inside: set[int] = set()  # threads with a step under way
_last: tuple[int, float] | None = None  # once it ends: the thread that may go on, when to refuse others


@contextmanager
def whole() -> Iterator[None]:
    """Let the process end only after this block; one block within another is one.

    Raises:
        SegueError: the process is ending, in another thread.
    """
    thread = get_ident()
    if thread in _inside:
        yield
        return
    try:
        _inside.add(thread)
        if _last is None or _last[0] == thread:
            yield
            return
    finally:
        _inside.discard(thread)
    sleep(max(0.0, _last[1] - monotonic()))
    raise SegueError("the process is ending: no other thread computes any more")


def each_whole(steps: Iterator[_T]) -> Iterator[_T]:
    """Yield what `steps` does, each step a block of `whole`."""
    end = object()
    while True:
        with whole():
            step = next(steps, end)
        if step is end:
            return
        yield step  # type: ignore[misc]


def _wait() -> None:
    global _last
    began = monotonic()
    _last = get_ident(), began + _SECONDS
    # This thread is left there if a signal interrupted it as it came out.
    while _inside - {_last[0]} and monotonic() < began + _PATIENCE:
        sleep(0.001)


atexit.register(_wait)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_inside.clear)  # the threads stayed behind
