"""Documents and sentences from raw text: what next sentence prediction is taught from.

Cuts texts into documents and sentences; knows nothing about files (see `documents`), tokens, pairs or models.
"""

from __future__ import annotations

__all__ = ["Document", "split_documents", "split_sentences"]

import re
from dataclasses import dataclass
from itertools import pairwise

# Words whose full stop ends no sentence. "etc." and "Co." are missing on purpose: they end sentences as often
# as not, and what follows decides.
_TITLES = "mr mrs ms messrs mme mlle dr st prof rev hon gov sen rep fr jr sr mt"
_RANKS = "adm brig capt cmdr col gen lt maj sgt"
_NOTES = "e.g i.e cf viz vs al approx ca eds trans jan feb mar apr jun jul aug sept sep oct nov dec"
_ABBREVIATIONS = frozenset(f"{_TITLES} {_RANKS} {_NOTES}".split())
# Words that are abbreviations only before a number: "No. 5", but "He said no. She left."
_BEFORE_NUMBERS = frozenset(["no", "nos", "vol", "vols", "fig", "figs", "pp", "ch", "sec", "art", "op"])
_INITIALS = re.compile(r"(?:[A-Za-z]\.)*[A-Za-z]")
# Typographic quotation marks by code: the characters are easily confused.
_OPENING = "\"'\u201c\u2018\u00ab\u00bb([\u2014-_"
_CLOSING = "\"'\u201d\u2019\u00bb)]_"
_MARKS = ".!?\u2026\u0964\u0965\u061f\u06d4"  # the last four: Hindi's two, Arabic's, Urdu's
# Chinese and Japanese write no space after a sentence. Marks may stand within brackets and again behind them.
_WIDE_CLOSING = "\u300d\u300f\u300b\u3009\u3011\u3015\uff09\uff3d\uff63\u201d\u2019)\\]"
_WIDE_END = re.compile(f"(?:[\u3002\uff01\uff1f\uff61]+[{_WIDE_CLOSING}]*)+")


def split_sentences(text: str) -> list[str]:
    """The sentences of one text, in order, white space collapsed.

    A sentence ends at a full stop, exclamation or question mark, with or without a space before it, before
    something that begins like a sentence; not after an abbreviation or an initial, and not inside a phrase
    that goes on in a small letter, so that `"Is he rich?" said she.` stays whole. One always ends after a
    full-width mark and at a blank line. In a language that marks no sentences, such as Thai, a paragraph is
    one, and so it is in text of small letters alone.
    """
    return [
        sentence
        for paragraph in re.split(r"\n\s*\n", text)
        for part in _WIDE_END.sub(r"\g<0>\n\n", paragraph).split("\n\n")
        for sentence in _split_paragraph(part.split())
    ]


def split_documents(text: str) -> list[str]:
    """The documents of one text: blocks with blank lines between them."""
    return [block.strip() for block in re.split(r"\n[^\S\n]*\n", text.strip()) if block.strip()]


def _split_paragraph(words: list[str]) -> list[str]:
    text, sentences, start, end = " ".join(words), [], 0, 0
    for word, after in pairwise(words):
        end += len(word) + 1
        following = text[end : end + 8].lstrip(f"{_OPENING} ")[:1]
        if after.strip(_MARKS) and _ends_sentence(word, following):  # marks belong to what is before them
            sentences.append(text[start : end - 1])
            start = end
    return [*sentences, text[start:]] if words else []


def _ends_sentence(word: str, following: str) -> bool:
    """Whether a sentence ends with the word; `following` is the next letter or digit, if any."""
    marked = word.rstrip(_CLOSING)
    stem = marked.rstrip(_MARKS)
    mark, closing = marked[len(stem) :], word[len(marked) :]
    if not mark or not following or following.islower():
        return False
    if mark != "." or closing:
        return True
    stem = stem.rpartition("\u2014")[2].lstrip(_OPENING)
    if stem.lower() in _BEFORE_NUMBERS:
        return not following.isdigit()
    if stem in ("I", "a.m", "p.m"):
        return True
    return stem.lower() not in _ABBREVIATIONS and not _INITIALS.fullmatch(stem)


@dataclass(frozen=True)
class Document:
    """A text whose sentences follow one another."""

    name: str
    sentences: tuple[str, ...]
