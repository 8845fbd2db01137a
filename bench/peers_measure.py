"""Calibrate, check, then time: a workload for all peers, in turn, one of them working at any moment."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from peers_environments import Unavailable
from peers_list import Peer
from peers_process import Worker

__all__ = ["GROSS", "TOLERANCE", "calibrate", "check", "cold_starts", "run_workload", "time_rounds"]

TOLERANCE = 1e-4  # of a probability, from PyTorch
GROSS = 0.25  # the same in the mean, where rounding is allowed
_SETTLE = 0.3  # seconds between two turns: a library's threads may spin for a while before they sleep
_HOPELESS = 1.4  # times the best batch's seconds: beyond, no larger batch is tried

_STEP = 2  # of the pairs that are scored for a calibration, or alone

Start = Callable[[Peer], Worker]


def run_workload(
    peers: list[Peer], start: Start, reference: list[float], rounds: int, *, alone: bool = False
) -> dict[str, dict[str, Any]]:
    """Return a record a peer, ready for JSON.

    Args:
        start: starts a peer's worker on this workload, or raises Unavailable.
        reference: PyTorch's score of every pair.
        alone: score pairs alone too, to see how far a score depends on its batch.

    Returns:
        `absent`: why it is missing; or `refused`: why it was not timed; or `batch`; `tried`: seconds by
        batch; `seconds` of each round; `difference`: the largest from PyTorch; `mean_difference`; `alone`:
        the largest difference of a score from that of the pair alone; `peak` bytes; `idle`: the CPU seconds
        that it used for each second in which another was at work; `versions`.
    """
    records: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        working: dict[str, tuple[Worker, int]] = {}
        for peer in peers:
            try:
                tried = calibrate(peer, start, len(reference))
                batch = min(tried, key=tried.__getitem__)
                worker = stack.enter_context(start(peer))
                scores = worker.score(batch, scores=True)["scores"]  # this also warms it up
                singly = worker.score(1, step=_STEP, scores=True, alone=True)["scores"] if alone else None
            except Unavailable as error:
                records[peer.key] = {"absent": str(error)}
                continue
            record: dict[str, Any] = {"batch": batch, "tried": tried}
            wrong = check(scores, reference, record, exact=peer.exact)
            if wrong:
                records[peer.key] = {"refused": wrong}
                worker.close()
                continue
            if singly:
                record["alone"] = float(np.abs(np.subtract(singly, scores[::_STEP])).max())
            records[peer.key], working[peer.key] = record, (worker, batch)
        for key, timed in time_rounds(working, rounds).items():
            records[key].update(timed)
        for key, (worker, _) in working.items():
            records[key].update(worker.state())
    return records


def calibrate(peer: Peer, start: Start, pairs: int) -> dict[int, float]:
    """Return seconds by batch size, the better of two, in a process of its own: a batch leaves memory behind.

    Every second pair is scored; more pairs a batch than these, or sizes after one that is hopeless, are not
    tried. With one size to choose from nothing is measured.
    """
    if len(peer.batches) == 1:
        return {peer.batches[0]: 0.0}
    most = float("inf") if peer.order == "budget" else (pairs + 1) // 2
    tried: dict[int, float] = {}
    with start(peer) as worker:
        for batch in (size for size in peer.batches if size <= most or size == peer.batches[0]):
            tried[batch] = min(worker.score(batch, step=_STEP)["seconds"] for _ in range(2))
            if tried[batch] > _HOPELESS * min(tried.values()):
                break
    return tried


def check(
    scores: list[float], reference: list[float], record: dict[str, Any] | None = None, *, exact: bool = True
) -> str | None:
    """Return what is wrong with the scores, or None; the differences go into `record`.

    Those of a peer that is not `exact` are rounded: only what that cannot explain is wrong.
    """
    if len(scores) != len(reference):
        return f"{len(scores)} scores for {len(reference)} pairs"
    differences = np.abs(np.subtract(scores, reference))
    most, mean = float(differences.max()), float(differences.mean())  # NaN if any score is
    if record is not None:
        record |= {"difference": most, "mean_difference": mean}
    if exact:
        return None if most < TOLERANCE else f"scores differ from PyTorch's by up to {most:.2g}"
    return None if mean < GROSS else f"scores differ from PyTorch's by {mean:.2g} in the mean"


def time_rounds(working: Mapping[str, tuple[Worker, int]], rounds: int) -> dict[str, dict[str, Any]]:
    """Return {"seconds": [rounds], "idle": share} by peer. Each round starts with another peer."""
    seconds: dict[str, list[float]] = {key: [] for key in working}
    idle: dict[str, float] = dict.fromkeys(working, 0.0)
    waited: dict[str, float] = dict.fromkeys(working, 0.0)
    keys = list(working)
    for number in range(rounds):
        first = number % len(keys) if keys else 0
        for key in keys[first:] + keys[:first]:
            worker, batch = working[key]
            time.sleep(_SETTLE)
            before = {other: working[other][0].cpu_seconds() for other in keys if other != key}
            seconds[key].append(worker.score(batch)["seconds"])
            for other, used in before.items():
                idle[other] += (working[other][0].cpu_seconds() or 0.0) - (used or 0.0)
                waited[other] += seconds[key][-1]
    return {key: {"seconds": seconds[key], "idle": idle[key] / (waited[key] or 1.0)} for key in keys}


def cold_starts(peers: list[Peer], start: Start, repeats: int) -> dict[str, dict[str, Any]]:
    """Return, by peer, seconds from the start of a process to its first score, [repeats], all in turn.

    `load` and `score` are what the process itself counts: importing and loading; one pair. The first start
    of each, which fills the system's file cache and compiles modules, is left out.
    """
    found: dict[str, dict[str, Any]] = {peer.key: {"total": [], "load": [], "score": []} for peer in peers}
    for number in range(repeats + 1):
        for peer in peers:
            if "absent" in found[peer.key]:
                continue
            started = time.perf_counter()
            try:
                with start(peer) as worker:
                    first = worker.score(peer.batches[0], count=1)["seconds"]
                    total = time.perf_counter() - started
            except Unavailable as error:
                found[peer.key] = {"absent": str(error)}
                continue
            if number:
                for name, value in (("total", total), ("load", worker.load), ("score", first)):
                    found[peer.key][name].append(value)
    for record in found.values():
        if "absent" not in record:
            record["median"] = statistics.median(record["total"])
    return found
