"""Streams cut into windows: nothing lost, nothing held for longer than needed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from segue.windows import characters, windows


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


@pytest.mark.parametrize("kind", [list, lambda pair: np.array(pair, dtype=object), np.array])
def test_whatever_a_pair_is_its_characters_count(kind):
    pair = kind(["x" * 1_000_000, "y"])
    assert max(len(window) for _, window in windows([pair] * 50)) < 12


@pytest.mark.parametrize("item", [5, None, "text", np.array("text"), [1, None]])
def test_what_is_no_pair_weighs_nothing(item):
    assert characters(item) == 0


def test_what_the_caller_holds_counts_too():
    taken = []
    items = (taken.append(number) or number for number in range(100))
    sizes = [len(window) for _, window in windows(items, lambda item: taken[-1] == item and 2**22)]
    assert sizes == [3] * 33 + [1]


def test_reading_is_lazy():
    read = []
    stream = (read.append(number) for number in range(1000))
    next(windows(stream))
    assert len(read) == 64


@pytest.mark.parametrize("row", [["", ""], np.array(["", ""], dtype=object)], ids=["list", "array"])
def test_a_stream_may_fill_the_same_row_again(row):
    def rows():
        for number in range(3):
            row[:] = str(number), "b"
            yield row

    assert [list(pair) for _, window in windows(rows()) for pair in window] == [[n, "b"] for n in "012"]


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
