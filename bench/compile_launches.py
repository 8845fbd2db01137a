"""From the calls of the public launchers to compiled kernels: which there are, and what each is like.

`launching.run` is replaced by what records or compiles, `launching._target` by the target's name. Two calls
that Triton would compile alike are one binary. Results are kept as JSON, named after all that they depend
on: the kernel's source with what it calls, its specialisation, target, triton, and the readers.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import compile_readers
import compile_rules
import torch
import triton
from compile_examples import Example, examples

import segue.kernels
from segue.kernels import launching

__all__ = ["Job", "compile_all", "plan"]

_CACHE = Path(__file__).parent.parent / "build" / "kernels"
_PROCESSES = 2


class Job(NamedTuple):
    """One binary that one example asks for."""

    target: str
    example: Example
    kernel: str
    identity: str


class _Launch(NamedTuple):
    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]


def plan(ops: Iterable[str], targets: Iterable[str], *, one: bool) -> tuple[list[Job], list[str]]:
    """The binaries, each once per op, dtype and model, and what is amiss: rows of launch tables that no
    example reaches. one: a binary per kernel and target, for the last example of the first (smallest) model;
    and one for float32 where there are matrix products."""
    jobs: dict[tuple[str, ...], Job] = {}
    reached: dict[tuple[str, str], set[int]] = {}
    for target in targets:
        for op in ops:
            getattr(segue.kernels, op)  # import it, so that its table can be watched
            for example in examples(op):
                with _watched(target, reached):
                    met = _launches(example, target)
                for launch in met:
                    name, identity = launch.kernel.__name__, _identity(launch)
                    job = Job(target, example, name, identity)
                    if not one:
                        jobs.setdefault((target, op, name, example.dtype, example.model, identity), job)
                    elif example.dtype == "float16" or (
                        example.dtype == "float32" and op in compile_rules.PRODUCTS
                    ):
                        known = jobs.setdefault((target, op, name, example.dtype), job)
                        if known.example.model == example.model:
                            jobs[target, op, name, example.dtype] = job
    return list(jobs.values()), _unreached(reached)


def compile_all(jobs: list[Job]) -> tuple[list[dict[str, Any]], int]:
    """What each binary is like, in the order of the jobs, and how many had to be compiled now."""
    _CACHE.mkdir(parents=True, exist_ok=True)
    first = {job.identity: job for job in reversed(jobs)}
    missing = [job for identity, job in first.items() if not _kept(identity).exists()]
    # forked, so that torch and triton are imported once, and an example need not be pickled
    context = multiprocessing.get_context("fork")
    _PENDING.extend(missing)
    with ProcessPoolExecutor(_PROCESSES, mp_context=context) as pool:
        errors = dict(
            zip((job.identity for job in missing), pool.map(_compile, range(len(missing))), strict=True)
        )
    _PENDING.clear()
    return [_entry(job, errors.get(job.identity)) for job in jobs], len(missing)


_PENDING: list[Job] = []  # which the forked processes find by index


def _compile(index: int) -> str | None:
    """Compile and keep the result; or return why it could not be compiled."""
    job = _PENDING[index]
    for launch in _launches(job.example, job.target):
        if launch.kernel.__name__ == job.kernel and _identity(launch) == job.identity:
            try:
                compiled = _warm_up(launch)
                result = {**compile_readers.read(compiled), **_described(launch, compiled)}
            except Exception as error:  # whatever a compiler may raise is what the report is for
                return f"{type(error).__name__}: {error}".partition("\n")[0][:300]
            unfinished = _kept(job.identity).with_suffix(f".{os.getpid()}")
            unfinished.write_text(json.dumps(result), "utf-8")
            unfinished.replace(_kept(job.identity))
            return None
    raise AssertionError(f"{job.kernel} is launched no more")


def _entry(job: Job, error: str | None) -> dict[str, Any]:
    example = job.example
    entry = {"op": example.op, "kernel": job.kernel, "target": job.target, "dtype": example.dtype}
    entry |= {
        "model": example.model,
        "setting": example.setting,
        "configuration": "",
        "identity": job.identity,
    }
    return entry | ({"error": error} if error else json.loads(_kept(job.identity).read_text("utf-8")))


def _launches(example: Example, target: str) -> list[_Launch]:
    """What an example would launch on a target."""
    met: list[_Launch] = []
    run, name = launching.run, launching._target
    launching.run = lambda kernel, grid, arguments, options, device: met.append(
        _Launch(kernel, arguments, options)
    )
    launching._target = lambda kind, index: target
    compile_readers.compile_for(target)
    try:
        with torch.no_grad():
            example.call()
    finally:
        launching.run, launching._target = run, name
    return met


def _warm_up(launch: _Launch) -> Any:
    launch.kernel.device_caches.clear()  # they hold what was compiled for another target
    return launch.kernel.warmup(*launch.arguments, grid=(1,), **launch.options)


def _identity(launch: _Launch) -> str:
    """A name for all that the binary, and what is read from it, depend on."""
    keys: list[str] = []

    def note(*, key: str, **_: Any) -> bool:
        keys.append(key)
        return True  # compiled already, as far as Triton is concerned

    with _hook(note):
        _warm_up(launch)
    target = triton.runtime.driver.active.get_current_target()
    parts = (launch.kernel.cache_key, keys[0], target, triton.__version__, _readers())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


@contextmanager
def _hook(function: Callable[..., bool]) -> Iterator[None]:
    triton.knobs.runtime.jit_cache_hook = function
    try:
        yield
    finally:
        triton.knobs.runtime.jit_cache_hook = None


@cache
def _readers() -> str:
    files = ("compile_readers.py", "compile_ttgir.py", "compile_launches.py")
    return hashlib.sha256(b"".join((Path(__file__).parent / name).read_bytes() for name in files)).hexdigest()


def _kept(identity: str) -> Path:
    return _CACHE / f"{identity}.json"


def _described(launch: _Launch, compiled: Any) -> dict[str, Any]:
    """The configuration in words, and the tensors by the kernel's names for them."""
    given = {**dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)), **launch.options}
    constants = {n: v for n, v in given.items() if n.isupper() and n in launch.kernel.arg_names}
    constants |= {"warps": compiled.metadata.num_warps, "stages": compiled.metadata.num_stages}
    tensors = {
        name: {"shape": list(value.shape), "float": value.is_floating_point()}
        for name, value in given.items()
        if isinstance(value, torch.Tensor)
    }
    return {"configuration": " ".join(f"{n}={v}" for n, v in constants.items()), "tensors": tensors}


