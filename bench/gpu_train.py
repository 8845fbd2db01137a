"""The default model, trained on this machine's GPU: `make model` for a machine without network.

    python bench/gpu_train.py --prepare DIR      where package clients work: 47 MB for a machine without
    python bench/gpu_train.py --prepared DIR --out DIR [--minutes 8] [--batch-size 128]       on the GPU
    python bench/gpu_train.py --join DIR --to DIR       the checkpoint that came back in parts, whole again

Works in a checkout that is not installed, and needs only torch, transformers, accelerate and tokenizers.
Writes the checkpoint, its weights as float16 in parts of 15 MB, and `metrics.json`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from gpu_path import reach

__all__ = ["bring_home", "join", "main"]

_PART = 15 * 2**20  # bytes
_WEIGHTS = "model.safetensors"


def main(given: list[str] | None = None) -> None:
    """Prepare, train or join."""
    arguments = _parser().parse_args(given)
    reach()
    if arguments.join:
        join(arguments.join, arguments.to)
        return
    from segue.export import default_model

    if arguments.prepare:
        default_model.main(["--prepare", str(arguments.prepare)])
        return
    import torch

    if not torch.cuda.is_available():
        sys.exit("gpu_train: no GPU here; `make model` trains without one")
    options = ["--minutes", str(arguments.minutes), "--batch-size", str(arguments.batch_size)]
    folder = arguments.out / "whole"
    try:
        default_model.main(["--work", str(arguments.prepared), "--out", str(folder), *options])
    finally:  # a failure after the training does not lose it
        if (folder / _WEIGHTS).exists():
            bring_home(folder, arguments.out)
            shutil.rmtree(folder)


def bring_home(checkpoint: Path, out: Path) -> None:
    """Write the checkpoint to `out` with its weights as float16, cut in parts, and without vocab.txt, which
    tokenizer.json holds too: seven small files, for a narrow way home."""
    from segue.export.default_corpora import halved

    for file in checkpoint.iterdir():
        if file.is_file() and file.name not in (_WEIGHTS, "vocab.txt"):
            shutil.copy(file, out)
    data = halved(checkpoint / _WEIGHTS)
    for number, start in enumerate(range(0, len(data), _PART)):
        (out / f"{_WEIGHTS}.{number:02d}").write_bytes(data[start : start + _PART])


def join(parts: Path, to: Path) -> None:
    """The checkpoint that `bring_home` wrote to `parts`, whole again in `to`, its weights still float16."""
    to.mkdir(parents=True, exist_ok=True)
    pieces = sorted(parts.glob(f"{_WEIGHTS}.*"))
    if not pieces:
        sys.exit(f"gpu_train: {parts} holds no {_WEIGHTS}.00")
    (to / _WEIGHTS).write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    for file in parts.iterdir():
        if file.is_file() and file not in pieces:
            shutil.copy(file, to)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prepare", type=Path, metavar="DIR", help="write the encoder and the texts there")
    what.add_argument("--prepared", type=Path, metavar="DIR", help="train from what lies there")
    what.add_argument("--join", type=Path, metavar="DIR", help="put together what came back")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-train"), help="default: %(default)s")
    parser.add_argument("--to", type=Path, default=Path("build/default-model/nsp-minilm"), help="of --join")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=128, help="pairs a step; default: %(default)s")
    return parser


if __name__ == "__main__":
    main()
