"""A corpus as token ids on disk, and the memory it takes to write and read it."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import BertWordPieceTokenizer

from segue.errors import BundleError, InputError
from segue.export import token_store
from segue.export.corpus import Document
from segue.export.token_store import TokenStore, write_tokens

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENS = [*SPECIAL, *"abcdefgh", *(f"##{letter}" for letter in "abcdefgh"), ".", "[", "]", "sep", "##p"]


@pytest.fixture(scope="module")
def tokenizer():
    return BertWordPieceTokenizer({token: i for i, token in enumerate(TOKENS)})


def documents(*texts: str) -> list[Document]:
    return [Document(str(i), tuple(text.split("|"))) for i, text in enumerate(texts)]


def contents(store: TokenStore) -> list[list[list[int]]]:
    sentences = [part.tolist() for part in np.split(store.ids, store.sentences[1:-1])]
    pairs = zip(store.documents[:-1], store.documents[1:], strict=True)
    return [sentences[first:last] for first, last in pairs]


@pytest.mark.parametrize("characters", [1, 7, 1 << 17])
def test_what_is_written_is_what_tokenising_gives(tmp_path, tokenizer, monkeypatch, characters):
    """However many sentences are tokenised at once, across documents or not."""
    monkeypatch.setattr(token_store, "_AT_ONCE", characters)
    made = documents("abc. d|ee|f", "g", "hh h|a")
    store = write_tokens(made, tokenizer, tmp_path / "store")
    expected = [
        [tokenizer.encode(text, add_special_tokens=False).ids for text in document.sentences]
        for document in made
    ]
    assert contents(store) == expected == contents(TokenStore(tmp_path / "store"))
    assert [array.dtype for array in (store.ids, store.sentences, store.documents)] == ["<i4", "<i8", "<i8"]


def test_what_has_no_tokens_is_left_out(tmp_path, tokenizer, monkeypatch):
    for characters in (1, 1 << 17):
        monkeypatch.setattr(token_store, "_AT_ONCE", characters)
        made = documents("\x07|a|\x07|b", "\x07|\x07", "c|\x07", "\x07")
        assert contents(write_tokens(made, tokenizer, tmp_path)) == [[[5], [6]], [[7]]]


def test_special_tokens_in_text_are_text(tmp_path, tokenizer):
    store = write_tokens(documents("a [SEP] b|c", "[MASK]"), tokenizer, tmp_path)
    assert not np.isin(store.ids, [0, 2, 3, 4]).any()
    assert [TOKENS[i] for i in contents(store)[0][0]] == ["a", "[", "sep", "]", "b"]


def test_the_tokenizer_neither_cuts_nor_pads_nor_changes(tmp_path):
    tokenizer = BertWordPieceTokenizer({token: i for i, token in enumerate(TOKENS)})
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    before = tokenizer.to_str()
    store = write_tokens(documents("a b c d e|f", "g"), tokenizer, tmp_path)
    assert contents(store) == [[[5, 6, 7, 8, 9], [10]], [[11]]]
    assert tokenizer.to_str() == before
    assert tokenizer.encode("[SEP]", add_special_tokens=False).ids[0] == 3


@pytest.mark.parametrize("texts", [["a|b|c"], ["a", "b"], ["a|b", "\x07"], ["a", "b|\x07"], []])
def test_nothing_to_draw_or_nothing_that_follows(tmp_path, tokenizer, texts):
    with pytest.raises(InputError, match="expected two documents or more, one of them of two sentences"):
        write_tokens(documents(*texts), tokenizer, tmp_path)
    with pytest.raises(BundleError, match="no complete token store"):
        TokenStore(tmp_path)


def test_an_incomplete_store_is_none(tmp_path, tokenizer):
    """Whenever the writing is killed; what was there before is gone, too."""

    def interrupted():
        yield from documents("a|b", "c")
        raise KeyboardInterrupt

    write_tokens(documents("a|b", "c"), tokenizer, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_tokens(interrupted(), tokenizer, tmp_path)
    with pytest.raises(BundleError, match="no complete token store"):
        TokenStore(tmp_path)
    write_tokens(documents("a|b", "c"), tokenizer, tmp_path)
    with (tmp_path / "ids").open("ab") as file:
        file.write(b"\0\0\0\0")
    with pytest.raises(BundleError, match="ids: expected 12 bytes, got 16"):
        TokenStore(tmp_path)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ("[]", "no complete token store: .*expected an object, got list"),
        ("{}", "format: expected 1, got None"),
        ('{"format": 1}', "tokens: expected an integer from 1, got None"),
        ('{"format": 1, "tokens": 3, "sentences": 0}', "sentences: expected an integer from 1, got 0"),
    ],
)
def test_a_store_whose_facts_are_spoilt_is_none(tmp_path, facts, reason):
    (tmp_path / "store.json").write_text(facts)
    with pytest.raises(BundleError, match=reason):
        TokenStore(tmp_path)


def test_writing_again_leaves_an_open_store_as_it_is(tmp_path, tokenizer):
    store = write_tokens(documents("a|b", "c"), tokenizer, tmp_path)
    write_tokens(documents("d|e", "f|g"), tokenizer, tmp_path)
    assert contents(store) == [[[5], [6]], [[7]]]


def test_a_store_of_another_tokenizer_is_refused(tmp_path, tokenizer):
    store = write_tokens(documents("a|b", "c"), tokenizer, tmp_path)
    store.check_tokenizer(tokenizer)
    vocabulary = {token: i for i, token in enumerate(TOKENS)}
    others = [BertWordPieceTokenizer({**vocabulary, "x": len(TOKENS)})]
    others.append(BertWordPieceTokenizer(vocabulary, lowercase=False))
    for other in others:
        with pytest.raises(InputError, match="different vocabulary"):
            store.check_tokenizer(other)


def test_it_pickles_as_its_path_and_cannot_be_written(tmp_path, tokenizer):
    store = write_tokens(documents("a|b" * 5000, "c"), tokenizer, tmp_path)
    packed = pickle.dumps(store)
    assert len(packed) < 1000
    assert np.array_equal(pickle.loads(packed).ids, store.ids)
    with pytest.raises(ValueError, match="read-only"):
        store.ids[0] = 1


# Prints the peak of resident memory in kB: after the same on a tenth, when a vocabulary is trained, when the
# store is written, after an epoch; then the bytes of the store and of the epoch. In a process of its own, so
# that what other tests left behind is not measured.
SCRIPT = """
import sys
from pathlib import Path
from segue.export.documents import iter_documents
from segue.export.packing import pack_epoch
from segue.export.token_store import write_tokens
from segue.export.vocabulary import train_vocabulary

