"""What clients of pair scoring already speak: how each request reads as pairs, and how its answer is written.

    POST /score, /v1/score          vLLM                          pairs, one to one or one to many
    POST /predict                   text-embeddings-inference     pairs, with a probability for each label
    POST /rerank                    text-embeddings-inference     a query and texts
    POST /v1/rerank, /v2/rerank     Jina, Cohere, vLLM            a query and documents

Numbers are those of `Engine.score`, `predict` and `rank`. Knows nothing about HTTP.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from segue.bundle import Head
from segue.errors import InputError
from segue.head import OUTPUTS, positive_column, ranked, scores
from segue.serving.body import Body, a_text, some_texts
from segue.serving.joining import Answer, Pair
from segue.text import TRUNCATIONS

__all__ = ["DIALECTS", "Asked", "Dialect"]


@dataclass(frozen=True)
class Asked:
    """What a request asks for."""

    pairs: list[Pair]
    name: str  # of the field that the pairs are places in
    output: str = "probability"
    truncation: str = "longest_first"
    max_tokens: int | None = None
    top: int | None = None
    texts: bool = False  # whether the documents are to come back
    single: bool = False  # one pair, asked for without an array around it


@dataclass(frozen=True)
class Dialect:
    """One kind of request. `read` raises InputError, which names the field and what is wrong with it."""

    paths: tuple[str, ...]
    read: Callable[[Body], Asked]
    write: Callable[[Asked, Answer, Head, str], Any]  # the last is the model's name
    needs_positive: bool = True


def _read_score(body: Body) -> Asked:
    body.ignored("model")
    first_name, first = body.any_of("queries", "text_1")
    name, second = body.any_of("documents", "text_2")
    seconds = [second] if isinstance(second, str) else some_texts(name, second)
    if isinstance(first, str):
        firsts = [first] * len(seconds)
    else:
        firsts = some_texts(first_name, first)
        if len(firsts) != len(seconds):
            raise InputError(
                f"{first_name}: {len(firsts)} of them and {len(seconds)} {name}; expected one, or as many"
            )
    return Asked(list(zip(firsts, seconds, strict=True)), name, **_options(body))


def _write_score(asked: Asked, answer: Answer, head: Head, model: str) -> Any:
    values = scores(answer.logits, head, asked.output)[:, positive_column(head)]
    return {
        "id": _identifier("score"),
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [
            {"index": index, "object": "score", "score": value} for index, value in enumerate(values.tolist())
        ],
        "usage": _usage(answer),
    }


def _read_predict(body: Body) -> Asked:
    name, inputs = body.any_of("inputs")
    if not isinstance(inputs, list):
        raise InputError(f'{name}: expected ["A", "B"] or an array of such pairs')
    single = bool(inputs) and not isinstance(inputs[0], list)
    places = [(name, inputs)] if single else [(f"{name}[{i}]", pair) for i, pair in enumerate(inputs)]
    return Asked([_pair(*place) for place in places], name, single=single, **_inference_options(body))


def _write_predict(asked: Asked, answer: Answer, head: Head, model: str) -> Any:
    rows = [
        [
            {"score": value, "label": label}
            for value, label in sorted(zip(values, head.labels, strict=True), key=lambda pair: -pair[0])
        ]
        for values in scores(answer.logits, head, asked.output).tolist()
    ]
    return rows[0] if asked.single else rows


def _read_texts(body: Body) -> Asked:
    query = body.text("query")
    name, texts = body.any_of("texts")
    pairs = [(query, text) for text in some_texts(name, texts)]
    return Asked(pairs, name, texts=body.flag("return_text"), **_inference_options(body))


def _write_texts(asked: Asked, answer: Answer, head: Head, model: str) -> Any:
    return [
        {"index": place, "score": score} | ({"text": asked.pairs[place][1]} if asked.texts else {})
        for place, score in ranked(answer.logits, head, asked.output)
    ]


def _read_documents(body: Body) -> Asked:
    body.ignored("model")
    query = body.text("query")
    name, documents = body.any_of("documents")
    if isinstance(documents, list):  # Cohere's first version wraps each text into an object
        documents = [d["text"] if isinstance(d, dict) and d.keys() == {"text"} else d for d in documents]
    pairs = [(query, text) for text in some_texts(name, documents)]
    top, texts = body.number("top_n"), body.flag("return_documents")
    return Asked(pairs, name, top=top, texts=texts, **_options(body))


def _write_documents(asked: Asked, answer: Answer, head: Head, model: str) -> Any:
    return {
        "id": _identifier("rerank"),
        "model": model,
        "usage": _usage(answer),
        "results": [
            {"index": place, "relevance_score": score}
            | ({"document": {"text": asked.pairs[place][1]}} if asked.texts else {})
            for place, score in ranked(answer.logits, head, asked.output, asked.top)
        ],
    }


DIALECTS = (
    Dialect(("/score", "/v1/score"), _read_score, _write_score),
    Dialect(("/predict",), _read_predict, _write_predict, needs_positive=False),
    Dialect(("/rerank",), _read_texts, _write_texts),
    Dialect(("/v1/rerank", "/v2/rerank"), _read_documents, _write_documents),
)


def _options(body: Body) -> dict[str, Any]:
    """Our own, by the names that `Engine.score` has for them."""
    options = {
        "output": body.choice("output", OUTPUTS),
        "truncation": body.choice("truncation", TRUNCATIONS),
        "max_tokens": body.number("max_tokens"),
    }
    body.end()
    return options


def _inference_options(body: Body) -> dict[str, Any]:
    """Those of text-embeddings-inference."""
    body.choice("truncation_direction", ("right", "Right"))
    options = {
        "output": OUTPUTS[body.flag("raw_scores")],
        "truncation": "longest_first" if body.flag("truncate", default=True) else "error",
    }
    body.end()
    return options


def _pair(name: str, value: Any) -> Pair:
    if not isinstance(value, list) or len(value) != 2:
        raise InputError(f'{name}: expected a pair, ["A", "B"]')
    return a_text(f"{name}[0]", value[0]), a_text(f"{name}[1]", value[1])


def _identifier(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def _usage(answer: Answer) -> dict[str, int]:
    tokens = int(answer.tokens.sum())
    return {"prompt_tokens": tokens, "total_tokens": tokens}
