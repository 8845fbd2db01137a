"""`export_checkpoint`: from a folder of weights to a bundle that was verified before anybody could see it."""

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
from segue.bundle import MODEL, PRECISIONS, TOKENIZER, Manifest, sha256, write_manifest
from segue.errors import BundleError, InputError
from segue.export.graph import packed_graph, save_graph, store_float16
from segue.export.origin import read_origin
from segue.export.padded import padded_graph
from segue.export.quantization import quantize
from segue.export.verify import measure, sample
from segue.files import full_disk_named

__all__ = ["export_checkpoint"]

_PACKAGES = (torch, onnx, onnxscript, onnxruntime)
# While PyTorch's exporter traces, it changes modules for every thread: a second trace fails, and so does the
# run that a graph is verified against.
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
    """Export a Hugging Face folder, or another bundle, as the bundle `out`; return its manifest.

    The bundle is verified against PyTorch. Threads export one after another.

    Args:
        checkpoint: config.json, weights and tokenizer of one of the architectures in `heads`; or a bundle in
            float32 or float16, to be exported in another form.
        out: must not exist, or be an empty folder; its parent must exist.
        precision: "float32"; "float16" for weights stored in it, while arithmetic stays in float32; "int8"
            for integer products, twice as fast on a CPU and less exact: see `quantization`.
        layout: "packed", or "padded" for the input_ids, attention_mask, token_type_ids of other runtimes.
        flat: inline the ONNX functions, for runtimes without them; the padded layout always does.
        head: "regression" uses the logit of a one-label checkpoint as its score.
        positive: the name of the label that `score` reports.

    Raises:
        BundleError: the checkpoint is incomplete, may not be read or cannot be reproduced exactly, `out` is
            taken or cannot be made, or the exported graph differs from PyTorch by more than `verify` allows.
            Nothing is left behind in that case.
        InputError: an option is none of the above, or does not fit the checkpoint.
    """
    checkpoint, out = Path(checkpoint), _resolved(Path(out))
    if precision not in PRECISIONS:
        raise InputError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    if layout not in ("packed", "padded"):
        raise InputError(f"layout: expected packed or padded, got {layout!r}")
    if precision == "int8" and layout == "padded":
        raise InputError("precision: int8 is for the packed layout; for a padded one there are other tools")
    origin = read_origin(checkpoint, head=head, positive=positive)
    tokenizer, longest = origin.tokenizer, origin.max_tokens
    with _ALONE, _workshop(out) as folder:
        model = origin.load()
        quantized = quantize(model, sample(tokenizer, longest)) if precision == "int8" else None
        graph = padded_graph(model) if layout == "padded" else packed_graph(quantized or model, flat=flat)
        if precision == "float16":
            store_float16(graph)
        save_graph(graph, folder / MODEL)
        (folder / TOKENIZER).write_bytes(tokenizer.to_str(pretty=True).encode())
        manifest = Manifest(
            head=origin.head,
            max_tokens=longest,
            dimensions=origin.dimensions,
            layout=layout,
            flat=flat or layout == "padded",
            precision=precision,
            source=origin.source,
            versions={module.__name__: str(module.__version__) for module in (segue, *_PACKAGES)},
            parity=measure(
                folder / MODEL,
                model,
                tokenizer,
                max_tokens=longest,
                layout=layout,
                precision=precision,
                quantized=quantized,
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
        os.fsencode(out).decode()  # whatever encoding Python uses for names
    except UnicodeDecodeError as error:
        raise BundleError(f"{out}: the name is not UTF-8, and the libraries write no such file") from error
    with suppress(FileNotFoundError):
        out.lstat()  # raises if the name is bad, as `exists` does not in Python 3.14
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out}: already there, and not an empty folder")
    if not out.parent.is_dir():
        raise BundleError(f"{out}: its parent folder does not exist")


@contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out` that becomes `out` on success and is removed on failure."""
    folder = out.parent / f".segue-{uuid.uuid4().hex[:12]}"
    try:
        _check_free(out)
        folder.mkdir()
    except OSError as error:
        raise BundleError(f"{out}: cannot be made: {error.strerror}") from error
    try:
        with full_disk_named(out):
            yield folder
        try:
            if out.exists():
                out.rmdir()  # empty, but Windows renames over no folder
            folder.rename(out)
        except OSError as error:
            taken = error.errno in (errno.ENOTEMPTY, errno.EEXIST)
            why = "taken while the export ran" if taken else f"cannot be made: {error.strerror}"
            raise BundleError(f"{out}: {why}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
