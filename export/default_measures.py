"""How good the default model is: calibrated on documents to tune on, measured on those held out, beside what
the encoder's own cosine says without any training. Uses PyTorch alone, no engine."""

from __future__ import annotations

__all__ = ["learning_curve", "measure", "measure_cosine"]

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import BertConfig

from segue.export.corpus import Document
from segue.export.default_scores import calibrate, cosines, next_probabilities
from segue.export.evaluation import KINDS, PairSet, drawn_set, measured, packed_set
from segue.export.instances import Recipe, Source, draw_pairs
from segue.export.measures import accuracy, auc, best_threshold
from segue.export.pretraining import evaluate
from segue.export.pretraining_data import Instances
from segue.export.token_store import write_tokens
from segue.export.tokenizer import read_tokenizer
from segue.export.training import load, save

_PACKED_TOKENS = 128
_PACKED = f"all documents, BERT's packing to {_PACKED_TOKENS} tokens"


def measure(
    folder: Path, tune: Sequence[Source], held_out: dict[str, list[Document]], *, pairs: int
) -> dict[str, Any]:
    """Calibrate the checkpoint in `folder` on the documents to tune on, then measure it on those held out;
    each with one to three sentences a side, and in BERT's own packing of all documents to 128 tokens."""
    model, tokenizer = load(folder, max_tokens=512)
    known = list(islice(draw_pairs(tune, Recipe(), seed=1), pairs))
    known += _packed((source.documents for source in tune), tokenizer, pairs).pairs
    calibration = calibrate(model, tokenizer, known)
    save(model, tokenizer, folder)
    sets = _held_out_sets(held_out, tokenizer, pairs)
    with TemporaryDirectory() as work:
        store = write_tokens(chain.from_iterable(held_out.values()), tokenizer, Path(work))
        words = evaluate(model, Instances(store, tokenizer, max_tokens=_PACKED_TOKENS), pairs)
    found = {name: _measured(next_probabilities(model, tokenizer, s.pairs), s) for name, s in sets.items()}
    return {
        **calibration,
        "measured": found,
        "masked_words": {name: words[name] for name in ("masked_tokens", "mlm_accuracy", "mlm_loss")},
    }


def measure_cosine(encoder: Path, train: dict, held_out: dict, *, pairs: int) -> dict[str, Any]:
    """The zero-training baseline on the same pairs, its thresholds chosen on training documents."""
    novels = [chapter for name, chapters in train.items() if name != "articles" for chapter in chapters]
    alike = {name: train["articles"] if name == "articles" else novels for name in held_out}
    tokenizer = read_tokenizer(encoder, BertConfig.from_pretrained(encoder).vocab_size)
    known = _judged(alike, pairs // 2, seed=1)
    known[_PACKED] = _packed(train.values(), tokenizer, pairs // 2, seed=1)
    measured = {}
    for name, judged in _held_out_sets(held_out, tokenizer, pairs).items():
        threshold = best_threshold(cosines(encoder, known[name].pairs), known[name].truth)
        scores = cosines(encoder, judged.pairs)
        measured[name] = {
            "accuracy": round(accuracy(scores, judged.truth, threshold), 4),
            "auc": round(auc(scores, judged.truth), 4),
            "threshold": round(threshold, 4),
        }
    return measured


def learning_curve(
    course: Sequence[tuple[int, Path]], tune: dict[str, list[Document]], *, pairs: int
) -> list[dict[str, Any]]:
    """Accuracy on the documents to tune on, negatives from another document, by pairs trained on: was
    training long enough?"""
    novels = [chapter for name, chapters in tune.items() if name != "articles" for chapter in chapters]
    found = _judged({"articles": tune["articles"], "novels": novels}, pairs)
    sets = {name: found[f"{name}, other document"] for name in ("articles", "novels")}
    curve = []
    for seen, checkpoint in course:
        model, tokenizer = load(checkpoint, max_tokens=512)
        told = {
            name: round(accuracy(next_probabilities(model, tokenizer, s.pairs), s.truth), 4)
            for name, s in sets.items()
        }
        curve.append({"pairs": seen, **told})
    return curve


def _held_out_sets(
    documents: dict[str, list[Document]], tokenizer: Tokenizer, pairs: int
) -> dict[str, PairSet]:
    """What model and baseline are both measured on, by name."""
    return {**_judged(documents, pairs), _PACKED: _packed(documents.values(), tokenizer, pairs)}


def _judged(documents: dict[str, list[Document]], pairs: int, *, seed: int = 0) -> dict[str, PairSet]:
    """A set of pairs for each source and each kind of negative, half of the pairs being IsNext."""
    drawn = {
        f"{source}, {kind}": drawn_set(found, kind, pairs=pairs, sides=3, seed=seed)
        for source, found in documents.items()
        for kind in KINDS
    }
    return {name: found for name, found in drawn.items() if isinstance(found, PairSet)}


def _packed(
    documents: Iterable[Iterable[Document]], tokenizer: Tokenizer, pairs: int, *, seed: int = 0
) -> PairSet:
    """Pairs of BERT's own packing of all these documents together."""
    with TemporaryDirectory() as work:
        store = write_tokens(chain.from_iterable(documents), tokenizer, Path(work))
        return packed_set(store, tokenizer, pairs=pairs, max_tokens=_PACKED_TOKENS, seed=seed)


def _measured(probabilities: np.ndarray, judged: PairSet) -> dict[str, Any]:
    found = measured(probabilities, judged.truth, np.zeros(len(judged.pairs), dtype=bool))
    return {name: found[name] for name in ("pairs", "accuracy", "auc", "calibration_error")}
