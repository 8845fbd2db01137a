"""The tokenizer of a checkpoint as a `tokenizers.Tokenizer` that does nothing of its own accord.

From tokenizer.json, its truncation and padding taken out; or from vocab.txt and the settings of tokenizer_config.json.
Either way it must build [CLS] A [SEP] B [SEP] with the segment ids 0 and 1, and fit the embedding table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from segue.errors import BundleError

__all__ = ["max_tokens", "read_tokenizer"]

_SANE = 1_000_000  # tokens; transformers writes 1e30 where it knows no limit


def read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """Return the tokenizer of the checkpoint in `folder`, whose embedding table has `vocab_size` rows.

    Raises:
        BundleError: there is none, it is not readable, it builds a pair in another form, or it does not fit the table.
    """
    if (folder / "tokenizer.json").is_file():
        tokenizer = _from_json(folder / "tokenizer.json")
    elif (folder / "vocab.txt").is_file():
        tokenizer = _from_vocabulary(folder)
    else:
        raise BundleError(f"{folder}: no tokenizer: looked for tokenizer.json and vocab.txt")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= vocab_size:
        raise BundleError(f"{folder}: the tokenizer's highest id is {highest}, the embedding table has {vocab_size} rows")
    _check_pair(tokenizer, folder)
    return tokenizer


def max_tokens(folder: Path, positions: int) -> int:
    """Return the longest pair in tokens: the rows of the position table, or the tokenizer's own limit if smaller."""
    limit = _settings(folder).get("model_max_length")
    if type(limit) in (int, float) and 3 <= limit < _SANE:
        return min(positions, int(limit))
    return positions


def _from_json(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise BundleError(f"{path}: not a tokenizer: {error}") from error


def _from_vocabulary(folder: Path) -> Tokenizer:
    """Build BERT's tokenizer as transformers does from the same two files."""
    settings = _settings(folder)
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    vocabulary = {token.rstrip("\r"): index for index, token in enumerate(tokens) if token}
    names = {role: _token(settings, role) for role in ("unk", "sep", "pad", "cls", "mask")}
    for role in ("unk", "sep", "cls"):
        if names[role] not in vocabulary:
            raise BundleError(f"{folder / 'vocab.txt'}: {role}_token {names[role]!r} is not in it")
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=names["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens([name for name in names.values() if name in vocabulary])
    special = [(names[role], vocabulary[names[role]]) for role in ("cls", "sep")]
    cls, sep = names["cls"], names["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1", special_tokens=special
    )
    return tokenizer


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(settings, dict):
        raise BundleError(f"{path}: expected an object, got {type(settings).__name__}")
    return settings


def _token(settings: dict[str, Any], role: str) -> str:
    """Return the name of a special token, which the settings give as a string or as an object with `content`."""
    found = settings.get(f"{role}_token", f"[{role.upper()}]")
    return str(found["content"] if isinstance(found, dict) else found)


def _check_pair(tokenizer: Tokenizer, folder: Path) -> None:
    empty = tokenizer.encode("", "")
    if len(empty.ids) != 3 or empty.ids[1] != empty.ids[2] or empty.type_ids != [0, 0, 1]:
        raise BundleError(f"{folder}: the tokenizer does not build [CLS] A [SEP] B [SEP]: '' and '' give {empty.tokens}")
    cls, sep, _ = empty.ids
    first, second = "The rain in Spain", "falls mainly on the plain."
    a, b = (tokenizer.encode(text, add_special_tokens=False).ids for text in (first, second))
    pair = tokenizer.encode(first, second)
    if pair.ids != [cls, *a, sep, *b, sep] or pair.type_ids != [0] * (len(a) + 2) + [1] * (len(b) + 1):
        raise BundleError(f"{folder}: the tokenizer does not build [CLS] A [SEP] B [SEP]: got {pair.tokens}")
