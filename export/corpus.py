"""Documents and sentences from raw text: what next sentence prediction is taught from.

Reads UTF-8 files and cuts them into documents and sentences; knows nothing about tokens, pairs or models.
"""

from __future__ import annotations

__all__ = ["Document", "read_documents", "split_documents", "split_sentences"]

import re
from dataclasses import dataclass
from pathlib import Path

from segue.errors import InputError

# Words whose full stop ends no sentence. "etc." and "Co." are missing on purpose: they end sentences as often
# as not, and what follows decides.
_TITLES = "mr mrs ms messrs mme mlle dr st prof rev hon gov sen rep fr jr sr mt"
_RANKS = "adm brig capt cmdr col gen lt maj sgt"
_NOTES = "e.g i.e cf viz vs al approx ca eds trans jan feb mar apr jun jul aug sept sep oct nov dec"
_ABBREVIATIONS = frozenset(f"{_TITLES} {_RANKS} {_NOTES}".split())
# Words that are abbreviations before a number alone: "No. 5", but "He said no. She left."
_BEFORE_NUMBERS = frozenset(["no", "nos", "vol", "vols", "fig", "figs", "pp", "ch", "sec", "art", "op"])
_INITIALS = re.compile(r"(?:[A-Za-z]\.)*[A-Za-z]")
# Typographic quotation marks by number: the letters are easily taken for one another.
_OPENING = "\"'\u201c\u2018([\u2014-_"
_CLOSING = "\"'\u201d\u2019)]_"
_END = re.compile(rf"(?<=\S)([.!?\u2026]+)([{re.escape(_CLOSING)}]*)\s+")


def split_sentences(text: str) -> list[str]:
    """The sentences of one text, in order, white space made single.

    A sentence ends at a full stop, exclamation or question mark before something that begins like a sentence;
    not after an abbreviation or an initial, and not inside a phrase that goes on in a small letter, so that
    `"Is he rich?" said she.` stays whole. A blank line always ends one.
    """
    return [
        sentence
        for paragraph in re.split(r"\n\s*\n", text)
        for sentence in _split_paragraph(" ".join(paragraph.split()))
    ]


def split_documents(text: str) -> list[str]:
    """The documents of one text: blocks with blank lines between them."""
    return [block.strip() for block in re.split(r"\n[^\S\n]*\n", text.strip()) if block.strip()]


def read_documents(path: str | Path) -> list[Document]:
    """The documents of a folder (each file one document, in the order of their names) or of one file
    (documents separated by blank lines). Hidden files are passed over.

    Raises `InputError` for what is missing, empty, binary or not UTF-8, and for text that holds no document
    of at least two sentences: nothing follows anything there.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*")
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        texts = [(str(file.relative_to(path)), _read(file)) for file in files]
    elif path.is_file():
        texts = [(f"{path.name}#{i}", text) for i, text in enumerate(split_documents(_read(path)), 1)]
    else:
        raise InputError(f"corpus: expected a folder or a text file, got {str(path)!r}, which does not exist")
    documents = [Document(name, tuple(split_sentences(text))) for name, text in texts]
    documents = [document for document in documents if document.sentences]
    if not documents:
        raise InputError(f"corpus: {str(path)!r} holds no text")
    if all(len(document.sentences) < 2 for document in documents):
        raise InputError(
            f"corpus: every document in {str(path)!r} is a single sentence, so nothing follows anything; "
            "write one document a file, or put blank lines between documents and none inside them"
        )
    return documents


def _read(file: Path) -> str:
    data = file.read_bytes()
    if b"\0" in data:
        raise InputError(f"corpus: {str(file)!r} is a binary file, expected UTF-8 text")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"corpus: {str(file)!r} is not UTF-8 (byte {error.start}: 0x{data[error.start]:02x})"
        ) from error


def _split_paragraph(text: str) -> list[str]:
    sentences, start = [], 0
    for end in _END.finditer(text):
        following = text[end.end() : end.end() + 8].lstrip(_OPENING)[:1]
        if _ends_sentence(text[start : end.start(1)], end[1], end[2], following):
            sentences.append(text[start : end.end()].rstrip())
            start = end.end()
    return [*sentences, text[start:]] if start < len(text) else sentences


def _ends_sentence(before: str, mark: str, closing: str, following: str) -> bool:
    """Whether the mark after `before` ends a sentence; `following` is the next letter or digit, if any."""
    if not following or following.islower():
        return not following
    if mark != "." or closing:
        return True
    word = re.split(r"[\s\u2014]", before)[-1].lstrip(_OPENING)
    if word.lower() in _BEFORE_NUMBERS:
        return not following.isdigit()
    if word in ("I", "a.m", "p.m"):
        return True
    return word.lower() not in _ABBREVIATIONS and not _INITIALS.fullmatch(word)


@dataclass(frozen=True)
class Document:
    """A text whose sentences follow one another."""

    name: str
    sentences: tuple[str, ...]
