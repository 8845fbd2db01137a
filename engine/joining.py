"""Many callers, one engine: what is asked during one turn is computed together in the next.

Nobody waits for company: a lone request is computed at once. A turn takes a pair from each request, round
after round, until it is full, so that a short request need not wait for a long one to end. A score depends on
the others in its turn no more than on any batch. Knows nothing about HTTP.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segue.encoded import MIN_TOKENS, Ints
from segue.engine import Engine
from segue.errors import InputError, Overloaded, SegueError

__all__ = ["Answer", "Closed", "Joiner", "Pair"]

Pair = tuple[str, str]
# Tokens of a turn. On a CPU smaller turns are slower, the smallest by a seventh (MiniLM-L6, two cores), and
# larger ones make others wait; a device gets two batches, so that one runs while the other is encoded.
_TURN_TOKENS, _TURN_BATCHES = 4096, 2
_BYTES = 5  # per token of English, about, spaces counted
_READ = 20  # bytes tokenised in the time it takes to compute one, about; what is truncated is read too
_HELD = 64 << 20  # bytes of text that may wait
_CLOSED = "closed: no pairs are taken any more"


class Closed(SegueError):
    """Nothing is begun any more."""


@dataclass(frozen=True)
class Answer:
    """What became of n pairs."""

    logits: NDArray[np.float32]  # [n, C]
    tokens: Ints  # [n], the three special ones counted
    truncated: NDArray[np.bool_]  # [n], whether any were cut away
    waited: float  # seconds until the first pair was begun
    computed: float  # seconds from then until the last was done


class Joiner:
    """Computes in a thread of its own, which starts with the first request. Safe to share between threads."""

    def __init__(self, engine: Engine, *, max_waiting: int | None) -> None:
        """Let at most `max_waiting` pairs wait, and 64 MiB of text; None: no limit on either. A request that
        finds none waiting is taken whatever its size."""
        self._engine, self._max_waiting = engine, max_waiting
        self._turn = max(_TURN_TOKENS, _TURN_BATCHES * engine.info.max_batch_tokens)
        self._longest = engine.info.max_tokens
        self._requests: OrderedDict[_Request, None] = OrderedDict()  # with pairs not begun yet, in turn
        self._waiting = self._held = 0  # pairs not begun yet, and the bytes of their requests
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._process = os.getpid()
        self.turns = 0  # begun so far
        self.since: float | None = None  # when the current turn began, by `perf_counter`
        self.broken: BaseException | None = None  # what the last turn failed with, unless a pair was bad

    @property
    def waiting(self) -> int:
        """Pairs asked for and not begun yet."""
        return self._waiting

    def ask(
        self,
        pairs: Sequence[Pair],
        *,
        truncation: str = "longest_first",
        max_tokens: int | None = None,
        least_held: int = 0,
    ) -> Future[Answer]:
        """Return a future of the answer for pairs of strings. Cancelling it saves the work.

        Args:
            least_held: bytes that the caller holds until then, if these are more than the texts.

        Raises:
            InputError: an option has no such value. A bad pair fails the future instead.
            Overloaded: too many pairs are waiting.
            SegueError: as in `Engine.score`, or the system grants no thread.
        """
        self._engine._encode([], truncation, max_tokens)
        request = _Request(pairs, (truncation, max_tokens), len(self._engine.labels), least_held)
        with self._changed:
            if self._closed:
                raise Closed(_CLOSED)
            if not pairs:
                request.answer()
                return request.future
            if self._waiting and self._max_waiting is not None:
                if self._waiting + len(pairs) > self._max_waiting:
                    raise Overloaded(
                        f"{self._waiting} pairs are waiting, and {len(pairs)} more would be over "
                        f"{self._max_waiting}"
                    )
                if self._held + request.held > _HELD:
                    raise Overloaded(
                        f"pairs of {self._held} bytes are waiting, and these would be over {_HELD}"
                    )
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="segue-joiner", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError as error:
                    self._thread = None  # the next request tries again
                    raise SegueError(f"no thread to compute in: {error}") from error
                atexit.register(self.close)  # else the process would end during a turn, and crash
            self._requests[request] = None
            self._waiting += len(pairs)
            self._held += request.held
            self._changed.notify_all()  # one that a signal's exception interrupts may leave a waiter behind
        asked = weakref.ref(request)  # else it and its texts live until cycles are collected
        request.future.add_done_callback(lambda _: self._forget(asked()))
        return request.future

    def open(self) -> None:
        """Take requests again after `close`."""
        self._closed = False

    def close(self) -> None:
        """Take no more, let the current turn end, and fail what was not begun by then."""
        if os.getpid() != self._process:
            return  # the thread stayed in the process this was forked from, perhaps with the lock
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread  # which others may be waiting for too
        if thread is not None:
            thread.join()
            atexit.unregister(self.close)

    def _forget(self, request: _Request | None) -> None:
        """Begin no more pairs of a request that has ended, and hold its texts no longer: a cancelled one may
        have some left, one that is gone (None) none."""
        if request is None:
            return
        with self._changed:
            if request.left:
                self._waiting -= request.left
                self._held -= request.held
                request.begun = len(request.pairs)
                self._requests.pop(request, None)

    def _work(self) -> None:
        while turn := self._next_turn():
            self.turns, self.since = self.turns + 1, perf_counter()
            self._compute(turn)
            self.since = None
            del turn  # else its requests would live on while idle

    def _next_turn(self) -> list[tuple[_Request, int]]:
        """Wait for pairs and return some, each as a request and a place in it; no pairs: closed."""
        with self._changed:
            while True:
                if self._closed:
                    while self._requests:
                        request, _ = self._requests.popitem(last=False)
                        request.fail(Closed(_CLOSED))
                    self._thread = None
                    return []
                if turn := self._take():
                    return turn
                self._changed.wait()

    def _take(self) -> list[tuple[_Request, int]]:
        turn: list[tuple[_Request, int]] = []
        others: list[_Request] = []  # with other options; the next turn begins with them
        room = _BYTES * self._turn
        while self._requests and room > 0:
            request, _ = self._requests.popitem(last=False)
            if turn and request.options != turn[0][0].options:
                others.append(request)
                continue
            place = request.begin()
            self._waiting -= 1
            turn.append((request, place))
            size = request.sizes[place]
            most = _BYTES * (request.options[1] or self._longest)
            room -= min(size + _BYTES * MIN_TOKENS, most) + size // _READ
            if request.left:
                self._requests[request] = None
            else:
                self._held -= request.held
        for request in reversed(others):
            self._requests[request] = None
            self._requests.move_to_end(request, last=False)
        return turn

    def _compute(self, turn: list[tuple[_Request, int]]) -> None:
        """Compute a turn. A request with a bad pair fails, and the others are computed without it. If the
        turn fails for another reason, each request is computed alone, so that only those at fault fail."""
        truncation, max_tokens = turn[0][0].options
        while turn:
            try:
                pairs = [request.pairs[place] for request, place in turn]
                encoded = self._engine._encode(pairs, truncation, max_tokens)
                logits = self._engine._logits(encoded)
                sizes = encoded.lengths[encoded.inverse]
                self.broken = None
                for (one, place), row, size, short in zip(
                    turn, logits, sizes, encoded.shortened, strict=True
                ):
                    one.done(place, row, size, short)
                return
            except BaseException as error:  # this thread must go on
                if isinstance(error, SegueError) and error.index is not None:
                    if not isinstance(error, InputError):
                        self.broken = error  # not finite: perhaps it gives no finite values any more
                    bad, place = turn[error.index]
                    bad.fail(error.at(place))
                    turn = [entry for entry in turn if entry[0] is not bad]
                    continue
                requests = list(dict.fromkeys(request for request, _ in turn))
                if len(requests) == 1:
                    self.broken = error
                    requests[0].fail(error)
                    return
            for request in requests:
                self._compute([entry for entry in turn if entry[0] is request])
            return


class _Request:
    """Pairs that one caller asked for, and what is known of them."""

    def __init__(
        self, pairs: Sequence[Pair], options: tuple[str, int | None], labels: int, least_held: int
    ) -> None:
        self.pairs, self.options = pairs, options
        self.future: Future[Answer] = Future()
        self.begun = self._ended = 0
        self._asked = self._started = perf_counter()
        self._logits = np.empty((len(pairs), labels), np.float32)
        self._tokens = np.empty(len(pairs), np.int64)
        self._truncated = np.empty(len(pairs), np.bool_)
        sizes = {text: len(text.encode(errors="surrogatepass")) for text in set(chain.from_iterable(pairs))}
        self.sizes = [sizes[first] + sizes[second] for first, second in pairs]  # bytes of each pair
        # bytes, until the last pair is begun: a text in many pairs is one
        self.held = max(sum(sizes.values()), least_held)

    @property
    def left(self) -> int:
        """Pairs that were not begun."""
        return len(self.pairs) - self.begun

    def begin(self) -> int:
        """Return the place of the next pair."""
        if not self.begun:
            self._started = perf_counter()
        self.begun += 1
        return self.begun - 1

    def done(self, place: int, logits: NDArray[np.float32], tokens: Any, truncated: Any) -> None:
        """Note one pair's result; after the last one, give the answer."""
        self._logits[place], self._tokens[place], self._truncated[place] = logits, tokens, truncated
        self._ended += 1
        if self._ended == len(self.pairs):
            self.answer()

    def answer(self) -> None:
        """Give the caller the results of all pairs."""
        if self._open():
            started = self._started
            self.future.set_result(
                Answer(
                    self._logits,
                    self._tokens,
                    self._truncated,
                    waited=started - self._asked,
                    computed=perf_counter() - started,
                )
            )

    def fail(self, error: BaseException) -> None:
        """Give the caller the error."""
        if self._open():
            self.future.set_exception(error)

    def _open(self) -> bool:
        """Tell whether the caller still waits; refuse cancelling from now on."""
        return not self.future.done() and self.future.set_running_or_notify_cancel()
