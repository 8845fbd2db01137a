"""The graph on Triton kernels: the plan's launches on a GPU, replayed as GPU graphs.

With TRITON_INTERPRET=1 set before the import the same plan runs on the CPU, slowly, to be tested and looked
at; nothing is captured there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segue.batching import PackedBatch
from segue.bundle import Dimensions
from segue.errors import ExecutorUnavailable, InputError, SegueError
from segue.executors.triton_buckets import Bucket, bucket_of, buckets
from segue.executors.triton_compiles import warm, watch
from segue.executors.triton_device import (
    Guard,
    choose,
    drop,
    give_back,
    own_stream,
    ran_out_of_memory,
    record,
)
from segue.executors.triton_launches import Launches
from segue.executors.triton_plan import Plan, check_tables, read_plan
from segue.executors.triton_products import LIBRARY_ROWS
from segue.executors.triton_results import Results
from segue.kernels.launching import INTERPRETED, target

__all__ = ["TritonExecutor"]

_PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_DEFAULT = "float16"  # as fast as bfloat16, and eight times closer
_BATCH_TOKENS = 16_384
# Batches on their way to the device while the next is made: as long as the host takes to encode more pairs,
# 10 to 30 ms. A caller with one pair waits for all of them.
_AHEAD = 4
_Logits = NDArray[np.float32]


class TritonExecutor:
    """One model on one device. `run` may be called from any number of threads; their batches take turns."""

    name = "triton"
    threads = 1
    overlaps = True
    grid = False  # attention never looks beyond a pair

    def __init__(
        self,
        plan: Plan,
        device: torch.device,
        *,
        precision: str,
        batch_invariant: bool,
        batch_tokens: int,
        longest: int,
    ) -> None:
        """Put the weights on the device and lay out the memory for batches of up to batch_tokens tokens, of
        pairs of up to `longest`."""
        self.precision, self.device, self.batch_tokens = precision, str(device), batch_tokens
        self._words = plan.words
        dtype = _PRECISIONS[precision]
        library_rows = None if batch_invariant else LIBRARY_ROWS.get((target(device), dtype.itemsize))
        # The library also computes the rows that are not live: let there be few.
        self._buckets = buckets(batch_tokens, longest, fine=library_rows is not None)
        most = Bucket(self._buckets[-1].tokens, max(bucket.pairs for bucket in self._buckets), longest)
        # Everything of this engine runs in one stream, so that its threads take turns on the device too.
        self._stream = None if INTERPRETED else own_stream(device)
        self._record: Callable[[Callable[[], None]], Any] | None = None
        # Loading it under inference_mode must not keep others from using it.
        with torch.inference_mode(False), self._on_device():
            self._launches = Launches(
                plan, most, device, dtype, stream=self._stream, library_rows=library_rows
            )
            if not INTERPRETED:  # there is nothing to capture
                self._record = partial(record, pool=torch.cuda.graph_pool_handle())
        self._results = Results(most.pairs, plan.labels, self._stream)
        self._rounds = not INTERPRETED  # an idle interpreted program costs as much as another
        self._graphs: dict[Bucket, Any] = {}  # what has been captured, each to `replay`
        self._ran: set[Bucket] = set()
        self._too_large: set[Bucket] = set()  # there was no memory for their graphs
        self._warm = False
        self._lock = Lock()
        self._guard = Guard(self.device)
        summary, *steps = self._launches.describe()
        self.description = [
            f"triton on {self.device}{', interpreted' if INTERPRETED else ''}, {precision}, {summary}, "
            f"up to {len(self._buckets)} GPU graphs",
            *steps,
        ]

    @classmethod
    def open(
        cls,
        model: Path,
        *,
        device: str,
        precision: str | None,
        batch_tokens: int | None,
        longest: int,
        batch_invariant: bool = True,
        dimensions: Dimensions | None = None,
    ) -> TritonExecutor:
        """Load `model`. batch_invariant: a row is summed in the same order whatever the batch, so that a
        pair has the same bits in all; otherwise linear layers go to a matrix library where that is faster.

        Raises:
            BundleError: the graph has a node that kernels do not run, or a weight that the precision cannot
                hold.
            ExecutorUnavailable: there is no such GPU and kernels are not interpreted, or it lacks the
                memory.
        """
        chosen = choose(device)
        try:
            target(chosen)
            plan = read_plan(model)
            if dimensions is not None:
                check_tables(plan, dimensions, model)
            return cls(
                plan,
                chosen,
                precision=precision or _DEFAULT,
                batch_invariant=batch_invariant,
                batch_tokens=batch_tokens or _BATCH_TOKENS,
                longest=longest,
            )
        except torch.OutOfMemoryError as error:
            raise ExecutorUnavailable(
                f"executor='triton': {chosen} has not the memory for this model and max_batch_tokens: {error}"
            ) from error
        except ExecutorUnavailable:
            raise
        except (ValueError, RuntimeError) as error:
            raise ExecutorUnavailable(f"executor='triton', device={str(chosen)!r}: {error}") from error

    def tokens_at_once(self, total: int) -> int:
        """Return the best number of tokens for a batch."""
        return self.batch_tokens

    def lanes(self, total: int) -> int:
        """Return 1: batches run one after the other."""
        return 1

    def run(self, batches: Iterable[PackedBatch]) -> Iterator[_Logits]:
        """Yield the logits `[B, C]` of each batch, in order; batches are taken from the iterable, and so
        made, while others are computed.

        Raises:
            InputError: a batch is larger than what the executor was laid out for.
            SegueError: the device failed. The message says whether the engine can be used again.
        """
        begun: deque[Callable[[], _Logits]] = deque()
        try:
            for batch in batches:
                begun.append(self._start(batch))
                if len(begun) > _AHEAD:
                    yield begun.popleft()()
            while begun:
                yield begun.popleft()()
        finally:
            for finish in begun:  # unwanted, or one before failed; this gives back what they hold
                with suppress(SegueError):
                    finish()

    def warm_up(self) -> Iterator[tuple[int, int]]:
        """Compile every kernel and capture every graph; yields (done, of how many) on the way. Later
        compilations are logged."""
        sizes = self._buckets if self._rounds else self._buckets[:1]
        rounds = [self._launches.launch, self._capture] if self._record else [self._launches.launch]
        done, count = 0, len(rounds) * len(sizes)
        for act in rounds:
            for bucket in sizes:
                self._rehearse(bucket, act)
                done += 1
                yield done, count
        with self._lock, self._guard.failing():
            if self._stream:
                self._stream.synchronize()
        watch()
        self._warm = True

    def compile(self, first: int = 0, step: int = 1) -> None:
        """Compile what every `step`-th bucket from `first` on launches: one process's share, where several
        fill Triton's cache."""
        for bucket in self._buckets[first::step]:
            self._rehearse(bucket, self._launches.launch)

    def close(self) -> None:
        """Give back the device's memory. A second time there is nothing left to give."""
        with self._lock:
            self._guard.broken = "this engine is closed"
            with suppress(RuntimeError):  # a lost device ends no work
                if self._stream:
                    self._stream.synchronize()
            drop(self._graphs)
            self._launches.close()
            self._results.close()
            if self._stream:
                give_back()
            self._stream = None  # for another engine

    def _start(self, batch: PackedBatch) -> Callable[[], _Logits]:
        """Start a batch; return a function that waits for its logits."""
        if (highest := int(batch.input_ids.max(initial=0))) >= self._words:
            raise SegueError(f"batch: the token id {highest} is beyond the model's {self._words} words")
        bounds = batch.cu_seqlens
        longest = int((bounds[1:] - bounds[:-1]).max()) if len(bounds) > 1 else 0
        exact = Bucket(len(batch.input_ids), len(bounds) - 1, longest)
        if exact.tokens > self._launches.most.tokens or exact.pairs > self._launches.most.pairs:
            raise InputError(
                f"batch: {exact.tokens} tokens, {exact.pairs} pairs; the executor was laid out for up to "
                f"{self._launches.most.tokens} and {self._launches.most.pairs}"
            )
        bucket = bucket_of(self._buckets, *exact) if self._rounds else None
        with self._lock, self._guard.failing(), self._on_device():
            self._launches.feed.send(batch, bucket or exact)
            if bucket in self._graphs:
                self._graphs[bucket].replay()
            else:
                with warm() if self._warm else nullcontext():
                    self._launches.launch(bucket or exact)
                if bucket and bucket not in self._ran:
                    self._ran.add(bucket)
                elif bucket and self._record and bucket not in self._too_large:
                    self._capture(bucket)  # its kernels were compiled and loaded when it ran before
            logits = self._results.fetch(self._launches.logits[: exact.pairs])

        def finish() -> _Logits:
            with self._guard.failing():
                return logits()

        return finish

    def _rehearse(self, bucket: Bucket, act: Callable[[Bucket], None]) -> None:
        """Launch or capture a bucket with no live tokens, unless it has a graph."""
        with self._lock, self._guard.failing(), self._on_device():
            if bucket not in self._graphs:
                self._launches.feed.numbers.zero_()
                act(bucket)
                self._ran.add(bucket)

    def _capture(self, bucket: Bucket) -> None:
        assert self._record
        try:
            self._graphs[bucket] = self._record(lambda: self._launches.launch(bucket))
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            import logging

            self._too_large.add(bucket)
            logging.getLogger("segue").warning(
                "%s has no memory for a graph of %d tokens: such batches are launched kernel by kernel",
                self.device,
                bucket.tokens,
            )

    def _on_device(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
