"""How many threads this process may keep busy: never the host's count where less is granted."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["available_threads", "cgroup_quota"]


def available_threads() -> int:
    """Return the smaller of the CPU affinity and the cgroup's quota, at least 1."""
    on_linux = hasattr(os, "sched_getaffinity")
    allowed = len(os.sched_getaffinity(0)) if on_linux else os.cpu_count() or 1
    quota = cgroup_quota()
    # Rounded down: a thread beyond the quota would be stopped for part of every period, and the others would
    # wait.
    return max(1, allowed if quota is None else min(allowed, int(quota)))


def cgroup_quota(
    membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """Return the CPUs that control groups grant this process, or None where they set no limit.

    Reads version 2 (`cpu.max`) and version 1 (`cpu.cfs_quota_us`) of the group and of every group above it;
    the smallest counts. In a container the named path may not exist below `root`; then `root` itself is the
    group.
    """
    try:
        lines = os.fsdecode(membership.read_bytes()).splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        group = top / path.lstrip("/")
        while True:
            quotas.append(_quota(group))
            if group in (top, root) or group == group.parent:
                break
            group = group.parent
    return min((quota for quota in quotas if quota), default=None)


def _quota(group: Path) -> float | None:
    try:
        if (group / "cpu.max").exists():
            limit, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:
            limit = (group / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (group / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        return None if limit in ("max", "-1") else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
