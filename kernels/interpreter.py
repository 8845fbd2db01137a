"""Mends, for the whole process, what Triton's interpreter gets wrong and our kernels need.

For triton 3.6 and 3.7, whose interpreter keeps bfloat16 as its bits in uint16. Mended: casts from and to it,
and `tl.dot` of it. All other arithmetic on it raises instead of working on the bits: a kernel widens to
float32 what it loads. Knows nothing about our kernels, and nothing about float8.
"""

from __future__ import annotations

__all__ = ["mend", "widen"]

from functools import wraps
from typing import Any

import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

# What would take bfloat16's bits for integers. Triton itself widens it in tl.max, tl.maximum, tl.clamp and
# tl.cumsum, and refuses it in functions of one argument and in atomics.
_ARITHMETIC = (
    (InterpreterBuilder, "binary_op"),  # sums, products, comparisons
    (InterpreterBuilder, "create_fma"),
    (interpreter.ReduceOps, "apply"),  # tl.sum
)


def mend() -> None:
    """Patch the interpreter; a second call does nothing."""
    if InterpreterBuilder.cast_impl.__module__ == __name__:
        return
    _mend_casts()
    _mend_dot()
    for owner, name in _ARITHMETIC:
        setattr(owner, name, _refuse_bfloat16(getattr(owner, name)))
    _mend_index()
    _patch_once()


def widen(handle: TensorHandle) -> TensorHandle:
    """A bfloat16 value as float32, exactly; any other as it is."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle(torch.tensor(handle.data).view(torch.bfloat16).float().numpy(), tl.float32)


def _mend_casts() -> None:
    """float32 → bfloat16 truncates, which also turns NaNs to infinities; casts from and to other dtypes take
    the bits for a number."""
    cast_impl = InterpreterBuilder.cast_impl

    def cast(self: InterpreterBuilder, source: TensorHandle, wanted: tl.dtype) -> TensorHandle:
        source = widen(source)
        if wanted.scalar != tl.bfloat16:
            return cast_impl(self, source, wanted)
        rounded = torch.tensor(source.data.astype("float32")).to(torch.bfloat16)
        return TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)

    InterpreterBuilder.cast_impl = cast


def _mend_dot() -> None:
    """Products of bfloat16 multiply its bits as integers."""
    create_dot = InterpreterBuilder.create_dot

    def dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        return create_dot(self, widen(a), widen(b), *rest)

    InterpreterBuilder.create_dot = dot


def _mend_index() -> None:
    """`range(0, n, BLOCK)` over an n that is no constant: triton 3.6 calls int() on an array of one element,
    which NumPy 2.4 refuses."""
    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch


def _patch_once() -> None:
    """Every call of a jitted function by another, `tl.sum` and `tl.cdiv` among them, patches the language
    again, hundreds of functions each time: half of all the time taken."""
    patch_language = interpreter._patch_lang

    def patch(function: Any) -> Any:
        loads = [m.load for m in function.__globals__.values() if m is tl or m is tl.core]
        if any(map(tl.core.is_builtin, [tl.tensor.__add__, *loads])):
            return patch_language(function)
        return interpreter._LangPatchScope()  # nothing to restore

    interpreter._patch_lang = patch


def _refuse_bfloat16(method: Any) -> Any:
    @wraps(method)
    def checked(self: Any, *operands: Any) -> Any:
        flat = [x for operand in operands for x in (operand if isinstance(operand, tuple) else (operand,))]
        if any(tl.bfloat16 == getattr(x, "dtype", None) for x in flat):
            raise TypeError("bfloat16: the interpreter computes on its bits; convert to float32 first")
        return method(self, *operands)

    return checked
