"""Time every candidate of the launch tables on this GPU, beside the tables as they stand, and choose.

    python bench/tune.py [--op linear] [--out FILE] [--smoke]

For every line of a table, each candidate is timed on the shapes that the line serves, in the sizes of
MiniLM-L6 and BERT-base; the least sum of times, each relative to the best for its shape, wins. For products,
each shape is a line of its own: their table has the time that an element takes in each tile, to be set so
that it chooses what won, or what is as fast. What fixes the order in which a row is summed (the keys of a
block) is the same in all lines of one element size: lines are chosen for each such value, and the value with
the least time is taken. The choice is printed beside the time of the table as it stands; putting it into the
kernel's file is a deliberate act, since it may change scores in their last bits. A candidate that does not
compile, or whose result differs from the twin's, is out.

Times are of replayed GPU graphs, over enough copies of the inputs that none is found in the cache.

It chooses the tables of products, attention and LayerNorms, for 16-bit elements; and, with the tables as they
stand, the number of rows from which PyTorch's library is faster at plain products: an engine without
batch_invariant then uses it (segue.executors.triton_products). `--smoke` tries two candidates a line on toy
shapes, interpreted, to see that the script works: it measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

if "--smoke" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

if __name__ == "__main__":
    from gpu_path import reach

    reach()

import torch
import triton
from gpu_timing import compare, rotations
from torch import Tensor
from triton.errors import TritonError

from segue import kernels
from segue.executors.triton_products import library
from segue.executors.triton_products import linear as library_linear
from segue.kernels import reference
from segue.kernels.launching import INTERPRETED, TARGETS, target

MODELS = ((384, 12, 1536), (768, 12, 3072))  # hidden size, heads, feed-forward size
ROWS = (64, 128, 256, 512, 1024, 2048, 4096, 16_384)  # of a product
TOKENS = {1024: (64, 1024), None: (8192, 16_384)}  # line of the LayerNorms: tokens it is timed on
PAIRS = {32: 24, 64: 60, None: 200}  # line: length of the pairs it is timed on


class Table(NamedTuple):
    """A table to choose. lines: what each line serves. orders: the values that all lines share. candidates:
    those of an order. use: makes the kernel take a candidate. calls: the ops to time for a line, by name,
    with their arguments."""

    name: str
    lines: tuple[Any, ...]
    orders: tuple[Any, ...]
    candidates: Callable[[Any], Iterator[tuple[int, ...]]]
    use: Callable[[tuple[int, ...]], ExitStack]
    calls: Callable[[Any], Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]]


def main() -> None:
    """Choose every table, or the one that was named."""
    arguments = _parser().parse_args()
    device = "cpu" if arguments.smoke else "cuda"
    if not arguments.smoke and not torch.cuda.is_available():
        sys.exit("tune: no GPU here; --smoke tries the script without one")
    tables = [t for t in _tables(device, arguments.smoke) if arguments.op in (None, t.name.split(",")[0])]
    if arguments.share:
        return compile_share(tables, *arguments.share)
    if not arguments.smoke:
        compile_ahead(arguments.op)
    record: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "interpreted",
        "target": target(torch.device(device, 0)),
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
        "date": time.strftime("%Y-%m-%d"),
        "tables": {},
        "library_rows": None,
        "orders": {},  # what the tables were chosen from
    }

    def keep(key: str, found: Any) -> None:
        record[key] = found
        if arguments.out:
            Path(arguments.out).write_text(json.dumps(record, indent=1) + "\n")

    for table in tables:
        chosen = choose(table, arguments.smoke, lambda tried: keep("orders", record["orders"] | tried))
        keep("tables", record["tables"] | {table.name: chosen})
        for line, found in chosen.items():
            print(f"{table.name}, {line}: {found['candidate']}  # {found['times']}", flush=True)
    if arguments.op in (None, "library"):
        rows = library_rows(device, arguments.smoke)
        keep("library_rows", rows)
        print(f"library, from so many rows: {rows}", flush=True)


def compile_ahead(op: str | None) -> None:
    """Compile every candidate in as many processes as there are processors: Triton keeps the results on disk,
    and one process would take an hour."""
    processes = os.cpu_count() or 1
    only = ["--op", op] if op else []
    shares = [["--share", str(i), str(processes), *only] for i in range(processes)]
    started = [subprocess.Popen([sys.executable, __file__, *share]) for share in shares]
    for process in started:
        process.wait()  # this process will meet again what it could not compile


def compile_share(tables: list[Table], first: int, step: int) -> None:
    """Launch every step-th candidate from `first` on, once on every line."""
    for table in tables:
        every = [(order, c) for order in table.orders for c in table.candidates(order)]
        for _, candidate in every[first::step]:
            for line in table.lines:
                with table.use(candidate), suppress(Exception):
                    for op, arguments, options in table.calls(line):
                        getattr(kernels, op)(*arguments, **options)


def choose(table: Table, smoke: bool, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The best candidate of each line, under the best of the orders. After each line, `keep` is given those
    of its order, by table and order: a run cut short leaves what it found."""
    best: tuple[float, dict[str, Any]] = (float("inf"), {})
    for order in table.orders:
        candidates = list(table.candidates(order))[: 2 if smoke else None]
        lines, total = {}, 0.0
        for line in table.lines:
            calls = list(table.calls(line))
            times = {c: measure(table, c, calls) for c in candidates}
            times = {c: found for c, found in times.items() if found}
            if not times:
                break
            fastest = [min(found[i] for found in times.values()) for i in range(len(calls))]
            lost = {c: sum(t / f for t, f in zip(found, fastest, strict=True)) for c, found in times.items()}
            winner = min(lost, key=lost.__getitem__)
            total += sum(times[winner])
            stands = measure(table, None, calls)
            lines[str(line)] = {
                "candidate": winner,
                "times": f"{_shown(times[winner])}; as the table stands {_shown(stands or [])}",
                "tried": len(candidates),
                "all": {str(candidate): _shown(found) for candidate, found in times.items()},
            }
            keep({f"{table.name} {order}": lines})
            print(f"{table.name} {order}, {line}: {winner}  # {lines[str(line)]['times']}", file=sys.stderr)
        else:
            best = min(best, (total, lines), key=lambda entry: entry[0])
    return best[1]


