"""The products' kernel, interpreted: linear with and without a residual, and LinearGelu."""

from __future__ import annotations

import importlib
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import fixed_order, traffic
from kernel_tools import DTYPES, HERE, TARGETS, Fence, assert_op_as_exact, launches, stated_cost
from torch import Tensor

from segue.kernels import linear, linear_gelu

MODULE = importlib.import_module("segue.kernels._linear")
OPS = {"linear": linear, "linear, residual": linear, "linear_gelu": linear_gelu}


def _inputs(op: str, rows: int, depth: int, columns: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(rows + depth + columns)
    x, weight, bias = torch.randn(rows, depth), torch.randn(columns, depth), torch.randn(columns)
    residual = [torch.randn(rows, columns)] if op == "linear, residual" else []
    return [t.to(dtype) for t in (x, weight / depth**0.5, bias, *residual)]


def _measure(
    op: str, rows: int, depth: int, columns: int, dtype: torch.dtype, kernel: str = "linear_kernel"
) -> dict[str, Any]:
    """Run it between fences, check twin and poison; return the launch's options."""
    inputs, fence = _inputs(op, rows, depth, columns, dtype), Fence()
    fenced, out = [fence.put(x) for x in inputs], fence.out((rows, columns), dtype)
    with launches() as made:
        assert OPS[op](*fenced, out=out) is out
    fence.check()
    assert [launch.kernel for launch in made] == [kernel]
    assert_op_as_exact(out, op.partition(",")[0], *inputs)
    return made[0].options


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("rows", "depth", "columns"), [(33, 64, 70), (31, 40, 64)])
def test_it_touches_what_it_says(op: str, rows: int, depth: int, columns: int) -> None:
    fence = Fence()
    fenced = [fence.put(x) for x in _inputs(op, rows, depth, columns, torch.float16)]
    out = fence.out((rows, columns), torch.float16)
    with traffic(*fence.tensors) as meter:
        OPS[op](*fenced, out=out)
    extra = {"residual": int(op == "linear, residual"), "gelu": int(op == "linear_gelu")}
    cost = MODULE.cost(R=rows, K=depth, N=columns, s=2, **extra)
    assert meter.total == cost.bytes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("rows", "depth", "columns"), [(33, 64, 192), (31, 40, 70), (1, 8, 1)])
def test_as_exact_as_it_may_be(op: str, rows: int, depth: int, columns: int, dtype: torch.dtype) -> None:
    _measure(op, rows, depth, columns, dtype)


