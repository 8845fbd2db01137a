"""The logits of batches, from the device through pinned memory that is kept for the batches after them.

When pinned memory is freed, PyTorch records an event in every stream that used it, and queries it later; if
another thread is capturing such a stream, that is an error, after which nothing runs on the device. So none
of it is freed while an engine lives. Knows nothing about graphs and models.
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
    """Places for the logits of batches on their way, as many as there ever were at once."""

    def __init__(self, pairs: int, labels: int, stream: torch.cuda.Stream | None) -> None:
        """For batches of up to so many pairs, computed in `stream`, which is the current one whenever `fetch`
        is called; None: on the CPU."""
        self._shape, self._stream = (pairs, labels), stream
        self._free: deque[Tensor] = deque()  # threads take and give without a lock

    def fetch(self, logits: Tensor) -> Callable[[], NDArray[np.float32]]:
        """Copy logits [B, C] in the stream; the function returned waits for and gives them."""
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
            with torch.inference_mode(False):  # later callers may be in another mode
                pinned = self._stream is not None
                return torch.empty(self._shape, dtype=torch.float32, device="cpu", pin_memory=pinned)
