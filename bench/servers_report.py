"""The page that a comparison of servers becomes."""

from __future__ import annotations

from statistics import median
from typing import Any

__all__ = ["markdown"]


def markdown(record: dict[str, Any]) -> str:
    """Return a page: what was measured, a table for each load, who was refused and why."""
    machine = record["machine"]
    lines = [
        f"# segue serve and other servers on {record['threads']} cores",
        "",
        f"{machine['cpu']}, {record['threads']} threads each, {machine['os']}. The model of "
        f"[peers-2-cores.md](peers-2-cores.md). `{record['command']}`, {record['date']}.",
        "",
        "Clients on the same cores ask again as soon as they are answered. pairs/s and milliseconds: medians "
        "of the rounds, which took turns; the ratio is the median of each round's. What runs on ONNX Runtime "
        "by hand is segue's own padded export, which computes the last layer for `[CLS]` alone. By hand, a "
        "batch has 4 pairs on PyTorch and 8 on ONNX Runtime: the fastest of 1, 4, 8 and 32 for 20 passages, "
        "in one process with all threads. Infinity has up to 32, its default; no other was tried.",
        "",
        *(
            f"- {one['name']}: {', '.join(f'{name} {version}' for name, version in one['versions'].items())}"
            for one in record["servers"].values()
        ),
        *(f"- {name}: not timed, {reason}" for name, reason in record["refused"].items()),
    ]
    for load in record["loads"]:
        one = f"{load['documents']} documents a request" if load["documents"] > 1 else "one pair a request"
        clients = f"{load['clients']} clients" if load["clients"] > 1 else "one client"
        lines += [
            "",
            f"## {load['workload']}, {one}, {clients}",
            "",
            "| server | pairs/s | segue's, times this | p50, ms | p95, ms |",
            "|---|---|---|---|---|",
        ]
        ours = load["rounds"]["segue"]
        for key, rounds in load["rounds"].items():
            rate, p50, p95 = (
                median(one[name] for one in rounds) for name in ("pairs_per_second", "p50", "p95")
            )
            ratio = median(
                a["pairs_per_second"] / b["pairs_per_second"] for a, b in zip(ours, rounds, strict=True)
            )
            name = record["servers"][key]["name"]
            lines.append(f"| {name} | {rate:.1f} | {ratio:.2f} | {1000 * p50:.1f} | {1000 * p95:.1f} |")
    return "\n".join(lines) + "\n"
