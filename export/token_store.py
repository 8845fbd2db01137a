"""A corpus as token ids on disk: tokenised once, then read in place, however large it is.

A folder of three flat arrays and `store.json`, which is written last: a folder without it is no store. Knows
documents and sentences, but nothing about pairs or models.
"""

from __future__ import annotations

__all__ = ["TokenStore", "write_tokens"]

import json
import os
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from segue.bundle import read_object
from segue.errors import BundleError, InputError
from segue.export.corpus import Document

_FORMAT = 1
_DTYPES = {"ids": np.dtype("<i4"), "sentences": np.dtype("<i8"), "documents": np.dtype("<i8")}
_COUNTS = ("tokens", "sentences", "documents")
_AT_ONCE = 1 << 17  # characters; the tokenizer's own objects take some hundred bytes a token


def write_tokens(documents: Iterable[Document], tokenizer: Tokenizer, folder: str | Path) -> TokenStore:
    """Tokenise the documents into `folder` and open it. Holds one document and some 100,000 characters at a
    time; the tokenizer is not changed.

    A special token's name in the text is just text: `[SEP]` there separates nothing. Sentences without tokens
    and documents without sentences are left out. Raises `InputError` for fewer than two documents, and where
    none has two sentences.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("store.json", *_DTYPES):  # not overwritten in place: another process may be reading them
        (folder / name).unlink(missing_ok=True)
    plain = _plain(tokenizer)
    numbered = ((i, text) for i, document in enumerate(documents) for text in document.sentences)
    tokens = sentences = count = 0
    owner = -1  # the document of the last sentence written
    while batch := list(_take(numbered)):
        encodings = plain.encode_batch([text for _, text in batch], add_special_tokens=False)
        kept = [(number, row.ids) for (number, _), row in zip(batch, encodings, strict=True) if row.ids]
        owners = np.array([owner, *(number for number, _ in kept)])
        ends = tokens + np.cumsum([len(ids) for _, ids in kept], dtype=np.int64)
        opened = np.flatnonzero(np.diff(owners))
        _append(folder, "ids", [token for _, ids in kept for token in ids])
        _append(folder, "sentences", [tokens, *ends[:-1]] if kept else [])
        _append(folder, "documents", sentences + opened)
        tokens, owner = int(ends[-1]) if kept else tokens, int(owners[-1])
        sentences, count = sentences + len(kept), count + len(opened)
    _append(folder, "sentences", [tokens])
    _append(folder, "documents", [sentences])
    if count < 2 or sentences == count:
        raise InputError(
            f"corpus: expected two documents or more, one of them of two sentences or more, got {count} "
            f"{'document' if count == 1 else 'documents'} of {sentences} sentences with any token"
        )
    facts = {"format": _FORMAT, "tokenizer": _digest(plain)}
    facts |= zip(_COUNTS, (tokens, sentences, count), strict=True)
    (folder / "store.json.part").write_text(json.dumps(facts, indent=1) + "\n")
    os.replace(folder / "store.json.part", folder / "store.json")
    return TokenStore(folder)


def _take(numbered: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The next sentences, some _AT_ONCE characters of them."""
    characters = 0
    for number, text in numbered:
        yield number, text
        characters += len(text)
        if characters >= _AT_ONCE:
            return


def _append(folder: Path, name: str, values: Any) -> None:
    with (folder / name).open("ab") as file:
        file.write(np.asarray(values, dtype=_DTYPES[name]).tobytes())


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that cuts nothing, adds nothing and sees no special tokens in text."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True
    return copy


def _digest(plain: Tokenizer) -> str:
    """A hash of what decides how text is tokenised."""
    parts = json.loads(plain.to_str())
    telling = [parts[name] for name in ("added_tokens", "normalizer", "pre_tokenizer", "model")]
    return sha256(json.dumps(telling, sort_keys=True).encode()).hexdigest()


class TokenStore:
    """The token ids of D documents of S sentences of T tokens in all, mapped from disk, read only.

    ids: [T] int32, end to end. sentences: [S+1] int64, where each begins in `ids`, and T. documents: [D+1]
    int64, where each begins in `sentences`, and S. No sentence and no document is empty. Pickles as its path.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open what `write_tokens` wrote. Raises `BundleError` where it is missing or incomplete."""
        self.folder = Path(folder)
        try:
            facts = read_object(self.folder / "store.json")
        except (OSError, BundleError) as error:
            raise BundleError(f"{self.folder}: no complete token store: {error}") from error
        if facts.get("format") != _FORMAT:
            raise BundleError(f"{self.folder}: format: expected {_FORMAT}, got {facts.get('format')!r}")
        for name in _COUNTS:
            if type(facts.get(name)) is not int or facts[name] < 1:
                raise BundleError(
                    f"{self.folder}: {name}: expected an integer from 1, got {facts.get(name)!r}"
                )
        tokens, sentences, documents = (facts[name] for name in _COUNTS)
        self.tokenizer_digest = str(facts.get("tokenizer"))
        self.ids = self._map("ids", tokens)
        self.sentences = self._map("sentences", sentences + 1)
        self.documents = self._map("documents", documents + 1)

    def __reduce__(self) -> tuple[type[TokenStore], tuple[Path]]:
        return TokenStore, (self.folder,)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise `InputError` if the store was written with a different tokenizer."""
        if _digest(_plain(tokenizer)) != self.tokenizer_digest:
            raise InputError(f"{self.folder}: the corpus was tokenised with a different vocabulary")

    def _map(self, name: str, length: int) -> NDArray[Any]:
        path, dtype = self.folder / name, _DTYPES[name]
        size = path.stat().st_size if path.is_file() else 0
        if size != length * dtype.itemsize:
            raise BundleError(f"{path}: expected {length * dtype.itemsize} bytes, got {size}")
        return np.asarray(np.memmap(path, dtype, mode="r"))  # a plain view: a memmap's own indexing is slow
