"""What clients of pair scoring already speak: how each request reads as pairs, and how its answer is written.

    POST /score, /v1/score          vLLM                          pairs, one to one or one to many
    POST /predict                   text-embeddings-inference     pairs, with a probability for each label
    POST /rerank                    text-embeddings-inference     a query and "texts"
    POST /rerank, /v1 and /v2       vLLM, Jina, Cohere            a query and "documents"

Numbers are those of `Engine.score`, `predict` and `rank`. A field that would change them and cannot be
honoured is refused; one that only names or hurries a request is ignored. Knows nothing about HTTP.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from segue.bundle import Head
from segue.encoded import MIN_TOKENS
from segue.errors import InputError
from segue.head import OUTPUTS, positive_column, ranked, scores
from segue.joining import Answer, Pair
from segue.serving.body import Body, a_text, some_texts
from segue.text import TRUNCATIONS

__all__ = ["READERS", "Asked"]


@dataclass(frozen=True)
class Asked:
    """What a request asks for, and `write(asked, answer, head, model's name)`, which makes its answer."""

    write: Callable[[Asked, Answer, Head, str], Any]
    pairs: list[Pair]
    name: str  # of the field that has an item per pair
    single: bool = False  # whether that field holds one, without an array around it
    output: str = "probability"
    truncation: str = "longest_first"
    max_tokens: int | None = None
    prompt_tokens: int | None = None  # the same, if given by vLLM's name
    document_tokens: int | None = None  # a limit on the second text alone
    top: int | None = None
    documents: list[Any] | None = None  # as they will come back
    positive: bool = True  # whether the model must have a positive label


def _read_score(body: Body) -> Asked:
    first_name, first = body.any_of("queries", "text_1")
    name, second = body.any_of("documents", "text_2")
    firsts = [first] if isinstance(first, str) else some_texts(first_name, first)
    seconds = [second] if isinstance(second, str) else some_texts(name, second)
    if len(firsts) == 1:
        firsts = firsts * len(seconds)
    if len(firsts) != len(seconds):
        raise InputError(
            f"{first_name}: {len(firsts)} of them and {len(seconds)} {name}; expected one, or as many"
        )
    pairs = list(zip(firsts, seconds, strict=True))
    return Asked(_write_score, pairs, name, isinstance(second, str), **_options(body))


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
    pairs = [_pair(*place) for place in places]
    return Asked(_write_predict, pairs, name, single, positive=False, **_inference_options(body))


def _write_predict(asked: Asked, answer: Answer, head: Head, model: str) -> Any:
    rows = [
        [
            {"score": value, "label": label}
            for value, label in sorted(zip(values, head.labels, strict=True), key=lambda pair: -pair[0])
        ]
        for values in scores(answer.logits, head, asked.output).tolist()
    ]
    return rows[0] if asked.single else rows


def _read_rerank(body: Body) -> Asked:
    return _read_documents(body) if body.has("documents") else _read_texts(body)


def _read_texts(body: Body) -> Asked:
    query = body.text("query")
    name, given = body.any_of("texts")
    texts = some_texts(name, given)
    documents = texts if body.flag("return_text") else None
    top = body.number("top_n", least=0) or None
    pairs = [(query, text) for text in texts]
    return Asked(_write_texts, pairs, name, top=top, documents=documents, **_inference_options(body))


def _write_texts(asked: Asked, answer: Answer, head: Head, model: str) -> Any:
    return [
        {"index": place, "score": score} | ({"text": asked.documents[place]} if asked.documents else {})
        for place, score in ranked(answer.logits, head, asked.output, asked.top)
    ]


def _read_documents(body: Body) -> Asked:
    query = body.text("query")
    name, given = body.any_of("documents")
    single = isinstance(given, str)
    documents = [given] if single else given
    texts = some_texts(
        name, [_text_of(one) for one in documents] if isinstance(documents, list) else documents
    )
    objects = [one if isinstance(one, dict) else {"text": one} for one in documents]
    returned = objects if body.flag("return_documents") else None
    top = body.number("top_n", least=0) or None
    per_document = body.number("max_tokens_per_doc", least=0) or None
    if body.take("rank_fields") not in (None, ["text"]):
        raise InputError("rank_fields: only the field text is read")
    return Asked(
        _write_documents,
        [(query, text) for text in texts],
        name,
        single,
        top=top,
        documents=returned,
        document_tokens=per_document,
        **_options(body),
    )


def _text_of(document: Any) -> Any:
    """What is scored of a document, which may be an object with the caller's fields beside its text."""
    return document.get("text", document) if isinstance(document, dict) else document


def _write_documents(asked: Asked, answer: Answer, head: Head, model: str) -> Any:
    usage = _usage(answer)
    return {
        "id": _identifier("rerank"),
        "model": model,
        "usage": usage,
        "meta": {"tokens": {"input_tokens": usage["total_tokens"]}},
        "results": [
            {"index": place, "relevance_score": score}
            | ({"document": asked.documents[place]} if asked.documents else {})
            for place, score in ranked(answer.logits, head, asked.output, asked.top)
        ],
    }


READERS: dict[str, Callable[[Body], Asked]] = {
    "/score": _read_score,
    "/v1/score": _read_score,
    "/predict": _read_predict,
    "/rerank": _read_rerank,
    "/v1/rerank": _read_documents,
    "/v2/rerank": _read_documents,
}


def _options(body: Body) -> dict[str, Any]:
    """Our own, by the names that `Engine.score` uses, and others' that mean the same."""
    for name in ("model", "user", "request_id", "priority"):
        body.take(name)
    output = body.choice("output", OUTPUTS)
    raw, plain = body.flag("raw_scores"), body.flag("use_activation", default=True)
    most, vllm = body.number("max_tokens"), body.number("truncate_prompt_tokens", least=-1)
    if vllm is not None and 0 <= vllm < MIN_TOKENS:
        raise InputError(
            f"truncate_prompt_tokens: expected -1 or a whole number from {MIN_TOKENS}, got {vllm}"
        )
    tokens = None if vllm == -1 else vllm
    options = {
        "output": _agreed(body, output=output, raw_scores=OUTPUTS[raw], use_activation=OUTPUTS[not plain]),
        "truncation": body.choice("truncation", TRUNCATIONS),
        "max_tokens": _agreed(body, max_tokens=most, truncate_prompt_tokens=tokens),
        "prompt_tokens": tokens,
    }
    body.end()
    return options


def _agreed(body: Body, **meant: Any) -> Any:
    """Return what the given fields, names for the same thing, mean; the first's if none is given.

    Raises:
        InputError: they mean different things.
    """
    given = [name for name in meant if body.has(name)] or list(meant)[:1]
    if any(meant[name] != meant[given[0]] for name in given):
        raise InputError(f"{' and '.join(given)}: they contradict each other")
    return meant[given[0]]


def _inference_options(body: Body) -> dict[str, Any]:
    """Those of text-embeddings-inference."""
    body.take("model")
    if body.take("parameters", {}) != {}:  # Hugging Face's own client sends them empty
        raise InputError("parameters: there are none")
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
