"""Every kernel under compute-sanitizer: accesses out of bounds, and races in shared memory. Started as a
script, this is what the tool watches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

if __name__ == "__main__":
    from gpu_path import reach

    reach()

if TYPE_CHECKING:
    from gpu_models import Work
    from gpu_run import Run

__all__ = ["check_memory", "launch_all"]

_TOOLS = ("memcheck", "racecheck")
_FAULTS = 9  # its exit status if it finds some
_RAGGED = ((1, 31, 33, 0, 70), (128,) * 64)  # tokens of the pairs; so many that products are fetched by tiles


def check_memory(run: Run, work: Work, found: dict[str, Any]) -> None:
    """`found[tool]`: whether it found nothing, or None if it did not tell; and the beginning of its output,
    which names the kernel, and the end."""
    program = shutil.which("compute-sanitizer")
    if not program or work.smoke:
        found["compute-sanitizer"] = {
            "ok": None,
            "why": "not there" if not program else "kernels interpreted",
        }
        return
    for tool in _TOOLS:
        run.check_time()
        command = [program, "--tool", tool, "--error-exitcode", str(_FAULTS), sys.executable, __file__]
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
        verdict = {0: True, _FAULTS: False}.get(done.returncode)
        found[tool] = {"ok": verdict, "code": done.returncode, "said": [*said[:20], *said[20:][-6:]]}
        if verdict is None:
            found[tool]["why"] = f"it ended with {done.returncode}"


def launch_all(device: torch.device) -> None:
    """Launch every kernel."""
    from gpu_parity import cases

    from segue import kernels

    for dtype, lengths in product((torch.float16, torch.float32), _RAGGED):
        for op, arguments, options, _ in cases((64, 2, 128), lengths, dtype, device):
            getattr(kernels, op)(*arguments, **options)


if __name__ == "__main__":
    launch_all(torch.device("cuda"))
    torch.cuda.synchronize()
