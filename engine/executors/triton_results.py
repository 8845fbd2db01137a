"""The logits of batches, from the device through pinned memory that is kept for the batches after them.

When pinned memory is freed, PyTorch records an event in every stream that used it, and asks for that event
later; of a stream that is being captured, by another thread, that is an error, after which nothing runs on
the device. So none of it is freed while an engine lives. Knows nothing about graphs and models.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Results"]


class Results:
    """Places for the logits of batches that are on their way, as many as there ever were at once."""

    def __init__(self, pairs: int, labels: int, stream: torch.cuda.Stream | None) -> None:
        """For batches of up to so many pairs, computed in `stream`, which is the current one whenever `fetch`
        is called; None: on the CPU."""
        self._shape, self._stream = (pairs, labels), stream
        self._free: deque[Tensor] = deque()  # threads take and give without a lock

    def fetch(self, logits: Tensor) -> Callable[[], NDArray[np.float32]]:
        """Copy logits [B, C] in the stream; what is returned gives them, once they are there."""
        place = self._take()
        part = place[: len(logits)]
        part.copy_(logits, non_blocking=True)
        done = self._stream.record_event() if self._stream else None

        def wait() -> NDArray[np.float32]:
            if done:
                done.synchronize()
            values: NDArray[np.float32] = part.numpy().copy()
            self._free.append(place)
            return values

        return wait

    def close(self) -> None:
        """Give the memory back."""
        self._free.clear()
        self._stream = None

    def _take(self) -> Tensor:
        try:
            return self._free.pop()
        except IndexError:
            with torch.inference_mode(False):  # the caller's mode is not that of those who come after
                pinned = self._stream is not None
                return torch.empty(self._shape, dtype=torch.float32, device="cpu", pin_memory=pinned)
