"""How a kernel gets onto a device: what the launch tables call the device, and the launch itself.

The one place that knows kinds of device and versions of Triton. Under `TRITON_INTERPRET=1`, which has to be
set before this is imported, kernels run on CPU tensors, slowly, as NumPy.
"""

from __future__ import annotations

__all__ = ["INTERPRETED", "TARGETS", "Cost", "launch", "processors", "run", "target", "unit"]

from functools import cache
from threading import Lock
from typing import Any, NamedTuple

import torch
import triton

from segue.kernels.interpreter import mend

# Names in the launch tables, and the shared memory that a program may have there, in bytes. Any other device
# takes the table of the nearest that it can run: sm_86, sm_89 and sm_120 that of sm_80, whose configurations
# therefore stay within their 101,376 bytes.
TARGETS = {"sm_80": 101_376, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
_EARLY = ("sm_90", "sm_100")  # which can bring in a launch before the last has ended
# A product and a sum in one rounding: Triton's default, which 3.9 warns will be reversed from 3.10 on.
_FUSED = {"enable_fp_fusion": True}
INTERPRETED = triton.knobs.runtime.interpret  # as `triton.jit` reads it
_interpreting = Lock()  # the interpreter has room for only one current program
if INTERPRETED:
    mend()


class Cost(NamedTuple):
    """What a launch costs at least: bytes moved to and from memory, each once, and arithmetic operations, a
    multiplication and an addition being two."""

    bytes: int
    operations: int


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, device: torch.device, **options: Any) -> None:
    """Launch `kernel` on the device's current stream; a grid of nothing launches nothing.

    A kernel is told where it runs, if it has an argument for that. EARLY: its programs come onto the device
    before the last launch has ended, and it begins as `segue.kernels.dependent` says; one without is not
    brought in early. PTX: it may use NVIDIA's instructions.

    Raises:
        ValueError: kernels do not run on that device.
    """
    name = target(device)
    if 0 not in grid:
        where = {"EARLY": name in _EARLY, "PTX": name.startswith("sm_")}
        told = {key: value and not INTERPRETED for key, value in where.items() if key in kernel.arg_names}
        if told.get("EARLY"):
            told["launch_pdl"] = True
        run(kernel, grid, arguments, options | told | _FUSED, device)


def run(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    device: torch.device,
) -> None:
    """The launch itself, apart so that a test can count launches and a report compile instead."""
    with _interpreting if INTERPRETED else torch.cuda.device(device):
        kernel[grid](*arguments, **options)


def target(device: torch.device) -> str:
    """The device's name in the launch tables. Interpreted kernels take those of sm_80.

    Raises:
        ValueError: kernels do not run there.
    """
    if INTERPRETED and device.type == "cpu":
        return "sm_80"
    return _target(device.type, device.index)


def processors(device: torch.device) -> int:
    """How many multiprocessors the device has: an interpreter counts as one; an absent device, for which
    kernels are compiled, as an H100."""
    if device.type == "cuda":
        return _properties(device.index).multi_processor_count
    return 1 if INTERPRETED else 132


def unit(*strides: int) -> int:
    """8 where it divides every stride, else 1. Kernels get row strides in such units: of a given number,
    Triton learns only whether 16 divides it, and rows of E = 312 would be read 2 bytes at a time. Strides
    beyond 31 bits stay as they are: quotients would be multiplied back in as many bits as they came in.
    """
    return 8 if all(stride % 8 == 0 and stride < 2**31 for stride in strides) else 1


@cache
def _properties(index: int | None) -> Any:
    return torch.cuda.get_device_properties(index if index is not None else torch.cuda.current_device())


@cache
def _target(kind: str, index: int | None) -> str:
    if kind != "cuda":  # what PyTorch calls AMD's GPUs, too
        raise ValueError(
            f"device: kernels run on a GPU, got a tensor on {kind!r}; with TRITON_INTERPRET=1 set before "
            "the import they run on a CPU, slowly"
        )
    properties = _properties(index)
    if torch.version.hip:
        return "gfx942"
    if properties.major < 8:
        raise ValueError(
            f"device: {properties.name} has compute capability {properties.major}.{properties.minor}, "
            "kernels need 8.0 or newer"
        )
    return {9: "sm_90", 10: "sm_100"}.get(properties.major, "sm_80")
