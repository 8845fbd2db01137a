"""A checkpoint's tokenizer as a `tokenizers.Tokenizer` that neither truncates nor pads by itself.

From tokenizer.json, without its truncation and padding; or from vocab.txt. For BERT's own tokenizer classes
the settings of tokenizer_config.json (lower-casing, accents, Chinese characters) and their defaults override
tokenizer.json, as they do in transformers 4 and 5; where those two would differ from each other, the
checkpoint is refused. A class of no particular model follows its tokenizer.json; other models' classes are
refused. Tokens that the settings add are added. What fast tokenizers ignore in tokenizer_config.json
(`never_split`, `do_basic_tokenize`) is ignored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from segue.bundle import read_object
from segue.errors import BundleError
from segue.export.special_tokens import add_tokens, special_token, special_tokens

__all__ = ["bert_tokenizer", "check_parts", "max_tokens", "read_tokenizer"]

_BERT_CLASSES = (None, "BertTokenizer", "BertTokenizerFast", "ElectraTokenizer", "ElectraTokenizerFast")
_ANY_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
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
    _check_settings(settings, folder)
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
    add_tokens(tokenizer, settings, folder, bert=settings.get("tokenizer_class") in _BERT_CLASSES)
    _check_pair(tokenizer, settings, folder)
    return tokenizer


def bert_tokenizer(
    vocabulary: dict[str, int],
    normalizer: normalizers.Normalizer,
    *,
    unk: str = "[UNK]",
    sep: str = "[SEP]",
    cls: str = "[CLS]",
) -> Tokenizer:
    """Return a tokenizer that splits words as BERT does and builds a pair as [CLS] A [SEP] B [SEP]."""
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=unk))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.BertProcessing((sep, vocabulary[sep]), (cls, vocabulary[cls]))
    return tokenizer


def max_tokens(folder: Path, positions: int) -> int:
    """Return the longest pair in tokens: the position table's rows, or the tokenizer's limit if smaller."""
    settings = _settings(folder)
    limit = settings.get("model_max_length", settings.get("max_len"))  # its old name
    sane = type(limit) in (int, float) and 3 <= limit < _SANE
    return min(positions, int(limit)) if sane else positions


def check_parts(tokenizer: Tokenizer, path: Path) -> None:
    """Raise `BundleError` unless the tokenizer, read from `path`, is BERT's in every part."""
    stored = json.loads(tokenizer.to_str())  # the file may leave names out: old ones have no model.type
    for part, expected in _BERT_PARTS.items():
        found = stored[part] or {}
        for key, value in expected.items():
            if found.get(key) != value:
                raise BundleError(
                    f"{path}: {part}.{key}: {found.get(key)!r} is not BERT's, which has {value!r}"
                )


def _check_settings(settings: dict[str, Any], folder: Path) -> None:
    """Refuse settings under which a text or a pair would be read differently than segue reads it."""
    path = folder / "tokenizer_config.json"
    named, inputs = settings.get("tokenizer_class"), settings.get("model_input_names")
    if named not in (*_BERT_CLASSES, *_ANY_CLASSES):
        raise BundleError(
            f"{folder}: tokenizer_class: {named!r} is not BERT's; what tokenizer.json says is taken as it is "
            f"under {' or '.join(_ANY_CLASSES)}"
        )
    if named in _ANY_CLASSES and inputs is None:
        raise BundleError(
            f"{path}: model_input_names: expected for a {named}, of which transformers 5 has no "
            "token_type_ids unless they are named there, and transformers 4 has"
        )
    if inputs is not None and not (isinstance(inputs, list) and "token_type_ids" in inputs):
        raise BundleError(f"{path}: model_input_names leaves token_type_ids out")
    if settings.get("truncation_side", "right") != "right":
        raise BundleError(f"{path}: truncation_side: segue truncates on the right")
    if settings.get("split_special_tokens"):
        raise BundleError(f"{path}: split_special_tokens: segue takes a special token in a text for one")


