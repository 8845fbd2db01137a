"""The most memory that this process has held. Imports the standard library alone, so that a process without
segue can load this file."""

from __future__ import annotations

import sys

__all__ = ["peak_memory"]


def peak_memory() -> int | None:
    """Return the most bytes of RAM this process has held, None where the system does not say.

    getrusage is no good on Linux, where a new process inherits the peak of the one that started it.
    """
    try:
        with open("/proc/self/status", encoding="utf-8") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
