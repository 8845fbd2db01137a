"""The README's figures are those of the pages in bench/results, which other tests hold to their records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = " ".join(README.split())
Rows = list[dict[str, str]]  # of a table, by column

ORT, OPENVINO = "ONNX Runtime, padded", "OpenVINO, padded, sorted, request queue"
BESIDE = f"{ORT}, a batch a thread, batch in tokens"
CROSS_ENCODER = "sentence-transformers CrossEncoder"
SERVERS = "CrossEncoder behind one HTTP route, written by hand, ONNX Runtime"
FLOAT32 = {  # how a row of the README's table is called, at the end -> the peers on the page
    "the same scores to 1e-5": ["segue"],
    "one batch per thread; OpenVINO": [BESIDE, OPENVINO],
    "sorted, best batch size: ONNX Runtime": [f"{ORT}, sorted"],
    "best batch sizes: OpenVINO, ONNX, PyTorch": [
        f"{CROSS_ENCODER}, OpenVINO",
        f"{CROSS_ENCODER}, ONNX Runtime",
        f"{CROSS_ENCODER}, PyTorch",
    ],
    "batches of 32: sorted; unsorted": [f"{ORT}, 32 sorted", f"{ORT}, 32 as they come"],
}
INT8 = {
    "best token budget": [BESIDE],
    "segue": ["segue, int8"],
    "fully quantised; weights only": [OPENVINO, "OpenVINO, so, weights compressed"],
    "best batch sizes: ONNX, OpenVINO": [f"{CROSS_ENCODER}, ONNX Runtime", f"{CROSS_ENCODER}, OpenVINO"],
    "segue in float32": ["segue, float32"],
}
GPU = {
    "segue, bit-identical in any batch": "segue, float16",
    "segue, batch_invariant=False": "segue, float16, batch_invariant=False",
    "a GPU graph per batch": "varlen_attn, packed, a GPU graph for each batch",
    "transformers, SDPA, padded and sorted": "transformers, SDPA, sorted",
}


@pytest.mark.parametrize("label", FLOAT32)
def test_the_first_table_is_the_page_of_peers(label: str) -> None:
    row, peers = _readme_row("two CPU cores, mixed lengths", label), _peers("peers-2-cores.md", "mixed")
    found = [peers[name] for name in FLOAT32[label]]
    _same(row["pairs/s"], [one["pairs/s"] for one in found])
    _same(row["time, relative to segue"], [one["seconds, times segue's"] for one in found])


@pytest.mark.parametrize("label", INT8)
def test_the_table_of_int8_is_its_page(label: str) -> None:
    row, peers = _readme_row("int8, model and mixed lengths", label), _peers("peers-int8-2-cores.md", "mixed")
    found = [peers[name] for name in INT8[label]]
    _same(row["pairs/s"], [one["pairs/s"] for one in found])
    if label != "segue in float32":
        _same(
            row["mean difference from float32"], [one["differs from PyTorch in the mean by"] for one in found]
        )
    _same(row["alone vs batched"], [one["a pair alone differs by up to"] for one in found])


@pytest.mark.parametrize("label", GPU)
def test_the_table_of_a_gpu_is_its_page(label: str) -> None:
    row = _readme_row("one NVIDIA H200", label)
    (table,) = _tables("h200-2026-11-28.md", "## Peers").values()
    rates = {(one["model"], one["workload"]): one["pairs/s"] for one in table if one["side"] == GPU[label]}
    workloads = [
        ("BERT-base", "mixed"),
        ("BERT-base", "S = 128"),
        ("MiniLM-L6", "mixed"),
        ("MiniLM-L6", "S = 128"),
    ]
    for quoted, workload in zip(list(row.values())[1:], workloads, strict=True):
        _same(quoted, [rates[workload]])


def test_what_is_said_of_other_lengths_is_so() -> None:
    short, long = (_peers("peers-2-cores.md", workload) for workload in ("short", "long"))
    said = _said(r"OpenVINO takes (\S+) of segue's time on short pairs, and (\S+) to (\S+) on long ones")
    both = _numbers(long[OPENVINO], long[f"{CROSS_ENCODER}, OpenVINO"])
    _same(said, [short[OPENVINO]["seconds, times segue's"], min(both), max(both)])
    int8 = [_peers("peers-int8-2-cores.md", workload) for workload in ("query-passage", "short", "long")]
    said = _said(
        r"On other lengths, fully quantised OpenVINO took (\S+) to (\S+) of segue's time, "
        r"and ONNX Runtime at its best (\S+) to (\S+):"
    )
    openvino = _numbers(*(peers[OPENVINO] for peers in int8))
    ort = [min(_numbers(*(one for name, one in peers.items() if name.startswith(ORT)))) for peers in int8]
    _same(said, [min(openvino), max(openvino), min(ort), max(ort)])


def test_what_is_said_of_servers_is_so() -> None:
    loads = [
        {row["server"]: float(row["segue's, times this"]) for row in table}
        for table in _tables("servers-2-cores.md", "## ").values()
    ]
    said = _said(
        r"two cores answer (\S+) to (\S+) times as many pairs with `segue serve` as with a CrossEncoder "
        r"on ONNX Runtime behind one route \((\S+) to (\S+) with a process a core\), and (\S+) to (\S+) "
        r"times as many as with Infinity"
    )
    ranges = [
        bound(load[name] for load in loads)
        for name in (SERVERS, f"{SERVERS}, a process a core", "Infinity, PyTorch")
        for bound in (min, max)
    ]
    _same(said, ranges)


def test_a_figure_that_is_not_the_page_s_is_found() -> None:
    _same("**1,234**, 1.3; 2e-3", ["1233.7", "1.25", "2.4e-03"])
    for wrong, figure in (("1.26", "1.254"), ("1.2", "1.254"), ("1.250", "1.2506")):
        with pytest.raises(AssertionError):
            _same(wrong, [figure])


def _same(quoted: str | list[str], figures: list[str] | list[float]) -> None:
    """Each figure quoted is the page's, to as many digits as it is quoted with."""
    quotes = quoted if isinstance(quoted, list) else re.split(r"[;,]\s+", quoted)
    assert len(quotes) == len(figures), (quotes, figures)
    for quote, figure in zip(quotes, figures, strict=True):
        number = quote.replace("*", "").replace(",", "")
        mantissa, _, power = number.partition("e")
        step = 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2]))
        assert abs(float(number) - float(str(figure).replace(",", ""))) <= 0.5001 * step, (quote, figure)


