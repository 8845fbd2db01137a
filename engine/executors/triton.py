"""The graph on Triton kernels: the plan's launches on a GPU, replayed as GPU graphs.

With TRITON_INTERPRET=1 set before the import the same plan runs on the CPU, slowly, to test it and to look at
it; there nothing is captured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segue import kernels
from segue.batching import PackedBatch
from segue.errors import ExecutorUnavailable, InputError, SegueError
from segue.executors.triton_buckets import Bucket, bucket_of, buckets
from segue.executors.triton_memory import arrange
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
        self._rounds = not INTERPRETED  # to buckets; an interpreted program costs as much if it does nothing
        self._buckets = buckets(batch_tokens, longest)
        rows = {TOKENS: self._buckets[-1].tokens, PAIRS: max(bucket.pairs for bucket in self._buckets)}
        self._places, size = arrange(plan, rows)
        with self._on_device():
            self._weights = {
                name: torch.from_numpy(values.copy()).to(device, self._dtype)
                for name, values in plan.weights.items()
            }
            self._arena = torch.empty(size, device=device, dtype=self._dtype)
            self._numbers = torch.zeros(3 * rows[TOKENS] + rows[PAIRS] + 1, device=device, dtype=torch.int32)
            self._logits = torch.empty(rows[PAIRS], plan.labels, device=device)
            self._stream = None if INTERPRETED else torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graphs: dict[Bucket, Any] = {}
        self._ran: set[Bucket] = set()
        self._lock = Lock()
        self._broken = ""
        self.description = self._describe(rows, size)

    @classmethod
    def open(
        cls, model: Path, *, device: str, precision: str | None, batch_tokens: int | None, longest: int
    ) -> TritonExecutor:
        """Load `model`.

        Raises:
            BundleError: the graph has a node that kernels do not run.
            ExecutorUnavailable: there is no such GPU and kernels are not interpreted, or it has not the
                memory.
        """
        chosen = _device(device)
        try:
            target(chosen)
            return cls(
                read_plan(model), chosen, precision or _DEFAULT, batch_tokens or _BATCH_TOKENS, longest
            )
        except ValueError as error:
            raise ExecutorUnavailable(f"executor='triton': {error}") from error
        except torch.cuda.OutOfMemoryError as error:
            raise ExecutorUnavailable(
                f"executor='triton': {chosen} has not the memory for this model and max_batch_tokens: {error}"
            ) from error

    def run(self, batches: Iterable[PackedBatch]) -> Iterator[_Logits]:
        """Yield the logits `[B, C]` of each batch, in order; a batch is taken from the iterable, and so made,
        while the one before is computed.

        Raises:
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
        """Compile every kernel and capture every graph; yields (done, of how many) on the way."""
        sizes = self._buckets if self._rounds else self._buckets[:1]
        for step, rounds in enumerate((self._launch, self._capture) if self._rounds else (self._launch,)):
            for number, bucket in enumerate(sizes):
                with self._lock, self._on_device(), self._failing():
                    self._numbers.zero_()
                    rounds(bucket)
                    self._ran.add(bucket)
                yield step * len(sizes) + number + 1, (1 + self._rounds) * len(sizes)

    def close(self) -> None:
        """Give back the device's memory."""
        with self._lock:
            self._broken = "this engine is closed"
            self._graphs.clear()
            self._weights.clear()
            self._arena = self._numbers = self._logits = torch.empty(0)
            if not INTERPRETED:
                torch.cuda.empty_cache()

    def _start(self, batch: PackedBatch) -> Callable[[], _Logits]:
        """Send a batch on its way; what is returned waits for its logits."""
        lengths = np.diff(batch.cu_seqlens)
        exact = Bucket(len(batch.input_ids), len(lengths), int(lengths.max(initial=0)))
        bucket = bucket_of(self._buckets, *exact) if self._rounds else None
        if exact.tokens > self._buckets[-1].tokens:
            raise InputError(
                f"batch: {exact.tokens} tokens, the executor was laid out for {self.batch_tokens}"
            )
        with self._lock, self._on_device(), self._failing():
            self._send(batch, bucket or exact)
            if bucket in self._graphs:
                self._graphs[bucket].replay()
            else:
                self._launch(bucket or exact)
                if bucket in self._ran:  # kernels were compiled and warmed when it ran before
                    self._capture(bucket)
                elif bucket:
                    self._ran.add(bucket)
            result = self._logits[: exact.pairs].to("cpu", non_blocking=True)
            done = None if INTERPRETED else torch.cuda.Event()  # type: ignore[no-untyped-call]
            if done:
                done.record()

        def finish() -> _Logits:
            with self._failing():
                if done:
                    done.synchronize()
            logits: _Logits = result.numpy()
            return logits

        return finish

    def _send(self, batch: PackedBatch, sizes: Bucket) -> None:
        """Copy ids and bounds to the device, all at once: bounds, then ids, types and positions. Pairs that
        are missing are empty ones at the end."""
        packed = np.zeros(sizes.pairs + 1 + 3 * sizes.tokens, dtype=np.int32)
        packed[: sizes.pairs + 1] = len(batch.input_ids)
        packed[: len(batch.cu_seqlens)] = batch.cu_seqlens
        for part, values in enumerate((batch.input_ids, batch.token_type_ids, batch.position_ids)):
            start = sizes.pairs + 1 + part * sizes.tokens
            packed[start : start + len(values)] = values
        staged = torch.from_numpy(packed)
        self._numbers[: len(packed)].copy_(staged if INTERPRETED else staged.pin_memory(), non_blocking=True)

    def _launch(self, sizes: Bucket) -> None:
        """Launch the whole plan for these sizes."""
        values = self._values(sizes)
        live = values["cu_seqlens"][-1:]
        for step in self._plan.steps:
            options = dict(step.options)
            if step.op in _TAKE_LONGEST:
                options["longest"] = sizes.longest
            if step.op in _TAKE_LIVE and step.rows == TOKENS:
                options["live"] = live
            inputs = (values[name] if name in values else self._weights[name] for name in step.inputs)
            getattr(kernels, step.op)(*inputs, **options, out=values[step.output])

    def _capture(self, bucket: Bucket) -> None:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._launch(bucket)
        self._graphs[bucket] = graph

    def _values(self, sizes: Bucket) -> dict[str, Tensor]:
        """Where the graph's inputs, what steps give, and the logits lie, for these sizes."""
        bounds, ids = sizes.pairs + 1, self._numbers[sizes.pairs + 1 :]
        values = {
            "cu_seqlens": self._numbers[:bounds],
            "input_ids": ids[: sizes.tokens],
            "token_type_ids": ids[sizes.tokens : 2 * sizes.tokens],
            "position_ids": ids[2 * sizes.tokens : 3 * sizes.tokens],
        }
        for step in self._plan.steps[:-1]:
            start, rows = self._places[step.output], _rows(step, sizes)
            values[step.output] = self._arena[start : start + rows * step.columns].view(rows, step.columns)
        values[self._plan.steps[-1].output] = self._logits[: sizes.pairs]
        return values

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Raise what goes wrong on the device as SegueError. Out of memory is over when it is told; any other
        error of CUDA leaves a process in which nothing runs any more."""
        if self._broken:
            raise SegueError(self._broken)
        try:
            yield
        except torch.cuda.OutOfMemoryError as error:
            raise SegueError(
                f"{self.device} is out of memory; the engine can be used again: {error}"
            ) from error
        except RuntimeError as error:
            self._broken = f"{self.device} failed, and this engine cannot be used any more: {error}"
            raise SegueError(self._broken) from error

    def _on_device(self) -> AbstractContextManager[Any]:
        return nullcontext() if INTERPRETED else torch.cuda.device(self._device)

    def _describe(self, rows: dict[str, int], size: int) -> list[str]:
        weights = sum(w.numel() * w.element_size() for w in self._weights.values())
        arena = size * self._arena.element_size()
        return [
            f"triton on {self.device}{', interpreted' if INTERPRETED else ''}, {self.precision}, "
            f"weights {weights / 1e6:.1f} MB, arena {arena / 1e6:.1f} MB for {rows[TOKENS]} tokens, "
            f"up to {len(self._buckets)} GPU graphs",
            *(f"{s.name}: {s.op} -> [{s.rows}, {s.columns}]" for s in self._plan.steps),
        ]


def _rows(step: Step, sizes: Bucket) -> int:
    return sizes.tokens if step.rows == TOKENS else sizes.pairs


def _device(name: str) -> torch.device:
    """The device of that name, "auto" being the first GPU, or the CPU where kernels are interpreted."""
    if INTERPRETED:
        if name not in ("auto", "cpu"):
            raise ExecutorUnavailable(f"device={name!r}: with TRITON_INTERPRET=1 kernels run on the CPU")
        return torch.device("cpu")
    if name == "cpu":
        raise ExecutorUnavailable(
            "executor='triton', device='cpu': kernels run on a GPU; on a CPU only with TRITON_INTERPRET=1"
        )
    number = int(name.partition(":")[2] or 0)
    found = torch.cuda.device_count()
    if number >= found:
        raise ExecutorUnavailable(f"device='cuda:{number}': PyTorch finds {found} GPUs here")
    return torch.device("cuda", number)
