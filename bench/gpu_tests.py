"""The repository's own tests of kernels, compiled and on this GPU: pytest in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from gpu_path import ROOT
from gpu_run import last_lines

if TYPE_CHECKING:
    from gpu_models import Work
    from gpu_run import Run

__all__ = ["run_tests"]

_COUNTS = re.compile(r"(\d+) (passed|failed|skipped|errors?)\b")


def run_tests(run: Run, work: Work, found: dict[str, Any]) -> None:
    """`found`: whether all of tests/test_*_kernel.py and test_live_rows.py passed, how many did, and which
    did not. In a smoke test, only one file, interpreted."""
    files = ["test_live_rows.py"] if work.smoke else ["test_live_rows.py", *_kernels()]
    command = [sys.executable, "-P", "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    if not work.smoke:
        command += ["-n", str(os.cpu_count())]  # compiling takes longest, a core each; pytest-xdist
    environment = os.environ | {"SEGUE_TESTS_ON_GPU": str(int(not work.smoke))}
    try:
        done = subprocess.run(
            [*command, *(f"tests/{file}" for file in files)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=max(run.left, 1),
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        said = (expired.stdout or b"").decode(errors="replace")
        found["pytest"] = {"ok": None, "why": "not done in time", "said": last_lines(said)}
        return
    counts = {word: int(count) for count, word in _COUNTS.findall(done.stdout)}
    failed = re.findall(r"^(?:FAILED|ERROR) (.+)$", done.stdout, flags=re.MULTILINE)
    found["pytest"] = {"ok": done.returncode == 0 and bool(counts.get("passed")), **counts}
    if failed or done.returncode:
        found["pytest"] |= {"which": failed[:40], "said": last_lines(done.stdout + done.stderr, 40)}


def _kernels() -> list[str]:
    return sorted(path.name for path in (ROOT / "tests").glob("test_*_kernel.py"))
