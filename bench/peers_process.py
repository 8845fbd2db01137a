"""The parent's end of a worker process: ask, wait, and know what it used while it was not asked."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

from peers_environments import Unavailable
from peers_list import Peer

__all__ = ["Worker"]

_WORKER = Path(__file__).resolve().with_name("peers_worker.py")
_PATIENCE = 900  # seconds for one answer
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class Worker:
    """A process in which one peer is loaded. A context manager; `load` is seconds, import and model."""

    def __init__(
        self, peer: Peer, python: Path, *, checkpoint: Path, pairs: Path, threads: int, logs: Path
    ) -> None:
        """Start it and wait until it has loaded.

        Raises:
            Unavailable: it ended instead.
        """
        self.peer = peer
        job = {
            "module": str(peer.module),
            "function": peer.function,
            "checkpoint": str(checkpoint),
            "threads": threads,
            "order": peer.order,
            "options": dict(peer.options),
            "pairs": str(pairs),
            "packages": peer.packages,
        }
        logs.mkdir(parents=True, exist_ok=True)
        self._log = logs / f"{peer.key}.log"
        # Compiled modules are kept, as in any installation: else each start would compile the libraries.
        inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [python, "-P", _WORKER, json.dumps(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=inherited | _OFFLINE,
            )
        try:
            self.load: float = self._answer()["load"]
        except BaseException:
            self.close()
            raise

    def score(
        self,
        batch: int,
        *,
        step: int = 1,
        count: int | None = None,
        scores: bool = False,
        alone: bool = False,
    ) -> Any:
        """Return {"seconds", "scores"} of every `step`-th pair, up to `count`; `alone`: a call for each."""
        some = {"batch": batch, "step": step, "count": count, "alone": alone}
        return self._ask({"do": "score", "scores": scores, **some})

    def state(self) -> dict[str, Any]:
        """Return {"peak": most bytes of RAM used, "versions": of its packages}."""
        return self._ask({"do": "tell"})

    def cpu_seconds(self) -> float | None:
        """Return the CPU seconds it has used, None where the system does not say."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it, and wait until its memory is free."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> Any:
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer will be missing, and the log says why
        return self._answer()

    def _answer(self) -> Any:
        ready, _, _ = select.select([self._process.stdout], [], [], _PATIENCE)
        line = self._process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        if not ready:
            raise Unavailable(f"{self.peer.key}: no answer within {_PATIENCE} s")
        time.sleep(0.1)  # the last lines of the log
        code = self._process.wait()
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise Unavailable(f"{self.peer.key}: ended with {code}: {lines[-1] if lines else 'it wrote nothing'}")
