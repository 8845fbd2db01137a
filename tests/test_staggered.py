"""The experiment with two groups of warps: that it compiles into what it is meant to be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_tools import run_python

BENCH = Path(__file__).resolve().parent.parent / "bench"
CODE = f"""
import json, sys
sys.path.insert(0, {str(BENCH)!r})
import compile_readers, staggered, torch
compile_readers.compile_for("sm_90")
found = []
for configuration in staggered.CONFIGURATIONS:
    x, weight, bias, out = (torch.empty(n).half() for n in ((300, 384), (1536, 384), (1536,), (300, 1536)))
    given, options = staggered.arguments(x, weight, bias, out, configuration, gelu=True)
    compiled = staggered.staggered_kernel.warmup(*given, **options, grid=(1,))
    found.append([configuration, [compiled.metadata.shared, *(compiled.asm["ptx"].count(word) for word in (
        "wgmma.mma_async", "setmaxnreg", "cp.async.bulk.tensor.2d.shared", "ex2.approx.ftz.f32",
    ))]])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def binaries() -> list[tuple[list[int], list[int]]]:
    return json.loads(run_python(CODE, interpreted=False))


def test_two_groups_multiply_and_one_warp_fetches_for_both(binaries):
    for (columns, depth, *_), (shared, products, registers, fetches, powers) in binaries:
        assert shared <= 232_448
        assert products == 2 * depth // 16  # of 64 rows, sixteen deep
        assert registers  # given from one group to another
        assert fetches in (2, 2 * 384 // depth)  # of x and of weight, for both; in a loop or written out
        assert powers == columns  # a thread of either group has half of them


def test_a_kernel_that_never_ends_ends_the_process_and_not_what_it_printed():
    code = f"""
import sys, time
sys.path.insert(0, {str(BENCH)!r})
import staggered
staggered._PATIENCE = 0.1
staggered._row("what was found")
staggered.attempt(lambda: time.sleep(50))
"""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        timeout=40,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == "| what was found |\n"
    assert "in attempt" in done.stderr
