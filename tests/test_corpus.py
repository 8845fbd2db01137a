"""Documents and sentences from raw text."""

from __future__ import annotations

import pytest

from segue.errors import InputError
from segue.export.corpus import read_documents, split_documents, split_sentences

# Each is one text and its sentences, divided by " | ".
AWKWARD = [
    "He came. | She left! | Why? | Nobody knew...",
    "Mr. Brown met Mrs. Green and Dr. St. John Smith in St. Albans. | They talked.",
    "J. R. Miller and A. N. Other wrote it. | It sold well.",
    "It costs 3.5 pounds, i.e. Three dollars. | Cheap!",
    "Some fruit, e.g. Apples, keeps. | Other fruit does not.",
    "The U.S. Navy sailed. | It came back.",
    "She rose at 5 a.m. | He slept on.",
    "See No. 5 and Fig. 2 in vol. 3. | They say no. | Others say yes.",
    '"Is he rich?" said she. | "Oh! single, my dear," said he. | "Well!"',
    '"Come in," he cried. | "Sit down. | Will you have tea?" | She would not.',
    "\u2018Why not?\u2019 asked Ann. | \u201cBecause.\u201d | (He smiled.) | They went.",
    "He stopped at etc. and went on. | There were apples, pears, etc. | Nobody ate them.",
    "It was I. | You knew that.",
    "Wait... what? | Fine! | 1984 was long ago.",
    "no mark at the end",
    "It ran on Ms. Gray's machine—not Mr. White's. | It ran.",
    "Is it true?! | It is. | Is he a Dr? | She is.",
]


@pytest.mark.parametrize("marked", AWKWARD)
def test_sentences(marked):
    sentences = marked.split(" | ")
    assert split_sentences(" ".join(sentences)) == sentences


def test_a_small_letter_goes_on():
    assert split_sentences("He said: Stop! then she did not") == ["He said: Stop! then she did not"]


def test_blank_lines_end_sentences_and_other_white_space_is_single():
    assert split_sentences("One\n  two\tthree.\nFour\n \nfive") == ["One two three.", "Four", "five"]
    assert split_sentences(" \n\n ") == []


def test_nothing_is_lost_or_added():
    text = " ".join(" ".join(AWKWARD).split())
    assert " ".join(split_sentences(text)) == text


def test_sentences_in_linear_time():
    sentence = "One sentence of a very long paragraph stands here. "
    assert len(split_sentences(sentence * 20_000)) == 20_000


def test_documents_of_a_file():
    assert split_documents("\n\nA b.\nC.\n  \n\nD.\n") == ["A b.\nC.", "D."]


def test_a_folder_is_a_document_a_file(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfOne here.\r\n\r\nTwo here.")
    (tmp_path / "deep" / "a.txt").write_text("Three. Vier é.", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / ".hidden").write_bytes(b"\0")
    documents = read_documents(tmp_path)
    assert [(d.name, d.sentences) for d in documents] == [
        ("b.txt", ("One here.", "Two here.")),
        ("deep/a.txt", ("Three.", "Vier é.")),
    ]


def test_a_file_is_blank_line_separated(tmp_path):
    file = tmp_path / "all.txt"
    file.write_text("One. Two.\n\nThree.\nFour.\n")
    assert [d.sentences for d in read_documents(file)] == [("One.", "Two."), ("Three.", "Four.")]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"PK\0\1", "binary"),
        ("Müller. Maier.".encode("latin-1"), r"not UTF-8 \(byte 1: 0xfc\)"),
        (b"\n \n", "holds no text"),
        (b"One.\n\nTwo.\n\nThree.\n", "single sentence"),
    ],
)
def test_refused(tmp_path, data, reason):
    file = tmp_path / "x.txt"
    file.write_bytes(data)
    with pytest.raises(InputError, match=reason):
        read_documents(file)


def test_an_empty_folder_and_a_missing_one(tmp_path):
    with pytest.raises(InputError, match="holds no text"):
        read_documents(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_documents(tmp_path / "nowhere")
