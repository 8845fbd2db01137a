"""The graph on Triton kernels: the plan's launches on a GPU, replayed as GPU graphs.

With TRITON_INTERPRET=1 set before the import the same plan runs on the CPU, slowly, to test it and to look at
it; there nothing is captured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segue import kernels
from segue.batching import PackedBatch
from segue.errors import BundleError, ExecutorUnavailable, InputError, SegueError
from segue.executors.triton_buckets import Bucket, bucket_of, buckets
from segue.executors.triton_compiles import warm, watch
from segue.executors.triton_device import choose, record
from segue.executors.triton_memory import arrange, arrange_numbers
from segue.executors.triton_plan import PAIRS, TOKENS, Plan, Step, read_plan
from segue.kernels.launching import INTERPRETED, target

__all__ = ["TritonExecutor"]

_PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_DEFAULT = "float16"  # as fast as bfloat16, and eight times closer
_BATCH_TOKENS = 16_384
_TAKE_LONGEST = ("packed_attention", "cls_attention")
_TAKE_LIVE = ("embed", "linear", "linear_gelu", "add_layer_norm")
_Logits = NDArray[np.float32]


class TritonExecutor:
    """One model on one device. `run` may be called from any number of threads; their batches take turns."""

    name = "triton"
    threads = 1
    grid = False  # attention never looks beyond a pair

    def __init__(
        self, plan: Plan, device: torch.device, precision: str, batch_tokens: int, longest: int
    ) -> None:
        """Put the weights on the device and lay out the memory for batches of up to batch_tokens tokens, of
        pairs of up to `longest`."""
        self.precision, self.device, self.batch_tokens = precision, str(device), batch_tokens
        self._plan, self._device, self._dtype = plan, device, _PRECISIONS[precision]
        self._buckets = buckets(batch_tokens, longest)
        self._most = Bucket(self._buckets[-1].tokens, max(bucket.pairs for bucket in self._buckets), longest)
        self._places, size = arrange(plan, {TOKENS: self._most.tokens, PAIRS: self._most.pairs})
        # Everything of this engine runs in one stream, so that its threads take turns on the device too.
        self._stream = None if INTERPRETED else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with self._on_device():
            self._weights = {name: self._weight(name, values) for name, values in plan.weights.items()}
            self._arena = torch.empty(size, device=device, dtype=self._dtype)
            _, numbers = arrange_numbers(self._most.tokens, self._most.pairs)
            self._numbers = torch.zeros(numbers, device=device, dtype=torch.int32)
            self._logits = torch.empty(self._most.pairs, plan.labels, device=device, dtype=torch.float32)
        # An interpreted program costs as much if it does nothing, and there is nothing to capture.
        self._rounds = not INTERPRETED
        self._record: Callable[[Callable[[], None]], Any] | None = None if INTERPRETED else record
        self._graphs: dict[Bucket, Any] = {}  # what has been captured, each to `replay`
        self._ran: set[Bucket] = set()
        self._warm = False
        self._lock = Lock()
        self._broken = ""
        self.description = self._describe()

    @classmethod
    def open(
        cls, model: Path, *, device: str, precision: str | None, batch_tokens: int | None, longest: int
    ) -> TritonExecutor:
        """Load `model`.

        Raises:
            BundleError: the graph has a node that kernels do not run, or a weight that the precision cannot
                hold.
            ExecutorUnavailable: there is no such GPU and kernels are not interpreted, or it has not the
                memory.
        """
        chosen = choose(device)
        try:
            target(chosen)
            return cls(
                read_plan(model), chosen, precision or _DEFAULT, batch_tokens or _BATCH_TOKENS, longest
            )
        except torch.OutOfMemoryError as error:
            raise ExecutorUnavailable(
                f"executor='triton': {chosen} has not the memory for this model and max_batch_tokens: {error}"
            ) from error
        except (ValueError, RuntimeError) as error:
            raise ExecutorUnavailable(f"executor='triton', device={str(chosen)!r}: {error}") from error

    def run(self, batches: Iterable[PackedBatch]) -> Iterator[_Logits]:
        """Yield the logits `[B, C]` of each batch, in order; a batch is taken from the iterable, and so made,
        while the one before is computed.

        Raises:
            InputError: a batch is larger than what the executor was laid out for.
            SegueError: the device failed. The message says whether the engine can be used again.
        """
        waiting: Callable[[], _Logits] | None = None
        for batch in batches:
            started = self._start(batch)
            if waiting is not None:
                yield waiting()
            waiting = started
        if waiting is not None:
            yield waiting()

    def warm_up(self) -> Iterator[tuple[int, int]]:
        """Compile every kernel and capture every graph; yields (done, of how many) on the way. What is
        compiled after that is logged."""
        sizes = self._buckets if self._rounds else self._buckets[:1]
        rounds = [self._launch, self._capture] if self._record else [self._launch]
        done, count = 0, len(rounds) * len(sizes)
        for act in rounds:
            for bucket in sizes:
                with self._lock, self._failing(), self._on_device():
                    if bucket not in self._graphs:
                        self._numbers.zero_()  # no token is live
                        act(bucket)
                        self._ran.add(bucket)
                done += 1
                yield done, count
        with self._lock, self._failing():
            if self._stream:
                self._stream.synchronize()
        watch()
        self._warm = True

    def close(self) -> None:
        """Give back the device's memory. A second time there is nothing left to give."""
        with self._lock:
            self._broken = "this engine is closed"
            with suppress(RuntimeError):  # a device that is lost ends no work
                if self._stream:
                    self._stream.synchronize()
            self._graphs.clear()
            self._weights.clear()
            self._arena = self._numbers = self._logits = torch.empty(0)
            with suppress(RuntimeError):  # nor does it take anything back
                if self._stream:
                    torch.cuda.empty_cache()

    def _start(self, batch: PackedBatch) -> Callable[[], _Logits]:
        """Send a batch on its way; what is returned waits for its logits."""
        lengths = np.diff(batch.cu_seqlens)
        exact = Bucket(len(batch.input_ids), len(lengths), int(lengths.max(initial=0)))
        if exact.tokens > self._most.tokens or exact.pairs > self._most.pairs:
            raise InputError(
                f"batch: {exact.tokens} tokens, {exact.pairs} pairs; the executor was laid out for up to "
                f"{self._most.tokens} and {self._most.pairs}"
            )
        bucket = bucket_of(self._buckets, *exact) if self._rounds else None
        with self._lock, self._failing(), self._on_device():
            self._send(batch, bucket or exact)
            if bucket in self._graphs:
                self._graphs[bucket].replay()
            else:
                with warm() if self._warm else nullcontext():
                    self._launch(bucket or exact)
                if bucket and bucket not in self._ran:
                    self._ran.add(bucket)
                elif bucket and self._record:  # its kernels were compiled and loaded when it ran before
                    self._capture(bucket)
            result = self._logits[: exact.pairs].to("cpu", non_blocking=True, copy=True)
            done = self._stream.record_event() if self._stream else None

        def finish() -> _Logits:
            with self._failing():
                if done:
                    done.synchronize()
            logits: _Logits = result.numpy()
            return logits

        return finish

    def _send(self, batch: PackedBatch, sizes: Bucket) -> None:
        """Copy all numbers of a batch to the device at once. Pairs that are missing are empty ones at the
        end."""
        parts, size = arrange_numbers(sizes.tokens, sizes.pairs)
        tokens, bounds = len(batch.input_ids), len(batch.cu_seqlens)
        packed = np.zeros(size, dtype=np.int32)
        packed[parts[TOKENS]], packed[parts[PAIRS]] = tokens, bounds - 1
        packed[parts["cu_seqlens"]] = tokens
        packed[parts["cu_seqlens"]][:bounds] = batch.cu_seqlens
        packed[parts["input_ids"]][:tokens] = batch.input_ids
        packed[parts["token_type_ids"]][:tokens] = batch.token_type_ids
        packed[parts["position_ids"]][:tokens] = batch.position_ids
        staged = torch.from_numpy(packed)
        self._numbers[:size].copy_(staged.pin_memory() if self._stream else staged, non_blocking=True)

    def _launch(self, sizes: Bucket) -> None:
        """Launch the whole plan for these sizes."""
        parts, _ = arrange_numbers(sizes.tokens, sizes.pairs)
        values = {name: self._numbers[part] for name, part in parts.items()} | self._values(sizes)
        for step in self._plan.steps:
            options = dict(step.options)
            if step.op in _TAKE_LONGEST:
                options["longest"] = sizes.longest
            if step.op in _TAKE_LIVE:
                options["live"] = values[step.rows]
            inputs = (values[name] if name in values else self._weights[name] for name in step.inputs)
            getattr(kernels, step.op)(*inputs, **options, out=values[step.output])

    def _capture(self, bucket: Bucket) -> None:
        assert self._record
        self._graphs[bucket] = self._record(lambda: self._launch(bucket))

    def _values(self, sizes: Bucket) -> dict[str, Tensor]:
        """Where the results of the steps lie, for these sizes."""
        values = {}
        for step in self._plan.steps[:-1]:
            start, rows = self._places[step.output], _rows(step, sizes)
            values[step.output] = self._arena[start : start + rows * step.columns].view(rows, step.columns)
        values[self._plan.steps[-1].output] = self._logits[: sizes.pairs]
        return values

    def _weight(self, name: str, values: NDArray[Any]) -> Tensor:
        """A weight on the device, in the precision of the engine."""
        most = torch.finfo(self._dtype).max
        if values.size and float(np.abs(values).max()) > most:
            raise BundleError(
                f"{name} holds values that {self.precision} cannot (above {most:.5g}): take another precision"
            )
        return torch.from_numpy(values.copy()).to(self._device, self._dtype)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Raise what goes wrong on the device as SegueError. Out of memory is over when it is told, and a
        kernel that does not compile never ran; any other error of the device leaves a process in which
        nothing runs on it any more."""
        if self._broken:
            raise SegueError(self._broken)
        try:
            yield
        except Exception as error:  # PyTorch's, Triton's and the driver's own classes
            # PyTorch's allocator has a class for this; a graph or a kernel that finds no memory has words
            if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
                raise SegueError(
                    f"{self.device} is out of memory; the engine can be used again: {error}"
                ) from error
            if not isinstance(error, RuntimeError):
                raise SegueError(f"{self.device}: a kernel could not be launched: {error}") from error
            self._broken = (
                f"{self.device} failed, and this engine cannot be used any more; where the device itself "
                f"is at fault, only a new process can: {error}"
            )
            raise SegueError(self._broken) from error

    def _on_device(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _describe(self) -> list[str]:
        weights, arena = (
            sum(tensor.nbytes for tensor in tensors) / 1e6
            for tensors in (self._weights.values(), [self._arena])
        )
        return [
            f"triton on {self.device}{', interpreted' if INTERPRETED else ''}, {self.precision}, "
            f"weights {weights:.1f} MB, arena {arena:.1f} MB for {self._most.tokens} tokens, "
            f"{len(self._plan.steps)} launches, up to {len(self._buckets)} GPU graphs",
            *(f"{s.name}: {s.op} -> [{s.rows}, {s.columns}]" for s in self._plan.steps),
        ]


def _rows(step: Step, sizes: Bucket) -> int:
    return sizes.tokens if step.rows == TOKENS else sizes.pairs
