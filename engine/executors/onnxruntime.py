"""The graph on ONNX Runtime: the default on a CPU; on a GPU through onnxruntime-gpu's CUDA provider."""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import InferenceSession, SessionOptions

from segue.batching import INPUTS, PackedBatch
from segue.errors import BundleError, ExecutorUnavailable, SegueError
from segue.executors import ONNX_RUNTIME_ANEW, driver_loads
from segue.executors.overflow import EXACT_INT8, overflows

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["OnnxRuntimeExecutor"]

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# Tokens of a batch: for each thread that shares it, and the bounds; one thread alone does best with the
# fewest. More would leave a CPU's cache, fewer make its matrix products short.
_TOKENS_A_THREAD, _FEWEST_TOKENS, _MOST_TOKENS = 256, 512, 2048
_MANY, _FEW = 4, 2  # batches per thread from which they run side by side: at first, and once that is open
_CLOSED = "this engine is closed"
_sessions: WeakSet[Any] = WeakSet()  # those of this process


def _keep_sessions() -> None:
    """Keep every session of a forked child until the child exits. Destroying one would wait for its threads,
    which a fork leaves behind, and so for ever; when the process exits nobody waits for them."""
    for session in _sessions:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_sessions)


class OnnxRuntimeExecutor:
    """ONNX Runtime's sessions of one model. `run` may be called from any number of threads.

    On a CPU all threads share a batch, so that a single one is done soon. Many batches run side by side, one
    per thread, so that no thread waits for another: with two threads, a tenth more batches a second. This
    takes a second session, with a second copy of the weights, which is opened the first time there are so
    many; once it is open, fewer do. If the model's file has changed or gone by then, batches still run one
    after the other.
    """

    name = "onnxruntime"
    overlaps = False  # all cores compute
    grid = True

    def __init__(
        self,
        session: Any,
        device: str,
        *,
        threads: int,
        batch_tokens: int,
        beside_tokens: int | None = None,
        precision: str = "float32",
        exact_int8: bool = False,
        another: Callable[[], Any] | None = None,
        unchanged: Callable[[], bool] = lambda: True,
    ) -> None:
        """Take over a session whose providers have been checked.

        Args:
            another: opens a single-threaded session of the same file.
            unchanged: tells whether that file is still what it was.
            beside_tokens: of a batch where many run side by side; None: `batch_tokens`.
            exact_int8: it runs in the mode for CPUs on which products of int8 overflow.
        """
        self.precision = precision
        self._session, self._another, self._unchanged = session, another, unchanged
        self._single: Any = None
        self._pool: ThreadPoolExecutor | None = None
        self._opening = RLock()  # a signal may come while a session is opened, and its handler close this
        self.device, self.threads, self.batch_tokens = device, threads, batch_tokens
        self._beside_tokens = beside_tokens or batch_tokens
        many, few = _MANY * threads, _FEW * threads
        beside = f", from {many} batches on side by side, afterwards from {few}" if another else ""
        slow = ", products of int8 in 16 bits, for want of VNNI" if exact_int8 else ""
        self.description = [
            f"onnxruntime {onnxruntime.__version__}, {', '.join(session.get_providers())}, {threads} threads"
            f"{beside}{slow}"
        ]

    @classmethod
    def open(
        cls,
        model: Path,
        *,
        device: str,
        precision: str | None,
        threads: int,
        batch_tokens: int | None,
        stored: str = "float32",
    ) -> OnnxRuntimeExecutor:
        """Load `model`. Weights stored as int8 are computed with as int8.

        Raises:
            BundleError: ONNX Runtime cannot load the file.
            ExecutorUnavailable: the device or precision is unavailable.
        """
        own = "int8" if stored == "int8" else "float32"
        if precision not in (None, own):
            raise ExecutorUnavailable(
                f"precision={precision!r}: the onnxruntime executor computes in float32 "
                "(a bundle may store its weights as float16 all the same)"
            )
        if device == "auto":
            device = "cuda" if _CUDA in onnxruntime.get_available_providers() and driver_loads() else "cpu"
        if device == "cpu":
            suits = min(max(_TOKENS_A_THREAD * threads, _FEWEST_TOKENS), _MOST_TOKENS)
            exact = own == "int8" and overflows()
            opened, before = partial(_session, model, [_CPU], exact_int8=exact), _state(model)
            return cls(
                opened(threads),
                device,
                threads=threads,
                batch_tokens=batch_tokens or suits,
                beside_tokens=batch_tokens or _FEWEST_TOKENS,
                precision=own,
                exact_int8=exact,
                another=partial(opened, 1) if threads > 1 else None,
                unchanged=lambda: _state(model) == before,
            )
        number = int(device.partition(":")[2] or 0)
        session = _cuda_session(model, number, threads)
        return cls(session, f"cuda:{number}", threads=threads, batch_tokens=batch_tokens or _MOST_TOKENS)

    def tokens_at_once(self, total: int) -> int:
        """Return the best number of tokens for a batch, of `total` in all."""
        return self._beside_tokens if self.lanes(total) > 1 else self.batch_tokens

    def lanes(self, total: int) -> int:
        """Return how many batches run side by side, of `total` tokens in all."""
        return self.threads if self._another and total >= self._enough() * self._beside_tokens else 1

    def run(self, batches: Iterable[PackedBatch]) -> Iterator[NDArray[np.float32]]:
        """Yield the logits `[B, C]` of each batch, in order. If `close` is called meanwhile, the rest is
        still computed, or refused.

        Raises:
            SegueError: ONNX Runtime failed, or this was closed.
        """
        session = self._session
        if session is None:
            raise SegueError(_CLOSED)
        batches = iter(batches)
        enough = self._enough()
        first = list(islice(batches, enough if self._another else 0))
        if len(first) == enough and self._may_open():
            yield from self._side_by_side(session, chain(first, batches))
        else:
            yield from (self._logits(session, batch) for batch in chain(first, batches))

    def warm_up(self) -> Iterator[tuple[int, int]]:
        """Open the session for batches side by side; nothing else needs a warm-up."""
        if self._may_open():
            self._open_single()
            yield 1, 1

    def close(self) -> None:
        """Drop the sessions; their memory goes with them."""
        with self._opening:
            pool, self._pool, self._another = self._pool, None, None
            self._session = self._single = None
        if pool:
            pool.shutdown()

    def _enough(self) -> int:
        """Return how many batches it takes for them to run side by side."""
        return (_FEW if self._single else _MANY) * self.threads

    def _side_by_side(self, shared: Any, batches: Iterable[PackedBatch]) -> Iterator[NDArray[np.float32]]:
        """Yield the logits of each batch, in order; at most two batches per thread are begun.

        As the process ends, other threads start nothing more: the rest then run one by one in `shared`.
        """
        begun: deque[Future[NDArray[np.float32]]] = deque()
        try:
            for batch in batches:
                try:
                    session, pool = self._open_single()
                    begun.append(pool.submit(self._logits, session, batch))
                except RuntimeError as error:
                    while begun:
                        yield begun.popleft().result()
                    if self._another is None:  # closed, which shut the pool down
                        raise SegueError(_CLOSED) from None
                    if str(error).startswith("can't start"):  # else the pool takes no more
                        raise SegueError(f"onnxruntime has no threads: {error}") from error
                    yield self._logits(shared, batch)
                if len(begun) == 2 * self.threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for waiting in begun:  # one has failed, or nobody wants the rest
                waiting.cancel()

    def _may_open(self) -> bool:
        """Tell whether there is or can be a single-threaded session; the first time there cannot, log it."""
        with self._opening:
            if self._another and not self._single and not self._unchanged():
                import logging

                self._another = None
                logging.getLogger("segue").warning(
                    "the model's file is another than was loaded, or gone: batches run one after the other, "
                    "which is slower; `warmup` opens beforehand all that it is needed for"
                )
            return self._another is not None

    def _open_single(self) -> tuple[Any, ThreadPoolExecutor]:
        """Return the single-threaded session and the threads for it."""
        with self._opening:
            if self._pool is None:
                from concurrent.futures import ThreadPoolExecutor  # 10 ms that a single pair need not pay

                single = self._another and self._another()
                if self._another is None:  # closed, perhaps by that handler
                    raise SegueError(_CLOSED)
                self._single = single
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="segue")
            return self._single, self._pool

    @staticmethod
    def _logits(session: Any, batch: PackedBatch) -> NDArray[np.float32]:
        try:
            logits: NDArray[np.float32] = session.run(["logits"], vars(batch))[0]
        except Exception as error:  # the package raises its own classes, of which none is public
            raise SegueError(
                f"onnxruntime failed on a batch of {len(batch.input_ids)} tokens: {error}"
            ) from error
        return logits


