"""segue scores sentence pairs with BERT. Its face: `Engine`, `AsyncEngine`, and the errors they raise."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from segue.errors import BundleError, ExecutorUnavailable, InputError, Overloaded, SegueError

if TYPE_CHECKING:
    from segue.async_engine import AsyncEngine
    from segue.engine import Engine

__all__ = [
    "AsyncEngine",
    "BundleError",
    "Engine",
    "ExecutorUnavailable",
    "InputError",
    "Overloaded",
    "SegueError",
    "__version__",
]

__version__ = "0.1.0"

_LATER = {"Engine": "segue.engine", "AsyncEngine": "segue.async_engine"}  # and numpy with them

# ONNX Runtime reports to its maker, and keeps a name of the device in the user's caches, unless it is told
# not to before it starts. Whoever wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """Import an engine when it is first asked for: `segue --help` needs none."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_LATER[name]), name)
    return found


def __dir__() -> list[str]:
    """Name an engine that nobody has asked for yet: `help(segue)` and completion show what is named."""
    return sorted({*globals(), *__all__})
