"""Warns of kernels that Triton compiles after a warm-up, which should have compiled them all.

Triton has one hook per process, called in the launching thread; so what is warm is noted by thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from triton import knobs  # type: ignore[import-untyped]

__all__ = ["warm", "watch"]


class _Thread(threading.local):
    warm = False


_thread = _Thread()
_lock = threading.Lock()


def watch() -> None:
    """From here on log a warning for every kernel that is compiled within `warm`. A hook that is installed
    already is still called."""
    with _lock:
        _install()


@contextmanager
def warm() -> Iterator[None]:
    """What this thread launches here was warmed up."""
    before, _thread.warm = _thread.warm, True
    try:
        yield
    finally:
        _thread.warm = before


@cache
def _install() -> None:
    before = knobs.runtime.jit_post_compile_hook

    def compiled(**what: Any) -> Any:
        if _thread.warm:
            import logging  # costs nothing where there is no warning

            logging.getLogger("segue").warning(
                "%s was compiled, or loaded, after the warm-up: %s", what["fn"].name, what["repr"]
            )
        return before(**what) if before else None

    knobs.runtime.jit_post_compile_hook = compiled
