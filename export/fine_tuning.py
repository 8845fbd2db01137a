"""A BERT checkpoint fine-tuned on next sentence prediction, with pairs of sentences drawn endlessly from
text, and, if wanted, on masked words too.

The way the default model is made; `pretrain` packs instances as BERT did. Options, checks and output;
the loop is in `training`, which needs transformers; this module does not.
"""

from __future__ import annotations

__all__ = ["fine_tune"]

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segue.errors import ExecutorUnavailable, InputError
from segue.export.instances import Recipe, Source, draw_pairs


def fine_tune(
    sources: Sequence[Source],
    *,
    init: str | Path,
    out: str | Path,
    recipe: Recipe,
    steps: int | None = None,
    minutes: float | None = None,
    learning_rate: float = 2e-4,
    batch_size: int = 32,
    max_tokens: int = 128,
    seed: int = 0,
    threads: int | None = None,
    train_words: bool = True,
    masks: float = 0.0,
    packed: float = 0.0,
    teacher: str | Path | None = None,
    cosine_weight: float = 4.0,
    dropout: float = 0.0,
    saves: int = 0,
    watch: Callable[..., dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Train, write the checkpoint and `metrics.json` to `out`, return the metrics.

    Either steps or minutes give the length. With minutes the learning rate follows the clock: the run ends in
    time, its decay complete, and draws the same pairs each time, but how many of them depends on the machine.
    `train_words=False` leaves the word embeddings as they are, which saves their dense gradient and keeps
    words that a small corpus lacks where they were. With `teacher`, an encoder's checkpoint folder, the model
    also learns to predict the cosine that the two sides' token sums have in that encoder: `cosine_weight`
    times its squared error is added to the loss. `packed` is the share of the pairs that are cut as BERT's
    packing cuts, `masks` that of the batches with masked words, and `dropout` that of hidden states. On the
    way `out/checkpoint-STEP` is written `saves` times, and what `watch(model, tokenizer)` returns is printed.

    Raises `InputError` or `BundleError` before any training where an option, the corpus or the checkpoint is
    unusable, and `ExecutorUnavailable` where transformers is missing.
    """
    asked = {"steps": steps, "minutes": minutes, "batch_size": batch_size, "threads": threads}
    for name, value in asked.items():
        if value is not None and not value > 0:
            raise InputError(f"{name}: expected more than 0, got {value}")
    draw_pairs(sources, recipe)  # refuses a corpus in which no negative can be drawn
    try:
        from segue.export import default_scores, training, training_data
    except ModuleNotFoundError as error:
        raise ExecutorUnavailable(
            f"training needs {error.name}, which is not installed: pip install 'segue[train]'"
        ) from error

    places = sum(max(len(document.sentences) - 1, 0) for source in sources for document in source.documents)
    init, out = Path(init), Path(out)
    training.set_seed(seed)  # for the head, if it is new
    model, tokenizer = training.load(init, max_tokens=max_tokens)
    sentences = (s for source in sources for document in source.documents for s in document.sentences)
    batches = training_data.Batches(
        sources,
        recipe,
        tokenizer,
        batch_size=batch_size,
        max_tokens=max_tokens,
        masks=masks,
        packed=packed,
        sums=default_scores.token_sums(Path(teacher), sentences) if teacher else None,
        seed=seed,
    )
    metrics = training.train(
        model,
        tokenizer,
        batches,
        out=out,
        steps=steps,
        seconds=minutes and minutes * 60,
        learning_rate=learning_rate,
        seed=seed,
        threads=threads,
        train_words=train_words,
        cosine_weight=cosine_weight,
        dropout=dropout,
        saves=saves,
        watch=watch,
    )
    metrics |= {
        "batch_size": batch_size,
        "max_tokens": max_tokens,
        "train_words": train_words,
        "masks": masks,
        "packed": packed,
        "teacher": teacher is not None,
        "cosine_weight": cosine_weight,
        "dropout": dropout,
    }
    metrics |= {"sources": {s.name: {"documents": len(s.documents), "share": s.share} for s in sources}}
    metrics |= {"places": places, "recipe": vars(recipe)}
    training.save(model, tokenizer, out)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return metrics
