"""Every kernel compiles for every GPU, and what the compiler makes of it keeps to the rules.

This process interprets kernels and cannot compile them, hence the subprocesses. One configuration per kernel
and target here; `make kernels` compiles them all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import segue.kernels

# looked for and not imported: a process interprets or compiles from its first import of triton on
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton comes for Linux only")

BENCH = Path(__file__).resolve().parent.parent / "bench"
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
OPS = tuple(segue.kernels.__all__)
PRODUCTS = ("linear", "linear_gelu", "packed_attention", "pool_classify")
FAULTS = (
    "nothing, of 16 bits",
    "nothing, of 32 bits",
    "spilling",
    "TF32",
    "hasty",
    "misaligned",
    "strided",
    "too much shared memory",
    "no matrix unit",
    "widened operands",
    "other order",
)


def _run(script: str, folder: Path, *options: str) -> Any:
    """What a script wrote as JSON; its exit code says whether a rule is broken, which the tests ask of it."""
    file = folder / "report.json"
    command = [sys.executable, BENCH / script, *options, "--json", file]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert file.exists(), done.stderr
    return json.loads(file.read_text("utf-8"))


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The compile report, one configuration per kernel and target."""
    return _run("compile_report.py", tmp_path_factory.mktemp("report"), "--one")


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the rules say of kernels that are wrong on purpose."""
    return _run("compile_faults.py", tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", OPS)
def test_a_kernel_keeps_to_the_rules(report, op, target):
    entries = [entry for entry in report["entries"] if (entry["op"], entry["target"]) == (op, target)]
    assert {entry["dtype"] for entry in entries} >= {"float16", *(["float32"] if op in PRODUCTS else [])}
    assert not [rule for entry in entries for rule in entry["broken"]]


def test_no_op_is_left_out_and_no_rule_broken_between_them(report):
    assert {entry["op"] for entry in report["entries"]} == set(OPS)
    assert {entry["target"] for entry in report["entries"]} == set(TARGETS)
    assert not report["faults"]


@pytest.mark.parametrize(("target", "unit"), [("sm_80", "HMMA"), ("sm_90", "HGMMA"), ("gfx942", "v_mfma")])
def test_products_run_on_matrix_units(report, target, unit):
    for op in ("linear", "linear_gelu"):
        found = [
            e for e in report["entries"] if (e["op"], e["target"], e["dtype"]) == (op, target, "float16")
        ]
        kernels = 2 if target == "sm_90" else 1  # another that the tensor memory accelerator feeds
        assert [entry["matrix"] for entry in found] == [[unit]] * kernels


def test_operand_tiles_are_there_to_be_checked(report):
    """An access that could not be found in the assembly would have no width at all."""
    for entry in report["entries"]:
        tiles = [access for access in entry["accesses"] if len(access["tile"]) > 1 and access["widths"]]
        assert tiles or entry["op"] == "softmax", entry["op"]


@pytest.mark.parametrize("fault", FAULTS)
def test_every_rule_can_fail(faults, fault):
    found = [each for each in faults if each["fault"] == fault]
    assert found
    for each in found:
        if each["rule"]:
            assert any(each["rule"] in rule for rule in each["broken"]), each
        else:
            assert not each["broken"], each


def test_every_fault_is_tested(faults):
    assert {each["fault"] for each in faults} == set(FAULTS)
