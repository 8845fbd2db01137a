"""The calls whose kernels the compile report compiles: every op, in the sizes of three models.

Tensors are on the CPU and never touched, so that they cost address space and no memory. The row counts and
lengths are spread so that every row of every launch table is reached, which the report checks; and each
table's row is met with counts that 16 divides and does not, since Triton compiles those apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, empty

import segue.kernels

__all__ = ["DTYPES", "Example", "examples"]

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_SIZES = (384, 768, 1024, 312)  # E of the models; F = 4E
_HEADS = ((384, 12), (768, 12), (1024, 16), (1024, 8), (1024, 4))  # E, H, for D = 32, 64, 64, 128, 256
_ROWS = (37, 200, 1100, 5003, 40_009)
_MORE_ROWS = (1, 64, 512, 2048, 32_768)
_LONGEST = (20, 48, 100, 300, 512)
_COLUMNS = (2, 16, 40, 200, 384, 1000, 4096, 30_528)
_EPS = 1e-12


class Example(NamedTuple):
    """One call of an op.

    Attributes:
        model: the sizes that a row's result may depend on: configurations are compared within one.
        setting: the sizes that it must not depend on.
    """

    op: str
    dtype: str
    model: str
    setting: str
    call: Callable[[], Any]


def examples(op: str) -> Iterator[Example]:
    """Every call of an op."""
    for name, dtype in DTYPES.items():
        for model, setting, make in _CALLS[op](dtype):
            yield Example(op, name, model, setting, _call(op, make))


def _call(op: str, make: Callable[[], tuple[Any, ...]]) -> Callable[[], Any]:
    def call() -> Any:
        *arguments, options = make()
        return getattr(segue.kernels, op)(*arguments, **options)

    return call


# Each of these yields: model, setting, a function giving the arguments. bfloat16, which compiles as float16
# does, comes in the smallest model only; counts of rows that 16 divides, and 1, only there in float16.


def _normalised(dtype: torch.dtype) -> Iterator[Any]:
    for E, T in _model_rows(dtype):
        x, vector = empty(T, E, dtype=dtype), empty(E, dtype=dtype)
        yield f"E={E}", f"T={T}", lambda x=x, v=vector: (x, x, v, v, _EPS, {})


def _embedded(dtype: torch.dtype) -> Iterator[Any]:
    for E, T in _model_rows(dtype):
        short = E == 384 and dtype == torch.float16 and T in _ROWS
        word, vector = empty(30_522, E, dtype=dtype), empty(E, dtype=dtype)
        for integer in (torch.int64, torch.int32) if short else (torch.int64,):
            ids = empty(T, dtype=integer)
            given = (ids, ids, ids, word, word[:2], word[:512], vector, vector, _EPS, {})
            yield f"E={E}", f"T={T}, ids {ids.itemsize} bytes", lambda given=given: given


def _product(dtype: torch.dtype, R: int, K: int, N: int, *residual: Tensor) -> tuple[Any, ...]:
    return (empty(R, K, dtype=dtype), empty(N, K, dtype=dtype), empty(N, dtype=dtype), *residual, {})


def _linear(dtype: torch.dtype) -> Iterator[Any]:
    for E, R in _model_rows(dtype):
        F = 4 * E
        residual = empty(R, E, dtype=dtype)
        for name, K, N, more in (
            ("qkv", E, 3 * E, ()),
            ("out", E, E, (residual,)),
            ("down", F, E, (residual,)),
        ):
            make = lambda R=R, K=K, N=N, more=more: _product(dtype, R, K, N, *more)  # noqa: E731
            yield f"{name} {K} to {N}", f"R={R}", make


def _linear_gelu(dtype: torch.dtype) -> Iterator[Any]:
    for E, R in _model_rows(dtype):
        yield f"up {E} to {4 * E}", f"R={R}", lambda R=R, E=E: _product(dtype, R, E, 4 * E)


def _packed_attention(dtype: torch.dtype) -> Iterator[Any]:
    for E, H in _heads(dtype):
        qkv = empty(5003, 3 * E, dtype=dtype)
        for longest in _LONGEST:
            for integer in (
                (torch.int64, torch.int32) if E == 384 and dtype == torch.float16 else (torch.int64,)
            ):
                given = (qkv, empty(41, dtype=integer), H, {"longest": longest})
                setting = f"longest={longest}, bounds {integer.itemsize} bytes"
                yield f"E={E} D={E // H}", setting, lambda given=given: given


def _cls_attention(dtype: torch.dtype) -> Iterator[Any]:
    for E, H in _heads(dtype):
        for B, longest in ((1, 20), (40, 100), (40, 512)):
            q, x, bounds = (
                empty(B, E, dtype=dtype),
                empty(5003, E, dtype=dtype),
                empty(B + 1, dtype=torch.int64),
            )
            square, vector = empty(E, E, dtype=dtype), empty(E, dtype=dtype)
            given = (q, x, bounds, square, square, vector, H, {"longest": longest})
            yield f"E={E} D={E // H}", f"B={B}, longest={longest}", lambda given=given: given


def _first_rows(dtype: torch.dtype) -> Iterator[Any]:
    for E in _sizes(dtype):
        given = (empty(5003, E, dtype=dtype), empty(41, dtype=torch.int64), {})
        yield f"E={E}", "B=40", lambda given=given: given


def _softmax(dtype: torch.dtype) -> Iterator[Any]:
    for C in _COLUMNS:
        for R in (1, 37, 64) if dtype == torch.float16 else (37,):
            yield f"C={C}", f"R={R}", lambda R=R, C=C: (empty(R, C, dtype=dtype), {})


def _pool_classify(dtype: torch.dtype) -> Iterator[Any]:
    for E in _sizes(dtype):
        square, vector = empty(E, E, dtype=dtype), empty(E, dtype=dtype)
        every = E == 384 and dtype == torch.float16
        for C in (2, 40) if every else (2,):
            classifier, bias = empty(C, E, dtype=dtype), empty(C, dtype=dtype)
            for B in (1, 37, 64, 700) if every else (37, 700):
                given = (empty(B, E, dtype=dtype), square, vector, classifier, bias, {})
                yield f"E={E} C={C}", f"B={B}", lambda given=given: given


def _sizes(dtype: torch.dtype) -> tuple[int, ...]:
    return _SIZES[:1] if dtype == torch.bfloat16 else _SIZES


def _heads(dtype: torch.dtype) -> tuple[tuple[int, int], ...]:
    return _HEADS[:1] if dtype == torch.bfloat16 else _HEADS


def _model_rows(dtype: torch.dtype) -> Iterator[tuple[int, int]]:
    for E in _sizes(dtype):
        yield from ((E, rows) for rows in _ROWS)
        if E == 384 and dtype == torch.float16:
            yield from ((E, rows) for rows in _MORE_ROWS)


_CALLS: dict[str, Callable[[torch.dtype], Iterator[Any]]] = {
    "add_layer_norm": _normalised,
    "cls_attention": _cls_attention,
    "embed": _embedded,
    "first_rows": _first_rows,
    "linear": _linear,
    "linear_gelu": _linear_gelu,
    "packed_attention": _packed_attention,
    "pool_classify": _pool_classify,
    "softmax": _softmax,
}
