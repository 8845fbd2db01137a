"""Correctness: every executor against PyTorch, and itself in other batches. What fails is not timed.

Against float64, logits may be twice as wrong as the plan's formulas run eagerly in the executor's precision,
plus one rounding step. The formulas in float64 are compared with PyTorch's network, to see that the plan is
the model's.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from gpu_models import Model, Work, batch_of
from gpu_run import Run
from kernel_tools import assert_as_exact
from torch import Tensor
from triton_tools import run_eagerly

from segue.batching import PackedBatch
from segue.bundle import MODEL, read_bundle
from segue.executors.triton_plan import Plan, read_plan
from segue.export.bert import Bert

__all__ = ["check_models", "trusted"]

_LENGTHS = (3, 128, 31, 512, 64, 5, 257, 127, 33, 96, 200, 17, 65, 32, 400, 48)  # tokens of the pairs
_SMOKE_LENGTHS = (3, 9)
_THREADS = 4
_CLOSE = 1e-6  # what a float64 logit of about one may differ by in other orders of summation


def check_models(run: Run, work: Work, found: dict[str, Any]) -> None:
    """`found[model]`: the plan's distance from PyTorch, and for each executor whether it is as exact as it
    must be and, if it promises so, gives the same bits in any batch and order."""
    lengths = list(_SMOKE_LENGTHS if work.smoke else _LENGTHS)
    for name in work.scored:
        run.check_time()
        model = work.model(name)
        plan = read_plan(model.bundle / MODEL)
        batch = batch_of([min(n, model.longest) for n in lengths], words=model.words)
        entry = found[name] = {"executors": {}}
        entry["from PyTorch in float64"] = distance = _distance(plan, model, batch, work.device)
        for precision, invariants in _executors(work):
            dtype = getattr(torch, precision)
            eager, exact = (
                _eagerly(plan, batch, dtype, arithmetic, work.device) for arithmetic in (dtype, torch.float64)
            )
            for invariant in invariants:
                run.check_time()
                about = entry["executors"][f"{precision}, {_said(invariant)}"] = {"ok": False}
                try:
                    logits = _run(work, name, precision, invariant, batch)
                    wrong = (torch.from_numpy(logits) - exact).abs().max().item()
                    about |= {"error": wrong, "eager error": (eager - exact).abs().max().item()}
                    assert distance <= _CLOSE, f"the plan is {distance:.3g} from PyTorch, in float64"
                    assert_as_exact(torch.from_numpy(logits).to(dtype), eager, exact)
                    about["bits"] = _bits(work, model, precision, invariant, lengths)
                    assert not invariant or about["bits"]["same"], "a pair's bits hang on its batch"
                    about["ok"] = True
                except Exception as error:  # whatever it is, this executor is not timed
                    about["why"] = f"{type(error).__name__}: {error}"[:500]
                if precision == "float32" or name not in work.names:
                    work.close(name, precision, invariant)  # no section times it


def trusted(run: Run, model: str, precision: str, invariant: bool) -> bool:
    """Whether that executor passed."""
    executors = run.found("parity of models").get(model, {}).get("executors", {})
    return bool(executors.get(f"{precision}, {_said(invariant)}", {}).get("ok"))


def _executors(work: Work) -> list[tuple[str, tuple[bool, ...]]]:
    """Precisions, and whether batch-invariant."""
    return [(precision, (True, False)) for precision in work.precisions]


def _run(work: Work, name: str, precision: str, invariant: bool, *batches: Any) -> np.ndarray:
    """The logits of the last of three runs: launched, captured, replayed."""
    executor = work.executor(name, precision, invariant)
    for _ in range(1 if work.smoke else 3):
        logits = [found.copy() for found in executor.run(batches)]
    return np.concatenate(logits)


def _bits(work: Work, model: Model, precision: str, invariant: bool, lengths: list[int]) -> dict[str, Any]:
    """How pairs come out alone and together: in two orders, and in threads that share an executor."""
    lengths, name = [min(n, model.longest) for n in lengths], model.name
    singles = [batch_of([n], seed, words=model.words) for seed, n in enumerate(lengths)]
    alone = _run(work, name, precision, invariant, *singles)
    same, differ = True, 0.0
    for order in (np.arange(len(singles)), np.random.default_rng(0).permutation(len(singles))):
        together = _run(work, name, precision, invariant, _joined([singles[i] for i in order]))
        same &= together.tobytes() == alone[order].tobytes()
        differ = max(differ, float(np.abs(together - alone[order]).max()))
    shared = _in_threads(work.executor(name, precision, invariant), singles, alone)
    return {"same": same and shared == 0, "largest difference": max(differ, shared)}


def _in_threads(executor: Any, singles: list[PackedBatch], alone: np.ndarray) -> float:
    """The largest difference from what pairs give alone, where threads share an executor: each takes them two
    by two, in its own order, three times over, so that graphs are captured while others run."""

    def work(first: int) -> float:
        order = np.roll(np.arange(len(singles)), first)
        batches = [_joined([singles[i] for i in some]) for some in np.array_split(order, -(-len(order) // 2))]
        differ = [
            np.abs(np.concatenate([found.copy() for found in executor.run(batches)]) - alone[order]).max()
            for _ in range(3)
        ]
        return float(max(differ))

    with ThreadPoolExecutor(_THREADS) as pool:
        return max(pool.map(work, range(_THREADS)))


def _joined(batches: list[PackedBatch]) -> PackedBatch:
    """One batch made of several batches of one pair each."""
    parts = (
        np.concatenate([getattr(batch, name) for batch in batches])
        for name in ("input_ids", "token_type_ids", "position_ids")
    )
    return PackedBatch(*parts, np.cumsum([0, *(len(batch.input_ids) for batch in batches)]))


def _eagerly(
    plan: Plan, batch: Any, dtype: torch.dtype, arithmetic: torch.dtype, device: torch.device
) -> Tensor:
    """`run_eagerly`, on the device: it takes its tensors from NumPy."""
    from_numpy = torch.from_numpy
    with patch.object(torch, "from_numpy", lambda values: from_numpy(values).to(device)):
        return run_eagerly(plan, batch, dtype, arithmetic=arithmetic).cpu()


def _distance(plan: Plan, model: Model, batch: Any, device: torch.device) -> float:
    """The largest difference of a logit between the plan's formulas and PyTorch's network, in float64."""
    ours = _eagerly(plan, batch, torch.float32, torch.float64, device)
    inputs = {key: torch.from_numpy(values).to(device) for key, values in vars(batch).items()}
    with torch.no_grad():
        if model.module is None:
            theirs = _bert(plan, model).to(device)(*inputs.values())[0].cpu()
        else:
            module, bounds, rows = model.module.to(device, torch.float64), batch.cu_seqlens, []
            for start, end in pairwise(bounds):
                ids, types = (inputs[key][start:end][None] for key in ("input_ids", "token_type_ids"))
                rows.append(module(input_ids=ids, token_type_ids=types).logits.cpu())
            theirs = torch.cat(rows)
            model.module.to("cpu", torch.float32)
    return float((ours - theirs).abs().max())


def _bert(plan: Plan, model: Model) -> Bert:
    """segue's own PyTorch network with the weights of a bundle."""
    manifest = read_bundle(model.bundle)
    eps = next(step.options["eps"] for step in plan.steps if "eps" in step.options)
    head = manifest.head
    bert = Bert(manifest.dimensions, labels=len(head.labels), activation=head.activation, eps=eps)
    bert.load_state_dict({name: torch.from_numpy(values.copy()) for name, values in plan.weights.items()})
    return bert.double().eval()


def _said(invariant: bool) -> str:
    return "batch-invariant" if invariant else "not invariant"
