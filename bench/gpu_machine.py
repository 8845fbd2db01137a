"""What the machine is, and how fast it copies and multiplies: the ceilings to compare all else with."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from gpu_path import ROOT
from gpu_timing import compare

import segue
from segue.machine import cpu_name
from segue.threads import available_threads

__all__ = ["ceilings", "clocks", "machine", "slug"]

_PACKAGES = ("torch", "triton", "transformers", "onnx", "onnxruntime", "numpy", "tokenizers", "flash-attn")
_STATE = ("clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "power.limit", "temperature.gpu")


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware, the versions and the commit."""
    found: dict[str, Any] = {
        "name": "CPU, interpreted" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "processor": cpu_name(),
        "cores": available_threads(),
        "python": platform.python_version(),
        "versions": {"segue": segue.__version__} | {name: _version(name) for name in _PACKAGES},
        "segue at": _where(),
        "commit": _said_by("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "changed files": len((_said_by("git", "-C", str(ROOT), "status", "--short") or "").splitlines()),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "driver": _said_by(
                "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"
            ),
            "cuda": torch.version.cuda,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "L2": getattr(properties, "L2_cache_size", None),
            "state": clocks(device),
        }
    return found


def clocks(device: torch.device) -> dict[str, str] | None:
    """Clocks, power and temperature as nvidia-smi gives them now."""
    if device.type != "cuda":
        return None
    said = _said_by("nvidia-smi", f"--query-gpu={','.join(_STATE)}", "--format=csv,noheader", "-i", "0")
    return dict(zip(_STATE, said.split(", "), strict=False)) if said else None


def slug(device: torch.device) -> str:
    """The GPU's name, for files."""
    name = "smoke" if device.type == "cpu" else torch.cuda.get_device_name(device)
    words = name.lower().replace("nvidia", "").replace("geforce", "").split()
    return "-".join("".join(c for c in word if c.isalnum()) for word in words)


def ceilings(device: torch.device, found: dict[str, Any]) -> None:
    """Put into `found` the bytes per second that a copy reads and writes, and operations per second of a
    product of random matrices."""
    smoke = device.type == "cpu"
    found["copy"] = _copy(2**10 if smoke else 2**30, device)
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        found[f"product, {name}"] = _product(64 if smoke else 8192, dtype, device)
    found["state"] = clocks(device)


def _copy(count: int, device: torch.device) -> dict[str, Any]:
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.nbytes
    # by a kernel: in a graph, the copy engine does PyTorch's copy, and does not reach the full bandwidth
    took = compare({"copy": [lambda: torch.neg(source, out=target)]}, device)["copy"]
    return {"bytes": moved, **took, "bytes/s": 1e6 * moved / took["us"]}


def _product(size: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    took = compare({"product": [lambda: torch.mm(a, b, out=out)]}, device)["product"]
    return {"size": size, **took, "operations/s": 2e6 * size**3 / took["us"]}


def _where() -> str:
    """Which segue is measured; what is in the record says nothing of this machine's folders."""
    here = os.path.realpath(segue.__file__) == os.path.realpath(ROOT / "engine" / "__init__.py")
    return "this checkout" if here else os.path.dirname(segue.__file__)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        try:
            return str(importlib.import_module(package.replace("-", "_")).__version__)
        except (ImportError, AttributeError):
            return None


def _said_by(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
