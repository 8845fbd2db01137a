"""Correctness: every kernel against its twin on the device. What fails here is not timed.

Against float64, a result may be twice as wrong as the same formula run eagerly in its precision, plus one
rounding step: the rule of the tests, by their own helper. Inputs and results lie between fences of NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
from gpu_models import Work
from gpu_run import Run
from kernel_tools import DTYPES, Fence, assert_op_as_exact
from torch import Tensor

from segue import kernels
from segue.kernels import reference

__all__ = ["RAGGED", "SIZES", "SMOKE_RAGGED", "SMOKE_SIZES", "cases", "check_kernels", "fault_in", "fault_of"]

RAGGED = ((1, 31, 33, 0, 127, 2), (512, 257, 64), (128,) * 4, (1,))  # tokens of the pairs
SIZES = ((384, 12, 1536), (768, 12, 3072))  # E, H, F
SMOKE_RAGGED, SMOKE_SIZES = ((1, 17, 0, 5),), ((64, 2, 128),)

Case = tuple[str, tuple[Any, ...], dict[str, Any], int]


def check_kernels(run: Run, work: Work, found: dict[str, Any]) -> None:
    """`found[op][dtype]`: whether all cases are as exact as they must be, and if not, why."""
    ragged, sizes = (SMOKE_RAGGED, SMOKE_SIZES) if work.smoke else (RAGGED, SIZES)
    wanted = [dtype for dtype in DTYPES if work.smoke or str(dtype).partition(".")[2] in work.precisions]
    for dtype in sorted(wanted, key=lambda dtype: dtype.itemsize):  # what is timed comes first
        for size in sizes:
            for lengths in ragged:
                for op, arguments, options, columns in cases(size, lengths, dtype, work.device):
                    run.check_time()
                    entry = found.setdefault(op, {}).setdefault(
                        str(dtype).removeprefix("torch."), {"ok": True, "cases": 0}
                    )
                    entry["cases"] += 1
                    if fault := fault_of(op, arguments, options, columns, work.device):
                        entry |= {"ok": False, "why": f"{size}, {lengths}: {fault}"}


def fault_of(
    op: str, arguments: tuple[Any, ...], options: dict[str, Any], columns: int, device: torch.device
) -> str | None:
    """What is wrong with a kernel's result, or None. Its memory is fenced."""
    rows = len(arguments[2]) - 1 if op == "cls_attention" else len(arguments[0])
    if op == "first_rows":
        rows = len(arguments[1]) - 1
    try:
        with device:  # fences lie where tensors lie by default
            fence = Fence()
            fenced = [fence.put(x) if isinstance(x, Tensor) else x for x in arguments]
            dtype = next(x.dtype for x in arguments if isinstance(x, Tensor) and x.is_floating_point())
            out = fence.out((rows, columns), dtype)
            getattr(kernels, op)(*fenced, **options, out=out)
            fence.check()
            if op == "first_rows":
                assert torch.equal(out, reference.first_rows(*arguments)), "other rows"
            else:
                assert_op_as_exact(out, op, *arguments, **options)
    except Exception as error:  # a kernel that does not compile is wrong too
        return f"{type(error).__name__}: {error}"[:500]
    return None


def fault_in(call: Any, op: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> str | None:
    """What is wrong with `call`'s result, which should be `op` of the arguments; or None."""
    try:
        assert_op_as_exact(call(), op, *arguments, **options)
    except Exception as error:  # one that cannot be called is wrong too
        return f"{type(error).__name__}: {error}"[:300]
    return None


def cases(
    size: tuple[int, int, int], lengths: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Iterator[Case]:
    """Every op on random inputs of pairs of those lengths: its name, arguments, options, and the result's
    columns."""
    hidden, heads, inner = size
    draw = torch.Generator(device).manual_seed(sum(lengths) + hidden)
    tokens, pairs = sum(lengths), len(lengths)
    bounds = torch.tensor([0, *accumulate(lengths)], device=device, dtype=torch.int32)

    def make(*shape: int, scale: float = 1.5, around: float = 0.0) -> Tensor:
        return (around + scale * torch.randn(shape, generator=draw, device=device)).to(dtype)

    def ids(most: int, count: int) -> Tensor:
        return torch.randint(0, most, (count,), generator=draw, device=device, dtype=torch.int32)

    def weight(rows: int, depth: int) -> Tensor:
        return make(rows, depth, scale=1.5 / depth**0.5)

    norm = make(hidden, scale=0.2, around=1.0), make(hidden, scale=0.1)
    x = make(tokens, hidden)
    tables = (make(1000, hidden), make(2, hidden), make(512, hidden))
    yield "embed", (ids(1000, tokens), ids(2, tokens), ids(512, tokens), *tables, *norm, 1e-12), {}, hidden
    longest = {"longest": max(lengths)}
    yield "packed_attention", (make(tokens, 3 * hidden), bounds, heads), longest, hidden
    key_value = weight(hidden, hidden), weight(hidden, hidden), make(hidden)
    yield "cls_attention", (make(pairs, hidden), x, bounds, *key_value, heads), longest, hidden
    yield "linear", (x, weight(3 * hidden, hidden), make(3 * hidden)), {}, 3 * hidden
    yield "linear", (make(tokens, inner), weight(hidden, inner), make(hidden), x), {}, hidden
    yield "linear_gelu", (x, weight(inner, hidden), make(inner)), {}, inner
    yield "add_layer_norm", (x, make(tokens, hidden), *norm, 1e-12), {}, hidden
    yield "softmax", (make(tokens, 2, scale=4.0),), {}, 2
    yield "softmax", (make(tokens, 3 * hidden, scale=4.0),), {}, 3 * hidden
    yield "softmax", (make(3, 5000, scale=4.0),), {}, 5000  # wider than a block
    classifier = (weight(hidden, hidden), make(hidden), weight(2, hidden), make(2))
    yield "pool_classify", (make(pairs, hidden), *classifier), {}, 2
    if all(lengths):
        yield "first_rows", (x, bounds), {}, hidden
