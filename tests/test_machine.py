"""The record of machine and packages: named from what the system says, without importing anything."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

import segue
from segue.machine import cpu_name, machine, versions
from segue.threads import available_threads


def test_the_record_is_json_and_says_what_this_process_was_granted():
    record = json.loads(json.dumps(machine()))
    assert set(record) == {"cpu", "cores", "host_cores", "memory", "os", "gpus"}
    assert record["cores"] == available_threads() <= record["host_cores"]
    assert record["memory"] is None or record["memory"] > 1 << 28
    assert platform.machine() in record["os"]
    assert record["cpu"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "processor\t: 0\nmodel\t\t: 1\nmodel name\t: Some CPU @ 2:1 GHz\n\nmodel name\t: Other\n",
            "Some CPU @ 2:1 GHz",
        ),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", ""),
        (
            "CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\nCPU implementer\t: 0x41\nCPU part\t: 0xd05\n",
            f"{platform.machine()}, implementer 0x41, part 0xd0c",
        ),
        (None, ""),
    ],
)
def test_the_processor_is_named_by_cpuinfo_else_by_the_system(
    text: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert cpu_name(tmp_path / "cpuinfo") == (name or platform.machine())


def test_versions_are_those_installed_and_what_is_missing_is_left_out():
    found = versions("numpy", "no-such-distribution")
    assert found == {
        "python": platform.python_version(),
        "segue": segue.__version__,
        "numpy": metadata.version("numpy"),
    }


def test_gpus_are_named_where_torch_is_loaded(monkeypatch: pytest.MonkeyPatch):
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 2, get_device_name=lambda number: f"GPU {number}"
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert machine()["gpus"] == ["GPU 0", "GPU 1"]
    monkeypatch.setattr(cuda, "is_available", lambda: False)
    assert machine()["gpus"] == []


def test_asking_imports_no_package():
    code = "import sys, segue.machine as m; m.machine(); m.versions('torch'); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True
    ).stdout.split()
    assert not {name.split(".")[0] for name in done} & {"torch", "numpy", "onnxruntime", "tokenizers"}
