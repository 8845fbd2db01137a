"""What holds for every launcher: the signature of its twin, and with `out` nothing but a launch."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from segue import kernels
from segue.kernels import launching, reference

BOUNDS = torch.tensor([0, 2, 5], dtype=torch.int32)
IDS = torch.zeros(5, dtype=torch.int32)
X, SQUARE, VECTOR = torch.zeros(5, 16), torch.zeros(16, 16), torch.zeros(16)
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any], Tensor]] = {
    "add_layer_norm": ((X, X, VECTOR, VECTOR, 1e-12), {"live": BOUNDS[-1:]}, X),
    "cls_attention": ((X[:2], torch.zeros(5, 32), BOUNDS, 2), {"longest": 3}, X[:2]),
    "embed": ((IDS, IDS, IDS, SQUARE, SQUARE, SQUARE, VECTOR, VECTOR, 1e-12), {"live": BOUNDS[-1:]}, X),
    "first_rows": ((X, BOUNDS), {}, X[:2]),
    "linear": ((X, SQUARE, VECTOR, X), {"live": BOUNDS[-1:]}, X),
    "linear_gelu": ((X, SQUARE, VECTOR), {"live": BOUNDS[-1:]}, X),
    "packed_attention": ((torch.zeros(5, 48), BOUNDS, 2), {"longest": 3}, X),
    "pool_classify": (
        (X, SQUARE, VECTOR, SQUARE[:2], VECTOR[:2]),
        {"pooled": torch.zeros(5, 16)},
        torch.zeros(5, 2),
    ),
    "softmax": ((X,), {}, X),
}


class _Dispatched(TorchDispatchMode):
    """Notes every operation that reaches PyTorch's dispatcher: allocations, copies, reads."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_every_op_is_here() -> None:
    assert set(CALLS) == set(kernels.__all__) == set(reference.__all__)


@pytest.mark.parametrize("op", CALLS)
def test_a_launcher_has_the_signature_of_its_twin(op: str) -> None:
    mine, twins = (inspect.signature(getattr(module, op)) for module in (kernels, reference))
    assert mine == twins


@pytest.mark.parametrize("op", CALLS)
def test_with_out_it_launches_and_asks_nothing_of_pytorch(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No allocation, no copy and no reading back: what a GPU graph can capture."""
    made: list[Any] = []
    monkeypatch.setattr(launching, "run", lambda *arguments: made.append(arguments))
    arguments, options, out = CALLS[op]
    getattr(kernels, op)  # its import may compute constants
    with _Dispatched() as dispatched:
        assert getattr(kernels, op)(*arguments, **options, out=out) is out
    between = op == "pool_classify"  # two launches, and what goes from one to the other
    assert len(made) == 1 + between
    assert dispatched.names == []
    with _Dispatched() as dispatched:
        getattr(kernels, op)(*arguments, **{name: v for name, v in options.items() if name == "longest"})
    assert dispatched.names == ["aten.empty.memory_format"] * (1 + between)
