"""Documents from the files of a corpus, one at a time, so that memory holds the largest document and not the
corpus. Knows nothing about tokens.
"""

from __future__ import annotations

__all__ = ["CORPUS_HELP", "corpus_files", "iter_documents"]

import os
from collections.abc import Iterator
from pathlib import Path

from segue.errors import InputError
from segue.export.corpus import Document, split_documents, split_sentences

CORPUS_HELP = (
    "a folder of UTF-8 files, one document each (links to folders are not followed); or one file, with blank "
    "lines between documents; a sentence ends at a mark before a capital, not with its line"
)
_ADVICE = "write one document a file, or put blank lines between documents and none inside them"
_BUFFER = 1 << 16  # bytes per read; a zero byte in the first read reveals a binary file at once


def iter_documents(path: str | Path) -> Iterator[Document]:
    """The documents of a folder (each file one document, in the order of their names) or of one file
    (documents separated by blank lines), lazily. Hidden files and folders are skipped, and so are links to
    folders.

    Raises `InputError` on reaching a file that is missing, binary or not UTF-8, and `OSError` if one cannot
    be read; and, at the end, `InputError` if there is no text, if every document is a single sentence
    (nothing follows anything there), or if there is only one document (no other to draw a sentence from).
    """
    path = Path(path)
    if not path.is_dir() and not path.is_file():
        what = "is neither" if path.exists() else "does not exist"
        raise InputError(f"corpus: expected a folder or a text file, got {str(path)!r}, which {what}")
    count = longest = 0
    for name, text in _folder(path) if path.is_dir() else _file(path):
        if sentences := tuple(split_sentences(text)):
            count, longest = count + 1, max(longest, len(sentences))
            yield Document(name, sentences)
    if not count:
        raise InputError(f"corpus: {str(path)!r} holds no text")
    if longest < 2:
        raise InputError(
            f"corpus: every document in {str(path)!r} is a single sentence, which ends at a mark before a "
            f"capital, not with its line, so nothing follows anything; {_ADVICE}"
        )
    if count < 2:
        raise InputError(
            f"corpus: {str(path)!r} is one document only, so no other to draw a sentence from; {_ADVICE}"
        )


def corpus_files(folder: Path) -> list[Path]:
    """The files of a folder and of those in it, in the order of their names. Hidden ones are skipped, and so
    are links to folders, which may lead in circles; links to files are not.

    Raises `OSError` for a folder that cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    files: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(file for file in files if file.is_file())


def _folder(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of each document."""
    for file in corpus_files(path):
        yield str(file.relative_to(path)), "".join(_lines(file))


def _file(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of each document, read up to the next blank line."""
    count, block = 0, []
    for line in _lines(path):
        block.append(line)
        if not line.strip():
            for text in split_documents("".join(block)):
                count += 1
                yield f"{path.name}#{count}", text
            block = []
    for text in split_documents("".join(block)):
        count += 1
        yield f"{path.name}#{count}", text


def _lines(file: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, without a byte order mark, each ending in \\n however the file ends them."""
    place = 0  # bytes before the line
    with file.open("rb", buffering=_BUFFER) as stream:
        binary = b"\0" in stream.peek()
        for line in stream:
            if binary or b"\0" in line:
                raise InputError(f"corpus: {str(file)!r} is a binary file, expected UTF-8 text")
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"corpus: {str(file)!r} is not UTF-8 "
                    f"(byte {place + error.start}: 0x{line[error.start]:02x})"
                ) from error
            text = text if place else text.removeprefix("\ufeff")
            place += len(line)
            yield text.replace("\r\n", "\n").replace("\r", "\n")
