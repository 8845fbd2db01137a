"""A Hugging Face BERT checkpoint: what it is, whether segue can reproduce it exactly, and its weights.

What cannot be reproduced exactly is refused by name here, before any work is done. Reads config.json and the
weights; the tokenizer is `tokenizer`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segue.bundle import Dimensions, Head, read_object
from segue.errors import BundleError
from segue.export.bert import Bert
from segue.export.heads import CLASSIFIERS, activation_fn, choose_head
from segue.export.weights import float_weight, read_weights

__all__ = ["Checkpoint", "load_bert", "read_checkpoint", "read_dimensions"]

# Both are exact erf GELU: the second is transformers' own spelling of the formula.
_ACTIVATIONS = ("gelu", "gelu_python")
# config.json key -> the values under which BERT computes what `Bert` does, the first being its default
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("bert",),
    "position_embedding_type": ("absolute",),
    "hidden_act": _ACTIVATIONS,
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (None,),
    "pruned_heads": ({}, None),
}
# What a checkpoint may also hold without changing a score: the masked language model's head, and a list of
# positions that old versions stored.
_HARMLESS = ("cls.predictions.", "bert.embeddings.position_ids")
_MOST = 2**24  # of a size: two multiplied, times 4 bytes, are far from the 2**63 at which PyTorch fails
_MOST_LAYERS = 1000  # each takes a millisecond to build, before its weights are sought

_ATTENTION = ("query", "key", "value")
_LAYER = {
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}


@dataclass(frozen=True)
class Checkpoint:
    """What config.json says, checked."""

    folder: Path
    architecture: str
    dimensions: Dimensions
    eps: float  # of every LayerNorm
    head: Head
    activation_fn: str | None  # what sentence-transformers applies to the logits, if the config names it


def read_checkpoint(folder: Path, *, head: str | None = None, positive: str | None = None) -> Checkpoint:
    """Read config.json; `head` and `positive` are the options of `export_checkpoint`.

    Raises:
        BundleError: there is none, or it describes something that would not be reproduced exactly.
        InputError: `head` or `positive` does not fit the checkpoint.
    """
    path = folder / "config.json"
    config, library = _config(path), _library(folder)
    try:
        _check_supported(config)
        architecture = _architecture(config, folder)
        return Checkpoint(
            folder=folder,
            architecture=architecture,
            dimensions=_dimensions(config),
            eps=_eps(config),
            head=choose_head(config, architecture, library=library, head=head, positive=positive),
            activation_fn=activation_fn(config, library),
        )
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error


def load_bert(checkpoint: Checkpoint) -> Bert:
    """Return the checkpoint's network in float32, with every weight accounted for.

    Raises:
        BundleError: a weight is missing, unknown, not finite, or of another shape than config.json says.
    """
    with torch.device("meta"):  # no memory, no random numbers: all of it is replaced
        model = Bert(
            checkpoint.dimensions,
            labels=len(checkpoint.head.labels),
            activation=checkpoint.head.activation,
            eps=checkpoint.eps,
        )
    try:
        state = _translate(read_weights(checkpoint.folder), checkpoint, model.state_dict())
    except BundleError as error:
        raise BundleError(f"{checkpoint.folder}: {error}") from error
    model.load_state_dict(state, assign=True)
    return model.eval()


def read_dimensions(folder: Path) -> Dimensions:
    """Return the sizes of a BERT with any head, or none.

    Raises:
        BundleError: config.json is missing, or describes something that would not be reproduced exactly.
    """
    path = folder / "config.json"
    config = _config(path)
    try:
        _check_supported(config)
        return _dimensions(config)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error


def _library(folder: Path) -> dict[str, Any]:
    """What sentence-transformers says of a cross-encoder, in a file of its own since version 5."""
    path = folder / "config_sentence_transformers.json"
    found = read_object(path) if path.is_file() else {}
    if found.get("default_prompt_name") is not None:
        raise BundleError(f"{path}: default_prompt_name: segue puts no prompt before a text")
    return found


def _config(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{path.parent}: no config.json: not a Hugging Face checkpoint folder") from error
    except OSError as error:
        raise BundleError(f"{path}: not readable: {error.strerror}") from error


def _check_supported(config: dict[str, Any]) -> None:
    for key, allowed in _SUPPORTED.items():
        if (found := config.get(key, allowed[0])) not in allowed:
            wanted = " or ".join(str(value) for value in allowed[:2] if value not in (None, {}))
            raise BundleError(f"{key}: {found!r} is not supported{f' (only {wanted})' if wanted else ''}")


def _architecture(config: dict[str, Any], folder: Path) -> str:
    named = given = config.get("architectures")
    if given is None:  # as in the first conversions of Google's BERTs, bert-tiny among them: the weights tell
        weights = read_weights(folder)
        named = [name for name, head in CLASSIFIERS.items() if f"{head}.weight" in weights][:1]
    if named not in [[name] for name in CLASSIFIERS]:
        raise BundleError(f"architectures: expected one of {', '.join(CLASSIFIERS)}, got {given!r}")
    return str(named[0])


def _dimensions(config: dict[str, Any]) -> Dimensions:
    dimensions = Dimensions(
        layers=_integer(config, "num_hidden_layers", most=_MOST_LAYERS),
        hidden_size=_integer(config, "hidden_size"),
        heads=_integer(config, "num_attention_heads"),
        intermediate_size=_integer(config, "intermediate_size"),
        vocab_size=_integer(config, "vocab_size"),
        positions=_integer(config, "max_position_embeddings"),
        token_types=_integer(config, "type_vocab_size"),
    )
    if dimensions.hidden_size % dimensions.heads:
        raise BundleError(
            f"hidden_size: {dimensions.hidden_size} is not a multiple of {dimensions.heads} attention heads"
        )
    if dimensions.token_types < 2:
        raise BundleError("type_vocab_size: 1 cannot tell the two sentences of a pair apart")
    if dimensions.positions < 3:
        raise BundleError(
            f"max_position_embeddings: a pair has 3 tokens at least, got {dimensions.positions}"
        )
    return dimensions


def _integer(config: dict[str, Any], key: str, *, most: int = _MOST) -> int:
    found = config.get(key)
    if type(found) is not int or not 1 <= found <= most:
        raise BundleError(f"{key}: expected an integer from 1 to {most}, got {found!r}")
    return found


def _eps(config: dict[str, Any]) -> float:
    found = config.get("layer_norm_eps", 1e-12)
    if type(found) not in (int, float) or not 0 <= found < 1:
        raise BundleError(f"layer_norm_eps: expected a number from 0 to 1, got {found!r}")
    return float(found)


def _translate(
    stored: dict[str, Tensor], checkpoint: Checkpoint, wanted: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the weights under the names of `wanted`, the state dict whose shapes they must have."""
    left = {name: tensor for name, tensor in stored.items() if not name.startswith(_HARMLESS)}
    state = {}
    for name, like in wanted.items():
        sources = _sources(name, checkpoint)
        shape = [like.shape[0] // len(sources), *like.shape[1:]]
        parts = [_take(left, source, shape) for source in sources]
        state[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    size, last = checkpoint.dimensions.hidden_size, checkpoint.dimensions.layers - 1
    _take(left, f"bert.encoder.layer.{last}.attention.self.key.bias", [size])  # it would change no score
    if left:
        raise BundleError(f"weights: unknown: {', '.join(sorted(left)[:5])}")
    return state


def _take(left: dict[str, Tensor], source: str, shape: list[int]) -> Tensor:
    """Return a weight in float32, and remove it from those left."""
    if source not in left:
        raise BundleError(f"weights: {source} is missing")
    return float_weight(source, left.pop(source), shape)


def _sources(name: str, checkpoint: Checkpoint) -> list[str]:
    """Return the checkpoint's names for one of ours; several where ours stacks their rows."""
    module, _, kind = name.rpartition(".")
    match module.split("."):
        case ["embeddings", "norm"]:
            return [f"bert.embeddings.LayerNorm.{kind}"]
        case ["embeddings", table]:
            return [f"bert.embeddings.{table}_embeddings.{kind}"]
        case ["layers", number, part]:
            if part in ("qkv", *_ATTENTION):
                theirs = [f"attention.self.{one}" for one in (_ATTENTION if part == "qkv" else (part,))]
            else:
                theirs = [_LAYER[part]]
            return [f"bert.encoder.layer.{number}.{one}.{kind}" for one in theirs]
        case ["head", "pooler"]:
            return [f"bert.pooler.dense.{kind}"]
    return [f"{CLASSIFIERS[checkpoint.architecture]}.{kind}"]
