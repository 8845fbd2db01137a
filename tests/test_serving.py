"""`segue serve` over real sockets: what clients of other servers send and get, refusals, and how it ends."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from serving_tools import SECONDS, Gate, until
from starlette.applications import Starlette
from starlette.routing import Mount

from segue import Engine, InputError
from segue.cli import main
from segue.joining import Closed
from segue.serving import command, create_app

QUERY = "the man went to the store"
TEXTS = ["penguins are flightless birds", "he bought a gallon of milk", ""]
PAIRS = [(QUERY, text) for text in TEXTS]
LONG = "a river ran past the old mill " * 100
A_B = {"queries": "a", "documents": "b"}
RANKED = {"query": "a", "documents": ["b"]}

Reply = tuple[int, dict[str, str], Any]


class Client:
    """Speaks HTTP with one server, a connection each time."""

    def __init__(self, port: int, prefix: str = "") -> None:
        self.port, self._prefix = port, prefix

    def __call__(self, path: str, body: Any = None, *, method: str | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method or ("GET" if body is None else "POST"), self._prefix + path, data)
            response = connection.getresponse()
            text = response.read()
            headers = {name.lower(): value for name, value in response.getheaders()}
            kind = headers.get("content-type", "")
            return response.status, headers, json.loads(text) if kind == "application/json" else text.decode()
        finally:
            connection.close()


@contextmanager
def serving(app: Starlette, prefix: str = "") -> Iterator[Client]:
    bound = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="critical"))
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    try:
        yield Client(bound.getsockname()[1], prefix)
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(layers=1)


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Iterator[Engine]:
    with Engine.load(bundle, threads=1, device="cpu") as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[Client]:
    with serving(create_app(engine, name="tiny", max_pairs=50, max_body_bytes=100_000)) as client:
        yield client


def close_to(values: Any) -> Any:
    return pytest.approx(values, abs=2e-6)


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_pairs_one_to_many(client: Client, engine: Engine, path: str) -> None:
    status, headers, found = client(path, {"model": "any", "queries": QUERY, "documents": TEXTS})
    assert status == 200
    scores = [
        {"index": i, "object": "score", "score": entry["score"]} for i, entry in enumerate(found["data"])
    ]
    tokens = sum(len(engine.explain(*pair).tokens) for pair in PAIRS)
    assert found == {
        "id": found["id"],
        "object": "list",
        "created": found["created"],
        "model": "tiny",
        "data": scores,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    assert abs(found["created"] - time.time()) < SECONDS
    assert [entry["score"] for entry in scores] == close_to(engine.score(PAIRS).tolist())
    assert headers["x-truncated-pairs"] == "0"
    assert re.fullmatch(r"queue;dur=\d+\.\d\d, compute;dur=\d+\.\d\d", headers["server-timing"])


@pytest.mark.parametrize(
    ("body", "pairs"),
    [
        ({"queries": QUERY, "documents": TEXTS[0]}, PAIRS[:1]),
        ({"text_1": QUERY, "text_2": TEXTS}, PAIRS),
        ({"text_1": TEXTS, "text_2": TEXTS[::-1]}, list(zip(TEXTS, TEXTS[::-1], strict=True))),
        ({"queries": [], "documents": []}, []),
        ({"queries": QUERY, "documents": []}, []),
        ({"queries": [QUERY], "documents": TEXTS[1], "model": None, "truncation": None}, PAIRS[1:2]),
    ],
    ids=["one to one", "old names", "as many", "none", "none to one", "nulls"],
)
def test_pairs_in_every_form(
    client: Client, engine: Engine, body: dict[str, Any], pairs: list[tuple[str, str]]
) -> None:
    status, _, found = client("/score", body)
    assert status == 200
    assert [entry["score"] for entry in found["data"]] == close_to(engine.score(pairs).tolist())


def test_options_are_those_of_the_engine(client: Client, engine: Engine) -> None:
    options = {"output": "logit", "truncation": "only_second", "max_tokens": 30}
    pairs = [(QUERY, LONG), (QUERY, TEXTS[1])]
    body = {"queries": QUERY, "documents": [LONG, TEXTS[1]], **options}
    status, headers, found = client("/score", body)
    assert (status, headers["x-truncated-pairs"]) == (200, "1")
    assert [entry["score"] for entry in found["data"]] == close_to(engine.score(pairs, **options).tolist())


@pytest.mark.parametrize("raw", [False, True])
def test_labels_of_pairs(client: Client, engine: Engine, raw: bool) -> None:
    expected = engine.predict(PAIRS, output="logit" if raw else "probability").tolist()
    named = [
        sorted(
            (
                {"score": close_to(value), "label": label}
                for value, label in zip(row, engine.labels, strict=True)
            ),
            key=lambda entry: -entry["score"].expected,
        )
        for row in expected
    ]
    options = {"raw_scores": raw, "truncate": True, "truncation_direction": "Right", "parameters": {}}
    assert client("/predict", {"inputs": PAIRS, **options})[2] == named
    assert client("/predict", {"inputs": PAIRS[1], **options})[2] == named[1]
    assert client("/predict", {"inputs": []})[2] == []


@pytest.mark.parametrize("texts", [False, True])
def test_texts_by_rank(client: Client, engine: Engine, texts: bool) -> None:
    ranked = engine.rank(QUERY, TEXTS)
    expected = [
        {"index": one["corpus_id"], "score": close_to(one["score"])}
        | ({"text": TEXTS[one["corpus_id"]]} if texts else {})
        for one in ranked
    ]
    assert client("/rerank", {"query": QUERY, "texts": TEXTS, "return_text": texts})[2] == expected
    raw = client("/rerank", {"query": QUERY, "texts": TEXTS, "raw_scores": True})[2]
    assert [one["index"] for one in raw] == [one["corpus_id"] for one in ranked]
    logits = engine.score(PAIRS, output="logit").tolist()
    assert [one["score"] for one in raw] == pytest.approx([logits[one["index"]] for one in raw], abs=2e-5)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize("top", [None, 2, 9])
def test_documents_by_rank(client: Client, engine: Engine, path: str, top: int | None) -> None:
    body = {"model": "any", "query": QUERY, "documents": TEXTS, "top_n": top}
    found = client(path, body)[2]
    ranked = engine.rank(QUERY, TEXTS, top)
    assert found == {
        "id": found["id"],
        "model": "tiny",
        "usage": found["usage"],
        "meta": {"tokens": {"input_tokens": found["usage"]["total_tokens"]}},
        "results": [{"index": one["corpus_id"], "relevance_score": close_to(one["score"])} for one in ranked],
    }
    assert found["usage"]["total_tokens"] > 0
    wrapped = body | {"documents": [{"text": text} for text in TEXTS], "return_documents": True}
    results = client(path, wrapped)[2]["results"]
    assert [one["document"] for one in results] == [{"text": TEXTS[one["corpus_id"]]} for one in ranked]


@pytest.mark.parametrize(
    ("path", "fields", "top"),
    [
        ("/rerank", {"model": "any"}, 3),  # litellm's hosted_vllm
        ("/v1/rerank", {"model": "any", "max_tokens_per_doc": 4096, "top_n": 2}, 2),  # haystack's Cohere
        ("/v2/rerank", {"model": "any", "truncate_prompt_tokens": -1, "top_n": 0}, 3),  # vLLM's own benchmark
        ("/v1/rerank", {"user": "me", "request_id": "1", "priority": 3, "max_tokens_per_doc": 0}, 3),
        ("/v1/rerank", {"rank_fields": ["text"], "use_activation": True}, 3),
        ("/rerank", {"model": "any", "raw_scores": False, "top_n": None}, 3),  # Infinity's own
        ("/v2/rerank", {"max_tokens_per_doc": 512}, 3),  # the model's limit
    ],
)
def test_what_clients_send_besides_changes_nothing(
    client: Client, engine: Engine, path: str, fields: dict[str, Any], top: int
) -> None:
    status, _, found = client(path, {"query": QUERY, "documents": TEXTS, **fields})
    assert status == 200
    ranked = [(one["corpus_id"], close_to(one["score"])) for one in engine.rank(QUERY, TEXTS, top)]
    assert [(one["index"], one["relevance_score"]) for one in found["results"]] == ranked


def test_options_by_the_names_of_other_servers(client: Client, engine: Engine) -> None:
    found = client("/rerank", {"model": "any", "query": QUERY, "texts": TEXTS, "top_n": 1})[2]
    assert [one["index"] for one in found] == [engine.rank(QUERY, TEXTS)[0]["corpus_id"]]
    body = {
        "text_1": [QUERY],
        "text_2": [LONG, TEXTS[1]],
        "truncate_prompt_tokens": 30,
        "use_activation": False,
    }
    found = client("/score", body)[2]
    body = {"queries": QUERY, "documents": [LONG, TEXTS[1]], "max_tokens": 30, "raw_scores": True}
    assert client("/score", body)[2]["data"] == found["data"]
    expected = engine.score([(QUERY, LONG), (QUERY, TEXTS[1])], output="logit", max_tokens=30).tolist()
    assert [one["score"] for one in found["data"]] == close_to(expected)


def test_documents_come_back_as_they_were_given(client: Client) -> None:
    documents = [{"id": 7, "text": "a cat"}, "a dog", {"text": "", "tags": [1]}]
    found = client("/v1/rerank", {"query": QUERY, "documents": documents, "return_documents": True})[2]
    by_place = {one["index"]: one["document"] for one in found["results"]}
    assert by_place == {0: documents[0], 1: {"text": "a dog"}, 2: documents[2]}
    found = client("/v1/rerank", {"query": QUERY, "documents": "one", "return_documents": True})[2]
    assert [one["document"] for one in found["results"]] == [{"text": "one"}]
    assert (
        client("/v1/rerank", {"query": QUERY, "documents": [], "return_documents": True})[2]["results"] == []
    )


@pytest.mark.parametrize("value", ["NaN", "-1e400", '"\\ud800"'])
def test_documents_that_json_cannot_say_do_not_come_back(
    client: Client, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    """Though Python reads them; what they hold beside their text is none of the model's business."""
    body = f'{{"query": "a", "documents": [{{"text": "b", "x": {value}}}], "return_documents": true}}'
    status, _, answer = client("/v2/rerank", body.encode())
    assert status == 422
    assert answer["error"].startswith("documents: cannot be returned as JSON: ")
    assert client("/v2/rerank", body.replace("true", "false").encode())[0] == 200
    assert not caplog.records


