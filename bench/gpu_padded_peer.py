"""transformers' classifier at its best: batches of about equally long pairs, padded to their longest."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from segue.batching import PackedBatch

__all__ = ["Padded", "padded", "score_padded"]


class Padded(NamedTuple):
    """A batch: the rows of its pairs, and the module's inputs on the host; no mask if nothing is padded."""

    rows: np.ndarray
    inputs: dict[str, Tensor]


def padded(whole: PackedBatch, pairs: int, *, pinned: bool) -> list[Padded]:
    """Batches of so many pairs, the longest first."""
    bounds = whole.cu_seqlens
    lengths = np.diff(bounds)
    order = np.argsort(-lengths, kind="stable")
    batches = []
    for start in range(0, len(order), pairs):
        rows = order[start : start + pairs]
        inside = np.arange(lengths[rows].max()) < lengths[rows][:, None]
        places = (bounds[rows][:, None] + np.arange(inside.shape[1])).clip(max=bounds[-1] - 1)
        parts = {
            "input_ids": np.where(inside, whole.input_ids[places], 0),
            "token_type_ids": np.where(inside, whole.token_type_ids[places], 0),
        }
        if not inside.all():
            parts["attention_mask"] = inside.astype(np.int64)
        inputs = {name: torch.from_numpy(values) for name, values in parts.items()}
        if pinned:
            inputs = {name: values.pin_memory() for name, values in inputs.items()}
        batches.append(Padded(rows, inputs))
    return batches


def score_padded(
    module: Any, batches: list[Padded], device: torch.device, *, wide: torch.dtype = torch.float32
) -> np.ndarray:
    """[N, C], in the order of the pairs; copied back when all batches have been sent."""
    with torch.inference_mode():
        found = []
        for batch in batches:
            inputs = {name: x.to(device, non_blocking=True) for name, x in batch.inputs.items()}
            found.append(module(**inputs).logits.clone())  # a compiled module gives its own memory
        logits: Tensor = torch.cat(found).to(wide).cpu()
    ordered = torch.empty_like(logits)
    ordered[torch.from_numpy(np.concatenate([batch.rows for batch in batches]))] = logits
    return ordered.numpy()
