"""The graph on ONNX Runtime: the default on a CPU; on a GPU through onnxruntime-gpu's CUDA provider."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from segue.batching import PackedBatch
from segue.errors import BundleError, ExecutorUnavailable, SegueError
from segue.executors import driver_loads

__all__ = ["OnnxRuntimeExecutor"]

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_BATCH_TOKENS = 2048  # more leave a CPU's cache, fewer leave its matrix products short


class OnnxRuntimeExecutor:
    """One ONNX Runtime session. `run` may be called from any number of threads."""

    name = "onnxruntime"
    precision = "float32"
    grid = True

    def __init__(self, session: Any, device: str, threads: int, batch_tokens: int) -> None:
        """Take over a session whose providers have been checked."""
        self._session = session
        self.device, self.threads, self.batch_tokens = device, threads, batch_tokens
        self.description = [
            f"onnxruntime {onnxruntime.__version__}, {', '.join(session.get_providers())}, {threads} threads"
        ]

    @classmethod
    def open(
        cls, model: Path, *, device: str, precision: str | None, threads: int, batch_tokens: int | None
    ) -> OnnxRuntimeExecutor:
        """Load `model`.

        Raises:
            BundleError: ONNX Runtime cannot load the file.
            ExecutorUnavailable: the device or the precision cannot be had.
        """
        if precision not in (None, "float32"):
            raise ExecutorUnavailable(
                f"precision={precision!r}: the onnxruntime executor computes in float32 "
                "(a bundle may store its weights as float16 all the same)"
            )
        if device == "auto":
            device = "cuda" if _CUDA in onnxruntime.get_available_providers() and driver_loads() else "cpu"
        batch_tokens = batch_tokens or _BATCH_TOKENS
        if device == "cpu":
            return cls(_session(model, [_CPU], threads), device, threads, batch_tokens)
        number = int(device.partition(":")[2] or 0)
        return cls(_cuda_session(model, number, threads), f"cuda:{number}", threads, batch_tokens)

    def run(self, batches: Iterable[PackedBatch]) -> Iterator[NDArray[np.float32]]:
        """Yield the logits `[B, C]` of each batch, in order."""
        return map(self._logits, batches)

    def warm_up(self) -> Iterator[tuple[int, int]]:
        """Nothing is compiled: a first batch is all there is to wait for."""
        return iter(())

    def close(self) -> None:
        """Drop the session; its memory goes with it."""
        self._session = None

    def _logits(self, batch: PackedBatch) -> NDArray[np.float32]:
        feeds = {
            "input_ids": batch.input_ids,
            "token_type_ids": batch.token_type_ids,
            "position_ids": batch.position_ids,
            "cu_seqlens": batch.cu_seqlens,
        }
        try:
            logits: NDArray[np.float32] = self._session.run(["logits"], feeds)[0]
        except Exception as error:  # the package raises its own classes, of which none is public
            raise SegueError(
                f"onnxruntime failed on a batch of {len(batch.input_ids)} tokens: {error}"
            ) from error
        return logits


def _cuda_session(model: Path, number: int, threads: int) -> Any:
    if _CUDA not in onnxruntime.get_available_providers():
        raise ExecutorUnavailable(
            f"device='cuda:{number}': this onnxruntime has no CUDA provider; onnxruntime-gpu has: "
            "pip uninstall onnxruntime && pip install 'segue[gpu]'"
        )
    onnxruntime.preload_dlls()  # finds CUDA and cuDNN where pip put them, with torch or on their own
    session = _session(model, [(_CUDA, {"device_id": number}), _CPU], threads)
    if session.get_providers()[0] != _CUDA:  # it falls back to the CPU with no more than a line in the log
        raise ExecutorUnavailable(
            f"device='cuda:{number}': onnxruntime-gpu is installed, but its CUDA provider did not start: "
            "is there an NVIDIA GPU with this number, a driver, and the CUDA and cuDNN libraries?"
        )
    return session


def _session(model: Path, providers: list[Any], threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = (
        threads  # given, so ONNX Runtime neither counts the host's cores nor pins threads
    )
    options.inter_op_num_threads = 1
    # The arena, on by default, keeps a batch's memory for the next: what went back to the system would come
    # again as pages to be mapped and cleared, a sixth of all time. It grows to what the largest batch takes,
    # which planning bounds. A memory pattern would be kept for every shape ever seen.
    options.enable_mem_pattern = False
    options.log_severity_level = 3  # errors; what a warning would say is checked and raised here
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=providers)
    except Exception as error:  # as in `run`
        raise BundleError(f"{model}: ONNX Runtime cannot load it: {error}") from error
