"""Which GPU kernels run on, in which streams, how launches on it become a GPU graph, and what its errors
mean. Knows nothing about models."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import torch

from segue.errors import ExecutorUnavailable, SegueError
from segue.kernels.launching import INTERPRETED, target

__all__ = ["Guard", "choose", "drop", "give_back", "own_stream", "ran_out_of_memory", "record", "works"]

_capturing = Lock()  # PyTorch has one random state per device, which may know of one capture at a time
_failed: list[Any] = []  # graphs whose capture failed: PyTorch may still ask them what memory is theirs
_STREAMS = 32  # per device, which PyTorch gives out in turn, again and again
_streams: WeakValueDictionary[tuple[str, int], Any] = WeakValueDictionary()  # those that are in use here
_drawing = Lock()


def works(device: str) -> bool:
    """Tell whether kernels run on the GPU of that name, "auto" and "cuda" being the first. True for a GPU
    that is missing, so that opening it says so."""
    if INTERPRETED or not torch.cuda.is_available():
        return False
    with suppress(ExecutorUnavailable):
        try:
            target(choose(device))
        except ValueError:
            return False
    return True


def choose(name: str) -> torch.device:
    """The device of that name, "auto" being the first GPU, or the CPU where kernels are interpreted.

    Raises:
        ExecutorUnavailable: there is none of that name.
    """
    if INTERPRETED:
        if name not in ("auto", "cpu"):
            raise ExecutorUnavailable(
                f"executor='triton', device={name!r}: with TRITON_INTERPRET=1 kernels run on the CPU"
            )
        return torch.device("cpu")
    if name == "cpu":
        raise ExecutorUnavailable(
            "executor='triton', device='cpu': kernels run on a GPU; on a CPU only with TRITON_INTERPRET=1"
        )
    number = int(name.partition(":")[2] or 0)
    found = torch.cuda.device_count()
    if number >= found:
        raise ExecutorUnavailable(
            f"executor='triton', device='cuda:{number}': PyTorch {torch.__version__} finds {found} GPUs here"
        )
    return torch.device("cuda", number)


def own_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream that nothing else here has, for as long as it is held: what another engine ran in it would
    spoil a capture, or become part of it.

    Raises:
        ExecutorUnavailable: all of them are in use.
    """
    with _drawing:
        for _ in range(_STREAMS):
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            key = str(device), stream.cuda_stream
            if key not in _streams:
                _streams[key] = stream
                return stream
    raise ExecutorUnavailable(
        f"executor='triton': the {_STREAMS} streams that PyTorch has for {device} are in use by other "
        "engines: close one"
    )


def record(launch: Callable[[], None], *, pool: Any) -> torch.cuda.CUDAGraph:
    """Capture what `launch` launches in the current stream. Other threads may use the device meanwhile.

    Args:
        pool: for what is allocated, a matrix library's workspace at most. Graphs that are replayed one
            after the other share it.
    """
    graph = torch.cuda.CUDAGraph()
    with _capturing, _uncollected():
        try:
            try:
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                launch()
            except BaseException:
                with suppress(RuntimeError):  # the first error is the one to tell
                    graph.capture_end()
                raise
            graph.capture_end()
        except BaseException:
            _failed.append(graph)
            raise
    return graph


def drop(graphs: dict[Any, Any]) -> None:
    """Give back what the graphs hold, not while another is captured."""
    with _capturing:
        graphs.clear()


def give_back() -> None:
    """Give the device back the memory that PyTorch keeps, but not during a capture: PyTorch would keep it
    then."""
    with _capturing, suppress(RuntimeError):  # a device that is lost takes nothing back
        torch.cuda.empty_cache()


def ran_out_of_memory(error: Exception) -> bool:
    """PyTorch's allocator raises its own class; a graph, a kernel or the matrix library only says it in
    words."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Collect no garbage meanwhile: somebody else's graph could be among it, and destroying that spoils a
    capture."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


class Guard:
    """Tells what an error of the device means for the engine, and remembers it."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.broken = ""  # why the engine cannot be used any more

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Raise what goes wrong on the device as SegueError. Out of memory is over once reported, and a
        kernel that does not compile never ran; after any other error of the device, nothing runs on it in
        this process any more."""
        if self.broken:
            raise SegueError(self.broken)
        try:
            yield
        except Exception as error:  # PyTorch's, Triton's and the driver's own classes
            if ran_out_of_memory(error):
                raise SegueError(
                    f"{self.device} is out of memory; the engine can be used again: {error}"
                ) from error
            if not isinstance(error, RuntimeError):
                raise SegueError(f"{self.device}: a kernel could not be launched: {error}") from error
            self.broken = (
                f"{self.device} failed, and this engine cannot be used any more; where the device itself "
                f"is at fault, only a new process can: {error}"
            )
            raise SegueError(self.broken) from error
