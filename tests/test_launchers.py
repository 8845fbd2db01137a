"""What holds for every launcher: the signature of its twin, and with `out` nothing but a launch."""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kernel_tools import LAUNCHES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from segue import kernels
from segue.kernels import launching, reference

BOUNDS = torch.tensor([0, 2, 5], dtype=torch.int32)
IDS = torch.zeros(5, dtype=torch.int32)
X, SQUARE, VECTOR = torch.zeros(5, 16), torch.zeros(16, 16), torch.zeros(16)
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any], Tensor]] = {
    "add_layer_norm": ((X, X, VECTOR, VECTOR, 1e-12), {"live": BOUNDS[-1:]}, X),
    "cls_attention": (
        (X[:2], X, BOUNDS, SQUARE, SQUARE, VECTOR, 2),
        {"longest": 3, "scratch": torch.zeros(2, 64)},
        X[:2],
    ),
    "embed": ((IDS, IDS, IDS, SQUARE, SQUARE, SQUARE, VECTOR, VECTOR, 1e-12), {"live": BOUNDS[-1:]}, X),
    "first_rows": ((X, BOUNDS), {}, X[:2]),
    "linear": ((X, SQUARE, VECTOR, X), {"live": BOUNDS[-1:]}, X),
    "linear_gelu": ((X, SQUARE, VECTOR), {"live": BOUNDS[-1:]}, X),
    "packed_attention": ((torch.zeros(5, 48), BOUNDS, 2), {"longest": 3}, X),
    "pool_classify": (
        (X, SQUARE, VECTOR, SQUARE[:6], VECTOR[:6]),
        {"pooled": torch.zeros(5, 16)},
        torch.zeros(5, 6),
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
    between = op in LAUNCHES  # several launches, and what goes from one to the other
    assert len(made) == LAUNCHES.get(op, 1)
    assert dispatched.names == []
    with _Dispatched() as dispatched:
        getattr(kernels, op)(*arguments, **{name: v for name, v in options.items() if name == "longest"})
    assert dispatched.names == ["aten.empty.memory_format"] * (1 + between)


def _far(x: Tensor, stride: int, path: Path) -> Tensor:
    """The same matrix with rows so far apart, in a file that is nothing but holes between them."""
    size = (len(x) - 1) * stride + x.shape[1]
    with path.open("wb") as file:
        file.truncate(size * x.element_size())
    found = torch.from_file(str(path), shared=True, size=size, dtype=x.dtype).as_strided(x.shape, (stride, 1))
    path.unlink()
    return found.copy_(x)


def _filled(x: Any) -> Any:
    if x is BOUNDS or not isinstance(x, Tensor):
        return x
    return torch.arange(0, 15, 3) if x is IDS else torch.randn(x.shape).half()


@pytest.mark.parametrize("stride", [2**29, 2**31])
@pytest.mark.parametrize(
    ("op", "at"),
    [
        ("add_layer_norm", 0),
        ("add_layer_norm", 1),
        ("cls_attention", 0),
        ("cls_attention", 3),
        ("cls_attention", 4),
        ("embed", 5),
        ("first_rows", 0),
        ("linear", 0),
        ("linear", 1),
        ("linear", 3),
        ("pool_classify", 0),
        ("pool_classify", 1),
        ("pool_classify", 3),
        ("softmax", 0),
    ],
)
def test_rows_may_lie_further_apart_than_32_bits_count(op: str, at: int, stride: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = [_filled(x) for x in CALLS[op][0]]
    expected = getattr(kernels, op)(*arguments)
    arguments[at] = _far(arguments[at], stride, tmp_path / "far")
    assert torch.equal(getattr(kernels, op)(*arguments), expected)


@pytest.mark.parametrize("op", CALLS)
def test_each_matrix_may_have_a_stride_of_its_own(op: str) -> None:
    """One that is not a multiple of 8, where those of all others are."""
    torch.manual_seed(0)
    arguments = [_filled(x) for x in CALLS[op][0]]
    expected = getattr(kernels, op)(*arguments)
    for at, x in enumerate(arguments):
        if isinstance(x, Tensor) and x.dim() == 2:
            apart = torch.full((len(x), x.shape[1] + 3), torch.nan).half()[:, :-3].copy_(x)
            assert torch.equal(getattr(kernels, op)(*arguments[:at], apart, *arguments[at + 1 :]), expected)
    out = torch.zeros(len(expected), expected.shape[1] + 3).half()[:, :-3]
    assert torch.equal(getattr(kernels, op)(*arguments, out=out), expected)


def _in_32_bits(op: str) -> list[Any]:
    """Five one-token pairs; int32 ids and bounds, as the executor's: times a stride they overflow."""
    torch.manual_seed(0)
    arguments = [_filled(x).int() if x is IDS else _filled(x) for x in CALLS[op][0]]
    if op == "cls_attention":
        arguments[0] = torch.randn(5, 16).half()
    return [torch.arange(6, dtype=torch.int32) if x is BOUNDS else x for x in arguments]


@pytest.mark.parametrize(
    ("op", "at"),
    [
        *[("packed_attention", 0), ("cls_attention", 0), ("cls_attention", 1), ("first_rows", 0)],
        *[("embed", 3), ("embed", 4), ("embed", 5)],
    ],
)
def test_a_bound_or_an_id_times_a_stride_may_be_more_than_32_bits_count(
    op: str, at: int, tmp_path: Path
) -> None:
    arguments = _in_32_bits(op)
    expected = getattr(kernels, op)(*arguments)
    arguments[at] = _far(arguments[at], 2**29, tmp_path / "far")
    assert torch.equal(getattr(kernels, op)(*arguments), expected)


@pytest.mark.parametrize("op", CALLS)
def test_so_may_the_rows_of_the_result(op: str, tmp_path: Path) -> None:
    arguments = _in_32_bits(op)
    expected = getattr(kernels, op)(*arguments)
    out = _far(torch.zeros_like(expected), 2**29, tmp_path / "far")
    assert torch.equal(getattr(kernels, op)(*arguments, out=out), expected)


@pytest.mark.parametrize(
    ("major", "minor", "name"),
    [(8, 0, "sm_80"), (8, 9, "sm_80"), (9, 0, "sm_90"), (10, 0, "sm_100"), (12, 0, "sm_80")],
)
def test_a_gpu_takes_the_tables_of_the_nearest_that_it_can_run(
    major: int, minor: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = SimpleNamespace(name="A GPU", major=major, minor=minor)
    monkeypatch.setattr(launching, "_properties", lambda index: gpu)
    monkeypatch.setattr(torch.version, "hip", None)
    assert launching._target.__wrapped__("cuda", 0) == name
    gpu.major, gpu.minor = 7, 5
    with pytest.raises(ValueError, match=r"^device: A GPU has compute capability 7.5, kernels need 8.0"):
        launching._target.__wrapped__("cuda", 0)


def test_threads_take_turns_at_the_interpreter() -> None:
    """It has one place for the program that it is at, and one language that it patches."""
    torch.manual_seed(0)
    xs = [torch.randn(rows, 16) for rows in (1, 70, 200)]

    def work(x: Tensor) -> None:
        for _ in range(8):
            assert torch.allclose(kernels.softmax(x), torch.softmax(x, 1))

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, xs))


def test_a_product_and_a_sum_are_one_rounding_whatever_triton_takes_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(launching, "run", lambda kernel, grid, some, options, device: given.append(options))
    kernels.softmax(torch.zeros(2, 3), out=torch.zeros(2, 3))
    assert [options["enable_fp_fusion"] for options in given] == [True]
