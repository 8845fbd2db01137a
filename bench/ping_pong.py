"""An experiment: a product whose GELU hides behind the next product, beside the one in use and cuBLASLt.

    python bench/ping_pong.py [--rows 16384]

The kernels' GELU adds to a product what its instructions take: one group of warps multiplies, then does its
epilogue, and the matrix units wait. Here a program has two such groups, which take tiles in turn, and a warp
that fetches for both; while one does its epilogue the other multiplies (CUTLASS calls this ping-pong). It is
written in Gluon, Triton's dialect for this, which is still an experiment there, and for sm_90 alone.

It compiles for sm_90 under triton 3.6.0 and 3.7.1 and has never run: results are compared before anything is
timed. If it wins, it belongs into `kernels/`; if not, this file goes.
"""

from __future__ import annotations

import argparse
import sys
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

__all__ = ["CONFIGURATIONS", "arguments", "ping_pong_kernel"]

SHAPES = (  # K, N, GELU: the products of BERT-base and of MiniLM-L6
    (768, 2304, False), (768, 768, False), (768, 3072, True), (3072, 768, False),
    (384, 1152, False), (384, 384, False), (384, 1536, True), (1536, 384, False),
)  # fmt: skip
_meet = getattr(gl, "thread_barrier", None) or gl.barrier  # of the warps of a group; triton 3.7 renamed it
CONFIGURATIONS = ((128, 128, 64, 4), (128, 128, 64, 5), (64, 256, 64, 3), (64, 256, 64, 4))
_GROUP = 8  # rows of tiles that are walked column by column


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
    """One warp: blocks of the operands of all tiles, in order, into whichever stage is next."""
    tiles = ((rows + ROWS - 1) // ROWS) * ((N + COLUMNS - 1) // COLUMNS)
    number = 0
    for tile in range(gl.program_id(0), tiles, PROGRAMS):
        first_row, first_column = _place(tile, rows, N, ROWS, COLUMNS, GROUP)
        for step in range(STEPS):
            stage = number % STAGES
            mbarrier.wait(empty.index(stage), ((number // STAGES) & 1) ^ 1)
            mbarrier.expect(full.index(stage), 2 * DEPTH * (ROWS + COLUMNS))
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
    x_tiles, weight_tiles, full, empty, out_tile, bias_ptr, out_desc, rows,
    TURN: gl.constexpr,
    N: gl.constexpr, STEPS: gl.constexpr, GELU: gl.constexpr,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr,
    STAGES: gl.constexpr, GROUP: gl.constexpr, PROGRAMS: gl.constexpr,
):  # fmt: skip
    """Four warps: every second tile of the program. As stages are filled tile after tile, the one group's
    are there when the other has had its own."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
    tiles = ((rows + ROWS - 1) // ROWS) * ((N + COLUMNS - 1) // COLUMNS)
    number = TURN * STEPS
    for tile in range(gl.program_id(0) + TURN * PROGRAMS, tiles, 2 * PROGRAMS):
        first_row, first_column = _place(tile, rows, N, ROWS, COLUMNS, GROUP)
        product = gl.zeros((ROWS, COLUMNS), dtype=gl.float32, layout=layout)
        for step in range(STEPS):
            stage = number % STAGES
            mbarrier.wait(full.index(stage), (number // STAGES) & 1)
            weight = weight_tiles.index(stage).permute((1, 0))
            product = warpgroup_mma(x_tiles.index(stage), weight, product, is_async=True)
            product = warpgroup_mma_wait(1, deps=[product])
            _meet()  # all four warps are done with the block before
            mbarrier.arrive(empty.index((number + STAGES - 1) % STAGES), pred=step > 0)
            number += 1
        product = warpgroup_mma_wait(0, deps=[product])
        _meet()
        mbarrier.arrive(empty.index((number + STAGES - 1) % STAGES))
        number += STEPS  # of the other group
        column = first_column + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, layout))
        bias = gl.load(bias_ptr + gl.minimum(column, N - 1)).to(gl.float32)
        result = product + gl.expand_dims(bias, 0)
        if GELU:
            result = _gelu(result)
        tma.store_wait(0)
        _meet()  # the tile before has left
        out_tile.store(result.to(out_desc.dtype))
        fence_async_shared()
        _meet()
        tma.async_copy_shared_to_global(out_desc, [first_row, first_column], out_tile)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["rows"])
def ping_pong_kernel(
    x_desc, weight_desc, bias_ptr, out_desc, rows,
    N: gl.constexpr, K: gl.constexpr, GELU: gl.constexpr,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, DEPTH: gl.constexpr,
    STAGES: gl.constexpr, GROUP: gl.constexpr, PROGRAMS: gl.constexpr,
):  # fmt: skip
    STEPS: gl.constexpr = (K + DEPTH - 1) // DEPTH
    x_tiles = gl.allocate_shared_memory(x_desc.dtype, [STAGES, ROWS, DEPTH], x_desc.layout)
    weight_tiles = gl.allocate_shared_memory(x_desc.dtype, [STAGES, COLUMNS, DEPTH], weight_desc.layout)
    one = gl.allocate_shared_memory(x_desc.dtype, [ROWS, COLUMNS], out_desc.layout)
    other = gl.allocate_shared_memory(x_desc.dtype, [ROWS, COLUMNS], out_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                _multiply,
                (x_tiles, weight_tiles, full, empty, one, bias_ptr, out_desc, rows,
                 0, N, STEPS, GELU, ROWS, COLUMNS, STAGES, GROUP, PROGRAMS),
            ),
            (
                _multiply,
                (x_tiles, weight_tiles, full, empty, other, bias_ptr, out_desc, rows,
                 1, N, STEPS, GELU, ROWS, COLUMNS, STAGES, GROUP, PROGRAMS),
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
    rows, columns, depth, stages = configuration
    described = [
        TensorDescriptor.from_tensor(t, list(block), gl.NVMMASharedLayout.get_default_for(block, gl.float16))
        for t, block in ((x, (rows, depth)), (weight, (columns, depth)), (out, (rows, columns)))
    ]
    options = {
        "N": len(weight), "K": x.shape[1], "GELU": gelu, "ROWS": rows, "COLUMNS": columns, "DEPTH": depth,
        "STAGES": stages, "GROUP": _GROUP, "PROGRAMS": 132, "num_warps": 4,
    }  # fmt: skip
    return [*described[:2], bias, described[2], len(x)], options


def main() -> None:
    """Compare, then time."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=16_384)
    rows = parser.parse_args().rows
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        sys.exit("ping_pong: this needs a GPU of compute capability 9.0")
    from gpu_timing import compare

    from segue import kernels

    device = torch.device("cuda")
    print("| K | N | side | µs | TFLOP/s |\n|---|---|---|---|---|")
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
            try:
                ping_pong_kernel[(132,)](*given, **options)
                torch.cuda.synchronize()
            except Exception as error:  # what does not compile is part of the result
                print(f"| {depth} | {columns} | {configuration} | {type(error).__name__} | |")
                continue
            if not torch.equal(mine, expected):
                wrong = (mine - expected).abs().max().item()
                print(f"| {depth} | {columns} | {configuration} | differs by {wrong:.2g} | |")
                if not wrong < 0.01:  # NaN, too
                    continue
            sides[f"ping-pong {configuration}"] = [
                lambda g=given, o=options: ping_pong_kernel[(132,)](*g, **o)
            ]
        for name, took in compare(sides, device).items():
            rate = 2e-6 * rows * depth * columns / took["us"] if "us" in took else 0
            print(
                f"| {depth} | {columns} | {name} | {took.get('us', took.get('error'))} | {rate:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
