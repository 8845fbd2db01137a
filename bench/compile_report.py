"""What the compiler makes of every kernel, in every configuration and for every target, without a GPU.

    python bench/compile_report.py [--op NAME] [--target NAME] [--one] [--json FILE]

Calls the public launchers with CPU tensors and compiles, for a device that need not be there, what they would
launch. Prints a Markdown table: registers a thread, spilled bytes a thread, shared memory a program, matrix
instructions, and the bytes of operand tiles that a thread loads and stores at a time. If rules are broken, it
lists them and exits with 1. The rules are in `compile_rules`; `compile_faults.py` shows that each can fail.
What was compiled is kept in build/kernels until the kernel or the compiler changes.

NVIDIA's targets are sm_80 (whose table sm_86, sm_89 and sm_120 share, hence the limit of 101,376 bytes),
sm_90 and sm_100; AMD's is gfx942.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported: a process interprets or compiles

import compile_launches
import compile_rules
import triton

import segue.kernels
from segue.kernels import launching

__all__ = ["main"]

_COLUMNS = (
    "op", "dtype", "sizes", "configuration", "target",
    "registers", "spilled", "shared", "of", "matrix", "loads", "stores", "binaries",
)  # fmt: skip


def main() -> None:
    """Plan, compile, judge, print."""
    arguments = _parser().parse_args()
    started = time.perf_counter()
    ops, targets = arguments.op or segue.kernels.__all__, arguments.target or list(launching.TARGETS)
    jobs, unreached = compile_launches.plan(ops, targets, one=arguments.one)
    entries, compiled = compile_launches.compile_all(jobs)
    faults = [] if arguments.one else unreached
    for entry in entries:
        entry["broken"] = compile_rules.broken(entry, launching.TARGETS[entry["target"]])
        faults += [f"{_name(entry)}: {rule}" for rule in entry["broken"]]
    faults += compile_rules.disagreements(entries) + compile_rules.absent(entries)
    print(_table(entries))
    seconds = time.perf_counter() - started
    print(
        f"\n{len(entries)} binaries, {compiled} compiled now, {seconds:.0f} s, triton {triton.__version__}."
    )
    print("\n".join(["", f"Broken rules: {len(faults)}", *(f"- {fault}" for fault in faults)]))
    if arguments.json:
        arguments.json.write_text(json.dumps({"entries": entries, "faults": faults}, indent=1), "utf-8")
    sys.exit(bool(faults))


def _table(entries: list[dict[str, Any]]) -> str:
    """A row for each configuration, its specialisations taken together, the worst of each number."""
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for entry in entries:
        if "error" not in entry:
            key = tuple(entry[name] for name in ("op", "dtype", "model", "configuration", "target"))
            rows.setdefault(key, []).append(entry)
    lines = [" | ".join(_COLUMNS), " | ".join("---" for _ in _COLUMNS)]
    for key, same in rows.items():
        accesses = [access for entry in same for access in compile_rules.operands(entry)]
        cells = [f"{max(entry[name] for entry in same):,}" for name in ("registers", "spilled", "shared")]
        cells += [f"{launching.TARGETS[key[-1]]:,}"]
        cells += [" ".join(sorted({kind for entry in same for kind in entry["matrix"]})) or "none"]
        cells += [_narrowest(accesses, kind) for kind in ("load", "store")]
        lines.append(" | ".join((*key, *cells, str(len(same)))))
    return "\n".join(f"| {line} |" for line in lines)


def _narrowest(accesses: list[dict[str, Any]], kind: str) -> str:
    widths = [width for access in accesses if access["kind"] == kind for width in access["widths"]]
    return str(min(widths)) if widths else "none"


def _name(entry: dict[str, Any]) -> str:
    names = ("op", "target", "dtype", "model", "setting", "configuration")
    return " ".join(entry[name] for name in names if entry[name])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--op", action="append", choices=segue.kernels.__all__, help="only this op; repeatable"
    )
    parser.add_argument(
        "--target", action="append", choices=list(launching.TARGETS), help="only this one; repeatable"
    )
    parser.add_argument("--one", action="store_true", help="one configuration per kernel and target")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all that was read, and what is broken"
    )
    return parser


if __name__ == "__main__":
    main()
