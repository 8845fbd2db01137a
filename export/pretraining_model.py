"""The model of `segue pretrain`: BERT with both heads, new or from a checkpoint, as transformers has it."""

from __future__ import annotations

__all__ = ["BertForPreTraining", "load", "new", "outline"]

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertConfig

from segue.errors import BundleError
from segue.export.masking import IGNORED
from segue.export.weights import float_weight, read_weights

_BERT = ("embeddings.", "encoder.", "pooler.")
# numbers that nothing checks before a forward pass
_RANGES = {
    "chunk_size_feed_forward": (0, 0),
    "initializer_range": (0, 10),
    "layer_norm_eps": (0, 1),
    "hidden_dropout_prob": (0, 1),
    "attention_probs_dropout_prob": (0, 1),
}
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")  # which old versions stored


def new(settings: dict[str, Any]) -> BertForPreTraining:
    """A model of that config, its weights drawn from PyTorch's random numbers."""
    return BertForPreTraining(BertConfig(**settings))


def load(folder: Path) -> BertForPreTraining:
    """The checkpoint in float32; heads that it lacks are new.

    Raises `BundleError` as `outline` does, and where the weights are missing, unreadable, or not those of the
    config.
    """
    model, weights = outline(folder), read_weights(folder)
    try:
        _check(weights, model.state_dict())
    except BundleError as error:
        raise BundleError(f"{folder}: {error}") from error
    loaded: BertForPreTraining = BertForPreTraining.from_pretrained(
        None, config=model.config, state_dict=weights, dtype=torch.float32
    )
    return loaded


def outline(folder: Path) -> BertForPreTraining:
    """The model of config.json, on the meta device: shapes without weights.

    Raises `BundleError` if the config is not that of a trainable BERT.
    """
    file = folder / "config.json"
    with _refused(file):
        config = BertConfig.from_pretrained(folder, local_files_only=True)
    for name, (least, most) in _RANGES.items():
        value = getattr(config, name)
        if type(value) not in (int, float) or not least <= value <= most:
            wanted = f"a number from {least} to {most}" if least < most else least
            raise BundleError(f"{file}: {name}: expected {wanted}, got {value!r}")
    with _refused(file), torch.device("meta"):
        return BertForPreTraining(config)


@contextmanager
def _refused(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of many kinds: transformers checks some of the values, PyTorch others
        reason = " ".join(str(error).split())
        raise BundleError(f"{file}: no BERT can be made of it: {reason}") from error


def _check(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise `BundleError` unless the weights are all of a BERT's, but for its heads and pooler."""
    left = {name for name in expected if name.startswith(("bert.embeddings.", "bert.encoder."))}
    for stored, tensor in weights.items():
        name = f"bert.{stored}" if stored.startswith(_BERT) else stored  # a model without heads has no prefix
        left.discard(name)
        if name in expected:
            float_weight(stored, tensor, expected[name].shape)
        elif name.startswith("bert.") and name.removeprefix("bert.") not in _BUFFERS:
            raise BundleError(f"weights: config.json tells of no {stored}")
    if left:
        raise BundleError(f"lacks {len(left)} weights of a BERT, one is {min(left)}")


class BertForPreTraining(transformers.BertForPreTraining):
    """Hugging Face's, and named like it in config.json; but given labels, it computes the words' head only
    for tokens that have one, one in seven, and returns each loss too."""

    def forward(self, input_ids=None, labels=None, next_sentence_label=None, **inputs):
        """With both labels, a dict of loss, mlm_loss and nsp_loss, scalars; with next_sentence_label alone,
        of loss and nsp_loss; without, what Hugging Face's gives."""
        if next_sentence_label is None:
            return super().forward(input_ids, **inputs)
        if labels is None:
            read = self.bert(input_ids, **inputs)
            loss = cross_entropy(self.cls.seq_relationship(read.pooler_output), next_sentence_label)
            return {"loss": loss, "nsp_loss": loss}
        words, said, pairs = self.read(input_ids, labels, **inputs)
        # a batch has no masked token if every token is [UNK]; the mean would be nan
        mlm = cross_entropy(words, said, reduction="sum") / max(len(said), 1)
        nsp = cross_entropy(pairs, next_sentence_label)
        return {"loss": mlm + nsp, "mlm_loss": mlm, "nsp_loss": nsp}

    def read(
        self, input_ids: torch.Tensor, labels: torch.Tensor, next_sentence_label: Any = None, **inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(logits [M, V], labels [M]) of the M masked tokens, logits [B, 2] of the pairs."""
        read = self.bert(input_ids, **inputs)
        chosen = labels != IGNORED
        words = self.cls.predictions(read.last_hidden_state[chosen])
        return words, labels[chosen], self.cls.seq_relationship(read.pooler_output)