def _shown(seconds: list[float]) -> str:
    return ", ".join(f"{1e6 * t:.2f} us" for t in seconds)


def library_rows(device: str, smoke: bool) -> int | None:
    """The fewest rows from which the library takes less time than our kernel for a layer's plain products, in
    both models together; None if it never does."""
    models, ladder = (((64, 2, 128),), (16, 32)) if smoke else (MODELS, [2**n for n in range(4, 16)])
    found = None
    for rows in reversed(ladder):
        ours = theirs = 0.0
        for hidden, _, wide in models:
            for depth, columns in ((hidden, 3 * hidden), (hidden, hidden), (wide, hidden)):
                shapes = (rows, depth), (columns, depth), (columns,)
                call = [torch.randn(shape, device=device, dtype=torch.float16) for shape in shapes]
                ours += _seconds(kernels.linear, call, {})
                with library():
                    theirs += _seconds(_library, call, {})
        print(f"library, {rows} rows: {1e6 * theirs:.1f} us, the kernel {1e6 * ours:.1f} us", flush=True)
        if theirs >= ours:
            break
        found = rows
    return found


def _library(x: Tensor, weight: Tensor, bias: Tensor, *, out: Tensor | None = None) -> Tensor:
    out = torch.empty(len(x), len(weight), device=x.device, dtype=x.dtype) if out is None else out
    library_linear(x, weight, bias, out=out)
    return out


def measure(table: Table, candidate: tuple[int, ...] | None, calls: list[Any]) -> list[float] | None:
    """Seconds of each call, or None if the candidate does not compile or is wrong. Without a candidate, the
    table is used as it stands."""
    with ExitStack() if candidate is None else table.use(candidate):
        try:
            for op, arguments, options in calls:
                found = getattr(kernels, op)(*arguments, **options)
                expected = getattr(reference, op)(*arguments, **options)
                if not torch.allclose(found.float(), expected.float(), atol=2e-2, rtol=2e-2):
                    return None
            return [_seconds(getattr(kernels, op), *call) for op, *call in calls]
        except (TritonError, RuntimeError) as error:
            print(f"{table.name} {candidate}: {type(error).__name__}", file=sys.stderr)
            return None


def _seconds(op: Callable[..., Tensor], arguments: tuple[Any, ...], options: dict[str, Any]) -> float:
    if INTERPRETED:
        return 1.0  # nothing is measured
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    copies = rotations(sum(x.nbytes for x in tensors))
    sets = [tuple(x.clone() if isinstance(x, Tensor) else x for x in arguments) for _ in range(copies)]
    out = op(*arguments, **options)
    calls = [lambda given=given: op(*given, **options, out=out) for given in sets]
    took = compare({"": calls}, out.device, repeats=3)[""]
    if "error" in took:
        raise RuntimeError(took["error"])
    return float(took["us"]) / 1e6


