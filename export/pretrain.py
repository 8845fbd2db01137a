"""`segue pretrain`: raw text to a BERT trained on both of its tasks, masked words and next sentence.

The face of pre-training: options, checks, what is written. The loop is in `pretraining`, which needs
transformers; this module needs none, so that the command line can describe the command without it.
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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from segue.errors import BundleError, ExecutorUnavailable, InputError, SegueError
from segue.export.curve import draw_curve
from segue.export.documents import iter_documents
from segue.export.pretraining_run import last_checkpoint, open_run
from segue.export.token_store import TokenStore, write_tokens
from segue.export.vocabulary import check_vocabulary, read_vocabulary, train_vocabulary, write_vocabulary
from segue.terminal import say

# name: layers, hidden size, attention heads, as in Google's BERTs of these names
SIZES = {"tiny": (2, 128, 2), "mini": (4, 256, 4), "small": (4, 512, 8), "base": (12, 768, 12)}
_POSITIONS = 512  # of a new model
_VOCABULARY = 30_522  # tokens at most, as in BERT
_JUDGED = 1000  # instances of the evaluation
_MOST, _MOST_THREADS = 2**32, 1024
_UNSEEN = 10**9  # an epoch that no training reaches
_OPTIONS = (
    "init", "size", "vocab", "vocab_size", "cased", "steps", "epochs", "learning_rate", "batch_size",
    "max_tokens", "warm_up", "whole_words", "seed", "threads", "save_steps", "resume",
)  # fmt: skip
_PATHS = ("corpus", "init", "vocab")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments; `run` reads what they parse to."""
    add = parser.add_argument
    add("corpus", help="a folder of UTF-8 files, each a document, or a file of documents between blank lines")
    add("--out", required=True, help="the folder to write to: checkpoint, metrics.json, curve.png")
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--init", help="the BERT checkpoint folder to start from")
    start.add_argument("--size", choices=SIZES, help="start from scratch, with a model of this size")
    add("--vocab", help="a checkpoint folder or vocab.txt (default: --init's own, or trained on the corpus)")
    add("--vocab-size", type=int, help=f"tokens of a trained one, at most (default: {_VOCABULARY})")
    add("--cased", action="store_true", help="tell upper from lower case, with a trained one or a vocab.txt")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="how many batches to train on")
    length.add_argument("--epochs", type=float, help="how often to go through the corpus (default: once)")
    add("--learning-rate", type=float, default=1e-4, help="its peak (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="instances a step and device (default: %(default)s)")
    add("--max-tokens", type=int, default=128, help="of an instance (default: %(default)s)")
    add("--warm-up", type=float, default=0.05, help="this share of the steps (default: %(default)s)")
    add("--whole-words", action="store_true", help="mask all the pieces of a word or none")
    add("--seed", type=int, default=0, help="of weights, instances and masks (default: %(default)s)")
    add("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    add("--save-steps", type=int, default=500, help="steps between checkpoints (default: %(default)s)")
    add("--resume", action="store_true", help="go on with the run in --out, which was cut off")


def run(arguments: Namespace) -> None:
    """Run the command."""
    options = {name: getattr(arguments, name) for name in _OPTIONS}
    metrics = pretrain(arguments.corpus, out=arguments.out, **options)
    if os.environ.get("RANK", "0") != "0":
        return  # one of several processes says it
    judged = metrics["evaluation"]
    say(
        f"{metrics['steps']} steps: next sentence {judged['nsp_accuracy']:.3f} right, masked words "
        f"{judged['mlm_accuracy']:.3f} right, in {judged['instances']} fresh instances: {arguments.out}\n"
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

    The options are the command's. The evaluation in the metrics is on instances that were not trained on, but
    of the same documents. `resume` goes on from the last checkpoint in `out`, to the same result.

    Raises `InputError` or `BundleError` before any training where an option, the corpus, the vocabulary or
    the checkpoint is unusable, `out` taken or nothing there to resume, and `ExecutorUnavailable` where
    transformers is missing; `SegueError` where the training diverged, `OSError` where the disk is full.
    """
    try:
        str(out).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"out: {str(out)!r} is not UTF-8, as the files' formats have names") from error
    options = {name: value for name, value in locals().items() if name not in ("out", "resume")}
    options |= {name: str(value) for name, value in options.items() if isinstance(value, Path)}
    _check(options)
    try:
        from segue.export import pretraining
        from segue.export.checkpoint import read_dimensions
        from segue.export.masking import Masking
        from segue.export.pretraining_data import Instances
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
        options["devices"] = devices  # another number of them gives another result
        tokenizer, store, checkpoint = _prepare(options, positions, out, resume=resume or not first)
    model = model or pretraining.new(_settings(size, tokenizer))
    masking = Masking(whole_words=whole_words)
    instances = Instances(store, tokenizer, max_tokens=max_tokens, masking=masking, seed=seed)
    steps = steps or max(1, round((epochs or 1) * len(instances) / (batch_size * devices)))
    if steps >= _MOST:
        raise InputError(f"epochs: expected fewer than {_MOST} steps, got {epochs}, which is {steps:.3g}")
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
    if not all(map(math.isfinite, judged.values())):
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
        shutil.copymode(out / "config.json", out / "model.safetensors")  # which is for its owner alone
        if not draw_curve(curve, out / "curve.png"):
            logging.getLogger("segue").warning(
                "no curve.png: matplotlib is not installed: pip install 'segue[train]'"
            )
        (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    return metrics


@contextmanager
def _full_disk_told(out: Path) -> Iterator[None]:
    """Raise as OSError what the libraries that write weights raise as errors of their own."""
    try:
        yield
    except Exception as error:
        if not any(sign in str(error) for sign in ("No space left on device", "inline_container")):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out)) from error


def _check(options: dict[str, Any]) -> None:
    """Raise `InputError` for options that are unusable whatever the files say."""
    for one, other in ("init", "size"), ("steps", "epochs"):
        if options[one] is not None and options[other] is not None:
            raise InputError(f"expected one of {one} and {other}, got both")
    if options["init"] is None and options["size"] not in SIZES:
        raise InputError(f"size: expected {', '.join(SIZES)}, or init, got {options['size']!r}")
    for name in ("steps", "batch_size", "vocab_size", "threads", "save_steps", "seed", "max_tokens"):
        value, least = options[name], {"seed": 0, "max_tokens": 8}.get(name, 1)
        if value is not None and not (isinstance(value, int) and least <= value < _MOST):
            raise InputError(f"{name}: expected an integer of {least} or more, got {value!r}")
    if (options["threads"] or 0) > _MOST_THREADS:
        raise InputError(f"threads: expected 1 to {_MOST_THREADS}, got {options['threads']}")
    for name in ("epochs", "learning_rate"):
        if options[name] is not None and not 0 < options[name] < math.inf:
            raise InputError(f"{name}: expected more than 0, got {options[name]}")
    if not 0 <= options["warm_up"] < 1:
        raise InputError(f"warm_up: expected a share of the steps, 0 up to 1, got {options['warm_up']}")
    given = options["vocab"] or options["init"]
    if options["vocab_size"] and given:
        raise InputError(f"vocab_size: a vocabulary is given, {given!r}, so none is trained")
    if options["cased"] and given and not Path(given).is_file():
        raise InputError(f"cased: {given!r} says itself whether it tells upper from lower case")


def _prepare(
    options: dict[str, Any], positions: int, out: Path, *, resume: bool
) -> tuple[Tokenizer, TokenStore, Path | None]:
    """(tokenizer, tokens, checkpoint to go on from), the folder of the run being opened and filled.

    What is refused after the folder was made takes it away again, or what was put into it; a run that is
    resumed loses nothing.
    """
    corpus = Path(options["corpus"])
    if corpus.is_dir() and out.resolve().is_relative_to(corpus.resolve()):
        raise InputError(f"out: {str(out)!r} is inside the corpus")
    paths = {name: str(Path(options[name]).resolve()) for name in _PATHS if options[name] is not None}
    there = out.exists()
    open_run(out, options | paths, resume=resume)
    if resume:
        try:  # the tokens come last, so the vocabulary is there if they are
            store, tokenizer = TokenStore(out / "tokens"), read_vocabulary(out)
            store.check_tokenizer(tokenizer)
            return tokenizer, store, last_checkpoint(out)
        except BundleError as error:
            if any(out.glob("checkpoint-*")) or (out / "model.safetensors").exists():
                raise BundleError(f"resume: this run's tokens are gone or spoilt: {error}") from error
            # cut off before they were written
    try:
        tokenizer = _vocabulary(options)
        write_vocabulary(tokenizer, out, max_tokens=positions)
        return tokenizer, write_tokens(iter_documents(corpus), tokenizer, out / "tokens"), None
    except (InputError, BundleError):
        if not resume:
            _clear(out, folder=not there)
        raise


def _clear(out: Path, *, folder: bool) -> None:
    """Take away what was put into `out`, and the folder itself; what cannot be taken away stays."""
    with suppress(OSError):
        for path in out.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        if folder:
            out.rmdir()


def _vocabulary(options: dict[str, Any]) -> Tokenizer:
    lowercase, given = not options["cased"], options["vocab"] or options["init"]
    if not given:
        size = options["vocab_size"] or _VOCABULARY
        return train_vocabulary(options["corpus"], size=size, lowercase=lowercase)
    tokenizer = read_vocabulary(given, lowercase=lowercase)
    if options["init"]:
        check_vocabulary(tokenizer, options["init"])
    return tokenizer


def _settings(size: str | None, tokenizer: Tokenizer) -> dict[str, int]:
    """The config of a new model; its embedding table has a row for each id."""
    layers, hidden, heads = SIZES[size or ""]
    return {
        "vocab_size": max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": _POSITIONS,
    }
