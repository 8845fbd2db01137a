"""The pairs of a benchmark: lengths exact by the tokenizer itself, all different, the same every time."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import pytest
from tokenizers import BertWordPieceTokenizer, Tokenizer, models, pre_tokenizers
from tokenizers.processors import BertProcessing

from segue.benchmark.workload import (
    SHORTEST,
    drawn_lengths,
    read_pairs,
    synthetic_pairs,
    whole_words,
    workload,
)
from segue.engine import DEFAULT_MODEL
from segue.errors import InputError, SegueError
from segue.text import PairEncoder

TOKENIZER = DEFAULT_MODEL / "tokenizer.json"
LENGTHS = [5, 6, 7, 16, 63, 64, 128, 511, 512]


@pytest.fixture(scope="module")
def words() -> list[str]:
    return whole_words(TOKENIZER)


@pytest.fixture(scope="module")
def encoder() -> PairEncoder:
    return PairEncoder(TOKENIZER, 512)


def test_words_are_one_token_each(words: list[str]):
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    assert len(words) == len(set(words)) > 20_000
    assert all(word.isalpha() for word in words)
    assert not {"[CLS]", "[unused1]", "##ing"} & set(words)
    tokenizer.no_padding()
    assert {len(made.ids) for made in tokenizer.encode_batch(words, add_special_tokens=False)} == {1}


def test_pairs_have_the_lengths_asked_for(words: list[str], encoder: PairEncoder):
    """Counted by the tokenizer alone, with its own special tokens."""
    pairs = synthetic_pairs(words, LENGTHS, encoder, seed=(0,))
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    assert [len(tokenizer.encode(*pair).ids) for pair in pairs] == LENGTHS
    assert all(first and second for first, second in pairs)


def test_a_small_vocabulary_serves_too_and_its_own_truncation_is_not_asked(tmp_path: Path):
    """300 pairs of two words out of 26: many are drawn twice, and drawn again. It never makes a Q."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, "##a", "Q"]
    tokenizer = BertWordPieceTokenizer({token: place for place, token in enumerate(vocabulary)})
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=16)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    assert whole_words(path) == list(string.ascii_lowercase)
    encoder = PairEncoder(path, 512)
    pairs = synthetic_pairs(whole_words(path), [5] * 300 + LENGTHS, encoder, seed=(0,))
    assert len(set(pairs)) == len(pairs) == 309
    assert workload(pairs, encoder, source="").lengths.tolist() == [5] * 300 + LENGTHS


def test_pairs_depend_on_the_seed_alone(words: list[str], encoder: PairEncoder):
    first = synthetic_pairs(words, LENGTHS, encoder, seed=(3, 1))
    assert synthetic_pairs(words, LENGTHS, encoder, seed=(3, 1)) == first
    other = synthetic_pairs(words, LENGTHS, encoder, seed=(3, 2))
    assert not set(first) & set(other)
    one, two = (workload(pairs, encoder, source="x").record()["sha256"] for pairs in (first, other))
    assert one != two


def test_drawn_lengths_have_the_mean_and_keep_to_the_limits():
    lengths = drawn_lengths(20_000, 512, 0)
    assert lengths.mean() == pytest.approx(60, rel=0.02)
    assert np.log(lengths).std() == pytest.approx(0.8, rel=0.05)
    assert drawn_lengths(100, 512, 1).mean() == pytest.approx(60, rel=0.05)
    assert lengths.min() >= SHORTEST
    assert lengths.max() <= 512
    short = drawn_lengths(1000, 32, 0)
    assert (short.max(), short.min()) == (32, SHORTEST)
    assert np.array_equal(drawn_lengths(50, 512, 4), drawn_lengths(50, 512, 4))
    assert not np.array_equal(drawn_lengths(50, 512, 4), drawn_lengths(50, 512, 5))


@pytest.mark.parametrize("words", [[], ["the"], ["the", "cat"]])
def test_too_few_words_are_said(words: list[str], encoder: PairEncoder):
    with pytest.raises(SegueError, match=f"{len(words)} whole words of one token, too few"):
        synthetic_pairs(words, [5] * 9, encoder, seed=(0,))


def test_words_that_are_other_tokens_together_are_refused(tmp_path: Path):
    """A tokenizer that never splits at blanks: lengths would be wrong, so none are given."""
    names = {name: place for place, name in enumerate(["[UNK]", "[CLS]", "[SEP]", "a", "b", "cat", "dog"])}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="[UNK]"))
    tokenizer.post_processor = BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.save(str(tmp_path / "whole.json"))
    encoder = PairEncoder(tmp_path / "whole.json", 64)
    assert whole_words(tmp_path / "whole.json") == ["a", "b", "cat", "dog"]
    with pytest.raises(SegueError, match="splits words differently beside others"):
        synthetic_pairs(["cat", "dog"], [9, 10], encoder, seed=(0,))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "split.json"))
    assert (
        len(synthetic_pairs(["cat", "dog"], [9, 10], PairEncoder(tmp_path / "split.json", 64), seed=(0,)))
        == 2
    )


def test_a_workload_counts_what_is_equal_and_what_is_cut(encoder: PairEncoder):
    pairs = [("a b", "c"), ("d", "e"), ("a b", "c"), *[("f " * 600, "g")] * 2]
    made = workload(pairs, encoder, source="here")
    record = made.record()
    assert (record["pairs"], record["distinct"], record["truncated"]) == (5, 3, 2)
    assert made.lengths.tolist() == [6, 5, 6, 512, 512]
    assert (record["tokens"], record["shortest"], record["longest"]) == (1041, 5, 512)
    assert record["mean"] == pytest.approx(1041 / 5)
    assert made.pairs == pairs
    assert workload(pairs[:3], encoder, source="here").record()["sha256"] != record["sha256"]


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        ("p.tsv", "a\tb\nc\td\ne\tf\n", {}),
        ("p.tsv", "x\ta\tb\ny\tc\td\n", {"columns": "2,3"}),
        ("p.csv", "query,passage\na,b\nc,d\n", {}),
        ("p.jsonl", '{"a": "a", "b": "b"}\n{"a": "c", "b": "d"}\n', {}),
        ("p.tsv", "l\tr\na\tb\nc\td\n", {"header": True, "columns": "l,r"}),
        ("p", '["a", "b"]\n["c", "d"]\n', {"format": "jsonl"}),
    ],
)
def test_pairs_are_read_as_tables_are(name: str, text: str, options: dict[str, object], tmp_path: Path):
    (tmp_path / name).write_text(text)
    assert read_pairs(str(tmp_path / name), 2, **options) == [("a", "b"), ("c", "d")]
    assert read_pairs(str(tmp_path / name), 1, **options) == [("a", "b")]


def test_a_table_without_pairs_is_refused(tmp_path: Path):
    (tmp_path / "p.tsv").write_text("")
    with pytest.raises(InputError, match=r"p\.tsv: no pairs"):
        read_pairs(str(tmp_path / "p.tsv"), 5)
