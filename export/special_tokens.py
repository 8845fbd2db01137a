"""The special and added tokens of a checkpoint's tokenizer, wherever a version of transformers wrote them.

In tokenizer_config.json; and where that has no `added_tokens_decoder`, as before transformers 4.34, in
special_tokens_map.json and added_tokens.json too. Knows nothing about how texts are split otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from segue.bundle import read_object
from segue.errors import BundleError

__all__ = ["add_tokens", "special_token", "special_tokens"]

_BERT_ROLES = ("unk", "sep", "pad", "cls", "mask")
_ROLES = (*_BERT_ROLES, "bos", "eos")
_DECODER = "added_tokens_decoder"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def special_tokens(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what special_tokens_map.json adds to tokenizer_config.json, the `settings`.

    Raises:
        BundleError: the two name different tokens.
    """
    path = folder / "special_tokens_map.json"
    if _DECODER in settings or not path.is_file():
        return {}
    found = {key: value for key, value in read_object(path).items() if value}
    for key, value in found.items():
        if settings.get(key) and _name(settings[key]) != _name(value):
            raise BundleError(f"{path}: {key}: {value!r}, where tokenizer_config.json has {settings[key]!r}")
    return {key: value for key, value in found.items() if not settings.get(key)}


def add_tokens(tokenizer: Tokenizer, settings: dict[str, Any], folder: Path, *, bert: bool) -> None:
    """Add the tokens that only the settings have, if the vocabulary says what their ids are.

    Args:
        bert: the tokenizer has BERT's special tokens, whether the settings name them or not.

    Raises:
        BundleError: the vocabulary lacks one that was added to it; only tokenizer.json adds one that
            `added_tokens_decoder` should name; or the settings are of another form.
    """
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    roles = [role for role in _ROLES if (bert and role in _BERT_ROLES) or settings.get(f"{role}_token")]
    added = list(_added_tokens(folder, settings))
    listed = {token["content"]: token for token in (settings.get(_DECODER) or {}).values()}
    tokens = [special_token(folder, settings, role) for role in roles]
    # A role has its token by name, as a rule, and the flags of that token are listed.
    tokens = [_token(folder, "", listed[one.content]) if one.content in listed else one for one in tokens]
    tokens += added
    if bert and _DECODER in settings and (more := known - {token.content for token in tokens}):
        raise BundleError(
            f"{folder}: tokenizer.json adds {min(more)!r}, which {_DECODER} lacks: in a text, transformers 4 "
            "finds it and transformers 5 does not"
        )
    for token in tokens:
        if token.content in known:
            continue
        known.add(token.content)  # the first wins
        if tokenizer.token_to_id(token.content) is not None:
            tokenizer.add_tokens([token])
        elif token in added:
            raise BundleError(f"{folder}: the added token {token.content!r} needs a tokenizer.json with it")


def special_token(folder: Path, settings: dict[str, Any], role: str) -> AddedToken:
    """Return the token of a role, by default BERT's own.

    Raises:
        BundleError: the settings are of another form.
    """
    return _token(folder, f"{role}_token", settings.get(f"{role}_token") or f"[{role.upper()}]")


def _added_tokens(folder: Path, settings: dict[str, Any]) -> Iterator[AddedToken]:
    """Yield the tokens that the settings add, new and old ways."""
    decoder = settings.get(_DECODER) or {}
    if not isinstance(decoder, dict):
        path = folder / "tokenizer_config.json"
        raise BundleError(f"{path}: {_DECODER}: expected an object, got {decoder!r}")
    for token in decoder.values():
        if not isinstance(token, dict):
            raise _unexpected(folder, _DECODER, token)
        yield _token(folder, _DECODER, token)
    for key in ("additional_special_tokens", "extra_special_tokens"):
        tokens = settings.get(key) or []
        if not isinstance(tokens, list | dict):
            raise _unexpected(folder, key, tokens)
        for token in tokens.values() if isinstance(tokens, dict) else tokens:
            yield _token(folder, key, token)
    path = folder / "added_tokens.json"
    if path.is_file() and _DECODER not in settings:
        for name in read_object(path):
            yield AddedToken(name)


def _token(folder: Path, key: str, found: Any) -> AddedToken:
    """A special token by its name, or one by an object with its `content` and flags."""
    if isinstance(found, str):
        return AddedToken(found, special=True, normalized=False)
    if not isinstance(found, dict) or not isinstance(found.get("content"), str):
        raise _unexpected(folder, key, found)
    special = key != _DECODER or bool(found.get("special"))
    flags = {flag: bool(found[flag]) for flag in _FLAGS if flag in found}
    return AddedToken(found["content"], **{"special": special, "normalized": not special} | flags)


def _unexpected(folder: Path, key: str, found: Any) -> BundleError:
    path = folder / "tokenizer_config.json"
    return BundleError(f"{path}: {key}: expected an object with content, got {found!r}")


def _name(token: Any) -> Any:
    """The name of a special token, or the names of several, however they are written."""
    if isinstance(token, list):
        return [_name(one) for one in token]
    return token.get("content") if isinstance(token, dict) else token
