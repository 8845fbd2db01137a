"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_limits", "add_model", "add_table", "count", "load_options"]


def add_table(parser: argparse.ArgumentParser, columns: str) -> None:
    """Which table to read, and what to write."""
    from segue.tables import FORMATS

    group = parser.add_argument_group("tables")
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="default: stdin")
    group.add_argument(
        "-o", dest="out", metavar="OUT", default="-", help="written whole or not at all; default: stdout"
    )
    group.add_argument("--format", choices=FORMATS, help="of FILE")
    group.add_argument(
        "--output-format", choices=FORMATS, help="of OUT; default: by its ending, else that of FILE"
    )
    group.add_argument("--columns", metavar=columns, help="to read: names, or numbers from 1")
    group.add_argument("--header", action="store_true", help="a TSV begins with the names of its columns")
    group.add_argument("--scores-only", action="store_true", help="write the scores without the rows")
    group.add_argument(
        "--score-name", metavar="NAME", default="score", help="of the score's column; default: score"
    )


def add_limits(parser: argparse.ArgumentParser) -> None:
    """What becomes of pairs that are too long."""
    group = parser.add_argument_group("long texts")
    ways = ("longest_first", "only_first", "only_second", "error")
    group.add_argument("--truncation", choices=ways, default=ways[0], help=f"default: {ways[0]}")
    group.add_argument("--max-tokens", type=count, metavar="N", help="from 3; default: the model's limit")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it is run: the arguments of `Engine.load`."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="BUNDLE", help="a bundle or checkpoint folder; default: segue's own"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; default: auto")
    group.add_argument("--executor", default="auto", help="auto, onnxruntime or triton; default: auto")
    group.add_argument(
        "--precision",
        help="of the arithmetic: float32, float16, bfloat16; or int8, on a CPU, exported so if need be",
    )
    group.add_argument("--threads", type=count, metavar="N", help="default: as many as this process may use")
    group.add_argument("--max-batch-tokens", type=count, metavar="N", help="tokens computed at once")
    group.add_argument(
        "--no-batch-invariant",
        dest="batch_invariant",
        action="store_false",
        help="let a pair's last bits depend on its batch, where that is faster",
    )


def load_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_model` made of the command line for `Engine.load`, but for the folder."""
    names = ("device", "executor", "precision", "threads", "max_batch_tokens", "batch_invariant")
    return {name: getattr(arguments, name) for name in names}


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)
