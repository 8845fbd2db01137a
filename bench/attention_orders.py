"""An experiment: attention's programs in other orders, which read the same rows at other times.

    python bench/attention_orders.py [--tokens 16384] [--smoke]

The kernel in use walks all pairs for one head, then for the next: of a row of QKV it reads a head's 64 or 128
bytes, and comes back for the next head's much later. With the heads of a pair side by side, a row is read as
a whole, by programs that run together; and from the last pair to the first, what the preceding product wrote
last is read first, while it is still in the cache. No order of summation changes: the bits are compared.

Times are of attention alone, its inputs in no cache, and of QKV's product followed by attention, as in the
model. It has never run on a GPU: `--smoke` compares the bits, interpreted. If an order wins, it belongs in
`kernels/`; if not, this file goes.
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import product
from typing import Any

if "--smoke" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

if __name__ == "__main__":
    from gpu_path import reach

    reach()

import numpy as np
import torch
import triton
import triton.language as tl
from gpu_timing import compare, rotations
from torch import Tensor

from segue import kernels
from segue.kernels import _packed_attention as attention
from segue.kernels.attending import attend_from
from segue.kernels.dependent import begin
from segue.kernels.launching import launch, target, unit

__all__ = ["ORDERS", "main", "ordered"]

# The order in which tile of queries, pair and head change from program to program, the fastest first; and
# whether pairs go from last to first.
ORDERS = tuple(product(("tile, pair, head", "head, tile, pair", "tile, head, pair"), (False, True)))
MODELS = ((768, 12), (384, 12))  # hidden size, heads


@triton.jit(do_not_specialize=["pairs", "tiles"])
def _ordered_kernel(
    qkv_ptr, cu_seqlens_ptr, out_ptr, stride, out_stride, pairs, tiles, scale,
    E: tl.constexpr, D: tl.constexpr, DEPTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    SHORT: tl.constexpr, TOGETHER: tl.constexpr, LONG: tl.constexpr, HEADS: tl.constexpr,
    ORDER: tl.constexpr, REVERSED: tl.constexpr, UNIT: tl.constexpr, EARLY: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """HEADS: programs that a pair's heads take. All else as in the kernel in use."""
    begin(EARLY)
    number = tl.program_id(0)
    if ORDER == "tile, pair, head":
        tile, pair, head = number % tiles, number // tiles % pairs, number // tiles // pairs
    elif ORDER == "head, tile, pair":
        head, tile, pair = number % HEADS, number // HEADS % tiles, number // HEADS // tiles
    else:
        tile, head, pair = number % tiles, number // tiles % HEADS, number // tiles // HEADS
    if REVERSED:
        pair = pairs - 1 - pair
    first = tile * QUERIES
    head = head if LONG else head * TOGETHER
    attend_from(
        qkv_ptr, cu_seqlens_ptr, out_ptr, stride * UNIT, out_stride * UNIT, pair, head, first, scale,
        E, D, DEPTH, QUERIES, KEYS, SHORT, TOGETHER, LONG, PTX,
    )  # fmt: skip


def ordered(
    qkv: Tensor, cu_seqlens: Tensor, heads: int, order: tuple[str, bool], *, longest: int, out: Tensor
) -> None:
    """`packed_attention` with its programs in that order, for 16 bits and heads of up to 64."""
    hidden = qkv.shape[1] // 3
    depth = hidden // heads
    tile = attention._configure(target(qkv.device), qkv.dtype, depth, longest)
    long = longest > attention._SHORT
    pairs, tiles = len(cu_seqlens) - 1, triton.cdiv(longest, tile.queries)
    programs = heads if long else triton.cdiv(heads, tile.warps)
    step = unit(qkv.stride(0), out.stride(0))
    launch(
        _ordered_kernel, (pairs * tiles * programs,),
        qkv, cu_seqlens, out, qkv.stride(0) // step, out.stride(0) // step, pairs, tiles,
        depth**-0.5 * attention._LOG2E,
        E=hidden, D=depth, DEPTH=max(16, triton.next_power_of_2(depth)),
        QUERIES=tile.queries, KEYS=tile.keys, SHORT=attention._SHORT, TOGETHER=tile.warps, LONG=long,
        HEADS=programs, ORDER=order[0], REVERSED=order[1], UNIT=step,
        num_warps=tile.warps, num_stages=tile.stages, device=qkv.device,
    )  # fmt: skip


