"""A query and documents: what may be ranked, and the resulting list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segue.bundle import Head
from segue.checks import positive_whole
from segue.errors import InputError, SegueError
from segue.head import positive_column, ranked
from segue.text import check_iterable, check_unicode

__all__ = ["about_documents", "check_ranking", "ranking"]


def check_ranking(
    query: str, documents: Iterable[str], top_k: int | None, head: Head
) -> tuple[list[str], int | None]:
    """Return the documents as a list, and `top_k`, before anything is computed.

    Raises:
        InputError: the query or a document is no string, `top_k` no number from 1, or no label of the model
            is the score.
    """
    positive_column(head)
    if not isinstance(query, str):
        raise InputError(f"query: expected str, got {type(query).__name__}")
    check_unicode("query", query)
    check_iterable("documents", documents, "str")
    top_k = positive_whole("top_k", top_k, None)
    texts = list(documents)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"documents[{index}]: expected str, got {type(text).__name__}")
    return texts, top_k


@contextmanager
def about_documents() -> Iterator[None]:
    """Let an error that names a pair name the document."""
    try:
        yield
    except SegueError as error:
        raise error.of(f"documents[{error.index}]") from error.__cause__


def ranking(
    logits: NDArray[np.float32], head: Head, texts: list[str], top_k: int | None, return_documents: bool
) -> list[dict[str, Any]]:
    """Return what `Engine.rank` does, of logits `[N, C]` of N documents."""
    return [
        {"corpus_id": place, "score": score} | ({"text": texts[place]} if return_documents else {})
        for place, score in ranked(logits, head, top_k=top_k)
    ]
