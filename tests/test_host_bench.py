"""The script that times text to packed batches runs, says what it should, and times no wrong ids."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import host as script
import numpy as np
import pytest

WAYS = (
    "transformers, ",
    "tokenizers, nothing padded",
    "segue, every word new",
    "segue, other pairs seen before",
)
PARTS = ["numbering", "looking words up", "tokenising new words", "reading their ids"]
PARTS += ["the rest of encoding", "planning", "packing"]
TINY = ["--share", "0.003", "--rounds", "2", "--threads", "1"]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.setattr(script, "RESULT", tmp_path / "host.md")
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")  # put back when the test is over
    words = [f"{word}{number % 7}" for number in range(3000) for word in ("water,", "Mill", "(river)")]
    monkeypatch.setattr(script, "_drawn", lambda: words)
    return script


def test_every_way_and_every_part_is_reported(host, tmp_path, capsys):
    prose = tmp_path / "prose.txt"
    prose.write_text("The river had risen to the third step of the mill. " * 200, encoding="utf-8")
    host.main([*TINY, "--text", str(prose), "--write", "--json", str(tmp_path / "host.json")])
    page = capsys.readouterr().out
    assert host.RESULT.read_text(encoding="utf-8") == page
    report = json.loads((tmp_path / "host.json").read_text(encoding="utf-8"))
    assert list(report) == ["Words drawn by Zipf's law", "The words of prose.txt"]
    for works in report.values():
        assert [found["pairs"] for found in works.values()] == [60, 12, 24]
        for found in works.values():
            assert all(way.startswith(named) for way, named in zip(found["seconds"], WAYS, strict=True))
            assert all(len(taken) == 2 and min(map(min, taken)) > 0 for taken in found["seconds"].values())
            for rounds in found["parts"].values():
                assert [list(one) for one in rounds] == [PARTS] * 2
                assert min(min(one.values()) for one in rounds) >= 0
    (mixed, *_) = report.values()
    new, seen = mixed["distinct short pairs"]["parts"].values()
    assert min(one["tokenising new words"] for one in new) > 0
    assert max(one["tokenising new words"] for one in seen) == 0  # 21 words, all of them among the others'


@pytest.mark.parametrize("field", ["input_ids", "token_type_ids"])
def test_nothing_is_timed_where_a_pair_differs(host, monkeypatch, capsys, field):
    pack = host.pack

    def wrong(encoded, rows):
        batch = pack(encoded, rows)
        values = getattr(batch, field).copy()
        values[-2] += 1
        return replace(batch, **{field: values})

    monkeypatch.setattr(host, "pack", wrong)
    monkeypatch.setattr(host, "_clock", None)
    with pytest.raises(SystemExit, match=rf"pairs\[\d+\]: {field} differ, so nothing is timed"):
        host.main(TINY)
    assert capsys.readouterr().out == ""


def test_a_text_that_is_too_short_is_refused(host, monkeypatch):
    monkeypatch.setattr(host, "_drawn", lambda: ["word"] * 100)
    with pytest.raises(SystemExit, match=r"^\d+ words are needed, and there are 100$"):
        host.main(TINY)


def test_the_others_are_other_pairs_of_the_same_shape(host):
    words = list(map(str, range(20_000)))
    for pairs, others in host._workloads(words, 0.01).values():
        assert [(a.count(" "), b.count(" ")) for a, b in pairs] == [
            (a.count(" "), b.count(" ")) for a, b in others
        ]
        assert not {a for pair in pairs for a in pair} & {a for pair in others for a in pair}
        assert min(len(text) for pair in pairs for text in pair) > 0


def test_drawn_words_are_as_varied_as_prose():
    """Wikipedia's first articles have 31,700 distinct words among 169,000, and 1.33 tokens to a word."""
    words = script._drawn()[:169_000]
    assert 28_000 < len(set(words)) < 40_000
    encoding = script.Tokenizer.from_file(str(script.FILE)).encode_batch_fast(words[:20_000])
    assert 1.2 < np.mean([len(one.ids) - 2 for one in encoding]) < 1.45
