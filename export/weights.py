"""The tensors of a Hugging Face checkpoint folder, by name, whichever way they are stored.

safetensors or pytorch_model.bin, single or in shards with an index. A .bin is read by PyTorch's weights-only
reader, which never runs code from the file. Old names (`gamma`, `beta`) become today's. Knows no BERT.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from segue.errors import BundleError

__all__ = ["float_weight", "read_weights", "weight_files", "weights_sha256"]

# name of the file, name of the index over its shards; the first that is there is read, as transformers does
_KINDS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
# PEFT's. With it beside the weights, transformers changes them by the adapter's.
_ADAPTER = "adapter_config.json"
_POINTER = b"version https://git-lfs"
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights: one, or the shards in the order of their names.

    Raises:
        BundleError: there are none, a shard is missing, or the index is not readable or leaves the folder; or
            an adapter lies beside them.
    """
    if (folder / _ADAPTER).is_file():
        raise BundleError(
            f"{folder / _ADAPTER}: the adapter is not in the weights: merge it into them (merge_and_unload) "
            "and save the model anew"
        )
    for single, index in _KINDS:
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _shards(folder / index)
    raise BundleError(
        f"{folder}: no weights: looked for {', '.join(name for kind in _KINDS for name in kind)}"
    )


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of the checkpoint by name, as stored, on the CPU.

    Raises:
        BundleError: as in `weight_files`; or a file is cut short, holds anything but named tensors of plain
            numbers, or names one twice.
    """
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        for stored, tensor in _read(path).items():
            name = stored
            for old, new in _OLD_NAMES.items():
                name = name.replace(old, new)
            if name in weights:
                raise BundleError(f"{path}: {name} is there twice")
            weights[name] = tensor
    return weights


def float_weight(name: str, weight: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a weight in float32.

    Raises:
        BundleError: it has another shape than config.json says, or holds anything but finite numbers.
    """
    if not weight.dtype.is_floating_point:
        raise BundleError(f"weights: {name}: expected floating point, got {weight.dtype}")
    if list(weight.shape) != list(shape):
        raise BundleError(
            f"weights: {name}: expected the shape {list(shape)} by config.json, got {list(weight.shape)}"
        )
    wide = weight.float()
    if not wide.isfinite().all():
        raise BundleError(f"weights: {name} holds values that are not finite")
    return wide


def weights_sha256(folder: Path) -> str:
    """Return the hexadecimal SHA-256 over the weight files, one after the other."""
    digest = hashlib.sha256()
    for path in weight_files(folder):
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{index}: not an index of shards: {error!r}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise BundleError(f"{index}: {name!r} is not a plain file name")
        if not (index.parent / name).is_file():
            raise BundleError(f"{index.parent / name}: missing; {index.name} lists it")
    return [index.parent / name for name in names]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise ValueError("a pointer to them, of Git LFS: run `git lfs pull`")
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds: what PyTorch raises depends on where the file is broken
        raise BundleError(f"{path}: not readable as weights alone: {error}") from error
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        raise BundleError(f"{path}: expected a mapping of names to tensors")
    for name, tensor in weights.items():
        if tensor.is_meta or tensor.is_nested or tensor.layout is not torch.strided:
            raise BundleError(f"{path}: {name}: the tensor is without values, nested or sparse")
    return weights
