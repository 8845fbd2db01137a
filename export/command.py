"""`segue export`: its arguments and its closing report. `export_checkpoint` does the work."""

from __future__ import annotations

import argparse
from pathlib import Path

from segue.terminal import printable, say

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `segue export` to its parser."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="Hugging Face folder of a BERT that classifies pairs; or a bundle, to export in another form",
    )
    parser.add_argument(
        "out", type=Path, help="the bundle to write: a folder that does not exist or is empty"
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "float16", "int8"],
        default="float32",
        help="how weights are stored; a CPU computes the first two in float32; int8 takes half the time "
        "there and changes scores a little, which is measured (default: %(default)s)",
    )
    parser.add_argument(
        "--layout",
        choices=["packed", "padded"],
        default="packed",
        help="packed, for segue; padded, for other runtimes, takes input_ids, attention_mask and "
        "token_type_ids (default: %(default)s)",
    )
    parser.add_argument("--flat", action="store_true", help="inline the ONNX functions")
    parser.add_argument(
        "--head", choices=["regression"], help="use the logit of a one-label model as its score"
    )
    parser.add_argument("--positive", metavar="LABEL", help="the label that `segue score` reports")


def run(arguments: argparse.Namespace) -> int:
    """Export, report where the bundle is and how close it is to PyTorch, and return exit code 0.

    Raises:
        SegueError: as `export_checkpoint` does.
    """
    from segue.export.publish import export_checkpoint

    out = arguments.out.absolute()  # the current folder, if it is `out`, gets replaced
    manifest = export_checkpoint(
        arguments.checkpoint,
        out,
        precision=arguments.precision,
        layout=arguments.layout,
        flat=arguments.flat,
        head=arguments.head,
        positive=arguments.positive,
    )
    head, parity = manifest.head, manifest.parity
    size = sum((out / name).stat().st_size for name in manifest.files)
    positive = "none" if head.positive is None else head.labels[head.positive]
    say(f"{arguments.out}: {size / 1e6:.1f} MB, {manifest.precision}, {manifest.layout}\n")
    labels = f"labels {', '.join(head.labels)}; score reports {positive}"
    say(f"head: {head.kind}, {printable(labels)}\n")
    distance = f"logits within {parity['max_relative_logit_difference']:.1e} (relative)"
    if head.kind != "regression":  # which has no probabilities
        distance = f"probabilities within {parity['max_probability_difference']:.1e}, {distance}"
    say(
        f"against PyTorch, {parity['pairs']} pairs of {parity['shortest']} to {parity['longest']} tokens: "
        f"{distance}\n"
    )
    if manifest.precision == "int8":
        moved = "a score (relative)" if head.kind == "regression" else "a probability"
        mean, most = (parity[f"rounding_{kind}_probability_difference"] for kind in ("mean", "max"))
        say(f"int8 moves {moved} by {mean:.1e} in the mean of these pairs, by {most:.1e} at most\n")
    return 0
