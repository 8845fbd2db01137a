"""A WordPiece vocabulary and its tokenizer: trained on a corpus, read, written, held against a checkpoint.

The tokenizer is BERT's own: what `segue.export.tokenizer` reads and transformers loads as BertTokenizer.
"""

from __future__ import annotations

__all__ = [
    "MOST_TOKENS",
    "SPECIAL",
    "VOCABULARY_FILES",
    "check_vocabulary",
    "read_vocabulary",
    "train_vocabulary",
    "write_vocabulary",
]

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer

from segue.errors import InputError
from segue.export.documents import iter_documents
from segue.export.tokenizer import bert_tokenizer, check_parts, read_tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # BERT's, in its order: ids 0 to 4
MOST_TOKENS = 30_522  # as in BERT
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
_ALPHABET = 1000  # letters at most; rarer ones become [UNK]
_LETTERS = 100  # of a word at most; WordPiece makes longer ones [UNK]
_LONG = re.compile(rf"\S{{{_LETTERS + 1}}}")
_SPARE = 128  # rows of an embedding table without a token: tables padded for speed have fewer


def train_vocabulary(corpus: str | Path, *, size: int = MOST_TOKENS, lowercase: bool = True) -> Tokenizer:
    """BERT's tokenizer with a vocabulary of at most `size` tokens, special ones included, trained on the
    corpus (read twice, a document at a time; memory is bounded by its distinct words), words of more than
    100 letters left out.

    Letters beyond the 1000 most frequent become [UNK]. With `lowercase` accents go too, as in BERT. A corpus
    that has fewer words and pieces occurring twice gives a smaller vocabulary. The same corpus gives the same
    vocabulary. Raises `InputError` as `iter_documents` does, and for a size that the alphabet alone exceeds.
    """
    normalizer = _normalizer(lowercase)
    counts: Counter[str] = Counter()
    for text in _sentences(corpus, normalizer):
        counts.update(normalizer.normalize_str(text))
    counted = sorted((-count, letter) for letter, count in counts.items() if not letter.isspace())
    alphabet = sorted(letter for _, letter in counted[:_ALPHABET])
    # Letters inside words get their ids beforehand: the trainer numbers them in hash table order, which
    # changes in each process, and breaks ties by number, so tokenizers 0.23 would give no vocabulary twice.
    inside = [f"##{letter}" for letter in alphabet if _continues(letter, normalizer)]
    required = len(SPECIAL) + len(alphabet) + len(inside)
    if size < required:
        raise InputError(f"vocabulary: size: expected {required} or more, for the letters alone, got {size}")
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    trainer = WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        special_tokens=[*SPECIAL, *inside],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(corpus, normalizer), trainer)
    numbers = tokenizer.get_vocab(with_added_tokens=False)
    trained = sorted(numbers, key=lambda token: numbers[token])
    ordered = dict.fromkeys([*SPECIAL, *alphabet, *inside, *trained])
    return _tokenizer({token: i for i, token in enumerate(ordered)}, lowercase)


def read_vocabulary(path: str | Path, *, lowercase: bool = True) -> Tokenizer:
    """The tokenizer of a checkpoint folder, which itself says what to lower-case; or of a vocab.txt (line i,
    from 0, holds token i or nothing), to which `lowercase` applies.

    Raises `BundleError` for a folder without a tokenizer that is BERT's in every part, as what
    `write_vocabulary` writes must be, `InputError` for a file that is no vocabulary or lacks a special token.
    """
    path = Path(path)
    if path.is_dir():
        return _tokenizer_of(path, 2**31)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"vocabulary: {str(path)!r}: expected a folder or a vocab.txt: {error}") from error
    vocabulary = {token: i for i, token in enumerate(lines) if token}
    _check_special(vocabulary, path)
    if len(vocabulary) < sum(map(bool, lines)):
        twice = next(token for token, count in Counter(lines).items() if token and count > 1)
        raise InputError(f"vocabulary: {str(path)!r} has {twice!r} twice")
    return _tokenizer(vocabulary, lowercase)


