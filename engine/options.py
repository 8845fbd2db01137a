"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_limits", "add_model", "add_table", "count", "load_options"]


def add_table(parser: argparse.ArgumentParser, columns: str) -> None:
    """Add the options that say which table to read and what to write."""
    from segue.tables import FORMATS

    group = parser.add_argument_group("tables")
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="default: stdin")
    group.add_argument(
        "-o", dest="out", metavar="OUT", default="-", help="written whole or not at all; default: stdout"
    )
    group.add_argument("--format", choices=FORMATS, help="format of FILE; default: by its ending")
    group.add_argument(
        "--output-format", choices=FORMATS, help="format of OUT; default: by its ending, else that of FILE"
    )
    group.add_argument("--columns", metavar=columns, help="columns to read, by name or number (from 1)")
    group.add_argument("--header", action="store_true", help="the first line of a TSV names its columns")
    group.add_argument("--scores-only", action="store_true", help="write the scores without the rows")
    group.add_argument(
        "--score-name", metavar="NAME", default="score", help="name of the score column; default: score"
    )


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what to do with pairs that are too long."""
    group = parser.add_argument_group("long texts")
    ways = ("longest_first", "only_first", "only_second", "error")
    group.add_argument(
        "--truncation", choices=ways, default=ways[0], help=f"which text to shorten; default: {ways[0]}"
    )
    group.add_argument(
        "--max-tokens", type=count, metavar="N", help="most in a pair, from 3; default: the model's limit"
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a model and how to run it: the arguments of `Engine.load`."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="BUNDLE", help="a bundle or checkpoint folder; default: segue's own"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; default: auto")
    group.add_argument("--executor", default="auto", help="auto, onnxruntime or triton; default: auto")
    group.add_argument(
        "--precision",
        help="compute in float32, float16, bfloat16; or, on a CPU, int8, exporting the model if need be",
    )
    group.add_argument(
        "--threads", type=count, metavar="N", help="of onnxruntime; default: all that this process may use"
    )
    group.add_argument("--max-batch-tokens", type=count, metavar="N", help="most tokens in a batch")
    group.add_argument(
        "--no-batch-invariant",
        dest="batch_invariant",
        action="store_false",
        help="let the last bits of a score depend on its batch, where that is faster",
    )


def load_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `Engine.load` that `add_model` parsed, without the folder."""
    names = ("device", "executor", "precision", "threads", "max_batch_tokens", "batch_invariant")
    return {name: getattr(arguments, name) for name in names}


def count(text: str) -> int:
    """Parse a whole number from 1."""
    if not text.isdecimal() or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)
