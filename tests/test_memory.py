"""Memory stays where it is, however many batches of however many shapes."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Runs in a process of its own, so that what other tests left behind is not measured. Prints MB at each tenth.
SCRIPT = """
import sys
import numpy as np
from segue import Engine
from segue.batching import PackedBatch

def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6

executor = Engine.load(sys.argv[1], threads=1)._executor
draw = np.random.default_rng(0)
batches = int(sys.argv[2])
shapes = np.zeros((batches, 3), dtype=np.int32)  # written beforehand, so that noting them takes no memory
shapes += 1
for number in range(batches):
    longest = max(3, int(draw.integers(3, 513) ** draw.uniform(0.5, 1)))
    pairs = max(1, min(int(draw.integers(1, 200)), 2048 // longest))
    lengths = np.append(draw.integers(3, longest + 1, pairs - 1), longest).astype(np.int64)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    tokens = int(bounds[-1])
    shapes[number] = pairs, tokens, longest
    positions = np.arange(tokens) - np.repeat(bounds[:-1], lengths)
    types = (positions > 1).astype(np.int64)
    batch = PackedBatch(draw.integers(0, 300, tokens), types, positions, bounds)
    assert next(executor.run([batch])).shape == (pairs, 2)
    if (number + 1) % (batches // 10) == 0:
        print(megabytes(), flush=True)
print(len(np.unique(shapes, axis=0)))
"""


def _measure(bundle, batches: int) -> tuple[list[float], int]:
    command = [sys.executable, "-c", SCRIPT, str(bundle), str(batches)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *megabytes, shapes = done.stdout.split()
    return [float(value) for value in megabytes], int(shapes)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("batches", [3000, pytest.param(100_000, marks=pytest.mark.long)])
def test_memory_is_bounded_over_batches_of_every_shape(make_bundle, batches):
    megabytes, shapes = _measure(make_bundle(layers=1), batches)
    assert shapes > 0.9 * min(batches, 50_000)
    assert max(megabytes[1:]) - megabytes[0] < 8, megabytes
