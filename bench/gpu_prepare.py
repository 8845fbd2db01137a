"""What a run needs and a machine without the exporter cannot make: graphs without their weights, workloads,
rooflines.

A graph names its weights and where they lie in `model.onnx.data`, which is not there yet: `gpu_models` writes
it, of random numbers, where the graph is to run. All of it is a few hundred kilobytes.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from segue.batching import plan
from segue.bundle import WEIGHTS, Dimensions

__all__ = ["SMOKE", "WORK", "prepare", "write_graph"]

WORK = "work.json"
SMOKE = {"toy": Dimensions(2, 64, 2, 96, 30_522, 32, 2)}
_BUDGETS = (8192, 16_384, 32_768, 65_536)  # tokens of a batch
_TOKENS = 262_144  # in a workload of pairs of one length
_MIXED = 16  # times the pairs of bench/budget.py's mixed batch


def prepare(folder: Path, *, smoke: bool = False) -> None:
    """Write the graphs and work.json into `folder`. Needs what `segue export` needs."""
    import budget  # it imports the exporter

    folder.mkdir(parents=True, exist_ok=True)
    models = SMOKE if smoke else budget.MODELS
    workloads, budgets = _smoke_workloads() if smoke else (_workloads(budget), _BUDGETS)
    rooflines: dict[str, Any] = {}
    for name, dimensions in models.items():
        write_graph(dimensions, folder / f"{name}.onnx")
        steps = budget.launches(dimensions)
        rooflines[name] = {
            workload: {str(tokens): _roofline(budget, steps, lengths, tokens) for tokens in budgets}
            for workload, lengths in workloads.items()
        }
    work = {
        "models": {name: asdict(dimensions) for name, dimensions in models.items()},
        "workloads": workloads,
        "budgets": budgets,
        "rooflines": rooflines,
        "ceilings": {"bytes/s": budget.BANDWIDTH, "operations/s": budget.ARITHMETIC},
    }
    (folder / WORK).write_text(json.dumps(work) + "\n", encoding="utf-8")


def write_graph(dimensions: Dimensions, path: Path) -> None:
    """Write the packed graph of a model of that size, two labels, its weights declared to lie end to end in
    model.onnx.data."""
    import budget
    import onnx
    import onnx_ir as ir

    from segue.export.graph import packed_graph

    model = packed_graph(budget.hollow(dimensions))
    weights = budget.take_weights(model.graph)
    proto = ir.serde.serialize_model(model)
    offset = 0
    for weight in weights:
        weight.data_location = onnx.TensorProto.EXTERNAL
        length = 4 * int(np.prod(weight.dims))
        for key, value in (("location", WEIGHTS), ("offset", offset), ("length", length)):
            weight.external_data.add(key=key, value=str(value))
        offset += length
    proto.graph.initializer.extend(weights)
    path.write_bytes(proto.SerializeToString())


def _workloads(budget: Any) -> dict[str, list[int]]:
    """The lengths of the pairs, by name, in the caller's order."""
    *_, mixed = budget.batches().values()
    mixed = mixed * _MIXED
    random.Random(0).shuffle(mixed)
    return {f"S = {s}": [s] * (_TOKENS // s) for s in (128, 512)} | {"mixed": mixed}


def _smoke_workloads() -> tuple[dict[str, list[int]], tuple[int, ...]]:
    return {"S = 8": [8] * 2, "mixed": [5, 8, 3]}, (8, 16)


def _roofline(budget: Any, steps: Any, lengths: list[int], tokens: int) -> dict[str, float]:
    """What all batches of a workload cost at least, of up to so many tokens each."""
    total = {"launches": 0, "bytes": 0, "operations": 0, "seconds": 0.0}
    seen: dict[tuple[int, ...], Any] = {}
    for rows in plan(np.array(lengths), tokens):
        batch = tuple(lengths[row] for row in rows)
        if batch not in seen:
            seen[batch] = budget.cost(steps, list(batch))["all"]
        for key in total:
            total[key] += getattr(seen[batch], key)
    return total
