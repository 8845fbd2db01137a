"""BERT's own examples through `segue explain`: WordPiece tokens, segment ids, positions."""

from __future__ import annotations

import json
import shutil

import pytest
from tokenizers import BertWordPieceTokenizer

from segue.cli import main
from segue.export import export_checkpoint

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = (
    "the cat slept on rug it likes sleep ##ing all day my dog is cute he play "
    "man went to store bought a gallon of milk"
)
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def bundle(make_checkpoint, tmp_path_factory):
    """A tiny model whose vocabulary has "sleep", "play" and "##ing", but neither "sleeping" nor "playing"."""
    folder = tmp_path_factory.mktemp("examples")
    checkpoint = shutil.copytree(make_checkpoint(layers=1, hidden_size=16), folder / "checkpoint")
    vocabulary = [*SPECIAL, *WORDS]
    (checkpoint / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertWordPieceTokenizer({token: i for i, token in enumerate(vocabulary)}, lowercase=True)
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    export_checkpoint(checkpoint, folder / "bundle")
    return folder / "bundle"


@pytest.mark.parametrize(
    ("a", "b", "tokens"),
    [
        (
            "the cat slept on the rug",
            "it likes sleeping all day",
            "[CLS] the cat slept on the rug [SEP] it likes sleep ##ing all day [SEP]",
        ),
        (  # the figure of BERT's input representation
            "my dog is cute",
            "he likes playing",
            "[CLS] my dog is cute [SEP] he likes play ##ing [SEP]",
        ),
        (
            "The man went to the store",
            "He bought a gallon of milk",
            "[CLS] the man went to the store [SEP] he bought a gallon of milk [SEP]",
        ),
        (
            "the man went to the store",
            "penguins sleeping",  # a word of which no piece is known
            "[CLS] the man went to the store [SEP] [UNK] sleep ##ing [SEP]",
        ),
    ],
)
def test_tokens_segments_and_positions(bundle, capsysbinary, a, b, tokens):
    expected = tokens.split()
    first = expected.index("[SEP]") + 1
    assert main(["explain", a, b, "--model", str(bundle)]) == 0
    header, *lines = capsysbinary.readouterr().out.decode().splitlines()
    assert header.split() == ["position", "token", "id", "segment"]
    rows = [line.split() for line in lines[: len(expected)]]
    assert [row[0] for row in rows] == [str(i) for i in range(len(expected))]
    assert [row[1] for row in rows] == expected
    assert [row[2] for row in rows] == [str((SPECIAL + WORDS).index(token)) for token in expected]
    assert [row[3] for row in rows] == ["0"] * first + ["1"] * (len(expected) - first)
    assert lines[len(expected)] == "", "no more tokens than these"
    assert f"{len(expected)} tokens; truncated: 0 from A, 0 from B" in lines

    assert main(["explain", a, b, "--model", str(bundle), "--json"]) == 0
    seen = json.loads(capsysbinary.readouterr().out)
    assert seen["tokens"] == expected
    assert seen["token_type_ids"] == [0] * first + [1] * (len(expected) - first)
    assert seen["positions"] == list(range(len(expected)))
