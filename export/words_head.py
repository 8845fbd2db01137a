"""Whether a checkpoint holds BERT's head for masked words, read off the names of its tensors."""

from __future__ import annotations

__all__ = ["has_words_head"]

from itertools import chain
from pathlib import Path

from safetensors import safe_open

from segue.export.weights import read_weights, weight_files

_HEAD = "cls.predictions.transform."


def has_words_head(folder: Path) -> bool:
    """True if the head's own layers are there; transformers would make up missing ones.

    Of a safetensors file only the names are read. Raises `BundleError` for weights missing or unreadable.
    """
    files = weight_files(folder)
    if files[0].suffix == ".safetensors":
        names = chain.from_iterable(safe_open(file, "pt").keys() for file in files)
    else:
        names = iter(read_weights(folder))
    return any(name.startswith(_HEAD) for name in names)
