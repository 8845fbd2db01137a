"""What the tests of kernels share: how wrong a result may be, fences around memory, a count of launches, what
a module says that it costs. `interpreted.py` has what needs Triton's interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import eager_formulas
import torch
from torch import Tensor

from segue.kernels import launching, reference

HERE = torch.zeros(0).device  # where tensors are made: the CPU, or the GPU that kernels run on
TARGETS = tuple(launching.TARGETS) if launching.INTERPRETED else (launching.target(torch.device("cuda")),)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAUNCHES = {"cls_attention": 3, "pool_classify": 2}  # of an op's call; of every other's, one
# Poison, as bits: NaNs to recognise; integers far outside any table. That of a result is one more, since
# arithmetic passes a NaN's bits on.
_POISON = {
    torch.float16: (torch.int16, 0x7EAD),
    torch.bfloat16: (torch.int16, 0x7FED),
    torch.float32: (torch.int32, 0x7FEDDEAD),
    torch.int32: (torch.int32, 2**30),
    torch.int64: (torch.int64, 2**30),
}
# Rows of it before and after: more than a program has, so that one that ignores its bounds hits nothing else.
_ROWS, _ELEMENTS = 256, 4096
_GAP = 8  # elements between two rows


def assert_as_exact(found: Tensor, eager: Tensor, exact: Tensor) -> None:
    """Check that a kernel's error is at most twice that of `eager`, plus one rounding step.

    Both its largest error and its root mean square. `eager`: the formula run in the kernel's dtype
    throughout; `exact`: in float64. A step is the distance between neighbours of `found.dtype` at the exact
    value, element by element.
    """
    assert found.shape == eager.shape == exact.shape
    assert found.dtype == eager.dtype
    assert exact.dtype == torch.float64
    for x in (found, eager, exact):
        assert x.isfinite().all()
    if not found.numel():
        return
    limits = torch.finfo(found.dtype)
    step = limits.eps * torch.exp2(exact.abs().clamp_min(limits.tiny).log2().floor())
    error, allowed = (found.double() - exact).abs(), (eager.double() - exact).abs()
    worst = (error - step).max().item()
    assert worst <= 2 * allowed.max().item(), (
        f"wrong by {error.max():.3g} (a step beyond: {worst:.3g}), eager {found.dtype} by {allowed.max():.3g}"
    )
    assert _rms(error) <= 2 * _rms(allowed) + _rms(step), (
        f"wrong by {_rms(error):.3g} in the mean, eager {found.dtype} by {_rms(allowed):.3g}"
    )


def assert_op_as_exact(found: Tensor, op: str, *arguments: Any, **options: Any) -> None:
    """`assert_as_exact` for an op by its name, with the arguments that the kernel was given."""
    eager = getattr(eager_formulas, op)(*arguments, **options)
    wide = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments]
    assert_as_exact(found, eager, getattr(reference, op)(*wide, **options))


class _Fenced(NamedTuple):
    memory: Tensor  # bits, all of it
    before: Tensor
    inside: Tensor  # bits, those of the tensor
    out: bool


class Fence:
    """Tensors with poison before, behind and between their rows: floats NaN, integers out of any range.

    `put` copies an input into such memory, `out` makes a result to be written; after the launch `check` finds
    what was written where it must not be, or was not written. What was read there shows as NaN in the result;
    what is read and masked out afterwards, `interpreted.traffic(*fence.tensors)` refuses.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._fenced: list[_Fenced] = []

    def put(self, x: Tensor) -> Tensor:
        """A copy of x, with gaps between its rows; a vector is contiguous."""
        return self._make(tuple(x.shape), x.dtype, x)

    def out(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A result that is poison until it is written."""
        return self._make(shape, dtype, None)

    def check(self) -> None:
        """Raise AssertionError unless all of every `out` was written, and nothing else."""
        for number, (x, fenced) in enumerate(zip(self.tensors, self._fenced, strict=True)):
            changed = int((fenced.memory != fenced.before).sum())
            missing = int((fenced.inside == _POISON[x.dtype][1] + 1).sum())
            name = f"tensor {number}, {list(x.shape)}"
            assert not fenced.out or not missing, f"{name}: {missing} elements were not written"
            stray = changed - fenced.inside.numel() if fenced.out else changed
            assert not stray, f"{name}: {stray} elements were written that are none of a result"

    def _make(self, shape: tuple[int, ...], dtype: torch.dtype, content: Tensor | None) -> Tensor:
        *rows, width = shape
        assert len(rows) < 2, "vectors and matrices only"
        stride = (width + _GAP, 1) if rows else (1,)
        margin = _ROWS * stride[0] if rows else _ELEMENTS
        kind, poison = _POISON[dtype]
        size = 2 * margin + (rows[0] * stride[0] if rows else width)
        memory = torch.full((size,), poison + (content is None), dtype=kind)
        x = memory.view(dtype).as_strided(shape, stride, margin)
        if content is not None:
            x.copy_(content)
        inside = memory.as_strided(shape, stride, margin)
        self.tensors.append(x)
        self._fenced.append(_Fenced(memory, memory.clone(), inside, content is None))
        return x


class Launch(NamedTuple):
    """A launch that took place: the kernel's name, its grid, its compile-time arguments and options."""

    kernel: str
    grid: tuple[int, ...]
    options: dict[str, Any]


@contextmanager
def launches() -> Iterator[list[Launch]]:
    """Note every launch of our kernels, in order; they still take place."""
    found: list[Launch] = []
    run = launching.run

    def noting(
        kernel: Any, grid: tuple[int, ...], arguments: Any, options: dict[str, Any], *rest: Any
    ) -> None:
        found.append(Launch(kernel.__name__, grid, options))
        run(kernel, grid, arguments, options, *rest)

    with patch.object(launching, "run", noting):
        yield found


def stated_cost(module: ModuleType, **letters: Any) -> launching.Cost:
    """What a module's docstring says that it costs: its lines `bytes = ...` and `operations = ...`, read as
    Python over the letters."""
    lines = re.findall(r"^ +(bytes|operations) = (.+)$", module.__doc__ or "", flags=re.MULTILINE)
    names = {"__builtins__": {"len": len, "max": max, "min": min, "sum": sum}, **letters}
    return launching.Cost(**{name: eval(formula, names) for name, formula in lines})


def run_python(code: str, *, interpreted: bool) -> str:
    """What a fresh process prints that may or may not interpret kernels."""
    environment = os.environ | {"TRITON_INTERPRET": str(int(interpreted))}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()
