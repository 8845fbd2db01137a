"""Documents one at a time: the same as of the whole text, and what is refused."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.errors import InputError
from segue.export.corpus import split_documents, split_sentences
from segue.export.documents import corpus_files, iter_documents

FILES = st.text(alphabet="aB.!\n\r \t\x0c\x1c\u2028é", max_size=60)


@settings(max_examples=300, deadline=None)
@given(FILES)
def test_a_file_is_separated_by_blank_lines_as_its_whole_text_is(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "lazily.txt"
    text = f"Ann ate. Bob bit.\n\n{text}\n\n\nC."
    file.write_bytes(text.encode())
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    numbered = [(n, tuple(split_sentences(one))) for n, one in enumerate(split_documents(plain), 1)]
    expected = [(f"lazily.txt#{n}", sentences) for n, sentences in numbered if sentences]
    assert [(one.name, one.sentences) for one in iter_documents(file)] == expected


def test_a_folder_is_a_document_a_file(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfOne here.\r\n\r\nTwo here.")
    (tmp_path / "deep" / "a.txt").write_text("Three. Vier é.", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / ".hidden").write_bytes(b"\0")
    assert [(one.name, one.sentences) for one in iter_documents(tmp_path)] == [
        ("b.txt", ("One here.", "Two here.")),
        ("deep/a.txt", ("Three.", "Vier é.")),
    ]


def test_a_document_is_given_before_the_next_is_read(tmp_path):
    (tmp_path / "a.txt").write_text("One. Two.")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    found = iter_documents(tmp_path)
    assert next(found).sentences == ("One.", "Two.")
    with pytest.raises(InputError, match="not UTF-8"):
        next(found)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"PK\0\1", "binary"),
        ("Müller. Maier.".encode("utf-16"), "binary"),
        (b"One.\nTwo.\n" * 9000 + b"\0", "binary"),
        ("Eins.\n\nMüller. Maier.".encode("latin-1"), r"not UTF-8 \(byte 8: 0xfc\)"),
        (b"\n \n", "holds no text"),
        (b"", "holds no text"),
        (b"One.\n\nTwo.\n\nThree.\n", "every document .* is a single sentence"),
        (
            b"one.\ntwo.\n\nthree.\n",
            "is a single sentence, which ends at a mark before a capital, not with its line",
        ),
        (b"One. Two.\nThree.\n", "is one document only"),
    ],
)
def test_refused(tmp_path, data, reason):
    file = tmp_path / "x.txt"
    file.write_bytes(data)
    with pytest.raises(InputError, match=reason):
        list(iter_documents(file))


def test_an_empty_folder_and_a_missing_one(tmp_path):
    with pytest.raises(InputError, match="holds no text"):
        list(iter_documents(tmp_path))
    with pytest.raises(InputError, match="does not exist"):
        next(iter_documents(tmp_path / "nowhere"))


def test_what_is_neither_a_file_nor_a_folder_is_said_to_be(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"expected a folder or a text file, got '.*pipe', which is neither"):
        next(iter_documents(tmp_path / "pipe"))


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("One. Two.")
    (tmp_path / "locked").mkdir()
    (tmp_path / ".hidden").mkdir()
    scandir = os.scandir

    def guarded(path):
        if os.path.basename(path) in ("locked", ".hidden"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*/locked'"):
        corpus_files(tmp_path)
    (tmp_path / "locked").rmdir()
    assert corpus_files(tmp_path) == [tmp_path / "a.txt"]


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "a.txt").write_text("One. Two.")
    (tmp_path / "corpus" / "link.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "corpus" / "round").symlink_to(tmp_path / "corpus")
    assert corpus_files(tmp_path / "corpus") == [tmp_path / "corpus" / "link.txt"]
