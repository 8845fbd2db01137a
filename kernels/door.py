"""Checks at the door of every launcher: what is wrong, where, and what was expected, before any launch."""

from __future__ import annotations

__all__ = [
    "check",
    "check_bounds",
    "check_columns",
    "check_ids",
    "check_live",
    "check_out",
    "check_reach",
]

from itertools import pairwise
from operator import index

import torch
from torch import Tensor

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_INTEGERS = (torch.int32, torch.int64)
_MOST = 2**31 - 2**13  # rows or columns, which kernels count in 32 bits, up to the end of a tile


def check(name: str, x: Tensor, shape: tuple[int | None, ...], *, like: Tensor | None = None) -> None:
    """Check for floats of that shape, None being any size, whose last axis is contiguous. Rows may lie
    anywhere. With `like`, they must have its dtype and device.

    Raises:
        ValueError: x is not so, or it wants gradients, which kernels do not give.
    """
    _check_shape(name, x, shape)
    if like is None:
        if x.dtype not in _FLOATS:
            raise ValueError(f"{name}: expected float16, bfloat16 or float32, got {_name(x.dtype)}")
    elif x.dtype != like.dtype:
        raise ValueError(f"{name}: expected {_name(like.dtype)} as the first tensor, got {_name(x.dtype)}")
    if like is not None and x.device != like.device:
        raise ValueError(f"{name}: expected it on {like.device} as the first tensor, got {x.device}")
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        raise ValueError(f"{name}: expected a contiguous last axis, got strides {tuple(x.stride())}")
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name}: requires a gradient, which kernels do not give; call under torch.no_grad(), or take "
            "segue.kernels.reference"
        )


def check_columns(name: str, x: Tensor) -> None:
    """Raise ValueError if a matrix has no columns: its result is undefined."""
    if not x.shape[1]:
        raise ValueError(f"{name}: expected one column or more, got shape {list(x.shape)}")


def check_reach(name: str, x: Tensor, rows: int) -> None:
    """Raise ValueError if so many rows span more elements than kernels can count in 32 bits."""
    if rows * x.stride(0) >= 2**31:
        raise ValueError(f"{name}: {rows} rows of stride {x.stride(0)} reach over 2^31 elements")


def check_live(live: Tensor | None, *, like: Tensor) -> None:
    """Check for None or one integer on the device of `like`, whose value is not read."""
    if live is not None:
        check_ids("live", live, 1, like=like)


def check_out(
    out: Tensor | None,
    shape: tuple[int, ...],
    *,
    like: Tensor,
    live: Tensor | None = None,
    wide: bool = False,
    name: str = "out",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the tensor to write to: `out`, or a new one of `like`'s dtype and device, zeros where only
    `live` rows will be written. With `wide`, `out` may be float32 whatever `like` is; with `dtype`, it must
    be of that."""
    if out is None:
        make = torch.empty if live is None else torch.zeros
        return make(shape, dtype=dtype or like.dtype, device=like.device)
    check(name, out, shape, like=None if dtype or (wide and out.dtype == torch.float32) else like)
    if dtype and out.dtype != dtype:
        raise ValueError(f"{name}: expected {_name(dtype)}, got {_name(out.dtype)}")
    if out.device != like.device:
        raise ValueError(f"{name}: expected it on {like.device} as the first tensor, got {out.device}")
    if len(out) > 1 and out.stride(0) < shape[-1]:
        raise ValueError(f"{name}: expected rows that do not overlap, got strides {tuple(out.stride())}")
    return out


def check_ids(name: str, x: Tensor, count: int | None, *, like: Tensor) -> None:
    """Check for [count] of int32 or int64, contiguous, on the device of `like`; None is any count."""
    _check_shape(name, x, (count,))
    if x.dtype not in _INTEGERS:
        raise ValueError(f"{name}: expected int32 or int64, got {_name(x.dtype)}")
    if x.device != like.device:
        raise ValueError(f"{name}: expected it on {like.device} as the first tensor, got {x.device}")
    if not x.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {tuple(x.stride())}")


def check_bounds(cu_seqlens: Tensor, tokens: int, longest: int | None, *, like: Tensor) -> int:
    """Return the longest pair of a packed batch of `tokens` rows. With `longest` given, the values of
    cu_seqlens are trusted and stay on the device."""
    check_ids("cu_seqlens", cu_seqlens, None, like=like)
    if not len(cu_seqlens):
        raise ValueError("cu_seqlens: expected a bound more than there are pairs, got none at all")
    if longest is not None:
        try:
            longest = index(longest)
        except TypeError:
            raise ValueError(f"longest: expected a whole number, got {longest!r}") from None
        if longest < 0:
            raise ValueError(f"longest: expected 0 or more, got {longest}")
        return longest
    bounds = cu_seqlens.tolist()
    lengths = [end - start for start, end in pairwise(bounds)]
    if bounds[0] != 0 or bounds[-1] != tokens or min(lengths, default=0) < 0:
        raise ValueError(f"cu_seqlens: expected 0 to {tokens} (the rows), never decreasing, got {bounds}")
    return max(lengths, default=0)


def _check_shape(name: str, x: Tensor, shape: tuple[int | None, ...]) -> None:
    if len(x.shape) != len(shape) or any(
        want not in (None, got) for want, got in zip(shape, x.shape, strict=True)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: expected shape [{wanted}], got {list(x.shape)}")
    if max(x.shape) > _MOST:
        raise ValueError(f"{name}: expected {_MOST} rows or columns at most, got shape {list(x.shape)}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
