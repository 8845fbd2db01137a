"""Every kernel under compute-sanitizer: accesses out of bounds, and races in shared memory. Started as a
script, this is what the tool watches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    from gpu_path import reach

    reach()

if TYPE_CHECKING:
    from gpu_models import Work
    from gpu_run import Run

__all__ = ["check_memory"]

_TOOLS = ("memcheck", "racecheck")


def check_memory(run: Run, work: Work, found: dict[str, Any]) -> None:
    """`found[tool]`: whether it found nothing, and the end of what it said."""
    program = shutil.which("compute-sanitizer")
    if not program or work.smoke:
        found["compute-sanitizer"] = {
            "ok": None,
            "why": "not there" if not program else "kernels interpreted",
        }
        return
    for tool in _TOOLS:
        run.check_time()
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, __file__]
        # PyTorch's own pool would hide an access beyond a tensor that stays within the pool
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        try:
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                timeout=max(run.left, 1),
                check=False,
            )
        except subprocess.TimeoutExpired:
            found[tool] = {"ok": None, "why": "not done in time"}
            continue
        said = (done.stdout + done.stderr).strip().splitlines()
        found[tool] = {"ok": done.returncode == 0, "code": done.returncode, "said": said[-6:]}


def _launch_all() -> None:
    import torch
    from gpu_parity import cases

    from segue import kernels

    for dtype in (torch.float16, torch.float32):
        for op, arguments, options, _ in cases((64, 2, 128), (1, 31, 33, 0, 70), dtype, torch.device("cuda")):
            getattr(kernels, op)(*arguments, **options)
    torch.cuda.synchronize()


if __name__ == "__main__":
    _launch_all()
