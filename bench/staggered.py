"""An experiment: a product whose epilogue hides behind the next product, beside the one in use and cuBLASLt.

    python bench/staggered.py [--rows 16384]

In the kernels in use, GELU's instructions add their time to the product's: all warps multiply, then all do
the epilogue while the matrix units wait. Here a program's two groups of warps have the upper and the lower
half of one 128 x 256 tile, so that no more is fetched, by one warp for both, than before; but one group is a
few steps ahead, and does its epilogue while the other has the matrix units to itself. It has to be as far
ahead as an epilogue is long, and what is fetched has to stay for that long. (Groups that take whole tiles in
turn, CUTLASS's ping-pong, would have tiles of half the size, for which the L2 cache is too slow here.) It is
written for sm_90 alone, in Gluon, Triton's dialect for this, itself still an experiment.

It compiles for sm_90 under triton 3.6.0 and 3.7.1 and has never run: results are compared before anything is
timed. If it wins, it belongs in `kernels/`; if not, this file goes.
"""

from __future__ import annotations

import argparse
import faulthandler
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

if __name__ == "__main__":
    from gpu_path import reach

    reach()

import torch
from torch import Tensor
from torch.nn import functional
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

__all__ = ["CONFIGURATIONS", "arguments", "attempt", "staggered_kernel"]

SHAPES = (  # K, N, GELU: the products of BERT-base and of MiniLM-L6
    (768, 2304, False), (768, 768, False), (768, 3072, True), (3072, 768, False),
    (384, 1152, False), (384, 384, False), (384, 1536, True), (1536, 384, False),
)  # fmt: skip
_meet = getattr(gl, "thread_barrier", None) or gl.barrier  # of the warps of a group; triton 3.7 renamed it
# columns and depth of a tile, stages, steps that one group is ahead
CONFIGURATIONS = ((256, 32, 8, 6), (256, 32, 8, 4), (256, 64, 4, 3), (256, 64, 4, 2), (128, 64, 6, 3))
_ROWS = 64  # of a group
_GROUP = 8  # rows of tiles that are walked column by column
_PATIENCE = 60.0  # seconds for a configuration to compile and run, and for all of a shape to be timed


@gluon.jit
def _place(tile, rows, N: gl.constexpr, ROWS: gl.constexpr, COLUMNS: gl.constexpr, GROUP: gl.constexpr):
    down, across = (rows + ROWS - 1) // ROWS, (N + COLUMNS - 1) // COLUMNS
    group = tile // (GROUP * across)
    height = gl.minimum(down - group * GROUP, GROUP)
    within = tile - group * GROUP * across
    return (group * GROUP + within % height) * ROWS, within // height * COLUMNS


