"""What an export starts from: a Hugging Face checkpoint folder, or a bundle that is wanted in another form.

A bundle's graph names its weights as `Bert` does, so that the network can be built again from it. What the
bundle was exported from is recorded as the new one's source too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from tokenizers import Tokenizer
from torch import Tensor

from segue.bundle import MANIFEST, MODEL, TOKENIZER, Dimensions, Head, Manifest, read_bundle
from segue.errors import BundleError, InputError
from segue.export.bert import Bert
from segue.export.checkpoint import Checkpoint, load_bert, read_checkpoint
from segue.export.tokenizer import max_tokens, read_tokenizer
from segue.export.verify import measure
from segue.export.weights import weight_files, weights_sha256
from segue.text import open_tokenizer

__all__ = ["Origin", "read_origin"]


@dataclass(frozen=True)
class Origin:
    """All that a bundle needs; the weights are read by `load`."""

    head: Head
    dimensions: Dimensions
    max_tokens: int
    tokenizer: Tokenizer
    source: dict[str, str]  # as segue.json has it
    load: Callable[[], Bert]


def read_origin(folder: Path, *, head: str | None, positive: str | None) -> Origin:
    """Read what `folder` holds; `head` and `positive` are the options of `export_checkpoint`.

    Raises:
        BundleError: it is no exactly reproducible checkpoint, and no bundle with its weights, or a file may
            not be read.
        InputError: `head` or `positive` does not fit.
    """
    try:
        bundle = (folder / MANIFEST).is_file()
        return _bundle(folder, head, positive) if bundle else _checkpoint(folder, head, positive)
    except OSError as error:  # as weights that another user saved: safetensors writes them for nobody else
        raise BundleError(f"{error.filename or folder}: {error.strerror}") from error


def _checkpoint(folder: Path, head: str | None, positive: str | None) -> Origin:
    checkpoint = read_checkpoint(folder, head=head, positive=positive)
    return Origin(
        head=checkpoint.head,
        dimensions=checkpoint.dimensions,
        tokenizer=read_tokenizer(folder, checkpoint.dimensions.vocab_size),
        max_tokens=max_tokens(folder, checkpoint.dimensions.positions),
        source=_source(checkpoint),
        load=partial(load_bert, checkpoint),
    )


def _bundle(folder: Path, head: str | None, positive: str | None) -> Origin:
    for option, value in (("head", head), ("positive", positive)):
        if value is not None:
            raise InputError(f"{option}: {folder} is a bundle, which has its head already, got {value!r}")
    manifest = read_bundle(folder)
    if manifest.precision == "int8":
        raise BundleError(f"{folder}: its weights are rounded to int8: export what it came from")
    tokenizer = open_tokenizer(folder / TOKENIZER)
    stored = {} if manifest.precision == "float32" else {"through": f"a bundle in {manifest.precision}"}
    return Origin(
        head=manifest.head,
        dimensions=manifest.dimensions,
        tokenizer=tokenizer,
        max_tokens=manifest.max_tokens,
        source=manifest.source | stored,
        load=partial(_load_bundle, folder, manifest, tokenizer),
    )


def _load_bundle(folder: Path, manifest: Manifest, tokenizer: Tokenizer) -> Bert:
    """Return a bundle's network in float32, having checked that the bundle's graph computes the same."""
    path = folder / MODEL
    graph = ir.load(path).graph
    found = {node.attributes["epsilon"].as_float() for node in graph if "epsilon" in node.attributes}
    if len(found) != 1:
        raise BundleError(f"{path}: expected one epsilon for every LayerNorm, got {sorted(found)}")
    with torch.device("meta"):
        model = Bert(
            manifest.dimensions,
            labels=len(manifest.head.labels),
            activation=manifest.head.activation,
            eps=found.pop(),
        )
    model.load_state_dict(
        {name: _weight(path, graph, name, like.shape) for name, like in model.state_dict().items()},
        assign=True,
    )
    limit, layout = manifest.max_tokens, manifest.layout
    try:
        measure(path, model.eval(), tokenizer, max_tokens=limit, layout=layout, precision="float32")
    except BundleError as error:
        raise BundleError(f"{path}: not what its weights and {MANIFEST} say: {error}") from error
    return model


def _weight(path: Path, graph: ir.Graph, name: str, shape: torch.Size) -> Tensor:
    """Return a weight in float32."""
    stored = graph.initializers.get(name)
    if stored is None:
        raise BundleError(f"{path}: no weight is called {name}")
    weight = stored.const_value.numpy()
    if weight.dtype not in (np.float32, np.float16) or weight.shape != tuple(shape):
        raise BundleError(
            f"{path}: {name}: expected float32 or float16 {list(shape)}, "
            f"got {weight.dtype} {list(weight.shape)}"
        )
    return torch.tensor(weight).float()


def _source(checkpoint: Checkpoint) -> dict[str, str]:
    described = {
        "architecture": checkpoint.architecture,
        "name": checkpoint.folder.resolve().name,
        "weights": ", ".join(path.name for path in weight_files(checkpoint.folder)),
        "sha256": weights_sha256(checkpoint.folder),
    }
    described |= {"activation_fn": checkpoint.activation_fn} if checkpoint.activation_fn else {}
    # A folder's name, and a string in JSON, may hold what is not UTF-8.
    return {key: value.encode(errors="replace").decode() for key, value in described.items()}