def _from_json(path: Path, settings: dict[str, Any]) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except Exception as error:  # tokenizers raises Exception itself
        raise BundleError(f"{path}: not a tokenizer: {error}") from error
    if (tokenizer.truncation or {}).get("direction", "right").lower() != "right":
        raise BundleError(f"{path}: truncation.direction: segue truncates on the right")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if settings.get("tokenizer_class") in _BERT_CLASSES:
        check_parts(tokenizer, path)
        tokenizer.normalizer = _normalizer(settings, path.parent)
    return tokenizer


def _from_vocabulary(folder: Path, settings: dict[str, Any]) -> Tokenizer:
    """Build BERT's tokenizer from vocab.txt: line i (from 0) holds token i."""
    if (found := settings.get("tokenizer_class")) not in _BERT_CLASSES:
        raise BundleError(f"{folder}: tokenizer_class: {found!r} needs a tokenizer.json")
    try:
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BundleError(f"{folder / 'vocab.txt'}: not UTF-8: {error}") from error
    vocabulary = {token: index for index, token in enumerate(lines) if token}
    special = {role: special_token(folder, settings, role).content for role in ("unk", "sep", "cls")}
    for role, token in special.items():
        if token not in vocabulary:
            raise BundleError(f"{folder / 'vocab.txt'}: the {role}_token {token!r} is not in it")
    return bert_tokenizer(vocabulary, _normalizer(settings, folder), **special)


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


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, and what older versions of transformers keep elsewhere."""
    settings, config = (
        read_object(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "config.json")
    )
    settings |= special_tokens(folder, settings)
    if not settings.get("tokenizer_class"):
        settings["tokenizer_class"] = config.get("tokenizer_class")
    return settings


def _check_pair(tokenizer: Tokenizer, settings: dict[str, Any], folder: Path) -> None:
    unknown = getattr(tokenizer.model, "unk_token", None)
    if unknown is not None and tokenizer.model.token_to_id(unknown) is None:  # an added one serves no word
        raise BundleError(
            f"{folder}: the tokenizer's vocabulary lacks its token for unknown words, {unknown!r}"
        )
    empty = tokenizer.encode("", "")
    if len(empty.ids) == 3 and empty.ids[1] == empty.ids[2] and empty.type_ids == [0, 0, 1]:
        cls, sep, _ = empty.ids
        first, second = "The rain in Spain", "falls mainly on the plain."
        a, b = (tokenizer.encode(text, add_special_tokens=False).ids for text in (first, second))
        pair = tokenizer.encode(first, second)
        segments = [0] * (len(a) + 2) + [1] * (len(b) + 1)
        if (pair.ids, pair.type_ids) == ([cls, *a, sep, *b, sep], segments):
            if settings.get("tokenizer_class") in _BERT_CLASSES:
                _check_names(tokenizer, settings, folder, cls, sep)
            return
    raise BundleError(
        f"{folder}: the tokenizer does not build a pair as [CLS] A [SEP] B [SEP] with the segments 0 and 1: "
        f"two empty sentences give {empty.tokens} {empty.type_ids}"
    )


def _check_names(tokenizer: Tokenizer, settings: dict[str, Any], folder: Path, cls: int, sep: int) -> None:
    """Refuse settings that name other special tokens than tokenizer.json: transformers 5 takes theirs, and
    transformers 4 does not."""
    unknown = tokenizer.token_to_id(tokenizer.model.unk_token)
    for role, found in ("cls", cls), ("sep", sep), ("unk", unknown):
        name = special_token(folder, settings, role).content
        if tokenizer.token_to_id(name) != found:
            raise BundleError(
                f"{folder / 'tokenizer_config.json'}: {role}_token: {name!r}, where tokenizer.json has "
                f"{tokenizer.id_to_token(found)!r}"
            )
