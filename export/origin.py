"""What an export starts from: a Hugging Face checkpoint folder, or a bundle that is wanted in another form.

A bundle's graph calls each weight as `Bert` does, so that the network can be built again from it. What it was
exported from is what the new one was, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx_ir as ir
import torch
from tokenizers import Tokenizer

from segue.bundle import MANIFEST, MODEL, TOKENIZER, Dimensions, Head, Manifest, read_bundle
from segue.errors import BundleError, InputError
from segue.export.bert import Bert
from segue.export.checkpoint import Checkpoint, load_bert, read_checkpoint
from segue.export.tokenizer import max_tokens, read_tokenizer
from segue.export.weights import weight_files, weights_sha256

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


def read_origin(folder: Path, *, head: str | None = None, positive: str | None = None) -> Origin:
    """Read what `folder` holds; `head` and `positive` are the options of `export_checkpoint`.

    Raises:
        BundleError: it is no checkpoint that would be reproduced exactly, and no bundle with its weights.
        InputError: `head` or `positive` does not fit.
    """
    if (folder / MANIFEST).is_file():
        return _bundle(folder, head, positive)
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
    stored = {} if manifest.precision == "float32" else {"through": f"a bundle in {manifest.precision}"}
    return Origin(
        head=manifest.head,
        dimensions=manifest.dimensions,
        tokenizer=Tokenizer.from_file(str(folder / TOKENIZER)),
        max_tokens=manifest.max_tokens,
        source=manifest.source | stored,
        load=partial(_load_bundle, folder, manifest),
    )


def _load_bundle(folder: Path, manifest: Manifest) -> Bert:
    """Return the network of a bundle's graph, in float32."""
    graph = ir.load(folder / MODEL).graph
    (eps,) = {node.attributes["epsilon"].as_float() for node in graph if "epsilon" in node.attributes}
    with torch.device("meta"):
        model = Bert(
            manifest.dimensions,
            labels=len(manifest.head.labels),
            activation=manifest.head.activation,
            eps=eps,
        )
    stored = graph.initializers
    if missing := [name for name in model.state_dict() if name not in stored]:
        raise BundleError(f"{folder / MODEL}: no weight is called {missing[0]}")
    state = {name: torch.tensor(stored[name].const_value.numpy()).float() for name in model.state_dict()}
    model.load_state_dict(state, assign=True)
    return model.eval()


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
