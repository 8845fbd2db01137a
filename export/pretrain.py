"""`segue pretrain`: text and a BERT checkpoint to a checkpoint trained on next sentence prediction.

The face of training: options, checks, what is written. The loop is in `training`, which needs transformers;
this module needs none, so that the command line can describe the command without it. This first version
teaches next sentence prediction alone.
"""

from __future__ import annotations

__all__ = ["DEFAULT_RECIPE", "add_arguments", "pretrain", "run"]

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segue.errors import ExecutorUnavailable, InputError
from segue.export.corpus import read_documents
from segue.export.instances import Recipe, Source, draw_pairs

DEFAULT_RECIPE = Recipe(same_document=0.1, other_source=0.05, sides=(3, 2, 1), clause=0.1, unmarked=0.25)
_OPTIONS = ("steps", "epochs", "minutes", "learning_rate", "batch_size", "max_tokens", "seed", "threads")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments; `run` reads what they parse to."""
    parser.add_argument(
        "corpus",
        help="a folder of UTF-8 files, each a document, or a file of documents with blank lines between",
    )
    parser.add_argument("--init", required=True, help="the BERT checkpoint folder to start from")
    parser.add_argument("--out", required=True, help="the folder to write the trained checkpoint to")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="how many batches to train on")
    length.add_argument(
        "--epochs", type=float, help="how often to draw as many pairs as the corpus has (default: once)"
    )
    length.add_argument(
        "--minutes", type=float, help="how long to train; the learning rate follows the clock"
    )
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="its peak (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="pairs a step (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128, help="of a pair (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the pairs and their order (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")


def run(arguments: Namespace) -> None:
    """Run the command: read the corpus, train, write."""
    options = {name: getattr(arguments, name) for name in _OPTIONS}
    source = Source("corpus", tuple(read_documents(arguments.corpus)))
    metrics = pretrain([source], init=arguments.init, out=arguments.out, **options)
    print(f"{metrics['steps']} steps, {metrics['seconds']:.0f} s: {arguments.out}")


def pretrain(
    sources: Sequence[Source],
    *,
    init: str | Path,
    out: str | Path,
    recipe: Recipe = DEFAULT_RECIPE,
    steps: int | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    learning_rate: float = 2e-4,
    batch_size: int = 32,
    max_tokens: int = 128,
    seed: int = 0,
    threads: int | None = None,
    train_words: bool = True,
    save_minutes: float | None = None,
    watch: Callable[..., dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Train, write the checkpoint and `metrics.json` to `out`, return the metrics.

    One of steps, epochs and minutes gives the length; without any it is one epoch. With minutes the learning
    rate follows the clock: the run ends in time, its decay complete, and draws the same pairs each time, but
    how many of them depends on the machine. `train_words=False` leaves the word embeddings as they are, which
    saves their dense gradient and keeps words that a small corpus lacks where they were. With `save_minutes`,
    `out/checkpoint-STEP` is written that often, and what `watch(model, tokenizer)` returns is printed.

    Raises `InputError` or `BundleError` before any training where an option, the corpus or the checkpoint is
    unusable, and `ExecutorUnavailable` where transformers is missing.
    """
    options = {"steps": steps, "epochs": epochs, "minutes": minutes}
    given = {name: value for name, value in options.items() if value is not None}
    if len(given) > 1:
        raise InputError(f"expected one of steps, epochs and minutes, got {' and '.join(given)}")
    positive = {"learning_rate": learning_rate, "batch_size": batch_size, "threads": threads}
    for name, value in {**given, **positive, "save_minutes": save_minutes}.items():
        if value is not None and not value > 0:
            raise InputError(f"{name}: expected more than 0, got {value}")
    draw_pairs(sources, recipe)  # refuses a corpus in which no negative can be drawn
    try:
        from segue.export import training, training_data
    except ModuleNotFoundError as error:
        raise ExecutorUnavailable(
            f"training needs {error.name}, which is not installed: pip install 'segue[train]'"
        ) from error

    places = sum(max(len(document.sentences) - 1, 0) for source in sources for document in source.documents)
    if minutes is None and steps is None:
        steps = max(1, round((epochs or 1) * places / batch_size))
    init, out = Path(init), Path(out)
    training.set_seed(seed)  # for the head, if it is new
    model, tokenizer = training.load(init, max_tokens=max_tokens)
    batches = training_data.Batches(
        sources, recipe, tokenizer, batch_size=batch_size, max_tokens=max_tokens, seed=seed
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
        save_seconds=save_minutes and save_minutes * 60,
        watch=watch,
    )
    metrics |= {"batch_size": batch_size, "max_tokens": max_tokens, "train_words": train_words}
    metrics |= {"sources": {s.name: {"documents": len(s.documents), "share": s.share} for s in sources}}
    metrics |= {"places": places, "recipe": vars(recipe)}
    training.save(model, tokenizer, out)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return metrics
