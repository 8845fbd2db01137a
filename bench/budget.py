"""What a forward pass has to move and to compute on a GPU, counted and not measured: the kernels' budget.

    python bench/budget.py [--write]

The launches are those of the Triton executor's plan, read from the graph that exporting such a model gives
(traced with weights that are not there); bytes and operations are the least that a launch costs, as each
kernel's module states. So on any machine the numbers change only with the graph and the kernels. Prints
Markdown; --write puts it into bench/results/budget.md, which a test compares with what this gives.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from math import exp, log
from pathlib import Path
from statistics import NormalDist, mean
from textwrap import fill
from typing import NamedTuple

import onnx
import onnx_ir as ir
import torch

from segue.bundle import Dimensions
from segue.executors.triton_plan import TOKENS, Step, read_steps
from segue.export.bert import Bert
from segue.export.functions import OPSET
from segue.export.graph import trace
from segue.kernels.launching import Cost

__all__ = ["RESULT", "batches", "cost", "hollow", "launches", "main", "report", "take_weights"]

RESULT = Path(__file__).parent / "results" / "budget.md"
MODELS = {
    "BERT-base": Dimensions(12, 768, 12, 3072, 30_522, 512, 2),
    "MiniLM-L6": Dimensions(6, 384, 12, 1536, 30_522, 512, 2),
}
BANDWIDTH = 4.3e12  # bytes/s
ARITHMETIC = 790e12  # operations/s in bfloat16, float16 being the same
_ABOUT = (
    "`python bench/budget.py --write`. Counted from the graph's plan and from what each kernel says that it "
    "costs at least, weights and results in 16 bits; nothing here was measured. An H200 is put down as "
    "{:.0f} TFLOP/s of bfloat16 products and {:.1f} TB/s of memory, out of 989 and 4.8 in its data sheet. "
    "The last two columns are the roofline: a launch takes the longer of its two times, and launches "
    "follow each other without a gap. No run is faster, unless values stay in the cache from one launch "
    "to the next, as with small batches they do."
)
_STORED, _NUMBER = 2, 4  # bytes of an element, and of an id or a bound on the device


class Row(NamedTuple):
    """What the launches of one op cost for one batch, or all of them; seconds are at the roofline, the longer
    of moving and computing, launch by launch."""

    launches: int
    bytes: int
    operations: int
    seconds: float


def main() -> None:
    """Print the report, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--write", action="store_true", help=f"into {RESULT.name} too")
    text = report()
    if parser.parse_args().write:
        RESULT.write_text(text, encoding="utf-8")
    print(text, end="")


def batches() -> dict[str, list[int]]:
    """The lengths of the pairs of each batch, by its name. The mixed one has the quantiles of a log-normal
    distribution."""
    logarithms = NormalDist(log(60) - 0.32, 0.8)  # so that the mean of the lengths is 60
    drawn = [exp(logarithms.inv_cdf((i + 0.5) / 270)) for i in range(270)]
    mixed = [round(length * 60 / mean(drawn)) for length in drawn]
    return {
        "1 x 128": [128],
        "128 x 128": [128] * 128,
        "32 x 512": [512] * 32,
        f"{len(mixed)} pairs of {min(mixed)} to {max(mixed)}, mean {mean(mixed):.1f}": mixed,
    }


def launches(dimensions: Dimensions) -> tuple[Step, ...]:
    """The plan of a model of that size, two labels. All layers but the last are alike: one is traced."""
    layers = min(dimensions.layers, 2)
    graph = trace(hollow(replace(dimensions, layers=layers)), OPSET).graph
    shapes = take_weights(graph)
    proto = ir.serde.serialize_graph(graph)
    proto.initializer.extend(shapes)
    steps = read_steps(proto, Path("model.onnx"))
    layer = [step for step in steps if step.name.startswith("layers/0/")]
    return (steps[0], *(layer * (dimensions.layers - layers)), *steps[1:])


def hollow(dimensions: Dimensions) -> Bert:
    """A model of that size with two labels, whose weights are one number in memory, whatever their shape."""
    with torch.device("meta"):
        model = Bert(dimensions, labels=2, activation="softmax", eps=1e-12)
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(torch.zeros(1).expand(weight.shape), False))
    return model