def test_documents_that_are_nested_too_deeply_to_be_written_do_not_come_back(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Writing takes a few levels more than reading did, as documents come back within results."""

    def asked(depth: int, returned: str) -> int:
        nested = "[" * depth + "]" * depth
        documents = f'[{{"text": "b", "x": {nested}}}]'
        body = f'{{"query": "a", "documents": {documents}, "return_documents": {returned}}}'
        try:
            return client("/v2/rerank", body.encode())[0]
        except RecursionError:  # here, where the answer is read
            return 200

    depths = range(1, 45_000)
    most = depths[bisect_left(depths, True, key=lambda depth: asked(depth, "false") == 422) - 1]
    assert {asked(depth, "true") for depth in range(most - 6, most + 1)} <= {200, 422}
    assert not caplog.records


def test_equal_scores_keep_the_order_of_the_documents(client: Client) -> None:
    texts = ["the same"] * 5
    assert [one["index"] for one in client("/rerank", {"query": QUERY, "texts": texts})[2]] == list(range(5))


INVALID = (
    ("/score", b"", "the body is not JSON: Expecting value: line 1 column 1 (char 0)"),
    ("/score", b"\xff\xfe{", "the body is not JSON: "),
    ("/score", b"[" * 50_000, "the body is not JSON: "),
    ("/score", b"[1]", "the body: expected an object, got an array"),
    ("/score", {"documents": "b"}, "queries: missing"),
    ("/score", {"queries": "a"}, "documents: missing"),
    ("/score", {"queries": "a", "text_1": "a"}, "queries and text_1: give one of them"),
    ("/score", {"queries": 3, "documents": "b"}, "queries: expected an array of strings, got a number"),
    ("/score", {"queries": ["a"] * 3, "documents": ["b", "c"]}, "queries: 3 of them and 2 documents; "),
    ("/score", {"queries": "a", "documents": ["b", None]}, "documents[1]: expected a string, got null"),
    ("/score", A_B | {"truncate": 1}, "truncate: no such field; there are "),
    ("/score", A_B | {"output": "score"}, "output: expected one of prob"),
    ("/score", A_B | {"truncation": []}, "truncation: expected one of long"),
    ("/score", A_B | {"max_tokens": 2}, "max_tokens: expected 3 to 512, got 2"),
    ("/score", A_B | {"max_tokens": 10**30}, "max_tokens: expected 3 to 512"),
    ("/score", A_B | {"max_tokens": 3.5}, "max_tokens: expected a whole num"),
    ("/score", A_B | {"max_tokens": True}, "max_tokens: expected a whole num"),
    (
        "/score",
        {"queries": "a", "documents": ["b", LONG], "truncation": "error"},
        "documents[1]: 1004 tokens, more than 512, and truncation='error'",
    ),
    (
        "/score",
        b'{"queries": "a", "documents": ["b", "x\\ud800"]}',
        "documents[1]: a lone surrogate, '\\ud800', at character 1",
    ),
    (
        "/score",
        {"queries": "a", "documents": LONG, "truncation": "error"},
        "documents: 1004 tokens, more than 512",
    ),
    ("/predict", {"inputs": ["a", LONG], "truncate": False}, "inputs: 1004 tokens, more than 512"),
    ("/predict", {"inputs": [["a", LONG]], "truncate": False}, "inputs[0]: 1004 tokens, more than"),
    ("/score", b'{"queries": "a", "documents": "b", "\\ud800": 1}', "'\\ud800': no such field; there"),
    ("/score", A_B | {"x" * 9999: 1}, f"'{'x' * 40}': no such field; th"),
    ("/predict", {"inputs": "a"}, 'inputs: expected ["A", "B"] or an array of such pairs'),
    ("/predict", {"inputs": ["a", "b"], "parameters": {"top_k": 1}}, "parameters: there are none"),
    ("/predict", {"inputs": ["a"]}, 'inputs: expected a pair, ["A", "B"]'),
    ("/predict", {"inputs": ["a", 3]}, "inputs[1]: expected a string, got a number"),
    ("/predict", {"inputs": [["a", "b"], "c"]}, 'inputs[1]: expected a pair, ["A", "B"]'),
    ("/predict", {"inputs": [["a", "b"], ["c", False]]}, "inputs[1][1]: expected a string, got a boolean"),
    ("/rerank", {"texts": ["b"]}, "query: missing"),
    ("/rerank", {"query": "a", "texts": "b"}, "texts: expected an array of strings, got a string"),
    ("/rerank", {"query": "a", "texts": ["b"], "return_text": 1}, "return_text: expected a boolean, got a n"),
    ("/rerank", {"query": "a", "texts": ["b", LONG], "truncate": False}, "texts[1]: 1004 tokens"),
    (
        "/rerank",
        {"query": "a", "texts": ["b"], "truncation_direction": "left"},
        "truncation_direction: expected one of right, Right, got 'left'",
    ),
    ("/v1/rerank", RANKED | {"top_n": -1}, "top_n: expected a whole number from 0, got -1"),
    ("/v2/rerank", {"query": "a", "documents": ["b", {"title": "c"}]}, "documents[1]: expected a string"),
    ("/v2/rerank", {"query": "a", "documents": {"b": "c"}}, "documents: expected an array of strings"),
    (
        "/v2/rerank",
        RANKED | {"max_tokens_per_doc": 100},
        "max_tokens_per_doc: 100 is below the model's limit, 512",
    ),
    (
        "/v1/rerank",
        {"query": "a", "documents": [{"title": "b"}], "rank_fields": ["title"]},
        "documents[0]: expected a string, got an object",
    ),
    ("/v1/rerank", {"query": "a", "documents": [], "rank_fields": ["title"]}, "rank_fields: only "),
    (
        "/rerank",
        RANKED | {"truncate_prompt_tokens": -2},
        "truncate_prompt_tokens: expected a whole number from -1, got -2",
    ),
    (
        "/v2/rerank",
        RANKED | {"truncate_prompt_tokens": 0},
        "truncate_prompt_tokens: expected -1 or a whole number from 3, got 0",
    ),
    (
        "/v2/rerank",
        RANKED | {"truncate_prompt_tokens": 2},
        "truncate_prompt_tokens: expected -1 or a whole number from 3, got 2",
    ),
    (
        "/score",
        A_B | {"truncate_prompt_tokens": 513},
        "truncate_prompt_tokens: 513 is above the model's limit, 512",
    ),
    (
        "/v2/rerank",
        RANKED | {"truncate_prompt_tokens": 10, "max_tokens": 20},
        "max_tokens and truncate_prompt_tokens: they contradict each other",
    ),
    (
        "/score",
        A_B | {"output": "probability", "raw_scores": True},
        "output and raw_scores: they contradict each other",
    ),
    (
        "/score",
        A_B | {"output": "logit", "use_activation": True},
        "output and use_activation: they contradict each other",
    ),
    ("/rerank", RANKED | {"texts": ["b"]}, "texts: no such field; there are "),
)


@pytest.mark.parametrize(
    ("status", "path", "body", "message"),
    [
        *((422, *request) for request in INVALID),
        (413, "/score", {"queries": "a", "documents": ["b"] * 51}, "documents: 51 pairs, more than 50"),
        (413, "/score", {"queries": "a", "documents": "b" * 100_000}, "the body: more than 100000 bytes"),
        (404, "/rank", {}, "no such path: /rank; there are POST /score, POST /v1/score, POST /predict, "),
        (404, "*", {}, "no such path: *; there are POST /score, "),
        (405, "/health", {}, "Method Not Allowed"),
    ],
)
def test_what_is_refused(client: Client, status: int, path: str, body: Any, message: str) -> None:
    found, _, answer = client(path, body)
    assert found == status
    assert answer["error"].startswith(message)
    assert answer["message"] == answer["detail"] == answer["error"]
    assert answer["error_type"] == ("Validation" if status in (413, 422) else "Request")
    assert client("/health")[0] == 200


def test_one_pair_in_an_array_is_answered_in_one(client: Client) -> None:
    alone, in_array = (client("/predict", {"inputs": inputs})[2] for inputs in (PAIRS[0], [PAIRS[0]]))
    assert in_array == [alone]


def test_limits_are_what_is_still_taken(client: Client) -> None:
    assert client("/score", {"queries": "a", "documents": ["b"] * 50})[0] == 200
    assert client("/score", b'{"queries": "a", "documents": "b"}'.ljust(100_000))[0] == 200


def test_a_method_that_is_not_allowed_is_told_which_is(client: Client) -> None:
    assert "GET" in client("/health", {})[1]["allow"]


def test_an_answer_says_how_long_it_took_and_what_was_truncated(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = engine._logits
    monkeypatch.setattr(engine, "_logits", lambda *given: time.sleep(0.3) or compute(*given))
    with serving(create_app(engine)) as client:
        headers = client("/score", {"queries": "a", "documents": [LONG, "b"]})[1]
    timing = dict(re.findall(r"(\w+);dur=([\d.]+)", headers["server-timing"]))
    assert float(timing["compute"]) >= 300 > float(timing["queue"])
    assert headers["x-truncated-pairs"] == "1"


def test_a_model_without_a_positive_label(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle(
        architecture="BertForSequenceClassification", labels=["none", "some", "much"], layers=1
    )
    with Engine.load(bundle, threads=1, device="cpu") as engine, serving(create_app(engine)) as client:
        labels = client("/predict", {"inputs": PAIRS})[2]
        assert [{one["label"] for one in row} for row in labels] == [set(engine.labels)] * 3
        for path, body in (
            ("/score", A_B),
            ("/rerank", {"query": "a", "texts": []}),
            ("/v2/rerank", RANKED),
        ):
            status, _, answer = client(path, body)
            assert (status, "none is declared positive" in answer["error"]) == (422, True)


def test_what_it_says_of_itself(client: Client, engine: Engine) -> None:
    assert client("/health")[2] == client("/ping")[2] == {"status": "ok", "model": "tiny"}
    assert client("/v1/models")[2]["data"] == [{"id": "tiny", "object": "model"}]
    found = client("/info")[2]
    assert (found["model"], found["max_pairs"]) == ("tiny", 50)
    assert "path" not in found  # which is nobody's business elsewhere
    assert (found["executor"], found["device"]) == ("onnxruntime", "cpu")
    assert (found["head"]["labels"], found["max_tokens"]) == (list(engine.labels), 512)


def test_a_model_is_called_as_the_folder_that_was_loaded_and_not_as_what_is_kept_of_it(
    make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The cache's name for it changes with every copy of the checkpoint and every version of segue."""
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    checkpoint = make_checkpoint(layers=1)
    with Engine.load(checkpoint, threads=1, device="cpu") as engine:
        assert create_app(engine).state.service.name == checkpoint.name != Path(engine.info.path).name
    with Engine.load(device="cpu") as engine:
        assert create_app(engine).state.service.name == "nsp-minilm"


def test_metrics_count_what_was_done(engine: Engine) -> None:
    with serving(create_app(engine)) as client:
        client("/score", {"queries": QUERY, "documents": TEXTS})
        client("/rerank", {"query": QUERY, "texts": [LONG, "b"]})
        client("/rerank", {"query": QUERY})
        status, headers, text = client("/metrics")
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    expected = {
        'segue_requests_total{path="/score",status="200"}': 1,
        'segue_requests_total{path="/rerank",status="200"}': 1,
        'segue_requests_total{path="/rerank",status="422"}': 1,
        'segue_request_seconds_count{path="/rerank"}': 2,
        "segue_pairs_total": 5,
        "segue_truncated_pairs_total": 1,
        "segue_turns_total": 2,
        "segue_waiting_pairs": 0,
        "segue_wait_seconds_count": 2,
        "segue_compute_seconds_count": 2,
    }
    assert {name: float(values[name]) for name in expected} == expected
    tokens = [len(engine.explain(*pair).tokens) for pair in [*PAIRS, (QUERY, LONG), (QUERY, "b")]]
    assert float(values["segue_tokens_total"]) == sum(tokens)


def test_it_can_be_part_of_another_application(engine: Engine) -> None:
    app = Starlette(routes=[Mount("/scoring", create_app(engine))])
    with serving(app, "/scoring") as client:
        found = client("/score", {"queries": QUERY, "documents": TEXTS})[2]
        assert [entry["score"] for entry in found["data"]] == close_to(engine.score(PAIRS).tolist())
        assert client("/metrics")[0] == 200


def in_background(client: Client, path: str, body: Any) -> tuple[threading.Thread, list[Reply]]:
    replies: list[Reply] = []
    thread = threading.Thread(target=lambda: replies.append(client(path, body)))
    thread.start()
    return thread, replies


def waiting(client: Client) -> float:
    return float(re.findall(r"^segue_waiting_pairs (.*)$", client("/metrics")[2], re.MULTILINE)[0])


def test_who_comes_too_late_is_told_to_come_back(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(engine, monkeypatch)
    with serving(create_app(engine, max_waiting=4)) as client:
        first, _ = in_background(client, "/score", A_B)
        assert gate.reached.wait(SECONDS)
        second, replies = in_background(client, "/score", {"queries": "a", "documents": ["c"] * 4})
        until(lambda: waiting(client) == 4)
        status, headers, answer = client("/score", A_B)
        assert (status, headers["retry-after"], answer["error_type"]) == (429, "1", "Overloaded")
        assert answer["error"] == "4 pairs are waiting, and 1 more would be over 4"
        gate.open.set()
        for thread in (first, second):
            thread.join(SECONDS)
        assert replies[0][0] == 200
        assert client("/score", A_B)[0] == 200


def test_documents_that_will_come_back_are_held_with_all_their_fields(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segue.joining._HELD", 1000)
    gate = Gate(engine, monkeypatch)
    body = {"query": "a", "documents": [{"text": "b", "lists": [[]] * 300}]}
    with serving(create_app(engine)) as client:
        first, _ = in_background(client, "/score", {"queries": "a", "documents": "b"})
        assert gate.reached.wait(SECONDS)
        second, replies = in_background(client, "/v2/rerank", body)
        until(lambda: waiting(client) == 1)
        status, _, answer = client("/v2/rerank", body | {"return_documents": True})
        assert (status, answer["error_type"]) == (429, "Overloaded")
        gate.open.set()
        for thread in (first, second):
            thread.join(SECONDS)
        assert replies[0][0] == 200


def test_for_a_client_that_has_gone_nothing_is_computed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(engine, monkeypatch)
    with serving(create_app(engine)) as client:
        first, _ = in_background(client, "/score", A_B)
        assert gate.reached.wait(SECONDS)
        body = json.dumps({"queries": "a", "documents": ["c"] * 7}).encode()
        with socket.create_connection(("127.0.0.1", client.port)) as gone:
            gone.sendall(
                b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            until(lambda: waiting(client) == 7)
        until(lambda: waiting(client) == 0)
        gate.open.set()
        first.join(SECONDS)
        assert 'segue_requests_total{path="/score",status="499"} 1.0' in client("/metrics")[2]
    assert gate.turns == [1]


def test_health_tells_of_a_model_that_no_longer_computes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("the device is lost")

    with serving(create_app(engine)) as client:
        with monkeypatch.context() as patched:
            patched.setattr(engine, "_logits", fail)
            assert client("/health")[0] == 200  # as far as anybody knows
            status, _, answer = client("/score", A_B)
            assert (status, answer["error_type"]) == (500, "Backend")
            assert answer["error"] == "RuntimeError: the device is lost"
            status, _, answer = client("/health")
            assert (status, answer["error_type"]) == (503, "Unhealthy")
            assert answer["error"] == "the model does not compute: RuntimeError: the device is lost"
        assert client("/health")[0] == 200  # it tries by itself
    assert "/score failed" in caplog.text


def test_health_is_not_asked_of_a_queue_that_is_full(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(engine, monkeypatch)
    app = create_app(engine, max_waiting=1)
    with serving(app) as client:
        first, _ = in_background(client, "/score", A_B)
        assert gate.reached.wait(SECONDS)
        second, _ = in_background(client, "/score", {"queries": "a", "documents": "c"})
        until(lambda: waiting(client) == 1)
        app.state.service._joiner.broken = RuntimeError("some time ago")
        assert client("/health")[0] == 200
        gate.open.set()
        for thread in (first, second):
            thread.join(SECONDS)


def test_health_does_not_wait_for_ever(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(engine, monkeypatch)
    monkeypatch.setattr("segue.serving.app._PATIENCE", 0.05)
    app = create_app(engine)
    with serving(app) as client:
        app.state.service._joiner.broken = RuntimeError("some time ago")
        status, _, answer = client("/health")
        gate.open.set()
    assert (status, answer["error_type"]) == (503, "Unhealthy")
    assert answer["error"] == "the model does not compute: no answer in 0.05 s, and an error before"


def test_health_tells_of_a_turn_that_hangs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(engine, monkeypatch)
    with serving(create_app(engine)) as client:
        first, _ = in_background(client, "/score", {"queries": "a", "documents": "b"})
        assert gate.reached.wait(SECONDS)
        assert client("/health")[0] == 200  # it may still end
        monkeypatch.setattr("segue.serving.app._HANGS", 0)
        status, _, answer = client("/health")
        assert (status, answer["error_type"]) == (503, "Unhealthy")
        assert answer["error"] == "the model does not compute: one turn has taken 0 s so far"
        gate.open.set()
        first.join(SECONDS)
        until(lambda: client("/health")[0] == 200)


def test_texts_that_would_take_gigabytes_are_refused(engine: Engine) -> None:
    with serving(create_app(engine)) as client:
        status, _, answer = client("/score", {"queries": "a", "documents": ["b", "," * 1_000_001]})
        assert (status, answer["error"]) == (
            413,
            "documents: a text of 1000001 characters, more than 1000000",
        )


def test_an_engine_that_is_closed_is_no_fault_of_a_request(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine.load(bundle, threads=1, device="cpu")
    with serving(create_app(engine)) as client:
        engine.close()
        status, _, answer = client("/health")
        assert (status, answer["error"]) == (503, "the model does not compute: this engine is closed")
        status, _, answer = client("/score", A_B)
        assert (status, answer["error"]) == (503, "this engine is closed")
        assert answer["error_type"] == "Unhealthy"
    assert not caplog.records


def test_where_a_package_is_missing_its_extra_is_named() -> None:
    code = "import sys; sys.modules['starlette'] = None; from segue.serving import create_app"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = "ModuleNotFoundError: starlette is not installed, which serving needs: pip install 'segue[serve]'"
    assert done.stderr.splitlines()[-1] == said


def test_an_application_can_end_and_begin_again(engine: Engine) -> None:
    app = create_app(engine)
    for _ in range(2):
        with serving(app) as client:
            assert client("/score", A_B)[0] == 200
        with pytest.raises(Closed):
            app.state.service._joiner.ask([])


def test_a_middleware_that_says_the_body_again_is_no_client_that_has_gone(engine: Engine) -> None:
    class Again:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            message = await receive()

            async def again() -> Any:
                return message

            await self.app(scope, again if scope["type"] == "http" else receive, send)

    app = create_app(engine)
    app.add_middleware(Again)
    messages: list[Any] = [{"type": "http.request", "body": b'{"queries": "a", "documents": "b"}'}]
    scope = {"type": "http", "method": "POST", "path": "/score", "headers": [], "query_string": b""}
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 200
    app.state.service.close()


def test_a_client_that_offers_http_2_keeps_its_body(bundle: Path) -> None:
    """As Java's does by default."""
    process, client = start(bundle, "--threads", "1", "--device", "cpu")
    body = b'{"queries": "a", "documents": "b"}'
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    head += b"HTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", client.port)) as asking:
        asking.sendall(head + body)
        assert asking.recv(100).startswith(b"HTTP/1.1 200 OK")
    process.terminate()
    assert process.communicate(timeout=SECONDS)[1] == ""  # else each request would leave a line


def test_a_connection_outlives_the_time_that_proxies_keep_one(engine: Engine) -> None:
    """nginx and AWS's balancers: 60 s. uvicorn's own 5 s would close it just as they send a request."""
    app = create_app(engine)
    server = command._Server(app.state.service, engine.info, app, 1)
    assert server.config.timeout_keep_alive > 60


def test_a_cancellation_from_outside_is_not_answered(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when an application around this one limits each request's time."""
    gate = Gate(engine, monkeypatch)
    app = create_app(engine)
    messages: list[Any] = [{"type": "http.request", "body": b'{"queries": "a", "documents": "b"}'}]
    scope = {"type": "http", "method": "POST", "path": "/score", "headers": [], "query_string": b""}

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(_: Any) -> None:
        raise AssertionError("it was answered")

    async def ask() -> None:
        await asyncio.wait_for(app(scope, receive, send), 0.1)

    with pytest.raises(TimeoutError):
        asyncio.run(ask())
    gate.open.set()
    app.state.service.close()
    counted = app.state.service._metrics.text()  # else only those in time would be counted
    assert b'segue_requests_total{path="/score",status="499"} 1.0' in counted
    assert b'segue_request_seconds_count{path="/score"} 1.0' in counted


def _heed_signals() -> None:
    """Signals that a shell or nohup ignores are inherited."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(bundle: Path, *arguments: str) -> tuple[subprocess.Popen[str], Client]:
    command = [sys.executable, "-m", "segue", "serve", "--model", str(bundle), "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd="/", preexec_fn=_heed_signals)
    assert process.stderr is not None
    while (line := process.stderr.readline()).startswith("segue: warm-up: "):
        pass
    said = re.fullmatch(r"segue: bundle by onnxruntime on cpu at http://127\.0\.0\.1:(\d+)\n", line)
    if not said:
        process.kill()
    assert said, line
    return process, Client(int(said[1]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_it_answer_and_end(bundle: Path, number: int) -> None:
    process, client = start(bundle, "--threads", "1", "--device", "cpu", "--name", "bundle")
    assert client("/health")[0] == 200
    texts = [f"{i} {LONG}" for i in range(900)]
    thread, replies = in_background(client, "/score", {"queries": "a", "documents": texts})
    until(lambda: waiting(client) > 0)
    process.send_signal(number)
    thread.join(SECONDS)
    assert (replies[0][0], len(replies[0][2]["data"])) == (200, 900)
    _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (0, "")


def test_a_grace_that_is_too_short_ends_it_all_the_same(make_bundle: Callable[..., Path]) -> None:
    slow = make_bundle(layers=4, hidden_size=256)
    process, client = start(slow, "--threads", "1", "--device", "cpu", "--grace", "1")
    body = {"queries": "a", "documents": [f"{i} {LONG}" for i in range(1000)]}  # ten seconds or more
    thread, replies = in_background(client, "/score", body)
    until(lambda: waiting(client) > 0)
    started = time.monotonic()
    process.terminate()
    _, err = process.communicate(timeout=SECONDS)
    assert time.monotonic() - started < 10
    thread.join(SECONDS)
    assert [(reply[0], reply[2]["error"]) for reply in replies] == [(503, "the server is closing")]
    assert process.returncode == 0
    assert err == "segue: Cancel 1 running task(s), timeout graceful shutdown exceeded\n"


def test_a_grace_beyond_what_an_alarm_counts_lets_it_answer(bundle: Path) -> None:
    process, client = start(bundle, "--threads", "1", "--device", "cpu", "--grace", str(10**18 - 1))
    texts = [f"{i} {LONG}" for i in range(900)]
    thread, replies = in_background(client, "/score", {"queries": "a", "documents": texts})
    until(lambda: waiting(client) > 0)
    process.terminate()
    thread.join(SECONDS)
    _, err = process.communicate(timeout=SECONDS)
    assert (replies[0][0], process.returncode, err) == (200, 0, "")


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no alarms here")
def test_a_model_that_hangs_is_left(bundle: Path) -> None:
    code = f"""
import sys, time
from segue.cli import main
from segue.engine import Engine
from segue.serving import command
command._MARGIN = 1
Engine.warmup = lambda self, progress=False: setattr(self, "_logits", lambda *_: time.sleep(1000))
sys.exit(main(["serve", "--model", {str(bundle)!r}, "--port", "0", "--grace", "1", "--device", "cpu"]))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, cwd="/")
    assert process.stderr is not None
    client = Client(int(process.stderr.readline().rpartition(":")[2]))
    thread, replies = in_background(client, "/score", A_B)
    until(lambda: "segue_turns_total 1.0" in client("/metrics")[2])
    process.terminate()
    _, err = process.communicate(timeout=SECONDS)
    thread.join(SECONDS)
    assert process.returncode == 1
    assert err.splitlines()[-1] == "segue: the model does not end what it computes; left it"
    assert replies[0][0] == 503


def test_a_second_signal_ends_it_without_an_answer(make_bundle: Callable[..., Path]) -> None:
    slow = make_bundle(layers=4, hidden_size=256)
    process, client = start(slow, "--threads", "1", "--device", "cpu")
    body = {"queries": "a", "documents": [f"{i} {LONG}" for i in range(1000)]}
    thread, replies = in_background(client, "/score", body)
    until(lambda: waiting(client) > 0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS)
    thread.join(SECONDS)
    assert (process.returncode, err) == (0, "")
    assert [(reply[0], reply[2]["error"]) for reply in replies] == [(503, "the server is closing")]


def test_a_signal_that_comes_before_it_serves_is_not_lost(bundle: Path) -> None:
    code = (
        "import os, signal, sys; from segue.serving import command; from segue.cli import main; "
        "run = command._Server.run; "
        "command._Server.run = lambda *a: (os.kill(os.getpid(), signal.SIGTERM), run(*a)); "
        f"sys.exit(main(['serve', '--port', '0', '--model', {str(bundle)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd="/", timeout=SECONDS)
    assert done.returncode == 0


def test_an_address_that_is_taken_shows_before_the_model_loads(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--model", "/nowhere", "--port", str(port)]) == 1
    assert capsys.readouterr().err == f"segue: 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "no.such.host.invalid"], "segue: host: 'no.such.host.invalid' is no address: "),
        (["--model", "/nowhere", "--port", "0"], "segue: /nowhere: no such folder"),
        (["--port", "65536"], "argument --port: expected a whole number from 0 to 65535, got '65536'"),
        (["--max-pairs", "0"], "argument --max-pairs: expected a whole number from 1, got '0'"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["serve", *arguments])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_what_the_command_is_given_reaches_the_application(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {}

    def noted(engine: Engine, **options: Any) -> Starlette:
        given.update(options)
        raise InputError("far enough")

    monkeypatch.setattr(command, "create_app", noted)
    options = ["--name", "n", "--max-pairs", "1", "--max-waiting", "2", "--max-body", "3", "--port", "0"]
    assert main(["serve", "--model", str(bundle), "--threads", "1", "--device", "cpu", *options]) == 2
    assert capsys.readouterr().err.endswith("segue: far enough\n")
    assert given == {"name": "n", "max_pairs": 1, "max_waiting": 2, "max_body_bytes": 3}


def test_an_address_can_be_taken_again_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            listening.accept()[0].close()  # the server's end goes first, and its address stays in TIME_WAIT
    command._bound("127.0.0.1", port).close()


def test_an_address_with_colons_stands_in_brackets() -> None:
    assert [command._address(host, 80) for host in ("::1", "host")] == ["[::1]:80", "host:80"]


def test_a_missing_package_is_named_with_its_extra() -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from segue.cli import main; sys.exit(main(['serve']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 1
    assert "uvicorn is not installed, which this command needs: pip install 'segue[serve]'" in done.stderr


def test_an_option_of_the_application_is_checked(engine: Engine) -> None:
    with pytest.raises(InputError, match=r"^max_pairs: expected a whole number from 1, got 0$"):
        create_app(engine, max_pairs=0)
    with pytest.raises(InputError, match=r"^name: a lone surrogate, '\\udce9', at character 3"):
        create_app(engine, name="caf\udce9")  # as from a shell that is not set to UTF-8
