"""Single kernels beside PyTorch's equivalents: microseconds, bytes and operations per second.

Every side's result is checked by the rule of `gpu_parity` at the same shape, before anything is timed. Inputs
take turns, so that none is found in the cache; results go to the same memory each time. Attention is as in a
model: Q, K and V are views of one tensor, and the context comes as rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from gpu_models import Work
from gpu_parity import fault_in
from gpu_run import Run
from gpu_timing import compare, rotations
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from segue import kernels

__all__ = ["attend_variable", "time_kernels"]

_DTYPE = torch.float16
_TOKENS = 16_384
_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "plain": SDPBackend.MATH,
}
Arguments = tuple[Any, ...]


class Contest(NamedTuple):
    """An op at one shape. make: its arguments, from a seed. peers: functions of these arguments that give the
    same result. beside: those that give something else, timed to compare."""

    op: str
    shape: str
    make: Callable[[int], Arguments]
    options: dict[str, Any]
    letters: dict[str, Any]
    peers: dict[str, Callable[..., Any]]
    beside: dict[str, Callable[..., Any]] | None = None


def time_kernels(run: Run, work: Work, found: dict[str, Any], *, autotune: bool = False) -> None:
    """`found["rows"]`: one a contest, with the microseconds of every side that was right."""
    rows = found["rows"] = []
    parity = run.found("parity of kernels")
    name = str(_DTYPE).removeprefix("torch.")
    for contest in _contests(work.device, work.smoke, autotune):
        run.check_time()
        row = {"op": contest.op, "shape": contest.shape, "dtype": name, "sides": {}}
        rows.append(row)
        if not parity.get(contest.op, {}).get(name, {}).get("ok"):
            row["not timed"] = "the kernel is not what its twin is"
            continue
        try:
            _time(contest, row, work)
        except Exception as error:  # whatever it is, the contests after this one are to take place
            row["not timed"] = f"{type(error).__name__}: {error}"[:300]


def _time(contest: Contest, row: dict[str, Any], work: Work) -> None:
    module = "_linear" if contest.op == "linear_gelu" else f"_{contest.op}"
    needs = import_module(f"segue.kernels.{module}").cost(**contest.letters, s=_DTYPE.itemsize)
    row |= {"bytes": needs.bytes, "operations": needs.operations}
    sets = [contest.make(seed) for seed in range(1 if work.smoke else rotations(needs.bytes))]
    ours = getattr(kernels, contest.op)
    outs = [ours(*arguments, **contest.options) for arguments in sets]
    sides: dict[str, list[Callable[[], Any]]] = {
        "segue": [
            lambda a=arguments, out=out: ours(*a, **contest.options, out=out)
            for arguments, out in zip(sets, outs, strict=True)
        ]
    }
    for name, peer in (contest.peers | (contest.beside or {})).items():
        sides[name] = [lambda a=arguments, peer=peer: peer(*a) for arguments in sets]
    for name in ("segue", *contest.peers):
        if fault := fault_in(sides[name][0], contest.op, sets[0], contest.options):
            row["sides"][name] = {"error": fault}
            del sides[name]
    row["sides"] |= compare(sides, work.device, repeats=1 if work.smoke else 9)


def _contests(device: torch.device, smoke: bool, autotune: bool) -> Iterator[Contest]:
    compiled = _compiler(smoke, autotune)
    sizes = ((64, 2, 128),) if smoke else ((384, 12, 1536), (768, 12, 3072))
    tokens = 20 if smoke else _TOKENS

    def make(seed: int, *shape: int, around: float = 0.0, scale: float = 1.0) -> Tensor:
        draw = torch.Generator(device).manual_seed(1000 * seed + shape[-1])
        return (around + scale * torch.randn(shape, generator=draw, device=device)).to(_DTYPE)

    for hidden, heads, inner in sizes:
        for lengths in _lengths(tokens, smoke):
            yield _attention(hidden, heads, lengths, make)
        for lengths in ((10, 10),) if smoke else ((128,), (128,) * 128, (512,) * 32):
            yield _cls_attention(hidden, heads, lengths, make)
        for rows in (tokens,) if smoke else (128, 2048, tokens):
            for depth, columns in ((hidden, 3 * hidden), (hidden, hidden), (inner, hidden)):
                yield Contest(
                    "linear", f"{rows} x {depth} -> {columns}", _product(make, rows, depth, columns), {},
                    {"R": rows, "K": depth, "N": columns}, {"F.linear": functional.linear},
                )  # fmt: skip
            yield Contest(
                "linear_gelu", f"{rows} x {hidden} -> {inner}", _product(make, rows, hidden, inner), {},
                {"R": rows, "K": hidden, "N": inner, "gelu": 1},
                {"F.linear, F.gelu": _linear_gelu}
                | (compiled(_linear_gelu) if rows == tokens else {}),  # it takes seconds each
                {"F.linear alone": functional.linear},
            )  # fmt: skip
        yield Contest(
            "add_layer_norm", f"{tokens} x {hidden}",
            lambda seed, e=hidden: (make(seed, tokens, e), make(seed + 50, tokens, e),
                                    make(seed, e, around=1.0), make(seed + 50, e), 1e-12),
            {}, {"T": tokens, "E": hidden},
            {"F.layer_norm(x + y)": _add_layer_norm} | compiled(_add_layer_norm),
        )  # fmt: skip
        words = 100 if smoke else 30_522
        different = round(words * (1 - (1 - 1 / words) ** tokens))  # of so many drawn, about
        yield Contest(
            "embed", f"{tokens} x {hidden}", partial(_tables, make, tokens, hidden, words),
            {}, {"T": tokens, "E": hidden, "W": different + 514, "i": 12},
            {"F.embedding, F.layer_norm": _embed} | compiled(_embed),
        )  # fmt: skip
    for columns in (40,) if smoke else (128, 512, 4096):
        rows = 4 if smoke else 2**25 // columns
        yield Contest(
            "softmax", f"{rows} x {columns}", lambda seed, r=rows, c=columns: (make(seed, r, c),), {},
            {"R": rows, "C": columns}, {"torch.softmax": lambda x: torch.softmax(x, -1)},
        )  # fmt: skip


def _lengths(tokens: int, smoke: bool) -> Iterator[tuple[int, ...]]:
    if smoke:
        yield (10, 10)
        return
    for s in (64, 128, 256, 512):
        yield (s,) * (tokens // s)
    yield tuple(8 + 7 * i % 250 for i in range(128))


def _attention(hidden: int, heads: int, lengths: tuple[int, ...], make: Callable[..., Tensor]) -> Contest:
    tokens, pairs, longest = sum(lengths), len(lengths), max(lengths)
    even = len(set(lengths)) == 1

    def arguments(seed: int) -> Arguments:
        qkv = make(seed, tokens, 3 * hidden)
        return qkv, torch.tensor([0, *accumulate(lengths)], device=qkv.device, dtype=torch.int32), heads

    def padded(backend: SDPBackend) -> Callable[..., Tensor]:
        def attend(qkv: Tensor, bounds: Tensor, heads: int) -> Tensor:
            parts = qkv.view(pairs, longest, 3, heads, -1).permute(2, 0, 3, 1, 4)
            with sdpa_kernel(backend):
                context = functional.scaled_dot_product_attention(*parts)
            return context.transpose(1, 2).reshape(tokens, hidden)

        return attend

    def packed(qkv: Tensor, bounds: Tensor, heads: int) -> Tensor:
        parts = qkv.view(tokens, 3, heads, -1).unbind(1)
        return attend_variable(*parts, bounds, longest).reshape(tokens, hidden)

    peers = {f"SDPA, {name}": padded(backend) for name, backend in _BACKENDS.items()} if even else {}
    shape = f"{pairs} pairs of {longest}" if even else f"{pairs} pairs of {min(lengths)} to {longest}"
    return Contest(
        "packed_attention", f"{shape}, D = {hidden // heads}", arguments, {"longest": longest},
        {"lengths": list(lengths), "E": hidden, "H": heads, "i": 4}, {**peers, "varlen_attn": packed},
    )  # fmt: skip


def _cls_attention(hidden: int, heads: int, lengths: tuple[int, ...], make: Callable[..., Tensor]) -> Contest:
    """Pairs of one length, beside keys and values made for every token."""
    pairs, tokens = len(lengths), sum(lengths)

    def arguments(seed: int) -> Arguments:
        q, x, weights = make(seed, pairs, hidden), make(seed, tokens, hidden), make(seed, 2 * hidden, hidden)
        key, value = (weights * hidden**-0.5).chunk(2)
        bounds = torch.tensor([0, *accumulate(lengths)], device=q.device, dtype=torch.int32)
        return q, x, bounds, key, value, make(seed + 50, hidden), heads

    def with_keys(
        q: Tensor, x: Tensor, _: Tensor, key: Tensor, value: Tensor, bias: Tensor, __: int
    ) -> Tensor:
        made = functional.linear(x, key), functional.linear(x, value, bias)
        parts = [part.view(pairs, tokens // pairs, heads, -1).transpose(1, 2) for part in made]
        query = q.view(pairs, heads, 1, -1)
        return functional.scaled_dot_product_attention(query, *parts).view(pairs, hidden)

    return Contest(
        "cls_attention", f"{pairs} pairs of {lengths[0]}, D = {hidden // heads}", arguments,
        {"longest": lengths[0]}, {"lengths": list(lengths), "E": hidden, "H": heads, "i": 4},
        {"F.linear twice, SDPA": with_keys},
    )  # fmt: skip


def attend_variable(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int) -> Tensor:
    """PyTorch's attention over packed sequences; Q, K and V are [T, H, D]."""
    from torch.nn.attention.varlen import varlen_attn

    context: Tensor = varlen_attn(query, key, value, bounds, bounds, longest, longest)
    return context


