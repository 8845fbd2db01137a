"""What the compiler made of one kernel, read from the binary and from each form before it.

NVIDIA: `cuobjdump` tells registers and stack, `nvdisasm` the instructions, both from the wheel of Triton;
which argument an access belongs to follows from the places in the source that PTX and TTGIR name. AMD: all
comes from the assembly. Knows nothing about any op.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import triton
from compile_ttgir import Ttgir, chain

__all__ = ["compile_for", "read"]

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_PTX = re.compile(r"\b(ld|st)\.global([.\w:]*)|cp\.async\.c[ag]\.[\w.:]* \[.*?\], \[.*?\], (\w+)")
_GCN = re.compile(r"\b(?:buffer|global|flat)_(load|store)_(\w+)")
_GCN_BYTES = {"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16, "ushort": 2, "short": 2}
_GCN_BYTES |= {"sshort": 2, "ubyte": 1, "sbyte": 1, "byte": 1}
_SASS = re.compile(r"\b(LDG|LDGSTS|STG|LDL|STL|HMMA|HGMMA|UTC[A-Z]*MMA|LD|ST)(\.[\w.]+)?\s")


class _Driver:
    """As much of a driver as compiling needs, for a GPU that need not be there."""

    def __init__(self, target: triton.backends.compiler.GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> triton.backends.compiler.GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_for(target: str) -> None:
    """Make Triton compile for `target`, sm_* or gfx*; kernels keep what they compiled for another until
    their `device_caches` are cleared."""
    if target.startswith("sm_"):
        gpu = triton.backends.compiler.GPUTarget("cuda", int(target[3:]), 32)
    else:
        gpu = triton.backends.compiler.GPUTarget("hip", target, 64)
    triton.runtime.driver.set_active(_Driver(gpu))


def read(compiled: Any) -> dict[str, Any]:
    """Everything that the rules ask about what `kernel.warmup` gave, ready for JSON.

    Raises:
        ValueError: the compiler's output has something in it that this cannot read.
    """
    ttgir = Ttgir(compiled.asm["ttgir"])
    found = _read_cuda(compiled.asm) if "cubin" in compiled.asm else _read_hip(compiled.asm)
    metadata = compiled.metadata
    threads = metadata.num_warps * metadata.warp_size
    text = compiled.asm["ttgir"] + compiled.asm.get("ptx", "")
    return {
        "registers": found["registers"],
        "spilled": found["spilled"],
        "shared": metadata.shared,
        "tensor_memory": getattr(metadata, "tmem_size", None) or 0,
        "threads": threads,
        "matrix": sorted(found["matrix"]),
        "tf32": "tf32" in text or found["tf32"],
        "instructions": found["instructions"],
        "accesses": _join(ttgir.accesses, found["widths"]),
        "products": ttgir.products,
        "orders": ttgir.orders,
        "hasty": ttgir.hasty if getattr(metadata, "launch_pdl", False) else [],
    }


def _join(accesses: list[dict[str, Any]], widths: dict[tuple[str, str], set[int]]) -> list[dict[str, Any]]:
    """The accesses of TTGIR, each with the bytes a thread moves at a time there, the narrowest first."""
    joined: list[dict[str, Any]] = []
    met = set()
    for access in accesses:
        found: set[int] = set()
        for (kind, place), these in widths.items():
            # calls merged into one keep only the innermost place
            if kind == access["kind"] and f"{access['place']} < ".startswith(f"{place} < "):
                found |= these
                met.add((kind, place))
        entry = {**access, "widths": sorted(found)}
        if entry not in joined:
            joined.append(entry)
    if strays := {key: found for key, found in widths.items() if key not in met}:
        raise ValueError(f"accesses in the assembly that belong to none in TTGIR: {strays}")
    return joined


def _read_cuda(asm: dict[str, Any]) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name)
    counts = Counter(name + (rest or "") for name, rest in _SASS.findall(sass))
    kinds = {name.partition(".")[0] for name in counts}
    spills = sum(count for name, count in counts.items() if name.startswith(("LDL", "STL")))
    stack = sum(int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", usage))
    widths = _ptx_widths(asm["ptx"])
    _check_widest(widths, counts)
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spilled": max(stack, 4 if spills else 0),
        "matrix": {"UTCMMA" if kind.startswith("UTC") else kind for kind in kinds if kind.endswith("MMA")},
        "tf32": any(".TF32" in name for name in counts),
        "instructions": dict(sorted(counts.items())),
        "widths": widths,
    }


def _ptx_widths(ptx: str) -> dict[tuple[str, str], set[int]]:
    widths: dict[tuple[str, str], set[int]] = {}
    place = ""
    for line in ptx.splitlines():
        if line.lstrip().startswith(".loc"):
            place = chain(line.partition("//")[2])
        elif found := _PTX.search(line):
            kind, suffix, copied = found.groups()
            width = int(copied, 0) if copied else _ptx_bytes(suffix)
            widths.setdefault(("store" if kind == "st" else "load", place), set()).add(width)
    return widths


def _ptx_bytes(suffix: str) -> int:
    lanes = re.search(r"\.v(\d)", suffix)
    return int(re.search(r"\.[busf](\d+)", suffix)[1]) // 8 * (int(lanes[1]) if lanes else 1)


def _check_widest(widths: dict[tuple[str, str], set[int]], counts: Counter[str]) -> None:
    """Check that the assembler kept the widest accesses and split none."""
    for kind, names in (("load", ("LDG", "LDGSTS", "LD")), ("store", ("STG", "ST"))):
        asked = max((w for (k, _), found in widths.items() if k == kind for w in found), default=0)
        given = [_sass_bytes(name) for name in counts if name.partition(".")[0] in names]
        if asked > max(given, default=0):
            raise ValueError(f"a {kind} of {asked} bytes in PTX, of {max(given, default=0)} at most in SASS")


def _sass_bytes(name: str) -> int:
    parts = name.split(".")
    sizes = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "16": 2, "U8": 1, "S8": 1}
    return next((sizes[part] for part in parts if part in sizes), 4)


def _read_hip(asm: dict[str, Any]) -> dict[str, Any]:
    text = asm["amdgcn"]

    def meta(name: str) -> int:
        return int(re.search(rf"^\s+\.{name}:\s+(\d+)", text, re.M)[1])

    widths: dict[tuple[str, str], set[int]] = {}
    counts: Counter[str] = Counter(re.findall(r"\bv_mfma\w+|\bscratch_\w+", text))
    place = ""
    for line in text.splitlines():
        if line.lstrip().startswith(".loc"):
            place = chain(line.partition(";")[2])
        elif found := _GCN.search(line.partition(";")[0]):
            kind, size = found.groups()
            counts[found[0]] += 1
            plain = size.removesuffix("_hi").removesuffix("_d16")
            widths.setdefault((kind, place), set()).add(_GCN_BYTES[plain])
    return {
        "registers": meta("vgpr_count"),
        "spilled": max(meta("private_segment_fixed_size"), 4 * meta("vgpr_spill_count")),
        "matrix": {"v_mfma"} if any(name.startswith("v_mfma") for name in counts) else set(),
        "tf32": any("xf32" in name for name in counts),
        "instructions": dict(sorted(counts.items())),
        "widths": widths,
    }


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout
