"""An engine for asyncio: calls awaited at the same time are computed together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segue.checks import positive_whole
from segue.engine import Engine, warn_truncated
from segue.head import check_output, positive_column, scores
from segue.joining import Joiner
from segue.ranking import about_documents, check_ranking, ranking
from segue.text import read_pairs

__all__ = ["AsyncEngine"]


class AsyncEngine:
    """An engine whose calls are awaited. It computes in its own thread, so the event loop stays free.

    A lone call is computed at once. Calls that arrive meanwhile are batched together next, one pair from each
    call in turn, so that a short call does not wait for a long one to end; a score depends on this no more
    than on any batch. A cancelled call, as by `asyncio.timeout`, begins no more pairs. Safe to share between
    tasks, and between the event loops of several threads.

    Its thread, and with it the engine, stays alive until `close`. As an asynchronous context manager it
    closes itself and leaves `engine` open:

        async with AsyncEngine(Engine.load()) as engine:
            scores = await engine.score(pairs)
    """

    def __init__(self, engine: Engine, *, max_waiting: int | None = None) -> None:
        """Compute with `engine`, which others may use too.

        Args:
            max_waiting: how many pairs, of all calls, may wait to be begun; their texts may have 64 MiB. A
                call that exceeds either raises `Overloaded`, unless none wait. None: no limit on either.

        Raises:
            InputError: `max_waiting` is no whole number from 1.
        """
        most = positive_whole("max_waiting", max_waiting, None)
        self.engine, self._head = engine, engine.info.head
        self._joiner = Joiner(engine, max_waiting=most)

    async def score(
        self,
        pairs: Iterable[Sequence[str]],
        *,
        output: str = "probability",
        truncation: str = "longest_first",
        max_tokens: int | None = None,
    ) -> NDArray[np.float32]:
        """Return the score of each pair, `[N]`. Arguments and errors as in `Engine.score`.

        Raises:
            Overloaded: too many pairs are waiting.
        """
        column = positive_column(self._head)
        values = await self.predict(pairs, output=output, truncation=truncation, max_tokens=max_tokens)
        return np.ascontiguousarray(values[:, column])

    async def predict(
        self,
        pairs: Iterable[Sequence[str]],
        *,
        output: str = "probability",
        truncation: str = "longest_first",
        max_tokens: int | None = None,
    ) -> NDArray[np.float32]:
        """Return one value per label, `[N, C]`, as `Engine.predict` does. Otherwise as in `score`."""
        check_output(output)
        logits = await self._logits(read_pairs(pairs), truncation, max_tokens)
        return scores(logits, self._head, output)

    async def rank(
        self,
        query: str,
        documents: Iterable[str],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        truncation: str = "longest_first",
        max_tokens: int | None = None,
    ) -> list[dict[str, Any]]:
        """Order documents by score, as `Engine.rank` does.

        Raises:
            Overloaded: too many pairs are waiting.
        """
        texts, top_k = check_ranking(query, documents, top_k, self._head)
        with about_documents():
            logits = await self._logits([(query, text) for text in texts], truncation, max_tokens)
        return ranking(logits, self._head, texts, top_k, return_documents)

    async def close(self) -> None:
        """Let the current turn end; calls that still wait, and all later ones, fail with a SegueError."""
        await asyncio.to_thread(self._joiner.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _logits(
        self, pairs: list[tuple[str, str]], truncation: str, max_tokens: int | None
    ) -> NDArray[np.float32]:
        asked = self._joiner.ask(pairs, truncation=truncation, max_tokens=max_tokens)
        answer = await asyncio.wrap_future(asked)
        warn_truncated(int(answer.truncated.sum()), len(pairs))
        return answer.logits
