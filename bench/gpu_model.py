"""How many pairs a second a model scores with packed batches ready on the host, and where time goes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from gpu_models import Work, batch_of, batches_of
from gpu_parity_models import trusted
from gpu_run import Run
from gpu_timing import summary, take_turns

from segue.batching import PackedBatch
from segue.executors import Executor

__all__ = ["logits_of", "profile", "rate", "sides_of", "throughput"]

_UNTRUSTED = "the executor did not pass the parity section"


def sides_of(run: Run, work: Work, model: str) -> tuple[dict[str, tuple[str, bool]], dict[str, Any]]:
    """A model's sides to time: label → precision, whether batch-invariant; and why not the others."""
    sides, others = {}, {}
    for precision in (p for p in work.precisions if p != "float32"):  # nobody takes that on a GPU for speed
        for invariant in (True, False):
            label = f"segue, {precision}{'' if invariant else ', batch_invariant=False'}"
            if trusted(run, model, precision, invariant):
                sides[label] = precision, invariant
            else:
                others[label] = {"not timed": _UNTRUSTED}
    return sides, others


def logits_of(executor: Executor, rows: list[np.ndarray], batches: list[PackedBatch]) -> np.ndarray:
    """[N, C], in the order of the pairs that the batches were made of."""
    found = [logits.copy() for logits in executor.run(batches)]
    ordered = np.empty((sum(map(len, rows)), found[0].shape[1]), np.float32)
    for some, logits in zip(rows, found, strict=True):
        ordered[some] = logits
    return ordered


def throughput(run: Run, work: Work, found: dict[str, Any]) -> None:
    """`found["rows"]`: by model, workload and tokens of a batch, the pairs a second of every side.

    Results of batch-invariant executors are compared to the bit across batch sizes.
    """
    rows = found["rows"] = []
    for model in work.names:
        sides, others = sides_of(run, work, model)
        for workload, lengths in list(work.workloads.items())[-1 if work.smoke else 0 :]:
            whole, seen = batch_of(lengths), {}
            for tokens in work.budgets:
                run.check_time()
                row = {"model": model, "workload": workload, "pairs": len(lengths), "tokens": tokens}
                row |= {"sides": dict(others), "roofline": work.rooflines[model][workload][str(tokens)]}
                rows.append(row)
                calls = _calls(work, model, sides, whole, tokens, seen, row)
                taken = take_turns(calls, work.device, repeats=1 if work.smoke else 5)
                for label, seconds in taken.items():
                    row["sides"][label] = rate(seconds, len(lengths), row["roofline"]["seconds"])


def rate(seconds: list[float], pairs: int, roofline: float | None = None) -> dict[str, Any]:
    """Pairs a second by the median, and the share of the roofline that this is."""
    found = summary(seconds)
    found["pairs/s"] = pairs / found["p50"]
    return found | ({"of the roofline": roofline / found["p50"]} if roofline else {})


def profile(run: Run, work: Work, found: dict[str, Any]) -> None:
    """`found[model][side]`: microseconds of each kernel on the device, over one pass through the batches of
    the second token budget, and how long that pass was."""
    if work.device.type == "cpu":
        found["not there"] = "interpreted kernels take no time on a device"
        return
    workload, lengths = next(iter(work.workloads.items()))
    for model in work.names:
        found[model] = {"workload": workload, "tokens": work.budgets[1]}
        _, batches = batches_of(batch_of(lengths), work.budgets[1])
        for label, side in sides_of(run, work, model)[0].items():
            run.check_time()
            executor = work.executor(model, *side)
            activity = torch.profiler.ProfilerActivity.CUDA
            pass_through = partial(_drain, executor, batches)
            for _ in range(2):  # the first pays for the profiler's own start
                with torch.profiler.profile(activities=[activity]) as profiled:
                    (seconds,) = take_turns({"": pass_through}, work.device, repeats=1)[""]
            kernels = sorted(profiled.key_averages(), key=lambda event: -event.self_device_time_total)
            found[model][label] = {
                "us in all": 1e6 * seconds,
                "us on the device": sum(event.self_device_time_total for event in kernels),
                "kernels": {
                    event.key[:90]: {"us": event.self_device_time_total, "launches": event.count}
                    for event in kernels[:14]
                },
            }


def _calls(
    work: Work,
    model: str,
    sides: dict[str, tuple[str, bool]],
    whole: PackedBatch,
    tokens: int,
    seen: dict[str, np.ndarray],
    row: dict[str, Any],
) -> dict[str, Callable[[], Any]]:
    """What to time, warmed up; a side whose bits have changed with the batch size is left out."""
    rows, batches = batches_of(whole, tokens)
    row["batches"] = len(batches)
    calls: dict[str, Callable[[], Any]] = {}
    for label, (precision, invariant) in sides.items():
        executor = work.executor(model, precision, invariant)
        for _ in range(1 if work.smoke else 3):  # launched, captured, replayed
            logits = logits_of(executor, rows, batches)
        differ = float(np.abs(logits - seen.setdefault(label, logits)).max())
        if not np.isfinite(logits).all() or (invariant and logits.tobytes() != seen[label].tobytes()):
            row["sides"][label] = {"not timed": f"scores differ from batch to batch, by {differ:.3g}"}
            continue
        calls[label] = partial(_drain, executor, batches)
    return calls


def _drain(executor: Executor, batches: list[PackedBatch]) -> None:
    for _ in executor.run(batches):
        pass
