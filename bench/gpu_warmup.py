"""How long `Engine.warmup` takes in a new process, with no kernel compiled and with all of them on disk, and
whether anything is compiled after it. Started as a script, this is that process."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    from gpu_path import reach

    reach()

if TYPE_CHECKING:
    from gpu_models import Work
    from gpu_run import Run

__all__ = ["warm_ups"]


def warm_ups(run: Run, work: Work, found: dict[str, Any]) -> None:
    """`found["rows"]`: the seconds of a fresh process, twice for each model, and compilations after."""
    from gpu_run import OutOfTime

    rows = found["rows"] = []
    for name in dict.fromkeys((work.scored[0], work.names[0])):
        with tempfile.TemporaryDirectory(prefix="segue-kernels-") as cache:
            for kernels in ("none compiled", "all on disk")[: 1 if work.smoke else 2]:
                run.check_time()
                row: dict[str, Any] = {"model": name, "kernels": kernels}
                rows.append(row)
                try:
                    done = subprocess.run(
                        [sys.executable, __file__, str(work.model(name).bundle)],
                        env=os.environ | {"TRITON_CACHE_DIR": cache},
                        capture_output=True, text=True, timeout=max(run.left, 1), check=False,
                    )  # fmt: skip
                except subprocess.TimeoutExpired:
                    row["error"] = "not done in time"
                    raise OutOfTime from None
                if done.returncode:
                    row["error"] = "\n".join(done.stderr.strip().splitlines()[-4:])
                    break
                row |= json.loads(done.stdout.splitlines()[-1])
                row["binaries"] = sum(1 for _ in Path(cache).rglob("*.cubin"))


class _Counter(logging.Handler):
    """Counts the compilations logged after the warm-up."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "after the warm-up" in (message := record.getMessage()):
            self.messages.append(message)


def _warm_up(bundle: Path) -> dict[str, Any]:
    counter = _Counter()
    logging.getLogger("segue").addHandler(counter)
    started = time.perf_counter()
    from segue import Engine

    engine = Engine.load(bundle, executor="triton", precision="float16")
    loaded = time.perf_counter()
    engine.warmup()
    warm = time.perf_counter()
    sizes = (1,) if os.environ.get("TRITON_INTERPRET") == "1" else (1, 2, 7, 30, 90, 150, 300, 480)
    took = []
    for many in sizes:
        for size in sizes:
            began = time.perf_counter()
            engine.score([(f"word{i} " * (size // 2), "a " * (size // 2)) for i in range(many)])
            took.append(time.perf_counter() - began)
    return {
        "load": loaded - started,
        "warmup": warm - loaded,
        "slowest call after": max(took),
        "calls after": len(took),
        "compiled after": len(counter.messages),
        "which": counter.messages[:5],
    }


if __name__ == "__main__":
    print(json.dumps(_warm_up(Path(sys.argv[1]))))
