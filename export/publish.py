"""`export_checkpoint`: from a checkpoint folder to a bundle that was verified before anybody could see it."""

from __future__ import annotations

import copy
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import segue
from segue.bundle import MODEL, TOKENIZER, Manifest, sha256, write_manifest
from segue.errors import BundleError, InputError
from segue.export.bert import Bert
from segue.export.checkpoint import Checkpoint, load_bert, read_checkpoint
from segue.export.graph import packed_graph, save_graph, store_float16
from segue.export.padded import padded_graph
from segue.export.tokenizer import max_tokens, read_tokenizer
from segue.export.verify import check, differences, pair_lengths, run_onnx, run_pytorch, sample
from segue.export.weights import weight_files, weights_sha256

__all__ = ["export_checkpoint"]


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
    """Export the Hugging Face folder `checkpoint` as a bundle `out`, verify it against PyTorch, and return its manifest.

    Args:
        out: must not exist, or be an empty folder; its parent must exist.
        precision: "float32", or "float16", which stores the weights so; the arithmetic is float32 all the same.
        layout: "packed", or "padded" for the classic input_ids, attention_mask, token_type_ids of other runtimes.
        flat: inline the ONNX functions, for runtimes that know none.
        head: "regression" makes the score of a checkpoint with one label its logit.
        positive: the label that `score` reports, by name.

    Raises:
        BundleError: the checkpoint is incomplete or cannot be reproduced exactly, `out` is taken, or the exported graph
            differs from PyTorch by more than the limits in `verify`. Nothing is left behind then.
        InputError: an option is none of the above, or does not fit the checkpoint.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    for name, value, allowed in (
        ("precision", precision, ("float32", "float16")),
        ("layout", layout, ("packed", "padded")),
    ):
        if value not in allowed:
            raise InputError(f"{name}: expected {' or '.join(allowed)}, got {value!r}")
    _check_free(out)
    source = read_checkpoint(checkpoint, head=head, positive=positive)
    tokenizer = read_tokenizer(checkpoint, source.dimensions.vocab_size)
    longest = max_tokens(checkpoint, source.dimensions.positions)
    model = load_bert(source)

    graph = padded_graph(model) if layout == "padded" else packed_graph(model, flat=flat)
    if precision == "float16":
        store_float16(graph)
    with _workshop(out) as folder:
        save_graph(graph, folder / MODEL)
        tokenizer.save(str(folder / TOKENIZER))
        batches = sample(tokenizer, longest)
        found = run_onnx(folder / MODEL, batches, layout=layout)
        parity: dict[str, Any] = {
            "against": f"PyTorch {torch.__version__}, the eager ops of segue",
            "pairs": sum(len(batch.cu_seqlens) - 1 for batch in batches),
            "shortest": min(pair_lengths(longest)),
            "longest": longest,
        }
        exact = differences(found, run_pytorch(_rounded(model) if precision == "float16" else model, batches))
        check(*exact)
        parity |= _named("", exact)
        if precision == "float16":
            parity |= _named("rounding_", differences(found, run_pytorch(model, batches)))
        manifest = Manifest(
            head=source.head,
            max_tokens=longest,
            dimensions=source.dimensions,
            layout=layout,
            flat=flat or layout == "padded",
            precision=precision,
            source=_source(source),
            versions={"segue": segue.__version__} | {name: version(name) for name in ("torch", "onnx", "onnxscript")},
            parity=parity,
            files={path.name: sha256(path) for path in sorted(folder.iterdir())},
        )
        write_manifest(folder, manifest)
    return manifest


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out}: already there, and not an empty folder")
    if not out.absolute().parent.is_dir():
        raise BundleError(f"{out}: its parent folder does not exist")


@contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` that becomes `out` when all went well, and vanishes when not."""
    out = out.absolute()
    folder = out.parent / f".{out.name}.{uuid.uuid4().hex[:12]}"
    folder.mkdir()
    try:
        yield folder
        try:
            if out.exists():
                out.rmdir()  # empty; Windows would not rename over it
            os.rename(folder, out)
        except OSError as error:
            raise BundleError(f"{out}: taken while the export ran") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rounded(model: Bert) -> Bert:
    """Return the module with every weight rounded to float16 and back."""
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.half().float()
    return rounded


def _named(prefix: str, found: tuple[float, float]) -> dict[str, float]:
    names = ("max_probability_difference", "max_relative_logit_difference")
    return {prefix + name: value for name, value in zip(names, found, strict=True)}


def _source(source: Checkpoint) -> dict[str, str]:
    described = {
        "architecture": source.architecture,
        "name": source.folder.resolve().name,
        "weights": ", ".join(path.name for path in weight_files(source.folder)),
        "sha256": weights_sha256(source.folder),
    }
    return described | ({"activation_fn": source.activation_fn} if source.activation_fn else {})
