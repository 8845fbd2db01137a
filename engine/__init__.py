"""segue scores sentence pairs with BERT. `from segue import Engine` is the whole public face."""

__version__ = "0.1.0"

from segue.engine import Engine
from segue.errors import BundleError, ExecutorUnavailable, InputError, SegueError

__all__ = ["BundleError", "Engine", "ExecutorUnavailable", "InputError", "SegueError", "__version__"]
