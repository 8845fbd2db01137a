"""Which GPU kernels run on, and how launches on it become a GPU graph. Knows nothing about models."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Lock

import torch

from segue.errors import ExecutorUnavailable
from segue.kernels.launching import INTERPRETED, target

__all__ = ["choose", "record", "works"]

_capturing = Lock()  # PyTorch keeps one random state a device, which is to know of one capture at a time


def works(device: str) -> bool:
    """Tell whether kernels run on the GPU of that name, "auto" and "cuda" being the first. One that is not
    there counts as one on which they do, so that it is missed by name."""
    if INTERPRETED or not torch.cuda.is_available():
        return False
    with suppress(ExecutorUnavailable):
        try:
            target(choose(device))
        except ValueError:
            return False
    return True


def choose(name: str) -> torch.device:
    """The device of that name, "auto" being the first GPU, or the CPU where kernels are interpreted.

    Raises:
        ExecutorUnavailable: there is none of that name.
    """
    if INTERPRETED:
        if name not in ("auto", "cpu"):
            raise ExecutorUnavailable(
                f"executor='triton', device={name!r}: with TRITON_INTERPRET=1 kernels run on the CPU"
            )
        return torch.device("cpu")
    if name == "cpu":
        raise ExecutorUnavailable(
            "executor='triton', device='cpu': kernels run on a GPU; on a CPU only with TRITON_INTERPRET=1"
        )
    number = int(name.partition(":")[2] or 0)
    found = torch.cuda.device_count()
    if number >= found:
        raise ExecutorUnavailable(
            f"executor='triton', device='cuda:{number}': PyTorch {torch.__version__} finds {found} GPUs here"
        )
    return torch.device("cuda", number)


def record(launch: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """Capture what `launch` launches in the current stream. It allocates nothing, and other threads may use
    the device meanwhile."""
    graph = torch.cuda.CUDAGraph()
    with _capturing:
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            launch()
        finally:
            graph.capture_end()
    return graph
