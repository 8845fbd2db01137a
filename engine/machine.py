"""Which machine and which packages a measurement was made on: plain records, ready for JSON.

Imports no package to ask it: a GPU is named only if something else has already loaded torch.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from segue import __version__
from segue.threads import available_threads

__all__ = ["cpu_name", "machine", "versions"]


def machine() -> dict[str, Any]:
    """Return what a figure depends on besides the code.

    Returns:
        `cpu`: the model's name. `cores`: those granted to this process by affinity and control group;
        `host_cores`: those of the machine. `memory`: bytes of the machine, None where the system does not
        say. `os`: name, release and architecture. `gpus`: their names in torch's order, [] where torch is not
        loaded or has none.
    """
    return {
        "cpu": cpu_name(),
        "cores": available_threads(),
        "host_cores": os.cpu_count() or 1,
        "memory": _memory(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "gpus": _gpus(),
    }


def versions(*names: str) -> dict[str, str]:
    """Return the versions of Python, segue and the distributions named, but for those not installed."""
    found = {"python": platform.python_version(), "segue": __version__}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's model as the system names it, or its architecture where it does not."""
    name = _from_cpuinfo(cpuinfo)
    if not name and sys.platform == "darwin":
        asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return name or platform.processor() or platform.machine() or "unknown"


def _from_cpuinfo(path: Path) -> str:
    """Return "model name", or on Arm the numbers of maker and part, or "" where neither is given."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    first: dict[str, str] = {}
    for key, _, value in (line.partition(":") for line in lines):
        first.setdefault(key.strip(), value.strip())
    if "model name" in first:
        return first["model name"]
    maker, part = first.get("CPU implementer"), first.get("CPU part")
    return f"{platform.machine()}, implementer {maker}, part {part}" if maker and part else ""


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, some systems lack the names
        return None


def _gpus() -> list[str]:
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
