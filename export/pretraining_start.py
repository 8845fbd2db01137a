"""What a pre-training run starts from: its folder, vocabulary, tokens and instances, and its number of steps.

Knows nothing about models.
"""

from __future__ import annotations

__all__ = ["prepare"]

import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from segue.errors import BundleError, InputError
from segue.export.documents import iter_documents
from segue.export.masking import Masking
from segue.export.pretraining_data import Instances
from segue.export.pretraining_run import RECORD, checkpoints, last_checkpoint, open_run
from segue.export.token_store import TokenStore, write_tokens
from segue.export.vocabulary import (
    MOST_TOKENS,
    VOCABULARY_FILES,
    check_vocabulary,
    read_vocabulary,
    train_vocabulary,
    write_vocabulary,
)

_MOST_STEPS = 2**32 - 1
_PATHS = ("corpus", "init", "vocab")


def prepare(
    options: dict[str, Any], positions: int, out: Path, *, resume: bool
) -> tuple[Tokenizer, Instances, int, Path | None]:
    """Open and fill the run's folder: (tokenizer, instances, steps, checkpoint to resume from).

    If anything is refused or fails, the new folder or what was put into it is removed again; a resumed run
    loses nothing.
    """
    corpus = Path(options["corpus"])
    if corpus.is_dir() and out.resolve().is_relative_to(corpus.resolve()):
        raise InputError(f"out: {str(out)!r} is inside the corpus")
    paths = {name: str(Path(options[name]).resolve()) for name in _PATHS if options[name] is not None}
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    open_run(out, options | paths, resume=resume)
    try:
        tokenizer, store = (resume and _tokens(out)) or _new_tokens(options, positions, out)
        masking = Masking(whole_words=options["whole_words"])
        packing = {"max_tokens": options["max_tokens"], "seed": options["seed"]}
        instances = Instances(store, tokenizer, masking=masking, **packing)
        steps = _steps(options, len(instances))
    except (InputError, BundleError, OSError):
        if not resume:
            _clear(out, made)
        raise
    return tokenizer, instances, steps, last_checkpoint(out)


def _tokens(out: Path) -> tuple[Tokenizer, TokenStore] | None:
    """(tokenizer, tokens) of a run that is resumed, or None where it was cut off before they were written."""
    try:  # the tokens come last, so the vocabulary is there if they are
        store, tokenizer = TokenStore(out / "tokens"), read_vocabulary(out)
        store.check_tokenizer(tokenizer)
    except BundleError as error:
        if checkpoints(out) or (out / "model.safetensors").exists():
            raise BundleError(f"resume: this run's tokens are gone or spoilt: {error}") from error
        return None
    return tokenizer, store


def _new_tokens(options: dict[str, Any], positions: int, out: Path) -> tuple[Tokenizer, TokenStore]:
    tokenizer = _vocabulary(options)
    write_vocabulary(tokenizer, out, max_tokens=positions)
    store = write_tokens(iter_documents(options["corpus"]), tokenizer, out / "tokens")
    counts = len(store.documents) - 1, len(store.sentences) - 1, len(store.ids)
    logging.getLogger("segue").info("the corpus: %d documents, %d sentences, %d tokens", *counts)
    return tokenizer, store


def _vocabulary(options: dict[str, Any]) -> Tokenizer:
    lowercase, given = not options["cased"], options["vocab"] or options["init"]
    if not given:
        size = options["vocab_size"] or MOST_TOKENS
        return train_vocabulary(options["corpus"], size=size, lowercase=lowercase)
    tokenizer = read_vocabulary(given, lowercase=lowercase)
    if options["init"]:
        check_vocabulary(tokenizer, options["init"])
    return tokenizer


def _steps(options: dict[str, Any], instances: int) -> int:
    """As many as were asked for, or as the epochs take, of `instances` each."""
    if options["steps"]:
        return int(options["steps"])
    epochs = options["epochs"] or 1
    steps = max(1.0, epochs * instances / (options["batch_size"] * options["devices"]))
    if steps > _MOST_STEPS:
        raise InputError(f"epochs: expected at most {_MOST_STEPS} steps, got {epochs}, which is {steps:.3g}")
    return round(steps)


def _clear(out: Path, made: list[Path]) -> None:
    """Remove what was put into `out`, and the folders that were made for it; what somebody else put there
    stays, and with it the folders."""
    shutil.rmtree(out / "tokens", ignore_errors=True)
    for name in (RECORD, *VOCABULARY_FILES):
        (out / name).unlink(missing_ok=True)
    with suppress(OSError):
        for folder in made:
            folder.rmdir()