def print_peak():
    print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

tenth, folder, file, out = map(Path, sys.argv[1:])
tokenizer = train_vocabulary(tenth, size=1000)
write_tokens(iter_documents(tenth), tokenizer, out)
print_peak()
train_vocabulary(folder, size=1000)
print_peak()
store = write_tokens(iter_documents(file), tokenizer, out)
print_peak()
packed = pack_epoch(store)
print_peak()
print(sum(file.stat().st_size for file in out.iterdir()), packed.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded_on_ten_megabytes(tmp_path):
    """A vocabulary of 6 MB and the tokens of 10 MB take no more to make than those of 1 MB, but for what the
    allocator rounds up; an epoch takes the pages of the store it reads, and 28 bytes an instance twice."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghiklmnoprstuvw", k=draw.randint(1, 8))) for _ in range(400)]
    sentences = [" ".join(draw.choices(words, k=12)).capitalize() + "." for _ in range(2000)]
    texts = [" ".join(draw.choices(sentences, k=draw.randint(1, 400))) for _ in range(750)]
    tenth, folder, file = tmp_path / "tenth.txt", tmp_path / "folder", tmp_path / "file.txt"
    tenth.write_text("\n\n".join(texts[:75]))
    file.write_text("\n\n".join(texts))
    folder.mkdir()
    for number, text in enumerate(texts[:450]):
        (folder / f"{number}.txt").write_text(text)
    assert file.stat().st_size > 9.5e6
    command = [sys.executable, "-c", SCRIPT, *map(str, (tenth, folder, file, tmp_path / "store"))]
    *peaks, sizes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    before, trained, written, packed = (int(kilobytes) * 1024 / 1e6 for kilobytes in peaks)
    stored, instances = (int(size) / 1e6 for size in sizes.split())
    assert trained - before < 5
    assert written - trained < 5
    assert packed - written < stored + 2 * instances + 5