def _state(model: Path) -> list[tuple[int, int, int, int]]:
    """Return what identifies a graph's files, so that it shows if they are replaced or gone."""
    found = []
    for path in (model, model.with_name(f"{model.name}.data")):
        with suppress(OSError):
            status = path.stat()
            found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return found


def _cuda_session(model: Path, number: int, threads: int) -> Any:
    if _CUDA not in onnxruntime.get_available_providers():
        raise ExecutorUnavailable(
            f"device='cuda:{number}': this onnxruntime has no CUDA provider; onnxruntime-gpu has: "
            f"{ONNX_RUNTIME_ANEW}"
        )
    onnxruntime.preload_dlls()  # finds CUDA and cuDNN where pip put them, with torch or on their own
    session = _session(model, [(_CUDA, {"device_id": number}), _CPU], threads)
    if session.get_providers()[0] != _CUDA:  # it falls back to the CPU with only a line in the log
        raise ExecutorUnavailable(
            f"device='cuda:{number}': onnxruntime-gpu is installed, but its CUDA provider did not start: "
            "is there an NVIDIA GPU with this number, a driver, and the CUDA and cuDNN libraries?"
        )
    return session


def _session(model: Path, providers: list[Any], threads: int, *, exact_int8: bool = False) -> Any:
    options = SessionOptions()
    # Given, so that ONNX Runtime neither counts the host's cores nor pins threads.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # The arena, on by default, keeps a batch's memory for the next: memory given back to the system comes
    # back as pages to be mapped and cleared, a sixth of all time. It grows to what the largest batch takes,
    # which planning bounds. A memory pattern would be kept for every shape ever seen.
    options.enable_mem_pattern = False
    if exact_int8:
        options.add_session_config_entry(*EXACT_INT8)
    options.log_severity_level = 3  # errors; what a warning would say is checked and raised here
    try:
        name = os.fsencode(model).decode()  # whatever encoding Python uses for file names
    except UnicodeDecodeError as error:
        raise BundleError(f"{model}: the name is not UTF-8, and ONNX Runtime opens no such file") from error
    try:
        session = InferenceSession(name, options, providers=providers)
    except Exception as error:  # as in `run`
        raise BundleError(f"{model}: ONNX Runtime cannot load it: {error}") from error
    _check_face(session, model)
    _sessions.add(session)
    return session


def _check_face(session: Any, model: Path) -> None:
    """Refuse a graph that takes or gives anything but batches and their logits."""
    takes = {value.name: value.type for value in session.get_inputs()}
    if takes != dict.fromkeys(INPUTS, "tensor(int64)"):
        raise BundleError(f"{model}: expected a graph of {', '.join(INPUTS)}, all int64, got {takes}")
    gives = {value.name: (value.type, len(value.shape)) for value in session.get_outputs()}
    if gives.get("logits") != ("tensor(float)", 2):
        raise BundleError(f"{model}: expected a graph that gives logits, float32 [B, C], got {gives}")
