"""How tests get at the scripts of bench/, which are no package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

__all__ = ["BENCH", "load_script"]

BENCH = Path(__file__).resolve().parent.parent / "bench"


def load_script(name: str) -> Any:
    """A module of bench/, executed anew."""
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