def take_weights(graph: ir.Graph) -> list[onnx.TensorProto]:
    """Take the weights out of a graph; return their names, shapes and types, without values."""
    shapes = [
        onnx.TensorProto(name=name, dims=value.const_value.shape.numpy(), data_type=value.dtype)
        for name, value in graph.initializers.items()
        if value.const_value.size > 1
    ]
    for shape in shapes:
        graph.initializers.pop(shape.name)
    return shapes


def cost(steps: Iterable[Step], lengths: list[int]) -> dict[str, Row]:
    """What each op, and "all", costs for a batch of these lengths; every token is taken to be a new word."""
    columns: dict[str, int] = {}
    found: dict[str, Row] = {}
    for step in steps:
        columns[step.output] = step.columns
        needs = _cost(step, columns.get(step.inputs[0], 0), lengths)
        seconds = max(needs.bytes / BANDWIDTH, needs.operations / ARITHMETIC)
        for name in (step.op, "all"):
            total = found.get(name, Row(0, 0, 0, 0.0))
            launched = {"cls_attention": 3, "pool_classify": 2}.get(step.op, 1)
            found[name] = Row(*(a + b for a, b in zip(total, (launched, *needs, seconds), strict=True)))
    found["all"] = found.pop("all")  # the last line of a table
    return found


def report() -> str:
    """The report, as Markdown."""
    plans = {name: launches(dimensions) for name, dimensions in MODELS.items()}
    lines = [
        "# What a forward pass moves and computes",
        "",
        fill(_ABOUT.format(ARITHMETIC / 1e12, BANDWIDTH / 1e12), width=110, break_on_hyphens=False),
        "",
        *_table("model | batch | tokens | launches | MB | GFLOP | µs to move | µs to compute | µs | pairs/s"),
    ]
    for model, steps in plans.items():
        for batch, lengths in batches().items():
            row = cost(steps, lengths)["all"]
            lines.append(
                f"| {model} | {batch} | {sum(lengths)} | {row.launches} | {row.bytes / 1e6:.2f} "
                f"| {row.operations / 1e9:.3f} | {row.bytes / BANDWIDTH * 1e6:.1f} "
                f"| {row.operations / ARITHMETIC * 1e6:.1f} | {row.seconds * 1e6:.1f} "
                f"| {len(lengths) / row.seconds:,.0f} |"
            )
    for model, steps in plans.items():
        batch, lengths = list(batches().items())[-1]
        lines += ["", f"{model}, {batch}, by op:", "", *_table("op | launches | MB | GFLOP | µs | share")]
        rows = cost(steps, lengths)
        for op, row in rows.items():
            lines.append(
                f"| {op} | {row.launches} | {row.bytes / 1e6:.2f} | {row.operations / 1e9:.3f} "
                f"| {row.seconds * 1e6:.1f} | {row.seconds / rows['all'].seconds:.1%} |"
            )
    return "\n".join(lines) + "\n"


def _cost(step: Step, before: int, lengths: list[int]) -> Cost:
    """What one launch costs; `before`: columns of its first input."""
    tokens, pairs = sum(lengths), len(lengths)
    rows, width, s = tokens if step.rows == TOKENS else pairs, step.columns, _STORED
    match step.op:
        case "embed":
            words = tokens + max(lengths) + 2  # and positions, and both token types
            letters = {"T": rows, "E": width, "W": words, "i": 3 * _NUMBER}
        case "linear" | "linear_gelu":
            letters = {"R": rows, "K": before, "N": width, "gelu": int(step.op == "linear_gelu")}
        case "add_layer_norm":
            letters = {"T": rows, "E": width}
        case "packed_attention" | "cls_attention":
            letters = {"lengths": lengths, "E": width, "H": step.options["heads"], "i": _NUMBER}
        case "first_rows":
            letters = {"lengths": lengths, "E": width, "i": _NUMBER}
        case "pool_classify":
            letters = {"B": rows, "E": before, "C": width}
        case _:
            raise ValueError(f"{step.name}: {step.op} has no line here")
    module = "_linear" if step.op == "linear_gelu" else f"_{step.op}"
    needs: Cost = import_module(f"segue.kernels.{module}").cost(**letters, s=s)
    return needs


def _table(columns: str) -> list[str]:
    return [f"| {columns} |", "|" + "---|" * (columns.count("|") + 1)]


if __name__ == "__main__":
    main()
