"""The experiment with groups of warps that take turns: that it compiles into what it is meant to be."""

from __future__ import annotations

import json

import pytest
from bench_scripts import BENCH
from kernel_tools import run_python

CODE = f"""
import json, sys
sys.path.insert(0, {str(BENCH)!r})
import compile_readers, ping_pong, torch
compile_readers.compile_for("sm_90")
found = []
for configuration in ping_pong.CONFIGURATIONS:
    x, weight, bias, out = (torch.empty(n).half() for n in ((300, 384), (1536, 384), (1536,), (300, 1536)))
    given, options = ping_pong.arguments(x, weight, bias, out, configuration, gelu=True)
    compiled = ping_pong.ping_pong_kernel.warmup(*given, **options, grid=(1,))
    found.append([compiled.metadata.shared, *(compiled.asm["ptx"].count(word) for word in (
        "wgmma.mma_async", "setmaxnreg", "cp.async.bulk.tensor.2d.shared", "ex2.approx.ftz.f32",
    ))])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def binaries() -> list[list[int]]:
    return json.loads(run_python(CODE, interpreted=False))


def test_two_groups_multiply_and_one_warp_fetches_for_both(binaries):
    for shared, products, registers, fetches, powers in binaries:
        assert shared <= 232_448
        assert products in (2 * 4, 2 * 8)  # of 64 or 128 rows, 64 deep, sixteen at a time
        assert registers  # given from one group to another
        assert fetches in (2, 2 * 6)  # of x and of weight, in a loop or written out
        assert powers == 2 * 128  # elements of a thread of either group
