"""The bundle: the folder that `segue export` writes and `Engine.load` reads.

    model.onnx       the network; its weights inside, or in model.onnx.data above 1.5 GB
    tokenizer.json   Hugging Face tokenizers format
    segue.json       what no graph can say: the head, the limits, the other files' checksums

`segue.json` is written once, by export, and read strictly: an unknown or a missing key is an error, and so
is a file whose sha256 differs. Knows nothing about how a graph is made or run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from segue.encoded import MIN_TOKENS
from segue.errors import BundleError
from segue.onnx_file import external_data_locations

__all__ = [
    "FORMAT",
    "HEAD_KINDS",
    "MANIFEST",
    "MODEL",
    "PRECISIONS",
    "TOKENIZER",
    "WEIGHTS",
    "Dimensions",
    "Head",
    "Manifest",
    "read_bundle",
    "read_object",
    "sha256",
    "stored_precision",
    "write_manifest",
]

FORMAT = 1
MODEL, WEIGHTS, TOKENIZER, MANIFEST = "model.onnx", "model.onnx.data", "tokenizer.json", "segue.json"
PRECISIONS = ("float32", "float16", "int8")
HEAD_KINDS = {"nsp": "softmax", "binary": "sigmoid", "multiclass": "softmax", "regression": "identity"}

Record = TypeVar("Record")


@dataclass(frozen=True)
class Head:
    """What the logits mean. `labels` are in logit order; `positive` is the index that `score` reports.

    A `binary` head has one label (sigmoid) or two (softmax); `nsp` is always ("IsNext", "NotNext"), positive
    0.
    """

    kind: str
    labels: tuple[str, ...]
    positive: int | None
    activation: str

    def __post_init__(self) -> None:
        """Raise BundleError where the four do not fit each other."""
        if self.kind not in HEAD_KINDS:
            raise BundleError(f"head.kind: expected one of {', '.join(HEAD_KINDS)}, got {self.kind!r}")
        allowed = {HEAD_KINDS[self.kind]} | ({"softmax"} if self.kind == "binary" else set())
        if self.activation not in allowed:
            raise BundleError(
                f"head.activation: {self.kind} has {' or '.join(sorted(allowed))}, got {self.activation!r}"
            )
        if self.kind == "nsp" and (self.labels, self.positive) != (("IsNext", "NotNext"), 0):
            raise BundleError(
                "head: an nsp head has the labels IsNext, NotNext in this order and positive 0, "
                f"got {list(self.labels)} and {self.positive}"
            )
        for label in self.labels:
            if self.labels.count(label) > 1:
                raise BundleError(f"head.labels: {label!r} is there twice")
        count = len(self.labels)
        fits = count > 1 if self.activation == "softmax" else count == 1
        if not fits or (self.kind == "binary" and count > 2):
            raise BundleError(f"head.labels: {count} labels do not fit {self.kind} with {self.activation}")
        if self.positive is not None and not 0 <= self.positive < len(self.labels):
            raise BundleError(
                f"head.positive: expected 0 to {len(self.labels) - 1} or null, got {self.positive}"
            )


@dataclass(frozen=True)
class Dimensions:
    """The network's sizes: L, E, H, F and the rows of the three embedding tables."""

    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int
    vocab_size: int
    positions: int
    token_types: int


