"""`segue evaluate`: how well a model tells what follows, on unseen text, by kind of negative.

The entry point of evaluation: options, checks and the order of the work. `evaluation` does the measuring,
`checkpoint_scores` scores a checkpoint in PyTorch, and `evaluation_report` formats the result for a terminal.
"""

from __future__ import annotations

__all__ = ["add_arguments", "evaluate", "run"]

import errno
import json
import logging
import os
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from segue import Engine
from segue.bundle import MANIFEST, TOKENIZER, Head
from segue.encoded import Encoded
from segue.errors import ExecutorUnavailable, InputError
from segue.export.corpus import Document
from segue.export.documents import CORPUS_HELP, iter_documents
from segue.export.evaluation import ALL, KINDS, PairSet, distance, drawn_set, measured, packed_set
from segue.export.evaluation_report import report
from segue.export.reliability import draw_reliability
from segue.export.token_store import write_tokens
from segue.files import destination
from segue.terminal import say
from segue.text import PairEncoder

_PACKED_TOKENS = 128  # BERT's length for nine tenths of training
_LEAST_TOKENS = 8
_MOST = 2**32 - 1
_BOUNDS = {"pairs": (2, _MOST), "sides": (1, 1000), "seed": (0, _MOST), "max_tokens": (_LEAST_TOKENS, _MOST)}
_MODEL = ("device", "executor", "precision", "threads", "max_batch_tokens", "batch_invariant")
_OPTIONS = ("model", *_MODEL, "pairs", "sides", "max_tokens", "reference", "seed", "out")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments but those that choose a model; `run` reads what they parse to."""
    add = parser.add_argument
    add("corpus", help=CORPUS_HELP)
    add("--pairs", type=int, default=1000, help="pairs per kind, half of them IsNext (default: %(default)s)")
    add("--sides", type=int, default=3, help="most sentences per side (default: %(default)s)")
    add("--max-tokens", type=int, help=f"of a packed pair (default: {_PACKED_TOKENS}, or the model's limit)")
    add("--reference", action="store_true", help="also score in PyTorch, or a bundle in float32, and compare")
    add("--seed", type=int, default=0, help="for pairs and masks (default: %(default)s)")
    add("--out", help="a folder to write metrics.json and reliability.png to")
    add("--json", action="store_true", help="print the metrics as JSON")


def run(arguments: Namespace) -> None:
    """Run the command."""
    options = {name: getattr(arguments, name) for name in _OPTIONS}
    metrics = evaluate(arguments.corpus, progress=sys.stderr.isatty(), **options)
    say(f"{json.dumps(metrics, indent=1) if arguments.json else report(metrics)}\n")


def evaluate(
    corpus: str | Path,
    *,
    model: str | Path | None = None,
    device: str = "auto",
    executor: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    max_batch_tokens: int | None = None,
    batch_invariant: bool = True,
    pairs: int = 1000,
    sides: int = 3,
    max_tokens: int | None = None,
    reference: bool = False,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure a next sentence model on the documents of `corpus`; return the metrics, ready for JSON.

    Args:
        corpus: a folder or file of held-out text, as for `segue pretrain`. Held in memory.
        model, device, executor, precision, threads, max_batch_tokens, batch_invariant: as in `Engine.load`.
        pairs: how many per kind of negative in `KINDS`, half of them IsNext; and as many in BERT's own
            packing, with labels as they fall. Kinds that the documents cannot give are in "left_out", with
            the reason.
        sides: the most sentences per side.
        max_tokens: of a packed pair. Drawn pairs are scored whole, up to the model's limit.
        reference: score a second time, a checkpoint by transformers in PyTorch from the same token ids, a
            bundle by ONNX Runtime in float32 on the CPU, and count what differs.
        out: a folder for `metrics.json` and, with matplotlib, `reliability.png`.

    "masked_words" is None if the model has no head for them, which a bundle never has; a checkpoint's is
    measured on the packed pairs, with 15 % of their tokens masked. Its accuracy and loss are None if no token
    could be masked because all are [UNK].

    Raises `InputError` or `BundleError` before any scoring if an option, the corpus or the model is unusable,
    and `ExecutorUnavailable` if a checkpoint needs transformers and it is missing.
    """
    began = time.monotonic()
    options = {name: value for name, value in locals().items() if name in _OPTIONS}
    _check(options, corpus)
    documents = _documents(corpus)
    with Engine.load(model, **{name: options[name] for name in _MODEL}) as engine:
        info = engine.info
        _check_head(info.head)
        _make(out)
        options["max_tokens"] = _packed_tokens(max_tokens, info.max_tokens)
        checkpoint = Path(model) if model and not (Path(model) / MANIFEST).is_file() else None
        torch_side, has_words = _torch_side(checkpoint, options)
        if reference and model and info.stored == "int8" and Path(info.path) == Path(model).resolve():
            raise InputError(
                f"reference: {model} holds int8 weights alone: evaluate what it came from with precision int8"
            )
        tokenizer = Tokenizer.from_file(str(Path(info.path) / TOKENIZER))
        packing = {"max_tokens": options["max_tokens"], "seed": seed}
        with tempfile.TemporaryDirectory() as work:
            store = write_tokens(documents, tokenizer, Path(work))
            sets, left_out = _sets(documents, pairs=pairs, sides=sides, seed=seed)
            sets.append(packed_set(store, tokenizer, pairs=pairs, **packing))
            words = None
            if torch_side and has_words:
                words = torch_side.masked_words(checkpoint, store, tokenizer, count=pairs, **packing)
        texts = [(pair.a, pair.b) for one in sets for pair in one.pairs]
        encoded = PairEncoder(Path(info.path) / TOKENIZER, info.max_tokens).encode(texts)
        found = engine.score(texts, progress=progress)
    expected = by = None
    if reference and torch_side:
        expected, by = torch_side.next_probabilities(checkpoint, encoded), torch_side.versions()
    elif reference:
        exact = {"device": "cpu", "executor": "onnxruntime", "precision": "float32", "threads": threads}
        with Engine.load(model, **exact) as other:
            expected, by = other.score(texts, progress=progress), "onnxruntime, float32, cpu"

    metrics = {
        "corpus": str(corpus),
        "documents": len(documents),
        "sentences": sum(len(document.sentences) for document in documents),
        "model": {name: getattr(info, name) for name in ("path", "executor", "device", "precision")},
        "next_sentence": _judged(sets, found, expected, encoded),
        "left_out": left_out,
        "masked_words": words,
        "reference": None if expected is None else {"by": by, **distance(found, expected)},
        "options": {n: str(v) if isinstance(v, Path) else v for n, v in options.items()},
        "seconds": round(time.monotonic() - began, 1),
    }
    if out:
        _write(metrics, Path(out))
    return metrics