def _said(pattern: str) -> list[str]:
    found = re.search(pattern, PROSE)
    assert found, f"the README no longer says: {pattern}"
    return list(found.groups())


def _numbers(*rows: dict[str, str]) -> list[float]:
    return [float(row["seconds, times segue's"]) for row in rows]


def _readme_row(table: str, label: str) -> dict[str, str]:
    """The row whose first cell ends with `label`, of the table whose first column has `table` in its name."""
    (rows,) = (rows for rows in _read(README).values() for rows in rows if table in next(iter(rows[0])))
    (found,) = (row for row in rows if re.sub("[*`]", "", next(iter(row.values()))).endswith(label))
    return found


def _peers(page: str, workload: str) -> dict[str, dict[str, str]]:
    (rows,) = _tables(page, f"## {workload}: ").values()
    return {row["peer"].replace("*", ""): row for row in rows}


def _tables(page: str, heading: str) -> dict[str, Rows]:
    """The first table below each heading that begins so."""
    text = (ROOT / "bench" / "results" / page).read_text(encoding="utf-8")
    return {name: tables[0] for name, tables in _read(text).items() if name.startswith(heading) and tables}


def _read(text: str) -> dict[str, list[Rows]]:
    """The tables below each heading."""
    found: dict[str, list[Rows]] = {"": []}
    heading, columns = "", []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if line.startswith("#"):
            heading = line
            found[heading] = []
        if not cells:
            columns = []
        elif not columns:
            columns = [f"{name} {i}" if name in cells[:i] else name for i, name in enumerate(cells)]
            found[heading].append([])
        elif set(line) - set("|-"):
            found[heading][-1].append(dict(zip(columns, cells, strict=True)))
    return found
