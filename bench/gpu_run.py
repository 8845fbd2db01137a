"""A run of sections, each with its time, its errors and its place in a record that is always on disk.

Knows nothing about what sections measure.
"""

from __future__ import annotations

import json
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["OutOfTime", "Run", "Section", "last_lines"]

_LEAST = 3.0  # least seconds left to begin a section
_GRACE = 15.0  # seconds that a section may overrun before it is interrupted
Found = dict[str, Any]


class Section(NamedTuple):
    """A part of the run. act: fills the dict it is given as it goes, so that an interruption keeps what it
    found. seconds: its time limit. needs: the section whose findings it relies on."""

    name: str
    act: Callable[[Any, Found], None]
    seconds: float
    needs: str | None = None


class OutOfTime(BaseException):
    """The section's time is over. No Exception, so that no handler on the way takes it for a fault."""


class Run:
    """The record, and the clock. `record` is what the report is made of; it is rewritten at `path` around
    every section, and as a section goes."""

    def __init__(self, path: Path, seconds: float, **about: Any) -> None:
        self.path, self.record = path, {**about, "sections": {}}
        self._ends = self._deadline = time.monotonic() + seconds
        path.parent.mkdir(parents=True, exist_ok=True)
        self.write()

    @property
    def left(self) -> float:
        """Seconds that the current section still has."""
        return self._deadline - time.monotonic()

    def check_time(self) -> None:
        """Called between two measurements: put on disk what was found, for the next may hang; raise OutOfTime
        when the current section has no time left."""
        self.write()
        if self.left <= 0:
            raise OutOfTime

    def found(self, section: str) -> Found:
        """What a section has found, or nothing."""
        found: Found = self.record["sections"].get(section, {}).get("found", {})
        return found

    def take(self, section: Section, subject: Any) -> None:
        """Run one section on `subject`, whatever becomes of it, and write the record."""
        entry: Found = {"status": "running", "seconds": 0.0, "found": {}}
        self.record["sections"][section.name] = entry
        remaining = self._ends - time.monotonic()
        if remaining < _LEAST:
            entry |= {"status": "skipped", "why": f"{max(remaining, 0):.0f} s of the whole time were left"}
            return self.write()
        if section.needs and not self.found(section.needs):
            entry |= {"status": "skipped", "why": f"{section.needs} found nothing to rely on"}
            return self.write()
        self.write()
        started = time.monotonic()
        self._deadline = started + min(section.seconds, remaining)
        try:
            with _interrupted(min(section.seconds + _GRACE, remaining)):
                section.act(subject, entry["found"])
            entry["status"] = "done"
        except OutOfTime:
            entry |= {"status": "cut short", "why": f"after {time.monotonic() - started:.0f} s"}
        except Exception:  # of any kind: the sections after this one are to run
            entry |= {"status": "failed", "why": last_lines(traceback.format_exc())}
        entry["seconds"] = round(time.monotonic() - started, 2)
        return self.write()

    def write(self) -> None:
        """Put the record on disk, whole or not at all."""
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.record, indent=1, default=str) + "\n", encoding="utf-8")
        beside.replace(self.path)


def last_lines(text: str, count: int = 12) -> str:
    """The end of a traceback, which says most of it."""
    return "\n".join(text.strip().splitlines()[-count:])


@contextmanager
def _interrupted(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block after so many seconds, where the platform and the thread allow."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