def _tables(device: str, smoke: bool) -> Iterator[Table]:
    """All tables, for 16-bit elements; float32 runs outside of the matrix units and is not tuned."""
    linear, attention, normal = (
        import_module(f"segue.kernels.{name}") for name in ("_linear", "_packed_attention", "normalize")
    )
    embed, add_layer_norm = (import_module(f"segue.kernels.{name}") for name in ("_embed", "_add_layer_norm"))
    models = ((64, 2, 128),) if smoke else MODELS
    name = target(torch.device(device, 0))
    assert name in TARGETS

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.float16) / shape[-1] ** 0.5

    def products(line: tuple[str, int, int, int]) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
        op, rows, depth, columns = line
        yield op, (make(rows, depth), make(columns, depth), make(columns)), {}

    shapes = tuple(
        (op, rows, depth, columns)
        for rows in ((20,) if smoke else ROWS)
        for hidden, _, wide in models
        for op, depth, columns in (
            ("linear", hidden, 3 * hidden), ("linear", hidden, hidden), ("linear_gelu", hidden, wide),
            ("linear", wide, hidden),
        )
    )  # fmt: skip

    def attentions(line: int | None) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
        length = PAIRS[line]
        pairs = 2 if smoke else 16384 // length
        for hidden, heads, _ in models:
            bounds = torch.arange(pairs + 1, device=device, dtype=torch.int32) * length
            yield "packed_attention", (make(pairs * length, 3 * hidden), bounds, heads), {"longest": length}

    def norms(line: int | None) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
        for (hidden, _, _), rows in product(models, (20,) if smoke else TOKENS[line]):
            x = make(rows, hidden)
            yield "add_layer_norm", (x, x, make(hidden), make(hidden), 1e-12), {}

    least = 64 if name in ("sm_90", "sm_100") else 16  # rows that the asynchronous units take
    depths = (64, 128) if name == "sm_90" else (64,)  # which give the same bits there
    resident = (0, 1, 2) if name == "sm_90" else (0,)
    limit = TARGETS[name] - 1024  # bytes of shared memory
    yield Table(
        "linear", shapes, ("any",),  # all of these sum in the same order
        lambda _: (
            (r, c, d, w, s, p)
            for r, c, d, w, s, p in product(
                (32, 64, 128), (16, 32, 64, 128, 256), depths, (4, 8), (3, 4, 6), resident
            )
            if r >= least and (w == 4 or r * c >= 128 * 128) and (w == 8 or r * c < 128 * 256)
            if 2 * d * s * (r + c) + min(2 * r * c, 2**15) * (p > 0) <= limit // max(p, 1)
            if (p == 0 or (r * c >= 64 * 64 and d == 64)) and (p > 0 or r * c <= 128 * 128)
        ),
        lambda tile: _patched((linear, "_configure", lambda *_, **__: linear._Tile(*tile))),
        products,
    )  # fmt: skip
    yield Table(
        "packed_attention", tuple(PAIRS), (64,) if smoke else (32, 64, 128),
        lambda keys: (
            (q, keys, w, s)
            for q, w, s in product((32, 64, 128), (1, 4, 8), (1, 2, 3))
            if least <= q <= 64 * w
        ),
        lambda tile: _patched((attention, "_configure", lambda *_: attention._Tile(*tile))),
        attentions,
    )  # fmt: skip
    yield Table(
        "normalize", (1024, None), (2, 4),  # rows a warp has in every line
        lambda rows: ((rows * warps, warps) for warps in (1, 2, 4, 8)),
        lambda line: _patched(
            *((module, "rows_of", lambda *_: line) for module in (normal, embed, add_layer_norm))
        ),
        norms,
    )  # fmt: skip


def _patched(*places: tuple[Any, str, Any]) -> ExitStack:
    stack = ExitStack()
    for module, name, value in places:
        stack.enter_context(patch.object(module, name, value))
    return stack


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--op", choices=("linear", "packed_attention", "normalize", "library"), help="default: all"
    )
    parser.add_argument("--share", nargs=2, type=int, metavar=("I", "N"), help="only compile a share of it")
    parser.add_argument("--out", help="write the choice and its times there, as JSON")
    parser.add_argument("--smoke", action="store_true", help="toy shapes, interpreted; measures nothing")
    return parser


if __name__ == "__main__":
    main()
