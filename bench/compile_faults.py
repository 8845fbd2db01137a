"""Kernels wrong on purpose, one for each rule of the compile report, to show that it catches them.

    python bench/compile_faults.py [--json FILE]

Prints which rules each kernel breaks on each target it is compiled for, and exits 1 if one that should
break a rule does not. Nothing is launched.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported: a process interprets or compiles

import compile_readers
import compile_rules
import torch
import triton
import triton.language as tl

from segue.kernels import launching
from segue.kernels.dependent import begin

__all__ = ["main"]


@triton.jit
def _product_kernel(x_ptr, w_ptr, out_ptr, stride, ROWS: tl.constexpr, DEPTH: tl.constexpr, P: tl.constexpr):
    """out = x wᵀ, of [ROWS, stride] and [64, stride]."""
    row, column, k = tl.arange(0, ROWS)[:, None], tl.arange(0, 64)[:, None], tl.arange(0, DEPTH)[None, :]
    product = tl.zeros((ROWS, 64), dtype=tl.float32)
    for start in range(0, stride, DEPTH):
        x = tl.load(x_ptr + row * stride + start + k)
        w = tl.load(w_ptr + column * stride + start + k)
        product = tl.dot(x, w.T, product, input_precision=P)
    tl.store(out_ptr + row * 64 + tl.arange(0, 64)[None, :], product.to(out_ptr.dtype.element_ty))


@triton.jit
def _scalar_product_kernel(x_ptr, w_ptr, out_ptr, stride, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    """The same without matrix instructions: the operands are widened first."""
    row, column, k = tl.arange(0, ROWS)[:, None], tl.arange(0, 64)[:, None], tl.arange(0, DEPTH)[None, :]
    x = tl.load(x_ptr + row * stride + k).to(tl.float32)
    w = tl.load(w_ptr + column * stride + k).to(tl.float32)
    product = tl.dot(x, w.T, input_precision="ieee")
    tl.store(out_ptr + row * 64 + tl.arange(0, 64)[None, :], product.to(out_ptr.dtype.element_ty))


@triton.jit
def _sum_kernel(x_ptr, out_ptr, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr):
    """out = x minus the mean of its row; a STEP other than 1 reads what is not contiguous."""
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    x = tl.load(x_ptr + row * stride + column * STEP).to(tl.float32)
    x -= tl.sum(x, axis=1)[:, None] / WIDTH
    tl.store(out_ptr + row * stride + column, x.to(out_ptr.dtype.element_ty))


@triton.jit
def _hasty_kernel(x_ptr, out_ptr, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """out = x, which it reads before it waits for the launch that may have made it."""
    offs = tl.arange(0, ROWS)[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    x = tl.load(x_ptr + offs)
    begin(True)
    tl.store(out_ptr + offs, x)


class _Fault(NamedTuple):
    """A kernel, its arguments and options; its targets; and a part of what the rule that it breaks says, or
    nothing if it is to pass."""

    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    targets: tuple[str, ...]
    rule: str


def _matrix(rows: int, columns: int) -> torch.Tensor:
    return torch.empty(rows, columns, dtype=torch.float16)


def _shifted(rows: int, columns: int) -> torch.Tensor:
    """As `_matrix`, an element off 16-byte alignment."""
    return torch.empty(rows * columns + 1, dtype=torch.float16)[1:].view(rows, columns)


def _faults() -> dict[str, _Fault]:
    x, w, out = _matrix(64, 384), _matrix(64, 384), _matrix(64, 64)
    wide = [each.float() for each in (x, w, out)]
    small = {"ROWS": 64, "DEPTH": 64, "num_warps": 4}
    large = (_matrix(128, 4096), _matrix(64, 4096), _matrix(128, 64), 4096)
    every, nvidia, two = tuple(launching.TARGETS), ("sm_80", "sm_90", "sm_100"), ("sm_90", "gfx942")
    right, sums = {**small, "P": "ieee"}, {"ROWS": 16, "WIDTH": 128, "STEP": 1, "num_warps": 4}
    spilling = {"ROWS": 16, "WIDTH": 1024, "STEP": 1, "num_warps": 1}
    return {
        "nothing, of 16 bits": _Fault(_product_kernel, (x, w, out, 384), right, every, ""),
        "nothing, of 32 bits": _Fault(_product_kernel, (*wide, 384), {**right, "DEPTH": 32}, every, ""),
        "spilling": _Fault(_sum_kernel, (_matrix(16, 1024),) * 2 + (1024,), spilling, ("sm_90",), "spills"),
        "TF32": _Fault(_product_kernel, (*wide, 384), {**right, "P": "tf32"}, nvidia, "TF32"),
        "hasty": _Fault(
            _hasty_kernel, (x, x, 384), {"ROWS": 16, "WIDTH": 128, "num_warps": 4, "launch_pdl": True},
            ("sm_90",), "before the launch before has ended",
        ),
        "misaligned": _Fault(_sum_kernel, (_shifted(16, 384), x, 384), sums, two, "bytes at a time"),
        "strided": _Fault(_sum_kernel, (x, x, 384), {**sums, "STEP": 2}, two, "bytes at a time"),
        "too much shared memory": _Fault(
            _product_kernel, large, {**right, "ROWS": 128, "DEPTH": 128, "num_stages": 6},
            every, "shared memory",
        ),
        "no matrix unit": _Fault(
            _product_kernel, (x[:1], w[:1], out[:1], 384), {**right, "ROWS": 64, "num_warps": 2}, ("sm_90",),
            "not HGMMA",
        ),
        "widened operands": _Fault(
            _scalar_product_kernel, (x, w, out, 384), {**small, "DEPTH": 16}, two,
            "no product on matrix units",
        ),
    }  # fmt: skip


def main() -> None:
    """Compile, judge, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what each kernel breaks, and should")
    arguments = parser.parse_args()
    found = [
        {"fault": name, "target": target, "rule": fault.rule, "broken": _broken(fault, target)}
        for name, fault in _faults().items()
        for target in fault.targets
    ]
    found += [{"fault": "other order", "target": "sm_80", "rule": "sums differ", "broken": _reordered()}]
    missed = 0
    for each in found:
        caught = any(each["rule"] in rule for rule in each["broken"]) if each["rule"] else not each["broken"]
        missed += not caught
        print(f"{each['fault']}, {each['target']}: {'; '.join(each['broken']) or 'breaks nothing'}")
        if not caught:
            print(f"  MISSED: expected {each['rule'] or 'nothing'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1), "utf-8")
    sys.exit(bool(missed))


def _broken(fault: _Fault, target: str) -> list[str]:
    return compile_rules.broken(_entry(fault, target), launching.TARGETS[target])


def _entry(fault: _Fault, target: str) -> dict[str, Any]:
    compile_readers.compile_for(target)
    fault.kernel.device_caches.clear()
    compiled = fault.kernel.warmup(*fault.arguments, grid=(1,), **fault.options)
    named = dict(zip(fault.kernel.arg_names, fault.arguments, strict=False))
    tensors = {
        name: {"shape": list(x.shape), "float": True} for name, x in named.items() if torch.is_tensor(x)
    }
    dtype = str(fault.arguments[0].dtype).removeprefix("torch.")
    entry = {"op": "fault", "kernel": fault.kernel.__name__, "target": target, "dtype": dtype, "model": ""}
    warps = f"warps={fault.options['num_warps']}"
    return entry | {
        "setting": "",
        "configuration": warps,
        "tensors": tensors,
        **compile_readers.read(compiled),
    }


def _reordered() -> list[str]:
    """Two configurations of one kernel: the warps of the second split a row."""
    fault = _faults()["strided"]
    entries = []
    for rows, warps in ((16, 4), (1, 4)):
        options = {"ROWS": rows, "WIDTH": 128, "STEP": 1, "num_warps": warps}
        entries.append(_entry(fault._replace(options=options), "sm_80"))
    return compile_rules.disagreements(entries)


if __name__ == "__main__":
    main()