def main(given: list[str] | None = None) -> None:
    """Compare the bits of each order with those of the kernel in use, then time them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--smoke", action="store_true", help="toy sizes, interpreted; measures nothing")
    arguments = parser.parse_args(given)
    if not arguments.smoke and not torch.cuda.is_available():
        sys.exit("attention_orders: no GPU here; --smoke compares the bits without one")
    device = torch.device("cpu" if arguments.smoke else "cuda")
    tokens, models = (90, ((64, 2),)) if arguments.smoke else (arguments.tokens, MODELS)
    print(
        "| hidden | pairs | order | last first | µs | product and attention, µs |\n|---|---|---|---|---|---|"
    )
    for (hidden, heads), (name, lengths) in product(models, _workloads(tokens).items()):
        for row in _measure(hidden, heads, lengths, device):
            print(f"| {hidden} | {name} | {' | '.join(row)} |", flush=True)


def _workloads(tokens: int) -> dict[str, list[int]]:
    """Lengths of the pairs of a batch, the longest first, as planning has them."""
    draw = np.random.default_rng(0)
    mixed = np.clip(np.rint(draw.lognormal(np.log(60) - 0.32, 0.8, tokens)), 3, min(512, tokens)).astype(int)
    mixed = mixed[: max(1, int(np.searchsorted(np.cumsum(mixed), tokens)))]
    sizes = {f"S = {size}": [size] * (tokens // size) for size in (64, 128, 256, 512) if size <= tokens}
    return sizes | {"mixed": sorted(mixed.tolist(), reverse=True)}


def _measure(hidden: int, heads: int, lengths: list[int], device: torch.device) -> list[tuple[str, ...]]:
    """(order, whether the last pair is first, µs alone, µs with the product before) of every order that has
    the bits of the kernel in use, which is the first."""
    torch.manual_seed(0)
    total, longest = sum(lengths), max(lengths)
    bounds = torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32, device=device)
    weight = torch.randn(3 * hidden, hidden, device=device).half() / hidden**0.5
    bias = torch.randn(3 * hidden, device=device).half()
    sets = []
    for _ in range(1 if device.type == "cpu" else rotations(8 * total * hidden)):
        x = torch.randn(total, hidden, device=device).half()
        sets.append((x, kernels.linear(x, weight, bias), torch.full_like(x, torch.nan)))
    ways: dict[tuple[str, ...], Any] = {
        ("in use", ""): lambda qkv, out: kernels.packed_attention(
            qkv, bounds, heads, longest=longest, out=out
        )
    }
    for order in ORDERS:
        ways[order[0], str(order[1])] = lambda qkv, out, order=order: ordered(
            qkv, bounds, heads, order, longest=longest, out=out
        )
    expected = kernels.packed_attention(sets[0][1], bounds, heads, longest=longest)
    rows, sides = [], {}
    for name, attend_by in ways.items():
        attend_by(*sets[0][1:])
        if not torch.equal(sets[0][2], expected):
            rows.append((*name, "other bits", ""))
            continue
        sets[0][2].fill_(torch.nan)
        sides[f"{name}, alone"] = [lambda s=s, a=attend_by: a(*s[1:]) for s in sets]
        sides[f"{name}, behind"] = [
            lambda s=s, a=attend_by: (kernels.linear(s[0], weight, bias, out=s[1]), a(*s[1:])) for s in sets
        ]
    found = compare(sides, device)
    for name in ways:
        if f"{name}, alone" in found:
            both = (found[f"{name}, {where}"] for where in ("alone", "behind"))
            rows.append((*name, *(str(took.get("error") or f"{took['us']:.1f}") for took in both)))
    return rows


if __name__ == "__main__":
    main()