@pytest.mark.parametrize(("op", "depth"), [
    ("linear", 384), ("linear_gelu", 768), ("linear, residual", 1536), ("linear", 1024), ("linear", 3072),
])  # fmt: skip
def test_the_depths_of_real_models(op: str, depth: int) -> None:
    _measure(op, 33, depth, 100, torch.float16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_gelu_is_the_exact_one_far_into_the_tail(dtype: torch.dtype) -> None:
    """One column in and one out, so that GELU is taken of the input itself. In nearly all places the result
    is what the exact value rounds to."""
    x = torch.cat([torch.linspace(-5, 5, 4001), torch.tensor([0.0, 1e-7, -1e-7, 300.0, -300.0])])[:, None]
    x = x.to(dtype)
    found = linear_gelu(x, x.new_ones(1, 1), x.new_zeros(1))
    exact = x.double() * torch.special.ndtr(x.double())
    assert (found != exact.to(dtype)).double().mean() < 0.05
    step = torch.finfo(dtype).eps * exact.abs().clamp_min(torch.finfo(dtype).tiny)
    assert ((found.double() - exact).abs() <= 0.6 * step).all()


@pytest.mark.parametrize("line", MODULE._TABLE, ids=lambda line: f"{line[0]}, {line[1]} bytes, {line[-1]}")
def test_every_tile_of_the_table(line: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    target, size, _, _, tile = line
    if target not in TARGETS:
        pytest.skip(f"this is no {target}")
    monkeypatch.setattr(MODULE, "_configure", lambda *_, **__: tile)
    op, kernel = ("linear_gelu", "tensor_linear_kernel") if tile.resident else ("linear", "linear_kernel")
    dtype = torch.float16 if size == 2 else torch.float32
    options = _measure(op, tile.rows + 3, tile.depth + 24, tile.columns + 8, dtype, kernel)
    assert [options[name] for name in ("ROWS", "COLUMNS", "DEPTH")] == list(tile[:3])


@pytest.mark.parametrize("count", [0, 1, 64, 70, 140])
def test_of_tiles_that_are_fetched_only_live_rows_are_written(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensor memory accelerator fetches the others with them; what it finds there goes nowhere."""
    monkeypatch.setattr(MODULE, "_configure", lambda *_, **__: MODULE._Tile(64, 32, 64, 4, 4, resident=2))
    x, weight, bias = _inputs("linear", 140, 72, 40, torch.float16)
    expected = linear_gelu(x, weight, bias)
    x[count:] = torch.nan
    out = torch.full_like(expected, 7)
    with launches() as made:
        linear_gelu(x, weight, bias, live=torch.tensor([count], dtype=torch.int32), out=out)
    assert [launch.kernel for launch in made] == ["tensor_linear_kernel"]
    assert torch.equal(out[:count], expected[:count])
    assert (out[count:] == 7).all()


@pytest.mark.parametrize(("rows", "columns", "tile"), [
    (64, 768, (64, 16)), (128, 2304, (64, 64)), (256, 2304, (128, 64)), (512, 768, (64, 64)),
    (1024, 2304, (64, 128)), (2048, 3072, (128, 128)), (2048, 768, (128, 128)), (4096, 3072, (128, 256)),
    (16_384, 2304, (128, 256)), (16_384, 384, (128, 128)),
])  # fmt: skip
def test_a_tile_is_chosen_that_keeps_all_processors_at_work(rows, columns, tile):
    """What was fastest on an H200, or within a tenth of it."""
    assert MODULE._configure("sm_90", torch.float16, rows, columns, 132)[:2] == tile


@pytest.mark.parametrize(("change", "engine"), [
    (lambda x, w, b: (x, w, b), True),
    (lambda x, w, b: (x[:, 8:], w[:, :-8], b), True),
    (lambda x, w, b: (x[:, 1:], w[:, 1:], b), False),  # begins off a multiple of 16 bytes
    (lambda x, w, b: (x[:, :-8], w[:, 1:-7], b), False),  # so does the weight alone
    (lambda x, w, b: (x[:, :-1].clone(), w[:, :-1], b), False),  # its rows do
    (lambda x, w, b: (x[:1].expand(9, -1), w, b), False),  # one row expanded
    (lambda x, w, b: (x, w, b, x.new_zeros(9, 24)), False),  # a residual
])  # fmt: skip
def test_operands_that_cannot_be_fetched_by_tiles_are_read_by_pointers(change, engine, monkeypatch):
    x, weight, bias = _inputs("linear", 9, 64, 24, torch.float16)
    chosen, configure = [], MODULE._configure

    def noted(*arguments: Any, engine: bool) -> Any:
        chosen.append(engine)
        return configure(*arguments, engine=engine)

    monkeypatch.setattr(MODULE, "_configure", noted)
    linear(*change(x, weight, bias))
    assert chosen == [engine]


@pytest.mark.parametrize(("rows", "change", "ahead"), [
    (9, lambda w: w, True),
    (257, lambda w: w, False),  # enough programs to hide what they wait for
    (9, lambda w: torch.cat([w.new_zeros(1), w.flatten()])[1:].view(w.shape), False),  # off a multiple of 16
    (9, lambda w: w[:, :40], False),  # 80 bytes of a row
    (9, lambda w: torch.cat([w, w[:, :8]], 1)[:, :64], False),  # 144 bytes from row to row
])  # fmt: skip
def test_weights_are_asked_for_ahead_where_programs_are_few_and_rows_even(rows, change, ahead) -> None:
    x, weight, bias = _inputs("linear", rows, 64, 24, torch.float16)
    weight = change(weight)
    with launches() as made:
        linear(x[:, : weight.shape[1]], weight, bias)
    assert [launch.options["PREFETCH"] for launch in made] == [ahead]


def test_every_line_is_of_use() -> None:
    shapes = list(product((1, 64, 128, 256, 512, 1024, 2048, 4096, 16_384), (384, 768, 1152, 2304, 3072)))
    taken = {
        (target, size, MODULE._configure(target, dtype, *shape, processors, engine=engine))
        for target, processors in (("sm_80", 108), ("sm_90", 132), ("sm_100", 148), ("gfx942", 304))
        for size, dtype in ((2, torch.float16), (4, torch.float32))
        for shape, engine in product(shapes, (True, False))
    }
    assert taken == {(target, size, tile) for target, size, _, _, tile in MODULE._TABLE}


def test_the_table_sums_every_row_alike() -> None:
    """On sm_90 a depth of 128 gives the same bits as one of 64: its units add sixteen products at a time."""
    for target in TARGETS:
        for size in (2, 4):
            depths = {tile.depth for t, s, _, _, tile in MODULE._TABLE if (t, s) == (target, size)}
            assert len(depths) == 1 or (target, size, depths) == ("sm_90", 2, {64, 128})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_same_bits_whatever_the_batch(dtype: torch.dtype) -> None:
    """With the interpreter's products in a fixed order, in place of NumPy's BLAS; through both tiles."""
    x, weight, bias = _inputs("linear", 300, 72, 40, dtype)
    with fixed_order():
        together = linear_gelu(x, weight, bias)
        for rows in (slice(0, 1), slice(17, 60), slice(299, 300)):
            assert torch.equal(linear_gelu(x[rows], weight, bias), together[rows])


def test_the_walk_over_tiles_visits_each_once() -> None:
    """More rows of tiles than a group has, and not a multiple of it."""
    assert _measure("linear", 700, 16, 130, torch.float32)["GROUP"] < 700 / 64


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    op=st.sampled_from(sorted(OPS)),
    rows=st.integers(4, 100),
    depth=st.integers(1, 100),
    columns=st.integers(4, 100),
    dtype=st.sampled_from(DTYPES),
)
def test_any_shape(op: str, rows: int, depth: int, columns: int, dtype: torch.dtype) -> None:
    _measure(op, rows, depth, columns, dtype)


def test_nothing_is_rounded_before_the_residual_is_added() -> None:
    step = 2.0**-10  # of float16 at 1
    x, weight = torch.ones(1, 2).half(), torch.tensor([[1, step / 2]]).half()
    found = linear(x, weight, torch.zeros(1).half(), torch.full((1, 1), step / 2).half())
    assert found.item() == 1 + step


def test_the_residual_may_be_where_the_result_goes() -> None:
    x, weight, bias, residual = _inputs("linear, residual", 70, 64, 64, torch.float32)
    expected = linear(x, weight, bias, residual)
    assert linear(x, weight, bias, residual, out=residual) is residual
    assert torch.equal(residual, expected)


def test_a_single_column_that_lies_anywhere_is_not_fetched_by_tiles(monkeypatch) -> None:
    """The tensor memory accelerator wants a last axis without gaps."""
    made: list[str] = []
    monkeypatch.setattr(MODULE, "target", lambda device: "sm_90")
    monkeypatch.setattr(MODULE, "launch", lambda kernel, *_, **__: made.append(kernel.__name__))
    memory, bias = torch.zeros(4096, 16).half(), torch.zeros(512).half()
    for x in (memory[:, :1], memory[:, ::16]):
        linear(x, memory[:512, :1], bias)
    assert made == ["tensor_linear_kernel", "linear_kernel"]


def test_no_rows_launch_nothing() -> None:
    with launches() as made:
        assert linear(torch.zeros(0, 8), torch.zeros(3, 8), torch.zeros(3)).shape == (0, 3)
    assert not made


@pytest.mark.parametrize("extra", [{}, {"residual": 1}, {"gelu": 1}])
def test_the_docstring_states_the_cost(extra: dict[str, int]) -> None:
    letters = {"R": 100, "K": 384, "N": 1536, "s": 2, "residual": 0, "gelu": 0} | extra
    assert stated_cost(MODULE, **letters) == MODULE.cost(**letters)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"x": torch.zeros(4, 8, dtype=torch.int32)}, "x: expected float16, bfloat16 or float32"),
    "strides": ({"x": torch.zeros(8, 4).T}, "x: expected a contiguous last axis"),
    "weight's depth": ({"weight": torch.zeros(6, 7)}, r"weight: expected shape \[any, 8\]"),
    "weight's dtype": ({"weight": torch.zeros(6, 8).half()}, "weight: expected float32"),
    "weight's device": ({"weight": torch.zeros(6, 8, device="meta")}, f"weight: expected it on {HERE}"),
    "weight's strides": ({"weight": torch.zeros(8, 6).T}, "weight: expected a contiguous last axis"),
    "bias": ({"bias": torch.zeros(5)}, r"bias: expected shape \[6\]"),
    "residual": ({"residual": torch.zeros(4, 5)}, r"residual: expected shape \[4, 6\]"),
    "residual's dtype": ({"residual": torch.zeros(4, 6).half()}, "residual: expected float32"),
    "out": ({"out": torch.zeros(3, 6)}, r"out: expected shape \[4, 6\]"),
    "gradient": ({"bias": torch.zeros(6, requires_grad=True)}, "bias: requires a gradient"),
}


@pytest.mark.parametrize("wrong", BAD)
def test_what_is_wrong_is_said_before_any_launch(wrong: str) -> None:
    change, message = BAD[wrong]
    arguments = {"x": torch.zeros(4, 8), "weight": torch.zeros(6, 8), "bias": torch.zeros(6)} | change
    with launches() as made, pytest.raises(ValueError, match=f"^{message}"):
        linear(**arguments)
    assert not made