class _Watched(tuple):
    """A launch table that knows on which row the last search for one ended, or which was taken."""

    def __iter__(self) -> Iterator[Any]:
        for index, row in enumerate(super().__iter__()):
            self.last = index
            yield row

    def __getitem__(self, index: Any) -> Any:
        self.last = index
        return super().__getitem__(index)


@contextmanager
def _watched(target: str, reached: dict[tuple[str, str], set[int]]) -> Iterator[None]:
    """Note in `reached` which row each table ends on."""
    names = [name for name in sys.modules if name.startswith("segue.kernels.")]
    kept = {name: table for name in names if (table := getattr(sys.modules[name], "_TABLE", None))}
    tables = {name: _Watched(table) for name, table in kept.items()}
    for name, table in tables.items():
        sys.modules[name]._TABLE = table
    try:
        yield
    finally:
        for name, table in tables.items():
            sys.modules[name]._TABLE = kept[name]
            if hasattr(table, "last"):
                reached.setdefault((target, name), set()).add(table.last)


def _unreached(reached: dict[tuple[str, str], set[int]]) -> list[str]:
    found = []
    for (target, name), rows in reached.items():
        for index, row in enumerate(sys.modules[name]._TABLE):
            named = [part for part in row if isinstance(part, (str, tuple)) and not hasattr(part, "_fields")]
            meant = [t for part in named for t in ((part,) if isinstance(part, str) else part)]
            if index not in rows and (not meant or target in meant):
                found.append(f"{name}._TABLE[{index}] is reached by no example for {target}: {row}")
    return found