def _documents(corpus: str | Path) -> list[Document]:
    documents = list(iter_documents(corpus))
    if (fitting := sum(len(document.sentences) > 1 for document in documents)) < 2:
        raise InputError(
            f"corpus: expected two documents or more with two sentences or more, got {fitting}: "
            "a pair that does not follow takes its sides from both"
        )
    return documents


def _sets(
    documents: Sequence[Document], *, pairs: int, sides: int, seed: int
) -> tuple[list[PairSet], dict[str, str]]:
    """(the sets that can be drawn, the kinds that cannot: why)."""
    drawn = {kind: drawn_set(documents, kind, pairs=pairs, sides=sides, seed=seed) for kind in KINDS}
    sets = [found for found in drawn.values() if isinstance(found, PairSet)]
    return sets, {kind: found for kind, found in drawn.items() if isinstance(found, str)}


def _judged(
    sets: Sequence[PairSet], found: NDArray[Any], expected: NDArray[Any] | None, encoded: Encoded
) -> dict[str, dict[str, Any]]:
    """Each set's figures, by name; and, just before the packed set's, those of all drawn sets."""
    truth, truncated = np.concatenate([one.truth for one in sets]), encoded.shortened
    ends = np.cumsum([len(one.pairs) for one in sets]).tolist()
    slices = {one.name: slice(end - len(one.pairs), end, 1) for one, end in zip(sets, ends, strict=True)}
    *drawn, packed = slices
    if len(drawn) > 1:
        slices = {**{name: slices[name] for name in drawn}, ALL: slice(ends[-2]), packed: slices[packed]}
    documents = {one.name: one.documents for one in sets}
    return {
        name: {
            "documents": documents.get(name, max(documents.values())),
            **measured(found[part], truth[part], truncated[part]),
            "reference": None if expected is None else distance(found[part], expected[part]),
        }
        for name, part in slices.items()
    }


