"""Linear layers through the matrix library that PyTorch calls (cuBLASLt, hipBLASLt), for engines that are
allowed to: it chooses among its kernels by the batch's size, so that a row's last bits depend on its batch.

Only those with a bias and nothing else: the library's GELU is the tanh one. Graphs with its products hold the
address of a workspace that PyTorch keeps; torch.compile's mode "reduce-overhead", in the same process, makes
PyTorch free all of those, so the two do not go together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor

__all__ = ["LIBRARY_ROWS", "library", "linear"]

# The library is faster than segue.kernels.linear from so many rows on, by target and bytes of an element.
# bench/tune.py measures it on the GPU at hand: sm_90's is from an H200, the others are set by hand. In
# float32 the library may round its operands to TF32, by a process-wide switch.
LIBRARY_ROWS = {("sm_80", 2): 1, ("sm_90", 2): 512, ("sm_100", 2): 1, ("gfx942", 2): 1}
_switched = Lock()


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, out: Tensor) -> None:
    """As `segue.kernels.linear`, but computes every row of `out`."""
    torch.addmm(bias, x, weight.t(), out=out)


@contextmanager
def library() -> Iterator[None]:
    """Have the library add in float32 throughout: where it splits a sum, PyTorch lets it add up the parts
    in 16 bits unless told otherwise, by process-wide switches."""
    backend = torch.backends.cuda.matmul
    names = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    with _switched:
        before = {name: getattr(backend, name) for name in names}
        # Some versions of PyTorch set with it whether sums may be split at all; that stays.
        split = {name: getattr(backend, f"{name}_split_k", None) for name in names}
        try:
            for name in names:
                setattr(backend, name, False if split[name] is None else (False, split[name]))
            yield
        finally:
            for name, value in before.items():
                setattr(backend, name, value if split[name] is None else (value, split[name]))
