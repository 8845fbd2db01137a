"""Copies the numbers of a batch to the device, through pinned memory and a stream of its own, so that they
arrive while the batch before is computed; directly if none is. Knows nothing about graphs and models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segue.batching import INPUTS, PackedBatch
from segue.executors.triton_buckets import Bucket
from segue.executors.triton_device import own_stream
from segue.executors.triton_memory import arrange_numbers
from segue.executors.triton_plan import PAIRS, TOKENS

__all__ = ["Feed"]

_SLOTS = 2  # one batch is computed, the next is on its way; they take turns


@dataclass
class _Slot:
    """A place that a batch passes through: filled on the host, then `arrived` on the device, then `read` into
    where the kernels look for it."""

    host: Tensor
    device: Tensor
    arrived: Any = None
    read: Any = None


class Feed:
    """Where kernels find the numbers of the batch that they compute, int32, always at the same addresses."""

    def __init__(self, sizes: Bucket, device: torch.device, stream: torch.cuda.Stream | None) -> None:
        """Lay out the memory for batches of up to `sizes`, computed in `stream`; None: on the CPU."""
        _, size = arrange_numbers(sizes.tokens, sizes.pairs)
        self.numbers = torch.zeros(size, device=device, dtype=torch.int32)
        self._stream, self._copies = stream, None
        self._slots: list[_Slot] = []
        if stream is not None:
            self._copies = own_stream(device)
            for _ in range(_SLOTS):
                host = torch.zeros(size, dtype=torch.int32, device="cpu", pin_memory=True)
                self._slots.append(_Slot(host, torch.empty_like(self.numbers)))
            self._copies.wait_stream(stream)  # device memory is allocated in its order

    def send(self, batch: PackedBatch, sizes: Bucket) -> None:
        """Put the numbers of a batch in place before what is launched next in the stream. Pairs of `sizes`
        beyond the batch's, at the end, are empty."""
        if self._stream is None or self._copies is None:
            _fill(self.numbers, batch, sizes)
            return
        _, size = arrange_numbers(sizes.tokens, sizes.pairs)
        self._slots.reverse()  # in one step, in case of an interrupt here
        slot = self._slots[-1]
        if slot.arrived is not None:
            slot.arrived.synchronize()  # long ago; else the host would overwrite what is being copied
        _fill(slot.host, batch, sizes)
        if self._stream.query():  # nothing is being computed, and one copy is quicker than two
            self.numbers[:size].copy_(slot.host[:size], non_blocking=True)
            slot.arrived = self._stream.record_event()
            return
        with torch.cuda.stream(self._copies):
            if slot.read is not None:
                self._copies.wait_event(slot.read)
            slot.device[:size].copy_(slot.host[:size], non_blocking=True)
            slot.arrived = self._copies.record_event()
        self._stream.wait_event(slot.arrived)
        self.numbers[:size].copy_(slot.device[:size])
        slot.read = self._stream.record_event()

    def close(self) -> None:
        """Give the memory back."""
        self._slots.clear()
        self._stream = self._copies = None
        self.numbers = torch.empty(0)


def _fill(into: Tensor, batch: PackedBatch, sizes: Bucket) -> None:
    """Write a batch into host memory that is laid out for `sizes`."""
    parts, _ = arrange_numbers(sizes.tokens, sizes.pairs)
    tokens = len(batch.input_ids)
    written = into.numpy()
    written[parts[TOKENS].start], written[parts[PAIRS].start] = tokens, len(batch.cu_seqlens) - 1
    for name in INPUTS:
        values, part = getattr(batch, name), parts[name]
        end = part.start + len(values)
        written[part.start : end] = values
        written[end : part.stop] = tokens if name == "cu_seqlens" else 0
