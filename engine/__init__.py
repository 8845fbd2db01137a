"""segue scores sentence pairs with BERT. `from segue import Engine` is the whole public face."""

import os
from typing import TYPE_CHECKING, Any

from segue.errors import BundleError, ExecutorUnavailable, InputError, SegueError

if TYPE_CHECKING:
    from segue.engine import Engine

__all__ = ["BundleError", "Engine", "ExecutorUnavailable", "InputError", "SegueError", "__version__"]

__version__ = "0.1.0"

# ONNX Runtime reports to its maker, and keeps a name of the device in the user's caches, unless it is told
# not to before it starts. Whoever wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """Import the engine, and numpy with it, when it is first asked for: `segue --help` needs neither."""
    if name != "Engine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from segue.engine import Engine

    globals()[name] = Engine
    return Engine
