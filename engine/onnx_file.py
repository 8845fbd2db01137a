"""Where an ONNX file keeps its external data, read from the protobuf wire format without the onnx package.

Visits only what can hold a tensor (graphs, functions, nodes, attributes) and steps over the weights
themselves, so a model of a gigabyte takes milliseconds. Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from segue.errors import BundleError

__all__ = ["external_data_locations"]

# message -> {field number: message of that field}
_CHILDREN = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "StringStringEntry"},
}
_LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}  # wire type -> bytes


def external_data_locations(path: Path) -> set[str]:
    """Return the `location` of every tensor in the ONNX file at `path` whose data lies in another file.

    Raises:
        BundleError: the file is empty or is no protobuf.
    """
    with path.open("rb") as file:
        try:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise BundleError(f"{path}: empty") from error
    with view:
        try:
            return set(_locations(view, 0, len(view), "Model"))
        except (IndexError, KeyError, UnicodeDecodeError, RecursionError) as error:
            raise BundleError(f"{path}: not an ONNX file, or cut short") from error


def _locations(data: mmap.mmap, start: int, end: int, message: str) -> Iterator[str]:
    children = _CHILDREN[message]
    for field, begin, stop in _fields(data, start, end):
        child = children.get(field)
        if child == "StringStringEntry":
            entry = {number: data[a:b].decode() for number, a, b in _fields(data, begin, stop)}
            if entry.get(1) == "location":
                yield entry.get(2, "")
        elif child is not None:
            yield from _locations(data, begin, stop, child)


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, begin, end) of each length-delimited field; step over the others."""
    at = start
    while at < end:
        key, at = _varint(data, at)
        if key >> 32:  # protobuf's own readers refuse it, or read the lower 32 bits
            raise IndexError
        wire = key & 7
        if wire == _LENGTH_DELIMITED:
            size, at = _varint(data, at)
            if at + size > end:
                raise IndexError
            yield key >> 3, at, at + size
            at += size
        elif wire == 0:
            _, at = _varint(data, at)
        else:
            at += _FIXED_BYTES[wire]
    if at != end:
        raise IndexError


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError
