"""Documents and sentences from raw text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.export.corpus import split_documents, split_sentences

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
    "It was\u2014Mr. Darcy himself. | Yes.",
    "(Mr. Darcy came.) | Yes.",
    "Is it true?! | It is. | Is he a Dr? | She is.",
    'He left . | She stayed ! | " Is he rich ? " said she . | " No . | "Yes ! "',
    "O\u00f9 est-il ? | Il est parti ! | \u00ab Quand ? \u00bb dit-elle. | \u00abHier.\u00bb | Bon.",
    "They ran . . . | Then home. . . . | Wait . . . what ? | Fine .",
]


@pytest.mark.parametrize("marked", AWKWARD)
def test_sentences(marked):
    sentences = marked.split(" | ")
    assert split_sentences(" ".join(sentences)) == sentences


@pytest.mark.parametrize(
    "marked",
    [
        "\u5c71\u9ad8\u3002|\u6c34\u6df1\uff01\uff1f|\u4eba\u591a",
        "\u300c\u5c71\u3002\u300d|\u201c\u6c34\uff1f\u201d|BERT\u3002|abc",
        "\u300c\u5c71\u3002\u300d\u3002|\u201c\u6c34\uff1f\u201d\uff01\uff09|\u4eba",
        "\u300a\u5c71\uff1f\u300b|[\u6c34\u3002]|\uff62\u4eba\uff61\uff63|\u5c71",
        "\u092f\u0939\u0964 |\u0935\u0939\u0965 |\u0915\u094c\u0928",
        "\u0645\u0646\u061f |\u0623\u0646\u0627. |\u06c1\u06d2\u06d4 |\u0628\u0633",
    ],
)
def test_sentences_of_other_scripts(marked):
    """Chinese and Japanese without spaces; Hindi; Arabic and Urdu."""
    sentences = marked.split("|")
    assert split_sentences("".join(sentences)) == [sentence.strip() for sentence in sentences]


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
    for endless in ("." * 400_000 + "x", "!_" * 200_000 + "x y", "Mr. " * 100_000 + "X"):
        assert split_sentences(endless) == [endless]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="5.!?\u2026)\u2019 ", max_size=30))
def test_the_last_of_some_marks_ends_a_sentence(text):
    """As one expression, which is quadratic in a run's length."""
    words = " ".join(text.split())
    expected = re.sub(r"([.!?\u2026]+)([)\u2019]*) (?![.!?\u2026]+(?: |$))", r"\1\2\n", words)
    assert split_sentences(text) == expected.splitlines()


def test_documents_of_a_file():
    assert split_documents("\n\nA b.\nC.\n  \n\nD.\n") == ["A b.\nC.", "D."]