def write_vocabulary(tokenizer: Tokenizer, folder: str | Path, *, max_tokens: int) -> None:
    """Write tokenizer.json, vocab.txt and tokenizer_config.json; transformers and segue read it from them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # not by its own `save`, which raises no OSError where the disk is full
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    numbers = tokenizer.get_vocab(with_added_tokens=True)
    words = {i: word for word, i in numbers.items()}
    lines = (words.get(i, "") for i in range(max(words) + 1))  # empty for an unused id: line numbers are ids
    (folder / "vocab.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    normalizer = json.loads(tokenizer.to_str())["normalizer"] or {}
    settings = {
        "tokenizer_class": "BertTokenizer",
        "model_max_length": max_tokens,
        "do_lower_case": normalizer.get("lowercase", False),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
        **{f"{token[1:-1].lower()}_token": token for token in SPECIAL},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def check_vocabulary(tokenizer: Tokenizer, checkpoint: str | Path) -> None:
    """Raise `InputError` unless the tokenizer gives what the checkpoint folder's model was trained on: an
    embedding row for each id, few rows more, and, if it has a tokenizer, the same ids, case and accents."""
    checkpoint = Path(checkpoint)
    try:
        rows = int(json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{checkpoint}: no vocab_size in a config.json there: {error!r}") from error
    numbers = tokenizer.get_vocab(with_added_tokens=True)
    tokens = max(numbers.values()) + 1
    if not rows - _SPARE < tokens <= rows:
        raise InputError(f"vocabulary: it has {tokens} tokens, the checkpoint {str(checkpoint)!r} {rows}")
    if not any((checkpoint / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return
    own = _tokenizer_of(checkpoint, rows)
    for token, i in sorted(own.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1]):
        if numbers.get(token) != i:
            raise InputError(
                f"vocabulary: the checkpoint {str(checkpoint)!r} numbers {token!r} {i}, "
                f"the vocabulary {numbers.get(token, 'lacks it')}"
            )
    theirs, ours = _settings(own), _settings(tokenizer)
    for name, value in theirs.items():
        if ours[name] != value:
            raise InputError(
                f"vocabulary: {name} is {ours[name]}, but {value} in the checkpoint {str(checkpoint)!r}"
            )


def _tokenizer_of(folder: Path, rows: int) -> Tokenizer:
    tokenizer = read_tokenizer(folder, rows)
    check_parts(tokenizer, folder / "tokenizer.json")
    _check_special(tokenizer.get_vocab(with_added_tokens=True), folder)
    return tokenizer


def _check_special(vocabulary: dict[str, int], path: Path) -> None:
    if missing := [token for token in SPECIAL if token not in vocabulary]:
        raise InputError(f"vocabulary: {str(path)!r} lacks {', '.join(missing)}")


def _sentences(corpus: str | Path, normalizer: normalizers.Normalizer) -> Iterator[str]:
    """The sentences, without words so long that WordPiece makes them [UNK]: these are useless, and the
    trainer is quadratic in a word's length."""
    for document in iter_documents(corpus):
        for sentence in document.sentences:
            # Normalising puts spaces round Chinese characters.
            if _LONG.search(sentence) and _LONG.search(text := normalizer.normalize_str(sentence)):
                words = _words(text, normalizer)
                sentence = " ".join(word for word in words if len(word) <= _LETTERS)
            yield sentence


def _continues(letter: str, normalizer: normalizers.Normalizer) -> bool:
    """Whether the letter can stand inside a word; punctuation and Chinese characters are words themselves."""
    return len(_words(f"a{letter}", normalizer)) == 1


def _words(text: str, normalizer: normalizers.Normalizer) -> list[str]:
    found = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(text))
    return [word for word, _ in found]


def _normalizer(lowercase: bool) -> normalizers.Normalizer:
    return normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lowercase
    )


def _tokenizer(vocabulary: dict[str, int], lowercase: bool) -> Tokenizer:
    tokenizer = bert_tokenizer(vocabulary, _normalizer(lowercase))
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _settings(tokenizer: Tokenizer) -> dict[str, bool]:
    """What the normalizer does, its default resolved."""
    found = json.loads(tokenizer.to_str())["normalizer"]
    settings = {name: found[name] for name in ("lowercase", "strip_accents", "handle_chinese_chars")}
    if settings["strip_accents"] is None:
        settings["strip_accents"] = settings["lowercase"]
    return settings
