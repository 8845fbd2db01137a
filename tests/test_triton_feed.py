"""How the numbers of a batch reach the device, with streams that only keep a record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from triton_tools import packed

from segue.executors import triton_feed
from segue.executors.triton_buckets import Bucket
from segue.executors.triton_feed import Feed
from segue.executors.triton_memory import arrange_numbers

SIZES = Bucket(64, 4, 40)
CPU = torch.device("cpu")


class Stream:
    """A stream of the device; what it is told goes into `record`, with what was copied by then."""

    def __init__(self, name: str, record: list[str]) -> None:
        self.name, self.record, self.events, self.idle = name, record, 0, False
        self.cuda_stream = id(self)

    def query(self) -> bool:
        return self.idle

    def record_event(self) -> Event:
        self.events += 1
        return Event(f"{self.name}{self.events}", self.record)

    def wait_event(self, event: Event) -> None:
        self.record.append(f"{self.name} waits for {event.name}")

    def wait_stream(self, other: Stream) -> None:
        self.record.append(f"{self.name} waits for {other.name}")


class Event:
    def __init__(self, name: str, record: list[str]) -> None:
        self.name, self.record = name, record

    def synchronize(self) -> None:
        self.record.append(f"host waits for {self.name}")


@pytest.fixture
def record() -> list[str]:
    return []


@pytest.fixture
def feed(record: list[str], monkeypatch: pytest.MonkeyPatch) -> Feed:
    """A feed that copies in a stream of its own, on the CPU's memory."""
    zeros = torch.zeros

    @contextmanager
    def current(stream: Stream) -> Iterator[None]:
        record.append(f"in {stream.name}")
        yield
        record.append(f"out of {stream.name}")

    monkeypatch.setattr(torch, "zeros", lambda *sizes, pin_memory=False, **kind: zeros(*sizes, **kind))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copies", record))
    monkeypatch.setattr(torch.cuda, "stream", current)
    made = Feed(SIZES, CPU, Stream("kernels", record))
    assert record == ["copies waits for kernels"], "memory is given out in the order of the kernels' stream"
    record.clear()
    return made


def _sent(feed: Feed, sizes: Bucket) -> dict[str, list[int]]:
    parts, _ = arrange_numbers(sizes.tokens, sizes.pairs)
    return {name: feed.numbers[part].tolist() for name, part in parts.items()}


@pytest.mark.parametrize("sizes", [SIZES, Bucket(14, 2, 9)])
def test_by_either_way_a_batch_arrives_whole_and_the_rest_is_empty_pairs(feed, sizes):
    plain = Feed(SIZES, CPU, None)
    for each in (feed, plain):
        each.send(packed([40, 20, 3]), SIZES)  # leaves its numbers behind
        each.send(packed([9, 5]), sizes)
    batch, missing = packed([9, 5]), sizes.pairs - 2
    rest = [0] * (sizes.tokens - 14)
    assert _sent(feed, sizes) == {
        "tokens": [14],
        "pairs": [2],
        "input_ids": batch.input_ids.tolist() + rest,
        "token_type_ids": batch.token_type_ids.tolist() + rest,
        "position_ids": batch.position_ids.tolist() + rest,
        "cu_seqlens": [0, 9, 14, *[14] * missing],
    }
    assert _sent(plain, sizes) == _sent(feed, sizes)


def test_a_batch_is_copied_beside_the_kernels_and_no_step_overtakes_another(feed, record):
    for _ in range(3):
        feed.send(packed([5]), SIZES)
    copy = ["in copies", "out of copies"]
    assert record == [
        *copy,
        "kernels waits for copies1",
        *copy,
        "kernels waits for copies2",
        # the first slot again: what was in it has left the host, and the device has read it
        *["host waits for copies1", "in copies", "copies waits for kernels1", "out of copies"],
        "kernels waits for copies3",
    ]


def test_a_device_that_is_idle_gets_a_batch_straight(feed, record):
    feed._stream.idle = True
    for length in (5, 6, 7):
        feed.send(packed([length]), SIZES)
        assert _sent(feed, SIZES)["tokens"] == [length]
    feed._stream.idle = False
    feed.send(packed([8]), SIZES)
    assert record == [
        "host waits for kernels1",  # the first slot again
        *["host waits for kernels2", "in copies", "out of copies", "kernels waits for copies1"],
    ]


def test_a_batch_on_its_way_does_not_touch_the_one_that_is_computed(feed, monkeypatch):
    """What is filled next lies elsewhere than what was filled last, on the host and on the device."""
    filled: list[int] = []
    fill = triton_feed._fill

    def noted(into: Any, *rest: Any) -> None:
        filled.append(into.data_ptr())
        fill(into, *rest)

    monkeypatch.setattr(triton_feed, "_fill", noted)
    for length in (5, 6, 7, 8):
        feed.send(packed([length]), SIZES)
    assert filled[0] == filled[2] != filled[1] == filled[3]
    assert feed.numbers.data_ptr() not in filled
    assert np.array_equal(_sent(feed, SIZES)["tokens"], [8])


def test_closed_it_holds_nothing(feed):
    feed.close()
    assert feed.numbers.numel() == 0
    assert not feed._slots


def test_a_closed_feed_lets_go_of_its_streams(feed: Feed) -> None:
    assert feed._stream
    feed.close()
    assert feed._stream is feed._copies is None
