"""What a user could take instead: the same pairs and weights in float16, each at its best batch size tried.

All get batches that are ready on the host, and give logits there. The first pairs of every workload are
compared with float64, by the rule of the tests: a peer whose scores are wrong is not timed. Sides take turns.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from gpu_model import logits_of, rate, sides_of
from gpu_models import Work, batch_of, batches_of
from gpu_packed_peer import PackedPeer, attentions, packed
from gpu_padded_peer import padded, score_padded
from gpu_run import Run
from gpu_timing import summary, take_turns
from kernel_tools import assert_as_exact
from torch import Tensor

from segue.batching import PackedBatch

__all__ = ["compare_compiled", "compare_peers"]

_PADDED = (32, 128, 512, 2048)  # pairs of a padded batch
_CHECKED = 48  # pairs checked with float64
_COMPILING = 30  # least seconds left to compile a module in
Scorer = Callable[[], np.ndarray]


def compare_peers(run: Run, work: Work, found: dict[str, Any]) -> None:
    """`found["rows"]`: by model and workload, the pairs a second of every side whose scores are right."""
    found["there"] = _there()
    found["rows"], found["one pair"] = [], []
    halves = {model: copy.deepcopy(work.model(model).module).half().to(work.device) for model in work.names}
    workloads = [*reversed(work.workloads.items())]  # mixed lengths, which matter most, come first
    for workload, lengths in workloads[: 1 if work.smoke else None]:
        for model, half in halves.items():
            run.check_time()
            whole = batch_of(lengths)
            row = {"model": model, "workload": workload, "pairs": len(lengths), "sides": {}}
            found["rows"].append(row)
            yardstick = _yardstick(half, whole, _checked(work), work.device)
            # float16 on a CPU depends on its library, and may be twice as wrong one way as another
            module = copy.deepcopy(half).float() if work.smoke else half
            scorers = dict(_scorers(run, work, model, module, whole))
            _time(work, scorers, yardstick, row)
    for model, half in halves.items():
        _one_pair(work, model, half, found["one pair"])


def _time(
    work: Work, scorers: dict[str, Scorer], yardstick: tuple[Tensor, Tensor], row: dict[str, Any]
) -> None:
    """Check, then time all that are right in turn."""
    right: dict[str, Scorer] = {}
    for name, scorer in scorers.items():
        try:
            logits = torch.from_numpy(scorer())[: len(yardstick[0])].half()
            assert_as_exact(logits, *yardstick)
            right[name] = scorer
        except Exception as error:  # what a peer cannot do is part of the result
            row["sides"][name] = {"not timed": f"{type(error).__name__}: {error}"[:300]}
    for scorer in [*right.values()] * (0 if work.smoke else 2):
        scorer()  # by now a graph has been captured and replayed
    taken = take_turns(right, work.device, repeats=1 if work.smoke else 5)
    row["sides"] |= {name: rate(seconds, row["pairs"]) for name, seconds in taken.items()}


def _scorers(run: Run, work: Work, model: str, half: Any, whole: PackedBatch) -> Iterator[tuple[str, Scorer]]:
    """Every side as "name @ batch size", at each size that it is tried at."""
    for label, side in sides_of(run, work, model)[0].items():
        if side[0] == "float16":
            for tokens in work.budgets[-1:] if work.smoke else work.budgets:
                rows, batches = batches_of(whole, tokens)
                executor = work.executor(model, *side)
                yield f"{label} @ {tokens} tokens", lambda e=executor, r=rows, b=batches: logits_of(e, r, b)
    sizes = [size for size in _PADDED if size < len(whole.cu_seqlens)]
    for pairs in (2,) if work.smoke else sizes:
        batches = padded(whole, pairs, pinned=not work.smoke)
        yield (
            f"transformers, SDPA, sorted @ {pairs} pairs",
            lambda b=batches: score_padded(half, b, work.device),
        )
    for name, attend in attentions(work.smoke).items():
        peer = PackedPeer(half, attend)
        for tokens in work.budgets[1:]:
            ready = packed(*batches_of(whole, tokens), pinned=not work.smoke)
            yield f"{name}, packed @ {tokens} tokens", lambda p=peer, b=ready: p.score(b)
            if work.device.type == "cuda":
                yield (
                    f"{name}, packed, a GPU graph for each batch @ {tokens} tokens",
                    lambda p=peer, b=ready: p.score(b, replay=True),
                )


def _one_pair(work: Work, model: str, half: Any, rows: list[dict[str, Any]]) -> None:
    """Seconds of one pair of 128 tokens: by transformers, and by the packed pass, on a GPU from one graph."""
    length, count, warm = (8, 2, 1) if work.smoke else (128, 120, 20)
    whole = [batch_of([length], seed) for seed in range(count)]
    ready = [padded(one, 1, pinned=not work.smoke) for one in whole]
    sides: dict[str, list[Scorer]] = {
        "transformers, SDPA": [lambda b=batches: score_padded(half, b, work.device) for batches in ready]
    }
    (same,) = packed(*batches_of(whole[0], length), pinned=not work.smoke)  # a graph belongs to its batch
    graph = work.device.type == "cuda"
    for name, attend in attentions(work.smoke).items():
        peer = PackedPeer(half, attend)
        label = f"{name}, packed{', a GPU graph' if graph else ''}"
        sides[label] = [lambda p=peer: p.score([same], replay=graph)] * count
    for side, calls in sides.items():
        taken = []
        for call in calls:
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
        rows.append({"model": model, "side": side, **summary(taken[warm:])})


def compare_compiled(run: Run, work: Work, found: dict[str, Any], *, autotune: bool = False) -> None:
    """`found["rows"]`: `torch.compile` of transformers' module, on the workload whose batches are all alike,
    in turn with the best of segue and of the module as it was.

    Compiled modules free what the GPU graphs of executors that are not batch-invariant write to
    (segue.executors.triton_products): these are not run here, nor in this process afterwards.
    """
    found["rows"] = []
    if work.smoke:
        return
    workload, lengths = next(iter(work.workloads.items()))
    whole = batch_of(lengths)
    for mode in ("default", "reduce-overhead", *(["max-autotune"] if autotune else [])):
        for model in reversed(work.names):  # the small one first
            if run.left < _COMPILING:
                found.setdefault("no time left for", []).append(f"{model}, torch.compile, {mode}")
                continue
            run.check_time()
            torch.compiler.reset()
            half = copy.deepcopy(work.model(model).module).half().to(work.device)
            yardstick = _yardstick(half, whole, _checked(work), work.device)
            best = _best_sides(run.found("peers")["rows"], model, workload)
            scorers = {n: s for n, s in _scorers(run, work, model, half, whole) if n in best.values()}
            setting = best.get("transformers", f" @ {_PADDED[1]} pairs").split(" @ ")[-1]
            batches = padded(whole, int(setting.split()[-2]), pinned=not work.smoke)
            module = torch.compile(copy.deepcopy(half), mode=mode, dynamic=False)
            scorers[f"transformers, torch.compile {mode} @ {setting}"] = partial(
                score_padded, module, batches, work.device
            )
            row = {"model": model, "workload": workload, "pairs": len(lengths), "sides": {}}
            found["rows"].append(row)
            _time(work, scorers, yardstick, row)


def _best_sides(rows: list[dict[str, Any]], model: str, workload: str) -> dict[str, str]:
    """The fastest side of segue, batch-invariant, and of transformers, with its batch size, where there is
    one."""
    rates = {
        name: side["pairs/s"]
        for row in rows
        if (row["model"], row["workload"]) == (model, workload)
        for name, side in row["sides"].items()
        if "pairs/s" in side
    }
    best = {}
    for whose, start in (("segue", "segue, float16 @"), ("transformers", "transformers, SDPA")):
        if some := [name for name in rates if name.startswith(start)]:
            best[whose] = max(some, key=rates.__getitem__)
    return best


def _yardstick(half: Any, whole: PackedBatch, pairs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The logits of the first pairs by transformers' eager attention in float16, and in float64."""
    bounds = whole.cu_seqlens[: pairs + 1]
    end = bounds[-1]
    first = PackedBatch(whole.input_ids[:end], whole.token_type_ids[:end], whole.position_ids[:end], bounds)
    batches = padded(first, 16, pinned=False)
    eager, exact = copy.deepcopy(half), copy.deepcopy(half).double()
    eager.set_attn_implementation("eager")
    return tuple(
        torch.from_numpy(score_padded(module, batches, device, wide=wide))
        for module, wide in ((eager, torch.float16), (exact, torch.float64))
    )  # type: ignore[return-value]


def _checked(work: Work) -> int:
    return 3 if work.smoke else _CHECKED


def _there() -> dict[str, Any]:
    """What else could have been compared, had it been installed."""
    names = ("flash_attn", "tensorrt", "torch_tensorrt")
    found: dict[str, Any] = {name: find_spec(name) is not None for name in names}
    try:
        import onnxruntime

        found["onnxruntime"] = onnxruntime.get_available_providers()
    except ImportError:
        found["onnxruntime"] = None
    return found
