"""Thread counts from affinity and control groups, on folders laid out as the kernel lays them out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from segue import threads
from segue.threads import available_threads, cgroup_quota


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/host/path/unseen\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}, None),
        ("0::/a\n", {}, None),
        ("0::/a\n", {"a/cpu.max": "nonsense"}, None),
        (
            "5:memory:/x\n4:cpu,cpuacct:/x\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "250000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        (
            "4:cpu,cpuacct:/x\n0::/\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "-1", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            None,
        ),
    ],
)
def test_the_smallest_quota_of_the_group_and_those_above_counts(tmp_path, membership, files, quota):
    _write(tmp_path, {"membership": membership} | {f"root/{name}": text for name, text in files.items()})
    assert cgroup_quota(tmp_path / "membership", tmp_path / "root") == quota


def test_a_group_s_name_need_not_be_text(tmp_path):
    (tmp_path / "membership").write_bytes(b"0::/caf\xe9\n")
    _write(tmp_path, {"cpu.max": "200000 100000\n"})
    assert cgroup_quota(tmp_path / "membership", tmp_path) == 2


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert cgroup_quota(tmp_path / "absent", tmp_path) is None


@pytest.mark.parametrize(("quota", "threads_given"), [(None, 8), (1.5, 1), (0.2, 1), (3.0, 3), (64.0, 8)])
def test_affinity_and_quota_both_limit(monkeypatch, quota, threads_given):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "cgroup_quota", lambda: quota)
    assert available_threads() == threads_given


def test_systems_without_affinity_count_their_processors(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(threads, "cgroup_quota", lambda: None)
    assert available_threads() == 6
