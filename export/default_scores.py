"""Scores by PyTorch alone, to judge and calibrate a checkpoint in training: P(IsNext) of an NSP model and the
cosine similarity of an encoder. No engine takes part, so that the engine can be judged by these."""

from __future__ import annotations

__all__ = ["calibrate", "cosines", "next_probabilities", "seed_scores", "token_sums"]

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import BertForNextSentencePrediction, BertForPreTraining, BertModel

from segue.export.instances import IS_NEXT, NOT_NEXT, Pair
from segue.export.pretraining_data import collate
from segue.export.tokenizer import read_tokenizer
from segue.export.training import device
from segue.export.training_data import encode_pairs

_BATCH = 16
_Model = BertForNextSentencePrediction | BertForPreTraining


def next_probabilities(model: _Model, tokenizer: Tokenizer, pairs: Sequence[Pair]) -> np.ndarray:
    """P(IsNext) of each pair, float32 [N]."""
    return _logits(model, tokenizer, pairs).softmax(-1)[:, IS_NEXT].numpy()


def calibrate(model: _Model, tokenizer: Tokenizer, pairs: Sequence[Pair]) -> dict[str, float]:
    """Divide the classifier by a temperature, 1/8 to 8, and shift it by a bias, chosen to make these pairs
    likeliest; return both (Platt, 1999; Guo and others, 2017). The order of scores stays the same."""
    logits = _logits(model, tokenizer, pairs).double()
    odds = logits[:, IS_NEXT] - logits[:, NOT_NEXT]
    truth = torch.tensor([pair.label == IS_NEXT for pair in pairs]).double()
    # log(temperature) / log(8) is the tanh of fit[0], so that no data can reverse the order
    fit = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([fit], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = odds * 8 ** -fit[0].tanh() + fit[1]
        value = torch.nn.functional.binary_cross_entropy_with_logits(scores, truth)
        value.backward()
        return value

    optimizer.step(loss)
    scale, bias = 8 ** -fit[0].tanh().item(), fit[1].item()
    with torch.no_grad():
        model.cls.seq_relationship.weight *= scale
        model.cls.seq_relationship.bias *= scale
        model.cls.seq_relationship.bias[IS_NEXT] += bias / 2
        model.cls.seq_relationship.bias[NOT_NEXT] -= bias / 2
    return {"temperature": 1 / scale, "bias": bias}


def seed_scores(model: _Model, tokenizer: Tokenizer, seeds: Sequence[Sequence[str]]) -> dict[str, float]:
    """By follower, P(IsNext) of (first, follower): each seed's first text and one after it."""
    pairs = [Pair(first, follower, IS_NEXT, "seed") for first, *rest in seeds for follower in rest]
    scores = next_probabilities(model, tokenizer, pairs)
    return {pair.b: round(float(score), 4) for pair, score in zip(pairs, scores, strict=True)}


def cosines(encoder: Path, pairs: Sequence[Pair]) -> np.ndarray:
    """The cosine of the two sides' mean token vectors in the encoder as it came, float32 [N]."""
    sums = token_sums(encoder, (side for pair in pairs for side in (pair.a, pair.b)))
    a, b = (
        np.stack([sums[side] for side in sides]) for sides in zip(*((p.a, p.b) for p in pairs), strict=True)
    )
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@torch.no_grad()
def token_sums(encoder: Path, texts: Iterable[str]) -> dict[str, np.ndarray]:
    """By text, the sum of its token vectors, special tokens included, in the encoder: float32 [E]."""
    model = BertModel.from_pretrained(encoder, dtype=torch.float32).eval().to(device())
    tokenizer = read_tokenizer(encoder, model.config.vocab_size)
    ordered, sums = sorted(set(texts), key=len), {}
    for start in range(0, len(ordered), _BATCH):
        some = ordered[start : start + _BATCH]
        rows = [encoding.ids[:512] for encoding in tokenizer.encode_batch(some)]
        batch = _batch([{"input_ids": row, "token_type_ids": [0] * len(row)} for row in rows], model)
        hidden = model(**batch).last_hidden_state * batch["attention_mask"][..., None]
        sums.update(zip(some, hidden.sum(1).cpu().numpy(), strict=True))
    return sums


@torch.no_grad()
def _logits(model: _Model, tokenizer: Tokenizer, pairs: Sequence[Pair]) -> torch.Tensor:
    """logits [N, 2], whole pairs up to the model's length, in evaluation mode."""
    training = model.training
    model.eval()
    encoded = encode_pairs(tokenizer, pairs, model.config.max_position_embeddings)
    order = sorted(range(len(pairs)), key=lambda i: len(encoded[i]["input_ids"]))
    logits = torch.empty(len(pairs), 2)
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        read = model.bert(**_batch([encoded[i] for i in rows], model))
        logits[rows] = model.cls.seq_relationship(read.pooler_output).cpu()  # the other head would cost much
    model.train(training)
    return logits


def _batch(items: list[dict[str, Any]], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: values.to(model.device) for name, values in collate(items).items()}
