"""What a checkpoint predicts in transformers (PyTorch): P(IsNext) of given token ids, and masked words.

The ids are the engine's own, so that a difference can only lie in the arithmetic. float32, CPU.
"""

from __future__ import annotations

__all__ = ["masked_words", "next_probabilities", "versions"]

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer

from segue.batching import pack, plan
from segue.encoded import Encoded
from segue.export import pretraining
from segue.export.instances import IS_NEXT
from segue.export.pretraining_data import Instances
from segue.export.token_store import TokenStore
from segue.export.verify import padded

_TOKENS = 2048  # at once, padding included


@torch.no_grad()
def next_probabilities(folder: Path, encoded: Encoded) -> NDArray[np.float32]:
    """P(IsNext), [N], of the pairs of `encoded`, by the checkpoint in `folder`."""
    model = transformers.BertForNextSentencePrediction.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    ).eval()
    found = np.empty(len(encoded.pairs), dtype=np.float32)
    for rows in plan(encoded.lengths, _TOKENS, _TOKENS):
        inputs = padded(pack(encoded, rows))
        logits = model(**{name: torch.from_numpy(values) for name, values in inputs.items()}).logits
        found[rows] = logits.softmax(-1)[:, IS_NEXT].numpy()
    return found[encoded.inverse]


def masked_words(
    folder: Path, store: TokenStore, tokenizer: Tokenizer, *, count: int, max_tokens: int, seed: int
) -> dict[str, Any]:
    """Accuracy and mean loss (nats) over the masked tokens of the first `count` packed instances."""
    instances = Instances(store, tokenizer, max_tokens=max_tokens, seed=seed)
    found = pretraining.evaluate(pretraining.load(folder), instances, count)
    names = ("instances", "masked_tokens", "accuracy", "loss")
    return dict(zip(names, (found[name] for name in (*names[:2], "mlm_accuracy", "mlm_loss")), strict=True))


def versions() -> str:
    """What computes here, with version numbers."""
    return f"transformers {transformers.__version__} on PyTorch {torch.__version__}, float32, cpu"
