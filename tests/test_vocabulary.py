"""WordPiece vocabularies: trained, read, written, held against a checkpoint."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys

import pytest

from segue.errors import BundleError, InputError
from segue.export import vocabulary
from segue.export.tokenizer import read_tokenizer
from segue.export.vocabulary import (
    SPECIAL,
    check_vocabulary,
    read_vocabulary,
    train_vocabulary,
    write_vocabulary,
)

TEXT = "It likes sleeping, said Zoë! The café at 山 was sleeping: un-usual. [MASK] I\u2019m OK?\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two documents of made-up words, all rare, so that many pieces are equally frequent."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghilmnoprstu", k=draw.randint(2, 9))) for _ in range(1500)]
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    half = [". ".join(" ".join(draw.choices(words, k=9)) for _ in range(300)) for _ in range(2)]
    file.write_text(f"{TEXT * 3}{half[0]}.\n\n{half[1]}.\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def trained(corpus):
    return train_vocabulary(corpus, size=600)


def numbered(tokenizer) -> list[str]:
    numbers = tokenizer.get_vocab(with_added_tokens=True)
    assert sorted(numbers.values()) == list(range(len(numbers)))
    return sorted(numbers, key=numbers.get)


def test_the_special_tokens_come_first_and_the_size_is_kept(trained):
    tokens = numbered(trained)
    assert tuple(tokens[:5]) == SPECIAL == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    assert len(tokens) == 600
    assert {"山", "##z", "z", "\u2019", "!"} <= set(tokens)
    assert not {"##山", "##!", "##\u2019", "Z", "ë", "é"} & set(tokens), "nothing that cannot occur"


def test_it_tokenises_as_bert_does(trained):
    encoding = trained.encode("Á! 山水", "i")
    assert encoding.tokens == ["[CLS]", "a", "!", "山", "[UNK]", "[SEP]", "i", "[SEP]"], "it has no 水"
    assert encoding.type_ids == [0, 0, 0, 0, 0, 0, 1, 1]
    pieces = trained.encode("sleeping", add_special_tokens=False).tokens
    assert "".join(piece.removeprefix("##") for piece in pieces) == "sleeping"


def test_the_same_corpus_gives_the_same_vocabulary_in_any_process(corpus, trained):
    script = (
        "import sys\nfrom segue.export.vocabulary import train_vocabulary\n"
        "print(train_vocabulary(sys.argv[1], size=600).to_str())"
    )
    command = [sys.executable, "-c", script, str(corpus)]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == json.loads(trained.to_str())


def test_case_and_accents_are_kept_where_that_is_asked(corpus):
    assert {"Z", "ë", "O"} <= set(numbered(train_vocabulary(corpus, size=600, lowercase=False)))


def test_rare_letters_become_unknown(corpus, monkeypatch):
    monkeypatch.setattr(vocabulary, "_ALPHABET", 18)
    tokenizer = train_vocabulary(corpus, size=600)
    tokens = numbered(tokenizer)
    assert sum(len(token.removeprefix("##")) == 1 for token in tokens) <= 2 * 18
    assert "山" not in tokens
    assert "e" in tokens


def test_a_small_corpus_gives_a_small_vocabulary(tmp_path):
    file = tmp_path / "corpus.txt"
    file.write_text("One day. One day more.\n\nNo day.\n")
    tokens = numbered(train_vocabulary(file))
    assert {"one", "day"} <= set(tokens), "what occurs twice"
    assert "more" not in tokens


def test_words_that_become_unknown_anyway_are_left_out(tmp_path):
    """The trainer would take time quadratic in such a word's length."""
    file = tmp_path / "corpus.txt"
    documents = [
        f"One {'ab' * 100_000}/day. One day.",
        f"{'x' * 101} " * 3,
        f"{'y' * 100} " * 3 + "x" * 101,
        "\u5c71" * 150 + "z" * 90,  # no word is long: Chinese characters are words
    ]
    file.write_text("\n\n".join(documents), encoding="utf-8")
    tokens = numbered(train_vocabulary(file))
    assert {"one", "day", "y" * 100} <= set(tokens), "and nothing beside them is"
    assert "\u5c71" in tokens
    assert "xx" not in tokens
    assert "##xx" not in tokens
    assert max(map(len, tokens)) == 100


def test_a_size_below_the_alphabets_is_refused(corpus):
    with pytest.raises(InputError, match=r"vocabulary: size: expected \d+ or more, for the letters"):
        train_vocabulary(corpus, size=40)


def test_written_and_read_again(trained, tmp_path):
    write_vocabulary(trained, tmp_path / "new", max_tokens=77)
    for tokenizer in (read_vocabulary(tmp_path / "new"), read_tokenizer(tmp_path / "new", 600)):
        assert json.loads(tokenizer.to_str()) == json.loads(trained.to_str())
    (tmp_path / "new" / "tokenizer.json").unlink()
    for tokenizer in (read_vocabulary(tmp_path / "new"), read_vocabulary(tmp_path / "new" / "vocab.txt")):
        assert tokenizer.encode(TEXT, "b").ids == trained.encode(TEXT, "b").ids


def test_an_empty_line_leaves_its_id_free_as_in_transformers(tmp_path):
    import transformers

    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "vocab.txt").write_text("\n".join([*SPECIAL, "one", "", "two", ""]))
    tokenizer = read_vocabulary(tmp_path / "given" / "vocab.txt")
    write_vocabulary(tokenizer, tmp_path / "written", max_tokens=77)
    (tmp_path / "written" / "tokenizer.json").unlink()
    for folder in (tmp_path / "given", tmp_path / "written"):
        assert transformers.BertTokenizer.from_pretrained(folder)("one two")["input_ids"] == [2, 5, 7, 3]
        assert read_vocabulary(folder / "vocab.txt").encode("one two").ids == [2, 5, 7, 3]


