"""A pair's score has the same bits in any batch through ONNX Runtime on a CPU.

ONNX Runtime's products split a long sum by the number of columns, and add up a single row in another order
than several; on some CPUs its softmax adds up the last columns by themselves. The graph is written so that
none of this depends on a pair's batch, and int8, which rounds, would show at once if it did.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from segue import Engine
from segue.export.sentences import SENTENCES

LENGTHS = (3, 4, 12, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 255, 256, 257, 300, 511, 512)
SHAPES = [(64, 2), (88, 11), (128, 2), (384, 12)]  # hidden size and heads: 8, 32 and 64 columns a head


def _pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of any length, most of them short, some truncated."""
    draw, words = random.Random(seed), " ".join(SENTENCES).split()
    return [
        (" ".join(draw.choices(words, k=int(9 * draw.random()))),
         " ".join(draw.choices(words, k=int(400 * draw.random() ** 4))))
        for _ in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize(("hidden_size", "heads"), SHAPES)
def test_the_graph_gives_a_pair_the_same_bits_in_any_batch(
    make_bundle: Callable[..., Path], hidden_size: int, heads: int, precision: str
) -> None:
    """Every length on both sides of where products are split, all together, alone, and two by two."""
    folder = make_bundle(hidden_size=hidden_size, heads=heads, precision=precision)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    draw = np.random.default_rng(0)
    ids = [draw.integers(5, 300, size) for size in LENGTHS]

    def run(chosen: list[int]) -> NDArray[np.float32]:
        feed: dict[str, Any] = {
            "input_ids": np.concatenate([ids[i] for i in chosen]),
            "token_type_ids": np.concatenate([(np.arange(len(ids[i])) > 5).astype(np.int64) for i in chosen]),
            "position_ids": np.concatenate([np.arange(len(ids[i])) for i in chosen]),
            "cu_seqlens": np.array([0, *accumulate(len(ids[i]) for i in chosen)]),
        }
        return np.asarray(session.run(["logits"], feed)[0])

    together = run([*range(len(ids))])
    assert together.std() > 1e-3  # a constant would pass what follows
    for i, expected in enumerate(together):
        np.testing.assert_array_equal(run([i])[0], expected, err_msg=f"{LENGTHS[i]} tokens alone")
    for pair in pairwise(range(len(ids))):
        np.testing.assert_array_equal(run([*reversed(pair)])[::-1], together[list(pair)])


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_the_engine_gives_a_pair_the_same_bits_in_any_batch(
    make_bundle: Callable[..., Path], precision: str
) -> None:
    """Alone, in another order, in batches of other sizes, on other numbers of threads."""
    folder = make_bundle(precision=precision)
    pairs = _pairs(150, seed=0)
    with Engine.load(folder, threads=2) as engine:
        together = engine.predict(pairs, output="logit")
        alone = np.concatenate([engine.predict([pair], output="logit") for pair in pairs])
    np.testing.assert_array_equal(alone, together)
    order = np.random.default_rng(0).permutation(len(pairs))
    for options in ({"threads": 1}, {"threads": 1, "max_batch_tokens": 900}, {"threads": 5}):
        with Engine.load(folder, **options) as engine:
            found = engine.predict([pairs[i] for i in order], output="logit")
        np.testing.assert_array_equal(found, together[order], err_msg=str(options))
