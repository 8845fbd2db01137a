"""What tests of a server wait with: a gate that holds its engine, and patience for what is bound to come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from segue import Engine

__all__ = ["SECONDS", "Gate", "until"]

SECONDS = 60


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


class Gate:
    """Counts the calls of an engine, and holds them while it is shut."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.turns: list[int] = []  # pairs of each
        self.reached, self.open = threading.Event(), threading.Event()
        compute = engine._logits

        def held(encoded: Any, progress: bool = False) -> Any:
            self.turns.append(len(encoded.inverse))
            self.reached.set()
            assert self.open.wait(SECONDS)
            return compute(encoded, progress)

        monkeypatch.setattr(engine, "_logits", held)