def test_a_full_disk_is_told_as_one(trained, tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_vocabulary(trained, tmp_path, max_tokens=77)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("lowercase", [True, False])
def test_transformers_loads_it(corpus, tmp_path, lowercase):
    import transformers

    tokenizer = train_vocabulary(corpus, size=600, lowercase=lowercase)
    write_vocabulary(tokenizer, tmp_path, max_tokens=77)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours, found = tokenizer.encode(TEXT, "It was"), theirs(TEXT, "It was")
    assert found["input_ids"] == ours.ids
    assert found["token_type_ids"] == ours.type_ids
    assert theirs.model_max_length == 77
    special = ["pad", "unk", "cls", "sep", "mask"]
    assert [getattr(theirs, f"{name}_token_id") for name in special] == [0, 1, 2, 3, 4]


def test_files_that_are_no_vocabulary(tmp_path):
    with pytest.raises(InputError, match="expected a folder or a vocab"):
        read_vocabulary(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="no tokenizer"):
        read_vocabulary(tmp_path)
    file = tmp_path / "vocab.txt"
    file.write_text("[PAD]\n[UNK]\n[CLS]\nword\n")
    with pytest.raises(InputError, match=r"lacks \[SEP\], \[MASK\]"):
        read_vocabulary(file)
    file.write_text("\n".join([*SPECIAL, "word", "word"]))
    with pytest.raises(InputError, match="has 'word' twice"):
        read_vocabulary(file)


@pytest.fixture
def checkpoint(trained, tmp_path):
    write_vocabulary(trained, tmp_path / "checkpoint", max_tokens=128)
    (tmp_path / "checkpoint" / "config.json").write_text('{"model_type": "bert", "vocab_size": 600}')
    return tmp_path / "checkpoint"


def test_a_checkpoints_own_vocabulary_matches(trained, checkpoint):
    check_vocabulary(trained, checkpoint)
    check_vocabulary(read_vocabulary(checkpoint), checkpoint)
    (checkpoint / "config.json").write_text('{"vocab_size": 640}')  # a table padded for speed
    check_vocabulary(trained, checkpoint)


def test_another_vocabulary_does_not(corpus, trained, checkpoint):
    with pytest.raises(InputError, match=r"it has 300 tokens, the checkpoint '.*' 600"):
        check_vocabulary(train_vocabulary(corpus, size=300), checkpoint)
    lines = (checkpoint / "vocab.txt").read_text(encoding="utf-8").splitlines()
    swapped = checkpoint.parent / "swapped.txt"
    swapped.write_text("\n".join([*lines[:-2], lines[-1], lines[-2]]), encoding="utf-8")
    with pytest.raises(InputError, match=rf"numbers '{lines[-2]}' 598, the vocabulary 599"):
        check_vocabulary(read_vocabulary(swapped), checkpoint)
    swapped.write_text("\n".join([*lines[:-1], "elsewhere"]), encoding="utf-8")
    with pytest.raises(InputError, match=rf"numbers '{lines[-1]}' 599, the vocabulary lacks it"):
        check_vocabulary(read_vocabulary(swapped), checkpoint)
    with pytest.raises(InputError, match="lowercase is False, but True in the checkpoint"):
        check_vocabulary(read_vocabulary(checkpoint / "vocab.txt", lowercase=False), checkpoint)


def test_a_checkpoint_without_a_tokenizer_is_held_against_its_rows(trained, checkpoint):
    for name in ("tokenizer.json", "vocab.txt"):
        (checkpoint / name).unlink()
    check_vocabulary(trained, checkpoint)
    (checkpoint / "config.json").write_text('{"vocab_size": 728}')
    with pytest.raises(InputError, match="600 tokens, the checkpoint"):
        check_vocabulary(trained, checkpoint)
    shutil.rmtree(checkpoint)
    with pytest.raises(InputError, match="no vocab_size"):
        check_vocabulary(trained, checkpoint)


def test_a_tokenizer_that_could_not_be_written_as_berts_is_refused(trained, checkpoint):
    """segue exports such a one, and transformers reads it, but not under the class that is written."""
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs}
    stored = json.loads(trained.to_str())
    for part, value in ("pre_tokenizer", {"type": "WhitespaceSplit"}), ("normalizer", {"type": "Lowercase"}):
        (checkpoint / "tokenizer.json").write_text(json.dumps(stored | {part: value}))
        (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
        assert read_tokenizer(checkpoint, 600)
        with pytest.raises(BundleError, match=rf"{part}\.type: '{value['type']}' is not BERT's"):
            read_vocabulary(checkpoint)
        with pytest.raises(BundleError, match=rf"{part}\.type"):
            check_vocabulary(trained, checkpoint)
    (checkpoint / "tokenizer.json").unlink()
    words = (checkpoint / "vocab.txt").read_text(encoding="utf-8")
    (checkpoint / "vocab.txt").write_text(words.replace("[CLS]", "<s>"), encoding="utf-8")
    (checkpoint / "tokenizer_config.json").write_text('{"cls_token": "<s>"}')
    with pytest.raises(InputError, match=r"lacks \[CLS\]"):
        read_vocabulary(checkpoint)
