"""Compile beforehand what the sections launch, in as many processes as there are processors.

Kernels are kept on disk, so that later sections only load them: compiled one after the other, they would
take most of the run. How long a user waits is measured by another section. Started as a script, this is one
of the processes: `gpu_compile.py '{"kernels": ...}'`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    from gpu_path import reach

    reach()

if TYPE_CHECKING:
    from gpu_models import Work
    from gpu_run import Run

__all__ = ["compile_ahead"]


def compile_ahead(run: Run, work: Work, found: dict[str, Any]) -> None:
    """Start a process for each share of the kernels, and wait for them, as long as there is time."""
    jobs = list(_jobs(work))
    found |= {"processes": len(jobs), "failed": []}
    waiting = {
        json.dumps(job): subprocess.Popen(
            [sys.executable, __file__, json.dumps(job)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for job in jobs
    }
    try:
        for job, process in waiting.items():
            _, said = process.communicate(timeout=max(run.left, 1))
            if process.returncode:
                found["failed"].append(f"{job}: {said.strip().splitlines()[-1:]}")
    except subprocess.TimeoutExpired:
        found["left to the sections"] = [job for job, process in waiting.items() if process.poll() is None]
    finally:
        for process in waiting.values():
            process.kill()
            process.wait()


def _jobs(work: Work) -> list[dict[str, Any]]:
    from gpu_parity import RAGGED, SIZES, SMOKE_RAGGED, SMOKE_SIZES

    if work.smoke:
        return [{"kernels": (SMOKE_SIZES[0], SMOKE_RAGGED, "float32"), "device": "cpu"}]
    jobs: list[dict[str, Any]] = []
    shares = max(1, (os.cpu_count() or 1) // (2 * len(work.precisions)) - 1)  # of a model's launches
    for precision in work.precisions:
        jobs += [{"kernels": (size, RAGGED, precision), "device": "cuda"} for size in SIZES]
        for name in work.names:
            model = work.model(name)
            about = {"model": str(model.bundle), "precision": precision, "longest": model.longest}
            jobs += [{**about, "tokens": max(work.budgets), "share": (i, shares)} for i in range(shares)]
    return jobs


def _do(job: dict[str, Any]) -> None:
    if "model" in job:
        from segue.executors import open_executor

        executor = open_executor(
            Path(job["model"]) / "model.onnx",
            executor="triton",
            device="auto",
            precision=job["precision"],
            threads=1,
            batch_tokens=job["tokens"],
            longest=job["longest"],
        )
        first, shares = job["share"]
        executor.compile(first, shares)
        return
    import torch
    from gpu_parity import cases, fault_of

    size, ragged, precision = job["kernels"]
    for lengths in ragged:
        dtype, device = getattr(torch, precision), torch.device(job["device"])
        for case in cases(tuple(size), tuple(lengths), dtype, device):
            fault_of(*case, device)  # whatever is found, the section will find again


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = time.perf_counter()
    _do(json.loads(sys.argv[1]))
    print(f"{time.perf_counter() - started:.1f} s")