@dataclass(frozen=True)
class Manifest:
    """The contents of segue.json, key for key, except `format`."""

    head: Head
    max_tokens: int
    dimensions: Dimensions
    layout: str  # "packed" | "padded"
    flat: bool  # True: the ONNX functions are inlined
    precision: str  # of the stored weights, one of PRECISIONS; int8: arithmetic too
    source: dict[str, str]  # architecture, name, sha256 of the weights
    versions: dict[str, str]  # of segue, torch, onnx, ... at export
    parity: dict[str, Any]  # the measured distance from PyTorch
    files: dict[str, str]  # name -> sha256

    def __post_init__(self) -> None:
        """Raise BundleError if the precision is unknown or `max_tokens` is out of range."""
        if self.precision not in PRECISIONS:
            raise BundleError(f"precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if not MIN_TOKENS <= self.max_tokens <= self.dimensions.positions:
            raise BundleError(
                f"max_tokens: expected {MIN_TOKENS} to {self.dimensions.positions}, the positions there are, "
                f"got {self.max_tokens}"
            )


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write segue.json into `folder`."""
    text = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_bundle(folder: Path) -> Manifest:
    """Read and check the bundle in `folder`: segue.json, then every file it names.

    Raises:
        BundleError: something is missing, unknown, altered, unreadable, of a newer format, or points outside
            the folder.
    """
    try:
        return _read_bundle(folder)
    except OSError as error:
        raise BundleError(f"{error.filename or folder}: {error.strerror}") from error


def _read_bundle(folder: Path) -> Manifest:
    manifest = _read_manifest(folder)
    for name in (MODEL, TOKENIZER):
        if name not in manifest.files:
            raise BundleError(f"{folder / MANIFEST}: files: {name} is not listed")
    for name, expected in manifest.files.items():
        if Path(name).name != name:
            raise BundleError(f"{folder / MANIFEST}: files: {name!r} is not a plain file name")
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{path}: missing; {MANIFEST} lists it")
        if (found := sha256(path)) != expected:
            raise BundleError(
                f"{path}: sha256 is {found[:12]}…, {MANIFEST} says {expected[:12]}…: "
                "the file was altered or cut short after export"
            )
    for location in sorted(external_data_locations(folder / MODEL)):
        if location not in manifest.files:
            raise BundleError(
                f"{folder / MODEL}: external data in {location!r}, which is not a file of this bundle"
            )
    return manifest


def stored_precision(folder: Path) -> str | None:
    """Return the precision that segue.json names; nothing else of the bundle is read or checked.

    Raises:
        BundleError: it is not readable.
    """
    try:
        found = read_object(folder / MANIFEST).get("precision")
    except OSError as error:
        raise BundleError(f"{folder / MANIFEST}: {error.strerror}") from error
    return found if isinstance(found, str) else None


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        BundleError: it holds something else. OSError: it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # includes JSONDecodeError and UnicodeDecodeError
        raise BundleError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(found, dict):
        raise BundleError(f"{path}: expected an object, got {type(found).__name__}")
    return found


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder}: no {MANIFEST}: not a segue bundle (`segue export` makes one)")
    data = read_object(path)
    found = data.pop("format", None)
    if type(found) is not int or found < 1:
        raise BundleError(f"{path}: format: expected an integer from 1, got {found!r}")
    if found > FORMAT:
        raise BundleError(f"{path}: format {found} is newer than this segue reads ({FORMAT}): upgrade segue")
    try:
        return _record(Manifest, data, "")
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error


def _record(kind: type[Record], data: Any, where: str) -> Record:
    """Build a dataclass from a JSON object: no key missing, none unknown, each value of its declared type."""
    if not isinstance(data, Mapping):
        raise BundleError(f"{where or 'the file'}: expected an object, got {type(data).__name__}")
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for missing in [name for name in names if name not in data]:
        raise BundleError(f"{where}{missing}: missing")
    for unknown in [name for name in data if name not in names]:
        raise BundleError(f"{where}{unknown}: unknown key")
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], data[name], f"{where}{name}") for name in names})


def _value(hint: Any, value: Any, where: str) -> Any:
    if hint in (Head, Dimensions):
        return _record(hint, value, f"{where}.")
    fits, said = _TYPES[hint]
    if not fits(value):
        raise BundleError(f"{where}: expected {said}, got {value!r}")
    return tuple(value) if hint == tuple[str, ...] else value


def _strings(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


# declared type -> (whether a JSON value fits it, its name in a message); bool is no int here
_TYPES: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (lambda value: type(value) is int and value > 0, "a positive integer"),
    str: (lambda value: isinstance(value, str), "a string"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int | None: (lambda value: value is None or type(value) is int, "an integer or null"),
    tuple[str, ...]: (lambda value: isinstance(value, list) and _strings(value), "a list of strings"),
    dict[str, str]: (
        lambda value: isinstance(value, dict) and _strings(value.values()),
        "an object of strings",
    ),
    dict[str, Any]: (lambda value: isinstance(value, dict), "an object"),
}
