"""The reliability diagram: a valid picture of every set, and the bins that it shows."""

from __future__ import annotations

import struct
import sys
import zlib

import numpy as np
import pytest

from segue.export.evaluation import measured
from segue.export.measures import calibration_bins, calibration_error
from segue.export.reliability import _interval, draw_reliability


def made(count: int, seed: int = 0):
    draw = np.random.default_rng(seed)
    probabilities = draw.random(count)
    return measured(probabilities, draw.random(count) < probabilities, np.zeros(count, bool))


def pixels(data: bytes) -> tuple[int, int]:
    """(width, height) of a PNG, whose chunks are all read and checked."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    place, kinds, size, packed = 8, [], (0, 0), b""
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        body = data[place + 8 : place + 8 + length]
        assert struct.unpack_from(">I", data, place + 8 + length)[0] == zlib.crc32(kind + body)
        kinds.append(kind)
        size = struct.unpack_from(">II", body) if kind == b"IHDR" else size
        packed += body if kind == b"IDAT" else b""
        place += 12 + length
    assert (kinds[0], kinds[-1]) == (b"IHDR", b"IEND")
    shades = np.frombuffer(zlib.decompress(packed), dtype=np.uint8)
    assert len(np.unique(shades)) > 20, "something is drawn"
    return size


@pytest.mark.parametrize(("sets", "size"), [(1, (432, 576)), (2, (864, 576)), (5, (1296, 1152))])
def test_a_picture_has_a_panel_for_each_set(sets, size, tmp_path):
    file = tmp_path / "reliability.png"
    assert draw_reliability({f"set {i}": made(50, i) for i in range(sets)}, file)
    assert pixels(file.read_bytes()) == size
    assert 5_000 < file.stat().st_size < 300_000


def test_one_bin_and_no_area_are_drawn_too(tmp_path):
    found = measured(np.full(3, 0.7), np.ones(3, bool), np.zeros(3, bool))
    assert (found["auc"], len(found["bins"])) == (None, 1)
    assert draw_reliability({"one": found}, tmp_path / "one.png")
    assert pixels((tmp_path / "one.png").read_bytes()) == (432, 576)


def test_what_is_drawn_differs_with_the_figures(tmp_path):
    for seed in (0, 1):
        draw_reliability({"set": made(50, seed)}, tmp_path / f"{seed}.png")
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "1.png").read_bytes()


def test_without_matplotlib_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not draw_reliability({"set": made(50)}, tmp_path / "none.png")
    assert list(tmp_path.iterdir()) == []


def test_bins_by_hand():
    counts, means, shares = calibration_bins([0.0, 0.1, 0.25, 1.0], [False, True, True, True], bins=4)
    assert counts.tolist() == [2, 1, 0, 1], "an edge belongs to the bin above it, 1 to the last"
    assert means[[0, 1, 3]] == pytest.approx([0.05, 0.25, 1.0])
    assert shares[[0, 1, 3]] == pytest.approx([0.5, 1.0, 1.0])
    assert np.isnan(means[2])
    assert np.isnan(shares[2])


def test_the_calibration_error_is_that_of_the_bins():
    draw = np.random.default_rng(3)
    probabilities, truth = draw.random(400), draw.random(400) < 0.4
    expected = 0.0
    for i in range(15):  # in plain words
        inside = [(p, t) for p, t in zip(probabilities, truth, strict=True) if i <= p * 15 < i + 1]
        expected += abs(sum(p for p, _ in inside) - sum(t for _, t in inside)) / 400
    assert calibration_error(probabilities, truth) == pytest.approx(expected)


def test_intervals_by_hand():
    assert _interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # as published tables have it
    assert _interval(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert _interval(1.0, 1) == pytest.approx((0.2065, 1.0), abs=1e-4)
