"""Streams cut into windows: nothing lost, nothing held for longer than needed."""

from __future__ import annotations

import itertools

import pytest

from segue.windows import windows


def test_windows_give_every_item_in_order_with_its_number():
    seen = []
    for start, window in windows(range(50_000)):
        assert start == len(seen)
        seen += window
    assert seen == list(range(50_000))


def test_windows_are_bounded_and_the_first_is_small():
    sizes = [len(window) for _, window in itertools.islice(windows(itertools.count()), 12)]
    assert sizes[0] == 64
    assert max(sizes) == sizes[-1] == 8192


def test_long_texts_close_a_window_early():
    pair = ("x" * 1_000_000, "y")
    assert max(len(window) for _, window in windows([pair] * 50)) < 12


def test_reading_is_lazy():
    read = []
    stream = (read.append(number) for number in range(1000))
    next(windows(stream))
    assert len(read) == 64


def test_what_came_before_an_error_is_given_first():
    def broken():
        yield from range(100)
        raise OSError("disk gone")

    seen = []

    def read():
        for _, window in windows(broken()):
            seen.extend(window)

    with pytest.raises(OSError, match="disk gone"):
        read()
    assert seen == list(range(100))


def test_no_items_give_no_window():
    assert list(windows([])) == []
