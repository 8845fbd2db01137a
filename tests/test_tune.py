"""The script that chooses launch tables: what it measures and what it makes of that, on our own clock."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import tune
from kernel_tools import launches
from triton.runtime.errors import OutOfResources, PTXASError


@pytest.fixture
def candidate_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict], Any]:
    """What is chosen when a call takes the seconds that a table has for its candidate and size."""

    def choose(seconds: dict[tuple[tuple[int, ...], int], float]) -> Any:
        now: list[tuple[int, ...]] = []

        def use(candidate: tuple[int, ...]) -> ExitStack:
            now[:] = [candidate]
            return ExitStack()

        monkeypatch.setattr(tune, "_seconds", lambda op, arguments, _: seconds[now[0], len(arguments[0])])
        orders = sorted({candidate[0] for candidate, _ in seconds})
        sizes = sorted({size for _, size in seconds})
        table = tune.Table(
            "softmax",
            ("a line",),
            tuple(orders),
            lambda order: iter(sorted({c for c, _ in seconds if c[0] == order})),
            use,
            lambda line: (("softmax", (torch.ones(size, 2),), {}) for size in sizes),
        )
        return tune.choose(table, False, lambda _: None)["a line"]["candidate"]

    return choose


def test_the_winner_loses_least_over_all_shapes_not_the_most_time(candidate_of):
    """(1, 2) takes ten times the best where little time goes, (1, 1) a tenth more where most does."""
    seconds = {((1, 1), 8): 0.01, ((1, 1), 16): 11.0, ((1, 2), 8): 0.1, ((1, 2), 16): 10.0}
    assert candidate_of(seconds) == (1, 1)


def test_of_two_orders_of_summation_the_faster_is_taken(candidate_of):
    assert candidate_of({((32, 1), 8): 2.0, ((64, 1), 8): 1.0, ((64, 2), 8): 3.0}) == (64, 1)


@pytest.mark.parametrize(
    "error", [RuntimeError, OutOfResources(300_000, 232_448, "shared memory"), PTXASError]
)
def test_a_candidate_that_is_wrong_or_does_not_run_is_out(monkeypatch, error):
    call = ("softmax", (torch.randn(4, 3),), {})
    table = tune.Table("softmax", (), (), iter, lambda _: ExitStack(), iter)
    with launches() as seen:
        assert tune.measure(table, (), [call]) == [1.0]
    assert seen
    softmax = tune.kernels.softmax
    monkeypatch.setattr(tune.kernels, "softmax", lambda x: softmax(x) + 0.1)
    assert tune.measure(table, (), [call]) is None

    def failing(x: torch.Tensor) -> None:
        raise error

    monkeypatch.setattr(tune.kernels, "softmax", failing)
    assert tune.measure(table, (), [call]) is None


@pytest.mark.parametrize(("ours", "wanted"), [((3, 3), 16), ((1, 3), 32), ((3, 1), None), ((2, 2), None)])
def test_the_library_is_taken_from_where_it_stays_faster(monkeypatch, ours, wanted):
    """Our kernel takes `ours` seconds for 16 and for 32 rows, the library 2."""

    def seconds(op: Any, arguments: list[torch.Tensor], _: Any) -> float:
        return 2.0 if op is tune._library else ours[len(arguments[0]) // 32]

    monkeypatch.setattr(tune, "_seconds", seconds)
    assert tune.library_rows("cpu", smoke=True) == wanted


def test_the_library_s_product_is_ours():
    x, weight, bias = torch.randn(5, 16), torch.randn(7, 16), torch.randn(7)
    torch.testing.assert_close(tune._library(x, weight, bias), tune.reference.linear(x, weight, bias))


def test_shares_of_the_candidates_are_all_of_them():
    used: list[tuple[int, ...]] = []

    def use(candidate: tuple[int, ...]) -> ExitStack:
        used.append(candidate)
        return ExitStack()

    def calls(line: str) -> Any:
        yield "softmax", (torch.ones(2, 3),), {}
        raise RuntimeError("one that does not compile")

    table = tune.Table("softmax", ("one", "another"), (1, 2), lambda o: iter([(o, 1), (o, 2)]), use, calls)
    for share in range(3):
        tune.compile_share([table], share, 3)
    assert sorted(used) == sorted([(1, 1), (1, 2), (2, 1), (2, 2)] * 2)


def test_what_the_tables_hold_is_among_the_candidates(monkeypatch):
    """Of an H200's, which it has measured."""
    monkeypatch.setattr(tune, "target", lambda device: "sm_90")
    tables = {table.name: table for table in tune._tables("cpu", False)}
    tried = {
        name: {candidate for order in table.orders for candidate in table.candidates(order)}
        for name, table in tables.items()
    }
    linear, attention, normal = (
        importlib.import_module(f"segue.kernels.{name}")
        for name in ("_linear", "_packed_attention", "normalize")
    )
    held = {
        "linear": {line[-1] for line in linear._TABLE if line[:2] == ("sm_90", 2)},
        "packed_attention": {
            line[-1] for line in attention._TABLE if "sm_90" in line[0] and line[1:3] == (2, 64)
        },
        "normalize": {
            normal.rows_of("sm_90", hidden, rows) for hidden in (384, 768) for rows in (64, 16_384)
        },
    }
    assert {name: tiles - tried[name] for name, tiles in held.items()} == {name: set() for name in held}


def test_every_line_is_told_when_it_is_chosen(candidate_of, capsys):
    """So that a run that is cut short leaves something."""
    candidate_of({((32, 1), 8): 2.0, ((64, 1), 8): 1.0})
    told = capsys.readouterr().err.splitlines()
    assert [line.partition("  #")[0] for line in told] == [
        "softmax 32, a line: (32, 1)",
        "softmax 64, a line: (64, 1)",
    ]


def test_a_run_cut_short_leaves_what_it_found(monkeypatch, tmp_path):
    """In the second line of the second table."""
    out = tmp_path / "tables.json"

    def measure(table: tune.Table, _: Any, calls: list[Any]) -> list[float]:
        if calls[0][2].get("longest") == tune.PAIRS[64]:
            raise KeyboardInterrupt
        return [1.0] * len(calls)

    monkeypatch.setattr(tune, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["tune.py", "--smoke", "--out", str(out)])
    with pytest.raises(KeyboardInterrupt):
        tune.main()
    found = json.loads(out.read_text())
    assert list(found["tables"]) == ["linear"]
    assert list(found["orders"]["packed_attention 64"]) == ["32"]


def test_it_runs_through_on_toy_shapes(monkeypatch, tmp_path, capsys):
    out = tmp_path / "tables.json"
    monkeypatch.setattr(sys, "argv", ["tune.py", "--smoke", "--out", str(out)])
    tune.main()
    found = json.loads(out.read_text())
    assert (found["device"], found["target"]) == ("interpreted", "sm_80")
    assert {name: list(lines) for name, lines in found["tables"].items()} == {
        "linear": [
            str(("linear", 20, 64, 192)),
            str(("linear", 20, 64, 64)),
            str(("linear_gelu", 20, 64, 128)),
            str(("linear", 20, 128, 64)),
        ],
        "packed_attention": ["32", "64", "None"],
        "normalize": ["1024", "None"],
    }
    assert {line["tried"] for lines in found["tables"].values() for line in lines.values()} == {2}
    assert "library_rows" in found
    assert (
        "linear, ('linear', 20, 64, 192): (32, 16, 64, 4, 3, 0)  # 1000000.00 us" in capsys.readouterr().out
    )
