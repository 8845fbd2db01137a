"""Scores by PyTorch alone, to judge and calibrate a checkpoint in training: P(IsNext) of an NSP model and the
cosine similarity of an encoder. No engine takes part, so that the engine can be judged by these."""

from __future__ import annotations

__all__ = ["calibrate", "cosines", "linear_probe", "next_probabilities", "seed_scores", "token_sums"]

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
    logits = model.cls.seq_relationship(_pooled(model, tokenizer, pairs).to(model.device))
    return logits.softmax(-1)[:, IS_NEXT].detach().cpu().numpy()


def linear_probe(
    model: _Model, tokenizer: Tokenizer, pairs: Sequence[Pair], values: np.ndarray
) -> np.ndarray:
    """The direction, float64 [E], in which the pooled [CLS] of these pairs tells the values [N] best: by
    least squares, a little ridge against directions that hardly vary."""
    pooled = _pooled(model, tokenizer, pairs).double().numpy()
    pooled -= pooled.mean(0)
    square = pooled.T @ pooled + np.eye(pooled.shape[1])
    return np.asarray(np.linalg.solve(square, pooled.T @ (values - values.mean())))


def calibrate(
    model: _Model, tokenizer: Tokenizer, pairs: Sequence[Pair], along: np.ndarray
) -> dict[str, float]:
    """Divide the classifier by a temperature, 1/8 to 8, shift it by a bias and tilt it along a direction of
    the pooled [CLS], [E], those three that make these pairs likeliest (Platt, 1999; Guo and others, 2017).

    Returns temperature, bias and tilt, the last in logits for a standard deviation of these pairs, -4 to 4.
    Where `along` is zero, the order of scores stays as it was.
    """
    pooled = _pooled(model, tokenizer, pairs).double()
    head = model.cls.seq_relationship
    weight, shift = (values.double().cpu() for values in (head.weight.detach(), head.bias.detach()))
    odds = pooled @ (weight[IS_NEXT] - weight[NOT_NEXT]) + (shift[IS_NEXT] - shift[NOT_NEXT])
    direction = torch.from_numpy(along)
    spread = (pooled @ direction).std().clamp(min=1e-12)
    truth = torch.tensor([pair.label == IS_NEXT for pair in pairs]).double()
    # The tanh bounds both, so that no data can turn the order round or drown it.
    fit = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([fit], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = odds * 8 ** -fit[0].tanh() + pooled @ direction / spread * 4 * fit[2].tanh() + fit[1]
        value = torch.nn.functional.binary_cross_entropy_with_logits(scores, truth)
        value.backward()
        return value

    optimizer.step(loss)
    scale, bias, tilt = 8 ** -fit[0].tanh().item(), fit[1].item(), 4 * fit[2].tanh().item()
    half = (direction * (tilt / spread) / 2).to(head.weight)
    with torch.no_grad():
        head.weight *= scale
        head.bias *= scale
        for label, sign in (IS_NEXT, 1), (NOT_NEXT, -1):
            head.weight[label] += sign * half
            head.bias[label] += sign * bias / 2
    return {"temperature": 1 / scale, "bias": bias, "tilt": tilt}


def seed_scores(model: _Model, tokenizer: Tokenizer, seeds: Sequence[Sequence[str]]) -> dict[str, float]:
    """P(IsNext) of (first, follower) for the followers after each seed's first text, by follower."""
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
    """By text, the sum of its token vectors, special tokens among them, in the encoder: float32 [E]."""
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
def _pooled(model: _Model, tokenizer: Tokenizer, pairs: Sequence[Pair]) -> torch.Tensor:
    """The pooled [CLS] of each pair, [N, E] on the CPU: whole pairs up to the model's length, in evaluation
    mode. The other head, which would cost much, stays out of it."""
    training = model.training
    model.eval()
    encoded = encode_pairs(tokenizer, pairs, model.config.max_position_embeddings)
    order = sorted(range(len(pairs)), key=lambda i: len(encoded[i]["input_ids"]))
    pooled = torch.empty(len(pairs), model.config.hidden_size)
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        pooled[rows] = model.bert(**_batch([encoded[i] for i in rows], model)).pooler_output.cpu()
    model.train(training)
    return pooled


def _batch(items: list[dict[str, Any]], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: values.to(model.device) for name, values in collate(items).items()}
