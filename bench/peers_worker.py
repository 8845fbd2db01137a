"""The process in which one peer works, in that peer's environment: `peers_process` starts it with a JSON job.

    python peers_worker.py '{"module": FILE, "function": NAME, "checkpoint": FOLDER, "threads": 2,
                             "order": "sorted", "options": {}, "pairs": FILE, "packages": [NAME, ...]}'

Loads the peer and writes a JSON line; then, for each JSON line it reads, scores and writes another; ends
when its input does. What libraries print goes to stderr. Before the peer, the standard library is enough.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from typing import IO, Any

__all__ = ["main"]

# By its file: segue is not in every environment.
_PEAK_MEMORY = os.path.join(os.path.dirname(__file__), "..", "engine", "peak_memory.py")


def main() -> None:
    """Load, then serve."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.argv[1])
    with open(job["pairs"], encoding="utf-8") as file:
        pairs = [tuple(pair) for pair in json.load(file)]
    started = time.perf_counter()
    from pathlib import Path

    score = getattr(_load(job["module"]), job["function"])(
        Path(job["checkpoint"]), job["threads"], job["order"], **job["options"]
    )
    _answer(answers, load=time.perf_counter() - started)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "score":
            some = pairs[:: request["step"]][: request["count"]]
            started = time.perf_counter()
            if request["alone"]:
                found = [score([pair], request["batch"])[0] for pair in some]
            else:
                found = score(some, request["batch"])
            seconds = time.perf_counter() - started
            scores = [float(value) for value in found] if request["scores"] else None
            _answer(answers, seconds=seconds, scores=scores)
        else:
            peak = _load(_PEAK_MEMORY).peak_memory()
            _answer(answers, peak=peak, versions=_versions(job["packages"]))


def _load(file: str) -> Any:
    """The module in a file, by whatever name."""
    spec = importlib.util.spec_from_file_location("loaded", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _answer(answers: IO[str], **values: Any) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


def _versions(names: list[str]) -> dict[str, str]:
    from importlib import metadata

    installed = {}
    for name in names:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "missing"
    return installed


if __name__ == "__main__":
    main()
