"""`export_checkpoint`: from a checkpoint folder to a bundle that was verified before anybody could see it."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import onnx
import onnxruntime
import onnxscript
import torch

import segue
from segue.bundle import MODEL, TOKENIZER, Manifest, sha256, write_manifest
from segue.errors import BundleError, InputError
from segue.export.checkpoint import Checkpoint, load_bert, read_checkpoint
from segue.export.graph import packed_graph, save_graph, store_float16
from segue.export.padded import padded_graph
from segue.export.tokenizer import max_tokens, read_tokenizer
from segue.export.verify import measure
from segue.export.weights import weight_files, weights_sha256

__all__ = ["export_checkpoint"]

_PACKAGES = (torch, onnx, onnxscript, onnxruntime)
# While PyTorch's exporter traces, the modules of every thread do something else: a second trace fails, and so
# does the run that a graph is verified against.
_ALONE = threading.Lock()


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    precision: str = "float32",
    layout: str = "packed",
    flat: bool = False,
    head: str | None = None,
    positive: str | None = None,
) -> Manifest:
    """Export a Hugging Face folder as the bundle `out`, verified against PyTorch; return its manifest.

    Threads export one after the other.

    Args:
        checkpoint: config.json, weights and tokenizer of one of the architectures in `heads`.
        out: must not exist, or be an empty folder; its parent must exist.
        precision: "float32", or "float16" to store the weights so; the arithmetic is float32 all the same.
        layout: "packed", or "padded" for the input_ids, attention_mask, token_type_ids of other runtimes.
        flat: inline the ONNX functions, for runtimes that know none; the padded layout always does.
        head: "regression" makes the score of a checkpoint with one label its logit.
        positive: the label that `score` reports, by name.

    Raises:
        BundleError: the checkpoint is incomplete or cannot be reproduced exactly, `out` is taken or cannot
            be made, or the exported graph differs from PyTorch by more than `verify` allows. Nothing is left
            behind then.
        InputError: an option is none of the above, or does not fit the checkpoint.
    """
    checkpoint, out = Path(checkpoint), _resolved(Path(out))
    if precision not in ("float32", "float16"):
        raise InputError(f"precision: expected float32 or float16, got {precision!r}")
    if layout not in ("packed", "padded"):
        raise InputError(f"layout: expected packed or padded, got {layout!r}")
    source = read_checkpoint(checkpoint, head=head, positive=positive)
    tokenizer = read_tokenizer(checkpoint, source.dimensions.vocab_size)
    longest = max_tokens(checkpoint, source.dimensions.positions)
    with _ALONE, _workshop(out) as folder:
        model = load_bert(source)
        graph = padded_graph(model) if layout == "padded" else packed_graph(model, flat=flat)
        if precision == "float16":
            store_float16(graph)
        save_graph(graph, folder / MODEL)
        (folder / TOKENIZER).write_bytes(tokenizer.to_str(pretty=True).encode())
        manifest = Manifest(
            head=source.head,
            max_tokens=longest,
            dimensions=source.dimensions,
            layout=layout,
            flat=flat or layout == "padded",
            precision=precision,
            source=_source(source),
            versions={module.__name__: str(module.__version__) for module in (segue, *_PACKAGES)},
            parity=measure(
                folder / MODEL, model, tokenizer, max_tokens=longest, layout=layout, precision=precision
            ),
            files={path.name: sha256(path) for path in sorted(folder.iterdir())},
        )
        write_manifest(folder, manifest)
    return manifest


def _resolved(out: Path) -> Path:
    try:
        return out.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a zero byte
        raise BundleError(f"out: {str(out)!r} can name no folder: {error}") from error


def _check_free(out: Path) -> None:
    try:
        os.fsencode(out).decode()  # whatever Python takes the system's names for
    except UnicodeDecodeError as error:
        raise BundleError(f"{out}: the name is not UTF-8, and the libraries write no such file") from error
    with suppress(FileNotFoundError):
        out.lstat()  # says what may be wrong with the name, as `exists` does not in Python 3.14
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out}: already there, and not an empty folder")
    if not out.parent.is_dir():
        raise BundleError(f"{out}: its parent folder does not exist")


@contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` that becomes `out` when all went well, and vanishes when not."""
    folder = out.parent / f".segue-{uuid.uuid4().hex[:12]}"
    try:
        _check_free(out)
        folder.mkdir()
    except OSError as error:
        raise BundleError(f"{out}: cannot be made: {error.strerror}") from error
    try:
        yield folder
        try:
            if out.exists():
                out.rmdir()  # it is empty, but Windows renames over nothing
            folder.rename(out)
        except OSError as error:
            taken = error.errno in (errno.ENOTEMPTY, errno.EEXIST)
            why = "taken while the export ran" if taken else f"cannot be made: {error.strerror}"
            raise BundleError(f"{out}: {why}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _source(source: Checkpoint) -> dict[str, str]:
    described = {
        "architecture": source.architecture,
        "name": source.folder.resolve().name,
        "weights": ", ".join(path.name for path in weight_files(source.folder)),
        "sha256": weights_sha256(source.folder),
    }
    described |= {"activation_fn": source.activation_fn} if source.activation_fn else {}
    # A folder's name, and a string in JSON, may hold what is not UTF-8.
    return {key: value.encode(errors="replace").decode() for key, value in described.items()}
