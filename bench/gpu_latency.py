"""How long one pair takes, and what is left of the model's throughput when it starts from text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gpu_model import rate, sides_of
from gpu_models import Work, batch_of, texts
from gpu_parity_models import trusted
from gpu_run import Run
from gpu_timing import summary, take_turns

from segue import Engine
from segue.batching import pack, plan
from segue.bundle import MODEL, TOKENIZER
from segue.executors import open_executor
from segue.text import PairEncoder

__all__ = ["end_to_end", "latency"]

_CALLS, _WARM = 300, 20


def latency(run: Run, work: Work, found: dict[str, Any]) -> None:
    """`found["rows"]`: seconds of a call with one pair, packed already or as text."""
    rows = found["rows"] = []
    length = 8 if work.smoke else 128
    for model in work.names:
        for label, side in sides_of(run, work, model)[0].items():
            run.check_time()
            executor = work.executor(model, *side)
            batches = [batch_of([length], seed) for seed in range(_count(work))]
            seconds = _each(lambda batch, e=executor: list(e.run([batch])), batches, work)
            rows.append({"model": model, "side": label, "tokens": length, "from": "ids", **seconds})
    for model, engine in _engines(run, work):
        run.check_time()
        pairs = texts(work.model(model).bundle / TOKENIZER, [length] * _count(work))
        seconds = _each(lambda pair, e=engine: e.score([pair]), pairs, work)
        rows.append({"model": model, "side": "segue, float16", "tokens": length, "from": "text", **seconds})


def end_to_end(run: Run, work: Work, found: dict[str, Any]) -> None:
    """`found["rows"]`: pairs a second of `Engine.predict` from text, and of the model alone on the same
    batches; the logits are the same to the bit."""
    rows = found["rows"] = []
    for model, engine in _engines(run, work):
        folder = work.model(model).bundle
        encoder = PairEncoder(folder / TOKENIZER, work.model(model).longest)
        executor = open_executor(
            folder / MODEL, executor="triton", device="auto", precision="float16", threads=1,
            batch_tokens=None, longest=work.model(model).longest,
        )  # fmt: skip
        for workload, lengths in list(work.workloads.items())[-1 if work.smoke else 0 :]:
            run.check_time()
            pairs = texts(folder / TOKENIZER, lengths)
            encoded = encoder.encode(pairs)
            batches = plan(encoded.lengths, executor.batch_tokens)
            packed = [pack(encoded, some) for some in batches]
            logits = np.empty((len(encoded.pairs), len(engine.labels)), np.float32)
            for _ in range(1 if work.smoke else 3):
                for some, values in zip(batches, executor.run(packed), strict=True):
                    logits[some] = values
                answer = engine.predict(pairs, output="logit")
            row: dict[str, Any] = {"model": model, "workload": workload, "pairs": len(pairs)}
            rows.append(row)
            if answer.tobytes() != logits[encoded.inverse].tobytes():
                row["not timed"] = "the engine's logits are not those of its batches"
                continue
            calls: dict[str, Callable[[], Any]] = {
                "from text": lambda e=engine, p=pairs: e.predict(p, output="logit"),
                "model alone": lambda e=executor, p=packed: list(e.run(p)),
                "tokenising alone": lambda e=encoder, p=pairs: e.encode(p),
                "packing alone": lambda e=encoded, b=batches: [pack(e, some) for some in b],
            }
            taken = take_turns(calls, work.device, repeats=1 if work.smoke else 7)
            row["sides"] = {label: rate(seconds, len(pairs)) for label, seconds in taken.items()}
            row["of the model alone"] = (
                row["sides"]["from text"]["pairs/s"] / row["sides"]["model alone"]["pairs/s"]
            )
        executor.close()


def _engines(run: Run, work: Work) -> Iterator[tuple[str, Engine]]:
    """The bundle that ships and the largest of the others, if they passed."""
    for model in dict.fromkeys((work.scored[0], work.names[0])):
        if trusted(run, model, "float16", True):
            with Engine.load(work.model(model).bundle, executor="triton", precision="float16") as engine:
                yield model, engine


def _each(call: Callable[[Any], Any], inputs: list[Any], work: Work) -> dict[str, Any]:
    """Seconds of a call with each of the inputs, the first few left out."""
    warm, taken = 1 if work.smoke else _WARM, []
    for item in inputs:
        started = time.perf_counter()
        call(item)
        taken.append(time.perf_counter() - started)
    return summary(taken[warm:])


def _count(work: Work) -> int:
    return 2 if work.smoke else _CALLS + _WARM
