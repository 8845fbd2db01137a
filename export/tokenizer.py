"""The tokenizer of a checkpoint as a `tokenizers.Tokenizer` that does nothing of its own accord.

From tokenizer.json, its truncation and padding taken out; or from vocab.txt. For BERT's own tokenizer classes
the settings of tokenizer_config.json (lower-casing, accents, Chinese characters) and their defaults win over
what tokenizer.json says, as they do in transformers 4 and 5; where those two would differ from each other,
the checkpoint is refused. The rest of tokenizer_config.json that fast tokenizers ignore (`never_split`,
`do_basic_tokenize`) is ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from segue.bundle import read_object
from segue.errors import BundleError

__all__ = ["max_tokens", "read_tokenizer"]

_BERT_CLASSES = (None, "BertTokenizer", "BertTokenizerFast")
# Where a tokenizer.json of BERT's differs from this, transformers 5 replaces it and transformers 4 does not.
_BERT_PARTS = {
    "normalizer": {"type": "BertNormalizer", "clean_text": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "model": {"type": "WordPiece", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
}
_SANE = 1_000_000  # tokens; transformers writes 1e30 where it knows no limit


def read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """Return the tokenizer of the checkpoint in `folder`, whose embedding table has `vocab_size` rows.

    Raises:
        BundleError: there is none; it is not readable or not BERT's; it builds a pair other than as
            [CLS] A [SEP] B [SEP] with the segment ids 0 and 1; or an id lies beyond the table.
    """
    settings = _settings(folder)
    inputs = settings.get("model_input_names")
    if inputs is not None and not (isinstance(inputs, list) and "token_type_ids" in inputs):
        raise BundleError(f"{folder}: tokenizer_config.json: model_input_names leaves token_type_ids out")
    if settings.get("truncation_side", "right") != "right":
        raise BundleError(f"{folder}: tokenizer_config.json: truncation_side: segue truncates on the right")
    if (folder / "tokenizer.json").is_file():
        tokenizer = _from_json(folder / "tokenizer.json", settings)
    elif (folder / "vocab.txt").is_file():
        tokenizer = _from_vocabulary(folder, settings)
    else:
        raise BundleError(f"{folder}: no tokenizer: looked for tokenizer.json and vocab.txt")
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= vocab_size:
        raise BundleError(
            f"{folder}: the tokenizer's highest id is {highest}, "
            f"but the embedding table has {vocab_size} rows"
        )
    _check_pair(tokenizer, folder)
    return tokenizer


def max_tokens(folder: Path, positions: int) -> int:
    """Return the longest pair in tokens: the position table's rows, or the tokenizer's limit if smaller."""
    limit = _settings(folder).get("model_max_length")
    sane = type(limit) in (int, float) and 3 <= limit < _SANE
    return min(positions, int(limit)) if sane else positions


def _from_json(path: Path, settings: dict[str, Any]) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise BundleError(f"{path}: not a tokenizer: {error}") from error
    if (tokenizer.truncation or {}).get("direction", "right").lower() != "right":
        raise BundleError(f"{path}: truncation.direction: segue truncates on the right")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if settings.get("tokenizer_class") in _BERT_CLASSES:
        stored = read_object(path)
        for part, expected in _BERT_PARTS.items():
            found = stored.get(part) or {}
            for key, value in expected.items():
                if found.get(key) != value:
                    raise BundleError(
                        f"{path}: {part}.{key}: {found.get(key)!r} is not BERT's, which has {value!r}"
                    )
        tokenizer.normalizer = _normalizer(settings, path.parent)
    return tokenizer


def _from_vocabulary(folder: Path, settings: dict[str, Any]) -> Tokenizer:
    """Build BERT's tokenizer from vocab.txt: a token a line, its number the id."""
    if (found := settings.get("tokenizer_class")) not in _BERT_CLASSES:
        raise BundleError(f"{folder}: tokenizer_class: {found!r} needs a tokenizer.json")
    try:
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BundleError(f"{folder / 'vocab.txt'}: not UTF-8: {error}") from error
    vocabulary = {token: index for index, token in enumerate(lines) if token}
    names = {role: _special_token(folder, settings, role) for role in ("unk", "sep", "pad", "cls", "mask")}
    for role in ("unk", "sep", "cls"):
        if names[role] not in vocabulary:
            raise BundleError(f"{folder / 'vocab.txt'}: the {role}_token {names[role]!r} is not in it")
    for added in _added_tokens(folder, settings):
        if added not in vocabulary:
            raise BundleError(f"{folder}: the added token {added!r} needs a tokenizer.json")
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=names["unk"]))
    tokenizer.normalizer = _normalizer(settings, folder)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens([name for name in names.values() if name in vocabulary])
    cls, sep = names["cls"], names["sep"]
    tokenizer.post_processor = processors.BertProcessing((sep, vocabulary[sep]), (cls, vocabulary[cls]))
    return tokenizer


def _normalizer(settings: dict[str, Any], folder: Path) -> normalizers.Normalizer:
    try:
        return normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
            strip_accents=settings.get("strip_accents"),
            lowercase=settings.get("do_lower_case", True),
        )
    except TypeError as error:
        raise BundleError(f"{folder / 'tokenizer_config.json'}: {error}") from error


def _special_token(folder: Path, settings: dict[str, Any], role: str) -> str:
    """Return the name of a special token: the settings give a string, or an object with `content`."""
    found = settings.get(f"{role}_token") or f"[{role.upper()}]"
    return found if isinstance(found, str) else _content(folder, f"{role}_token", found)


def _content(folder: Path, key: str, found: Any) -> str:
    if not isinstance(found, dict) or not isinstance(found.get("content"), str):
        raise BundleError(
            f"{folder / 'tokenizer_config.json'}: {key}: expected an object with content, got {found!r}"
        )
    return str(found["content"])


def _added_tokens(folder: Path, settings: dict[str, Any]) -> list[str]:
    """Return the tokens that the settings add to the vocabulary, new and old way."""
    key = "added_tokens_decoder"
    decoder = settings.get(key) or {}
    if not isinstance(decoder, dict):
        raise BundleError(f"{folder / 'tokenizer_config.json'}: {key}: expected an object, got {decoder!r}")
    path = folder / "added_tokens.json"
    old = read_object(path) if path.is_file() else {}
    return [*(_content(folder, key, token) for token in decoder.values()), *old]


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_object(path) if path.is_file() else {}


def _check_pair(tokenizer: Tokenizer, folder: Path) -> None:
    empty = tokenizer.encode("", "")
    if len(empty.ids) == 3 and empty.ids[1] == empty.ids[2] and empty.type_ids == [0, 0, 1]:
        cls, sep, _ = empty.ids
        first, second = "The rain in Spain", "falls mainly on the plain."
        a, b = (tokenizer.encode(text, add_special_tokens=False).ids for text in (first, second))
        pair = tokenizer.encode(first, second)
        segments = [0] * (len(a) + 2) + [1] * (len(b) + 1)
        if (pair.ids, pair.type_ids) == ([cls, *a, sep, *b, sep], segments):
            return
    raise BundleError(
        f"{folder}: the tokenizer does not build a pair as [CLS] A [SEP] B [SEP] with the segments 0 and 1: "
        f"two empty sentences give {empty.tokens} {empty.type_ids}"
    )