@gluon.jit
def _fetch(
    x_desc, weight_desc, x_tiles, weight_tiles, full, empty, rows,
    N: gl.constexpr, STEPS: gl.constexpr, ROWS: gl.constexpr, COLUMNS: gl.constexpr, DEPTH: gl.constexpr,
    STAGES: gl.constexpr, GROUP: gl.constexpr, PROGRAMS: gl.constexpr,
):  # fmt: skip
    """One warp: fetch the operands' blocks of all tiles, in order, each into the next stage."""
    tiles = ((rows + 2 * ROWS - 1) // (2 * ROWS)) * ((N + COLUMNS - 1) // COLUMNS)
    number = 0
    for tile in range(gl.program_id(0), tiles, PROGRAMS):
        first_row, first_column = _place(tile, rows, N, 2 * ROWS, COLUMNS, GROUP)
        for step in range(STEPS):
            stage = number % STAGES
            mbarrier.wait(empty.index(stage), ((number // STAGES) & 1) ^ 1)
            mbarrier.expect(full.index(stage), 2 * DEPTH * (2 * ROWS + COLUMNS))
            x, weight = x_tiles.index(stage), weight_tiles.index(stage)
            tma.async_copy_global_to_shared(x_desc, [first_row, step * DEPTH], full.index(stage), x)
            tma.async_copy_global_to_shared(
                weight_desc, [first_column, step * DEPTH], full.index(stage), weight
            )
            number += 1


@gluon.jit
def _gelu(x):
    a = gl.abs(x)
    p = ((-3.2050618e-4 * a + 5.8272598e-3) * a - 4.8237267e-2) * a - 4.6412063e-1
    p = (p * a - 1.1491762) * a - 1.0001207
    p = gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [p], dtype=gl.float32, is_pure=True, pack=1
    )
    return gl.maximum(x, 0.0) - a * p


@gluon.jit
def _multiply(
    x_tiles, weight_tiles, full, empty, ahead, free, out_tile, bias_ptr, out_desc, rows,
    HALF: gl.constexpr,
    N: gl.constexpr, STEPS: gl.constexpr, GELU: gl.constexpr,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr,
    STAGES: gl.constexpr, AHEAD: gl.constexpr, GROUP: gl.constexpr, PROGRAMS: gl.constexpr,
):  # fmt: skip
    """Four warps: multiply the upper half of each tile or, some steps later, the lower one."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
    tiles = ((rows + 2 * ROWS - 1) // (2 * ROWS)) * ((N + COLUMNS - 1) // COLUMNS)
    number = 0
    for tile in range(gl.program_id(0), tiles, PROGRAMS):
        first_row, first_column = _place(tile, rows, N, 2 * ROWS, COLUMNS, GROUP)
        product = gl.zeros((ROWS, COLUMNS), dtype=gl.float32, layout=layout)
        done = number // STEPS  # tiles
        if HALF == 1:
            mbarrier.wait(ahead, 0, pred=done == 0)
        for step in range(STEPS):
            stage = number % STAGES
            mbarrier.wait(full.index(stage), (number // STAGES) & 1)
            x, weight = x_tiles.index(stage).slice(HALF * ROWS, ROWS), weight_tiles.index(stage)
            product = warpgroup_mma(x, weight.permute((1, 0)), product, is_async=True)
            product = warpgroup_mma_wait(1, deps=[product])
            _meet()  # all four warps are done with the last block
            mbarrier.arrive(empty.index((number + STAGES - 1) % STAGES), pred=step > 0)
            number += 1
            if HALF == 0:
                mbarrier.arrive(ahead, pred=number == AHEAD)
        product = warpgroup_mma_wait(0, deps=[product])
        _meet()
        mbarrier.arrive(empty.index((number + STAGES - 1) % STAGES))
        column = first_column + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, layout))
        bias = gl.load(bias_ptr + gl.minimum(column, N - 1)).to(gl.float32)
        result = product + gl.expand_dims(bias, 0)
        if GELU:
            result = _gelu(result)
        # The groups share one place to store from, and take turns, the upper half first.
        mbarrier.wait(free.index(HALF), (done & 1) ^ (1 - HALF))
        out_tile.store(result.to(out_desc.dtype))
        fence_async_shared()
        _meet()
        tma.async_copy_shared_to_global(out_desc, [first_row + HALF * ROWS, first_column], out_tile)
        tma.store_wait(0)
        _meet()
        mbarrier.arrive(free.index(1 - HALF))


@gluon.jit(do_not_specialize=["rows"])
def staggered_kernel(
    x_desc, weight_desc, bias_ptr, out_desc, rows,
    N: gl.constexpr, K: gl.constexpr, GELU: gl.constexpr,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, DEPTH: gl.constexpr,
    STAGES: gl.constexpr, AHEAD: gl.constexpr, GROUP: gl.constexpr, PROGRAMS: gl.constexpr,
):  # fmt: skip
    STEPS: gl.constexpr = (K + DEPTH - 1) // DEPTH
    gl.static_assert(AHEAD < STAGES)  # the one group holds nothing back before the other begins
    gl.static_assert(AHEAD <= STEPS)
    x_tiles = gl.allocate_shared_memory(x_desc.dtype, [STAGES, 2 * ROWS, DEPTH], x_desc.layout)
    weight_tiles = gl.allocate_shared_memory(x_desc.dtype, [STAGES, COLUMNS, DEPTH], weight_desc.layout)
    out_tile = gl.allocate_shared_memory(x_desc.dtype, [ROWS, COLUMNS], out_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    ahead = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    mbarrier.init(ahead, count=1)
    for half in gl.static_range(2):
        mbarrier.init(free.index(half), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                _multiply,
                (x_tiles, weight_tiles, full, empty, ahead, free, out_tile, bias_ptr, out_desc, rows,
                 0, N, STEPS, GELU, ROWS, COLUMNS, STAGES, AHEAD, GROUP, PROGRAMS),
            ),
            (
                _multiply,
                (x_tiles, weight_tiles, full, empty, ahead, free, out_tile, bias_ptr, out_desc, rows,
                 1, N, STEPS, GELU, ROWS, COLUMNS, STAGES, AHEAD, GROUP, PROGRAMS),
            ),
            (
                _fetch,
                (x_desc, weight_desc, x_tiles, weight_tiles, full, empty, rows,
                 N, STEPS, ROWS, COLUMNS, DEPTH, STAGES, GROUP, PROGRAMS),
            ),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip


def arguments(
    x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, configuration: tuple[int, int, int, int], gelu: bool
) -> tuple[list[Any], dict[str, Any]]:
    """What the kernel is launched with, on 132 multiprocessors; x [R, K], weight [N, K], out [R, N]."""
    columns, depth, stages, ahead = configuration
    described = [
        TensorDescriptor.from_tensor(t, list(block), gl.NVMMASharedLayout.get_default_for(block, gl.float16))
        for t, block in ((x, (2 * _ROWS, depth)), (weight, (columns, depth)), (out, (_ROWS, columns)))
    ]
    options = {
        "N": len(weight), "K": x.shape[1], "GELU": gelu, "ROWS": _ROWS, "COLUMNS": columns, "DEPTH": depth,
        "STAGES": stages, "AHEAD": ahead, "GROUP": _GROUP, "PROGRAMS": 132, "num_warps": 4,
    }  # fmt: skip
    return [*described[:2], bias, described[2], len(x)], options


def attempt(launch: Callable[[], Any]) -> str | None:
    """Launch; the error's name, or None. Groups that wait for each other never end, and nothing else runs on
    the GPU until this process does: it ends after _PATIENCE, counted from here to the next attempt."""
    faulthandler.dump_traceback_later(_PATIENCE, exit=True)
    try:
        launch()
        torch.cuda.synchronize()
    except Exception as error:  # what does not compile is part of the result
        return type(error).__name__
    return None


def main() -> None:
    """Compare, then time."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=16_384)
    rows = parser.parse_args().rows
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        sys.exit("staggered: this needs a GPU of compute capability 9.0")
    from gpu_timing import compare

    from segue import kernels

    device = torch.device("cuda")
    _row("K", "N", "side", "µs", "TFLOP/s")
    _row(*["---"] * 5)
    for depth, columns, gelu in SHAPES:
        x, weight = (torch.randn(n, depth, device=device).half() for n in (rows, columns))
        weight, bias = weight / depth**0.5, torch.randn(columns, device=device).half()
        ours = kernels.linear_gelu if gelu else kernels.linear
        expected = ours(x, weight, bias)
        out = torch.empty_like(expected)
        sides: dict[str, Any] = {
            "in use": [lambda x=x, w=weight, b=bias, o=out, f=ours: f(x, w, b, out=o)],
            "cuBLASLt, no GELU": [lambda x=x, w=weight, b=bias: functional.linear(x, w, b)],
        }
        for configuration in CONFIGURATIONS:
            mine = torch.full_like(out, torch.nan)
            given, options = arguments(x, weight, bias, mine, configuration, gelu)
            launch = partial(staggered_kernel[(132,)], *given, **options)
            if error := attempt(launch):
                _row(depth, columns, configuration, error, "")
                continue
            if not torch.equal(mine, expected):
                wrong = (mine - expected).abs().max().item()
                _row(depth, columns, configuration, f"differs by {wrong:.2g}", "")
                if not wrong < 0.01:  # NaN, too
                    continue
            sides[f"staggered {configuration}"] = [launch]
        for name, took in compare(sides, device).items():
            rate = 2e-6 * rows * depth * columns / took["us"] if "us" in took else 0
            _row(depth, columns, name, took.get("us", took.get("error")), f"{rate:.0f}")
    faulthandler.cancel_dump_traceback_later()


def _row(*cells: Any) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
