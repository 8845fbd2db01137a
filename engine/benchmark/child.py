"""A fresh process that loads a model and scores: started by `process` with -m, imported by nothing.

Reads {"load": arguments of Engine.load, "pairs": [[a, b], ...]} from stdin, and writes to stdout how long the
import, the load and the first score took, and what memory it used. Whatever it needs besides the engine is
imported after the engine.
"""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Any

__all__ = ["main"]


def main() -> None:
    """Load, score the first pair, then all of them."""
    started = perf_counter()
    from segue import Engine

    imported = perf_counter()
    import json

    from segue.peak_memory import peak_memory

    request: dict[str, Any] = json.load(sys.stdin)
    pairs: list[list[str]] = request["pairs"]
    began = perf_counter()
    engine = Engine.load(**request["load"])
    loaded = perf_counter()
    after_load = peak_memory()
    engine.predict(pairs[:1])
    scored = perf_counter()
    if len(pairs) > 1:
        engine.predict(pairs)
    found: dict[str, Any] = {
        "import": imported - started,
        "load": loaded - began,
        "first_score": scored - loaded,
        "memory_loaded": after_load,
        "memory_peak": peak_memory(),
        "gpu_allocated": None,
        "gpu_reserved": None,
    }
    torch: Any = sys.modules.get("torch")  # there if the executor needs it
    if torch is not None and torch.cuda.is_available():
        found["gpu_allocated"] = torch.cuda.max_memory_allocated()
        found["gpu_reserved"] = torch.cuda.max_memory_reserved()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
