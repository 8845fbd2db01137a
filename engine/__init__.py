"""segue scores sentence pairs with BERT. Public: `Engine`, `AsyncEngine` and the errors they raise."""

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

# ONNX Runtime reports to its maker, and keeps a name of the device in the user's caches, unless this is set
# before it starts. Set it to 0 to allow that.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """Import an engine on first use: `segue --help` needs none."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_LATER[name]), name)
    return found


def __dir__() -> list[str]:
    """List the engines before their first use, so that `help(segue)` and completion show them."""
    return sorted({*globals(), *__all__})
