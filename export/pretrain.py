"""`segue pretrain`: from raw text to a BERT trained on both of its tasks, masked words and next sentence.

The entry point of pre-training: options, checks and output. The loop is in `pretraining`, which needs
transformers; this module does not, so that the command line can describe the command without it.
"""

from __future__ import annotations

__all__ = ["SIZES", "add_arguments", "pretrain", "run"]

import errno
import json
import logging
import math
import os
import shutil
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from segue.errors import ExecutorUnavailable, InputError, SegueError
from segue.export.curve import draw_curve
from segue.export.documents import CORPUS_HELP
from segue.export.vocabulary import MOST_TOKENS
from segue.files import FULL
from segue.terminal import say

# name: layers, hidden size, attention heads, as in Google's BERTs of these names
SIZES = {"tiny": (2, 128, 2), "mini": (4, 256, 4), "small": (4, 512, 8), "base": (12, 768, 12)}
_POSITIONS = 512  # of a new model
_JUDGED = 1000  # instances of the evaluation
_MOST, _MOST_THREADS = 2**32 - 1, 1024
_UNSEEN = 10**9  # an epoch that no training reaches
_OPTIONS = (
    "init", "size", "vocab", "vocab_size", "cased", "steps", "epochs", "learning_rate", "batch_size",
    "max_tokens", "warm_up", "whole_words", "seed", "threads", "save_steps", "resume",
)  # fmt: skip
_PATHS = ("corpus", "init", "vocab", "out")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments; `run` reads what they parse to."""
    add = parser.add_argument
    add("corpus", help=CORPUS_HELP)
    add("--out", required=True, help="the folder to write to: checkpoint, metrics.json, curve.png")
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--init", help="the BERT checkpoint folder to start from")
    start.add_argument("--size", choices=SIZES, help="start from scratch, with a model of this size")
    add("--vocab", help="a checkpoint folder or vocab.txt (default: --init's own, or trained on the corpus)")
    add("--vocab-size", type=int, help=f"most tokens in a trained vocabulary (default: {MOST_TOKENS})")
    add("--cased", action="store_true", help="make a trained vocabulary or a vocab.txt case-sensitive")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="how many batches to train on")
    length.add_argument("--epochs", type=float, help="passes over the corpus (default: 1)")
    add("--learning-rate", type=float, default=1e-4, help="peak learning rate (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="instances per step and device (default: %(default)s)")
    add("--max-tokens", type=int, default=128, help="most tokens per instance (default: %(default)s)")
    add("--warm-up", type=float, default=0.05, help="share of the steps to warm up in (default: %(default)s)")
    add("--whole-words", action="store_true", help="mask all pieces of a word or none")
    add("--seed", type=int, default=0, help="for weights, instances and masks (default: %(default)s)")
    add("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    add("--save-steps", type=int, default=500, help="steps between checkpoints (default: %(default)s)")
    add("--resume", action="store_true", help="continue the interrupted run in --out")


def run(arguments: Namespace) -> None:
    """Run the command."""
    options = {name: getattr(arguments, name) for name in _OPTIONS}
    metrics = pretrain(arguments.corpus, out=arguments.out, **options)
    if os.environ.get("RANK", "0") != "0":
        return  # one process reports for all
    judged = metrics["evaluation"]
    words = "none masked" if judged["mlm_accuracy"] is None else f"{judged['mlm_accuracy']:.3f} right"
    say(
        f"{metrics['steps']} steps: next sentence {judged['nsp_accuracy']:.3f} right, masked words "
        f"{words}, in {judged['instances']} fresh instances: {arguments.out}\n"
    )


def pretrain(
    corpus: str | Path,
    *,
    out: str | Path,
    init: str | Path | None = None,
    size: str | None = None,
    vocab: str | Path | None = None,
    vocab_size: int | None = None,
    cased: bool = False,
    steps: int | None = None,
    epochs: float | None = None,
    learning_rate: float = 1e-4,
    batch_size: int = 32,
    max_tokens: int = 128,
    warm_up: float = 0.05,
    whole_words: bool = False,
    seed: int = 0,
    threads: int | None = None,
    save_steps: int = 500,
    resume: bool = False,
) -> dict[str, Any]:
    """Train; write the checkpoint, `metrics.json` and, with matplotlib, `curve.png` to `out`; return the
    metrics.

    The options are the command's. The metrics are evaluated on instances drawn anew from the same documents:
    the masks are new, but pairs that follow may have been trained on, 3 % of all instances after 4 epochs of
    1.5 million tokens and 15 % after 40. `resume` continues from the last checkpoint in `out`, to the same
    result.

    Raises `InputError` or `BundleError` before any training if an option, the corpus, the vocabulary or the
    checkpoint is unusable, if `out` is taken or if nothing there can be resumed, and `ExecutorUnavailable` if
    transformers is missing; `SegueError` if training diverged; `OSError` if the disk is full or a file cannot
    be read.
    """
    try:
        str(out).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"out: {str(out)!r} is not UTF-8, as file formats require of names") from error
    options = {name: value for name, value in locals().items() if name not in ("out", "resume")}
    options |= {name: str(value) for name, value in options.items() if isinstance(value, Path)}
    _check(options | {"out": out})
    try:
        from segue.export import pretraining
        from segue.export.checkpoint import read_dimensions
        from segue.export.pretraining_start import prepare
    except ModuleNotFoundError as error:
        raise ExecutorUnavailable(
            f"training needs {error.name}, which is not installed: pip install 'segue[train]'"
        ) from error

    began, out = time.monotonic(), Path(out)
    pretraining.set_up(seed, threads)
    positions = read_dimensions(Path(init)).positions if init else _POSITIONS
    if max_tokens > positions:
        raise InputError(f"max_tokens: expected at most {positions}, got {max_tokens}")
    model = pretraining.load(Path(init)) if init else None
    with pretraining.rank_zero_first(out) as (first, devices):
        options["devices"] = devices  # a different number gives a different result
        tokenizer, instances, steps, checkpoint = prepare(options, positions, out, resume=resume or not first)
    model = model or pretraining.new(_settings(size, tokenizer))
    with _full_disk_told(out):
        curve = pretraining.train(
            model,
            instances,
            out,
            steps=steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            warm_up=warm_up,
            seed=seed,
            save_steps=save_steps,
            resume_from=checkpoint,
        )
    instances.set_epoch(_UNSEEN)
    judged = pretraining.evaluate(model, instances, _JUDGED)
    if not all(math.isfinite(value) for value in judged.values() if value is not None):
        raise SegueError(
            f"the training diverged, its losses are no numbers any more: learning_rate {learning_rate} is "
            "too large"
        )
    if first and judged["is_next"] in (0, 1):
        logging.getLogger("segue").warning(
            "all fresh instances are %s: of next sentences nothing is learnt; max_tokens %d leaves no room "
            "for two sentences, or documents are too short",
            "IsNext" if judged["is_next"] else "NotNext", max_tokens,
        )  # fmt: skip
    metrics = {
        "steps": steps,
        "evaluation": judged,
        "options": options,
        "curve": curve,
        "seconds": round(time.monotonic() - began, 1),  # since the run was started or resumed
    }
    if first:
        with _full_disk_told(out):
            model.save_pretrained(out)
        shutil.copymode(out / "config.json", out / "model.safetensors")  # else only its owner reads it
        if not draw_curve(curve, out / "curve.png"):
            logging.getLogger("segue").warning(
                "no curve.png: matplotlib is not installed: pip install 'segue[train]'"
            )
        (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    return metrics


@contextmanager
def _full_disk_told(out: Path) -> Iterator[None]:
    """Turn the full-disk errors of the libraries that write weights into OSError."""
    try:
        yield
    except Exception as error:
        signs = {os.strerror(code): code for code in FULL} | {"inline_container": errno.ENOSPC}
        signs.pop("Unknown error", None)  # for a code that the system lacks, as Windows lacks quotas
        code = next((code for sign, code in signs.items() if sign in str(error)), None)
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(out)) from error


def _check(options: dict[str, Any]) -> None:
    """Raise `InputError` for options unusable whatever the files contain."""
    for name in _PATHS:
        if options[name] == "":
            raise InputError(f"{name}: expected a path, got ''")
    for one, other in ("init", "size"), ("steps", "epochs"):
        if options[one] is not None and options[other] is not None:
            raise InputError(f"expected one of {one} and {other}, got both")
    if options["init"] is None and options["size"] not in SIZES:
        raise InputError(f"size: expected {', '.join(SIZES)}, or init, got {options['size']!r}")
    for name in ("steps", "batch_size", "vocab_size", "threads", "save_steps", "seed", "max_tokens"):
        value, least = options[name], {"seed": 0, "max_tokens": 8}.get(name, 1)
        most = _MOST_THREADS if name == "threads" else _MOST
        if value is not None and not (isinstance(value, int) and least <= value <= most):
            raise InputError(f"{name}: expected an integer from {least} to {most}, got {value!r}")
    for name in ("epochs", "learning_rate"):
        if options[name] is not None and not 0 < options[name] < math.inf:
            raise InputError(f"{name}: expected a finite number above 0, got {options[name]}")
    if not 0 <= options["warm_up"] < 1:
        raise InputError(f"warm_up: expected a share of the steps, 0 up to 1, got {options['warm_up']}")
    given = options["vocab"] or options["init"]
    if options["vocab_size"] and given:
        raise InputError(f"vocab_size: a vocabulary is given, {given!r}, so none is trained")
    if options["cased"] and given and not Path(given).is_file():
        raise InputError(f"cased: {given!r} itself says whether it is case-sensitive")


def _settings(size: str | None, tokenizer: Tokenizer) -> dict[str, int | None]:
    """The config of a new model; its embedding table has a row for each id."""
    layers, hidden, heads = SIZES[size or ""]
    return {
        "vocab_size": max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
        "pad_token_id": tokenizer.token_to_id("[PAD]"),  # whose row stays zero
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": _POSITIONS,
    }