def _check(options: dict[str, Any], corpus: str | Path) -> None:
    """Raise `InputError` for options that are unusable with any model."""
    for name, (least, most) in _BOUNDS.items():
        value = options[name]
        whole = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        if not whole and (value is not None or name != "max_tokens"):
            raise InputError(f"{name}: expected an integer from {least} to {most}, got {value!r}")
    for name, path in {"corpus": corpus, "out": options["out"]}.items():
        if path == "":
            raise InputError(f"{name}: expected a path, got ''")
    if options["out"] is None:
        return
    out = Path(options["out"])
    if out.exists() and not out.is_dir():
        raise InputError(f"out: {str(out)!r} is not a folder")
    if any((out / name).is_file() for name in ("config.json", MANIFEST)):
        raise InputError(f"out: {str(out)!r} is a model's folder, whose files are not overwritten")
    if Path(corpus).is_dir() and out.resolve().is_relative_to(Path(corpus).resolve()):
        raise InputError(f"out: {str(out)!r} is inside the corpus")


def _make(out: str | Path | None) -> None:
    """Make the output folder before there are results to lose."""
    if out is None:
        return
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise InputError(f"out: {str(out)!r} cannot be written to: {error.strerror}") from error


def _check_head(head: Head) -> None:
    if head.kind != "nsp":
        raise InputError(
            "model: expected one for next sentence prediction, with the labels IsNext and NotNext; "
            f"this one has a {head.kind} head with {', '.join(head.labels)}"
        )


def _packed_tokens(wanted: int | None, limit: int) -> int:
    if limit < _LEAST_TOKENS:
        raise InputError(f"model: its limit is {limit} tokens, and a packed pair takes {_LEAST_TOKENS}")
    if wanted is not None and wanted > limit:
        raise InputError(f"max_tokens: expected at most {limit}, the model's limit, got {wanted}")
    return wanted or min(_PACKED_TOKENS, limit)


def _torch_side(checkpoint: Path | None, options: dict[str, Any]) -> tuple[ModuleType | None, bool]:
    """(`checkpoint_scores` if it is needed, whether the checkpoint has the head for masked words)."""
    if checkpoint is None:
        return None, False
    try:
        from segue.export.words_head import has_words_head

        has_words = has_words_head(checkpoint)
        if not (options["reference"] or has_words):
            return None, False
        from segue.export import checkpoint_scores, pretraining, pretraining_model
    except ModuleNotFoundError as error:
        raise ExecutorUnavailable(
            f"evaluating this checkpoint needs {error.name}, which is not installed: pip install "
            "'segue[train]'; the bundle that `segue export` makes of it needs none"
        ) from error
    pretraining.set_up(options["seed"], options["threads"])
    pretraining_model.outline(checkpoint)  # refuses a config that the engine would accept
    return checkpoint_scores, has_words


def _write(metrics: dict[str, Any], out: Path) -> None:
    with destination(str(out / "metrics.json")) as file:
        file.write(f"{json.dumps(metrics, indent=1)}\n".encode())
    if not draw_reliability(metrics["next_sentence"], out / "reliability.png"):
        logging.getLogger("segue").warning(
            "no reliability.png: matplotlib is not installed: pip install 'segue[train]'"
        )