def _product(make: Callable[..., Tensor], rows: int, depth: int, columns: int) -> Callable[[int], Arguments]:
    def arguments(seed: int) -> Arguments:
        return make(seed, rows, depth), make(seed, columns, depth, scale=depth**-0.5), make(seed, columns)

    return arguments


def _tables(make: Callable[..., Tensor], tokens: int, hidden: int, words: int, seed: int) -> Arguments:
    norm = make(seed, hidden, around=1.0)
    draw = torch.Generator(norm.device).manual_seed(seed)
    ids = [
        torch.randint(0, most, (tokens,), generator=draw, device=norm.device, dtype=torch.int32)
        for most in (words, 2, 512)
    ]
    return (*ids, *(make(seed, most, hidden) for most in (words, 2, 512)), norm, make(seed, hidden), 1e-12)


def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.gelu(functional.linear(x, weight, bias))


def _add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return functional.layer_norm(x + residual, weight.shape, weight, bias, eps)


def _embed(*arguments: Any) -> Tensor:
    *pairs, weight, bias, eps = arguments
    total = sum(table[ids] for ids, table in zip(pairs[:3], pairs[3:], strict=True))
    return functional.layer_norm(total, weight.shape, weight, bias, eps)


def _compiler(smoke: bool, autotune: bool) -> Callable[[Any], dict[str, Any]]:
    """What `torch.compile` makes of a function, by the mode's name, or nothing where nothing is compiled."""
    modes = () if smoke else ("default", *(["max-autotune-no-cudagraphs"] if autotune else []))

    def compiled(function: Any) -> dict[str, Any]:
        torch.compiler.reset()  # or it counts the shapes, and gives up after a few
        return {f"torch.compile, {m}": torch.compile(function, mode=m, dynamic=False) for m in modes}

    return compiled
