"""One engine as an ASGI application: paths, status codes and response headers.

    POST /score /predict /rerank /v1/...   as in `segue.serving.dialects`
    GET  /health, /ping   200, or 503 if the model does not compute
    GET  /info            what was loaded and chosen, and the measured parity
    GET  /v1/models       its name
    GET  /metrics         for Prometheus

An error answer says what is wrong and where in `error`, with an `error_type`: 413 and 422 Validation, 429
Overloaded, 500 Backend, 503 Unhealthy. The same text is in `message` and `detail`, for clients of Cohere
and Jina.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from segue.checks import positive_whole
from segue.engine import Engine
from segue.errors import InputError, Overloaded, SegueError
from segue.head import positive_column
from segue.joining import Answer, Closed, Joiner
from segue.serving.body import Body
from segue.serving.dialects import READERS, Asked
from segue.serving.metrics import Metrics
from segue.text import check_unicode

__all__ = ["MAX_BODY_BYTES", "MAX_PAIRS", "MAX_WAITING", "Service", "create_app"]

MAX_PAIRS = 1000
MAX_WAITING = 8192
MAX_BODY_BYTES = 8 << 20
_TEXT = 1_000_000  # characters of one text: if all are marks, 1.3 s and 350 MB to tokenise
_PATIENCE = 5  # seconds
_HANGS = 300  # seconds of one turn: of BERT-large on one slow core, it takes some 80
_CLOSING = "the server is closing"
_GONE = 499  # what nginx calls a client that did not wait for its answer
_KINDS = {413: "Validation", 422: "Validation", 429: "Overloaded", 500: "Backend", 503: "Unhealthy"}
_Handler = Callable[[Request], Awaitable[Response]]


def create_app(
    engine: Engine,
    *,
    name: str | None = None,
    max_pairs: int = MAX_PAIRS,
    max_waiting: int = MAX_WAITING,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> Starlette:
    """Return an ASGI application that scores with `engine`, which stays open when the application ends.

    `app.state.service.close()` ends its thread; call it before `engine.close()`. The application calls it
    when it ends, but is not told of that when it is mounted in another.

    Args:
        name: what answers call the model; None: the name of the folder that was loaded.
        max_pairs: per request; more are refused with 413.
        max_waiting: how many pairs, of all requests, may wait; more are refused with 429, unless none wait.
            So is what would have more than 64 MiB of text wait.
        max_body_bytes: per request; longer ones are refused with 413, and so is a text of more than a million
            characters.

    Raises:
        InputError: a limit is not a whole number from 1, or the name is not valid Unicode.
    """
    name = name or Path(engine._arguments["path"] or engine.info.path).name  # not the cache folder's
    check_unicode("name", name)
    service = Service(
        engine,
        name=name,
        max_pairs=positive_whole("max_pairs", max_pairs, MAX_PAIRS),
        max_waiting=positive_whole("max_waiting", max_waiting, MAX_WAITING),
        max_body_bytes=positive_whole("max_body_bytes", max_body_bytes, MAX_BODY_BYTES),
    )
    posts = [(path, partial(service.answer, read)) for path, read in READERS.items()]
    gets = [
        ("/health", service.health),
        ("/ping", service.health),
        ("/info", service.info),
        ("/v1/models", service.models),
        ("/metrics", service.measured),
    ]
    routes = [
        Route(path, service.counted(path, handler), methods=[method])
        for method, handlers in (("POST", posts), ("GET", gets))
        for path, handler in handlers
    ]
    paths = ", ".join([*(f"POST {path}" for path, _ in posts), *(f"GET {path}" for path, _ in gets)])

    async def unrouted(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        missing = error.status_code == 404
        path = request.scope["path"]  # not the URL's, which a bad Host may spoil
        detail = f"no such path: {path}; there are {paths}" if missing else error.detail
        return _error(error.status_code, detail, error.headers)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.open()
        yield
        await asyncio.to_thread(service.close)

    app = Starlette(routes=routes, exception_handlers={HTTPException: unrouted}, lifespan=lifespan)
    app.state.service = service
    return app


class Service:
    """The state that the paths of one application share, and their handlers."""

    def __init__(
        self, engine: Engine, *, name: str, max_pairs: int, max_waiting: int, max_body_bytes: int
    ) -> None:
        self.name = name
        self.closing = False  # whether requests are cancelled because the server ends
        self._engine, self._head = engine, engine.info.head
        self._max_pairs, self._max_body_bytes = max_pairs, max_body_bytes
        self._joiner = Joiner(engine, max_waiting=max_waiting)
        self._metrics = Metrics(self._joiner)

    def open(self) -> None:
        """Accept requests again after `close`."""
        self._joiner.open()

    def close(self) -> None:
        """Let the current turn end, and begin no other."""
        self._joiner.close()

    async def answer(self, read: Callable[[Body], Asked], request: Request) -> Response:
        """Score what a request asks for."""
        body = await _body(request, self._max_body_bytes)
        asked, size = read(Body(body)), len(body)
        del body
        if asked.positive:
            positive_column(self._head)
        limit = self._engine.info.max_tokens
        if asked.prompt_tokens is not None and asked.prompt_tokens > limit:
            raise InputError(
                f"truncate_prompt_tokens: {asked.prompt_tokens} is above the model's limit, {limit}"
            )
        if asked.document_tokens is not None and asked.document_tokens < limit:
            raise InputError(
                f"max_tokens_per_doc: {asked.document_tokens} is below the model's limit, {limit}, "
                "and documents alone cannot be limited: give max_tokens"
            )
        if (most := max((len(text) for pair in asked.pairs for text in pair), default=0)) > _TEXT:
            raise HTTPException(413, f"{asked.name}: a text of {most} characters, more than {_TEXT}")
        if len(asked.pairs) > self._max_pairs:
            raise HTTPException(413, f"{asked.name}: {len(asked.pairs)} pairs, more than {self._max_pairs}")
        answer = await self._answer(asked, request, size if asked.documents else 0)
        self._metrics.scored(answer)
        content = asked.write(asked, answer, self._head, self.name)
        try:
            return JSONResponse(content, headers=_headers(answer))
        except (ValueError, RecursionError) as error:  # NaN or too deep nesting, in fields beside the text
            raise InputError(f"{asked.name}: cannot be returned as JSON: {error}") from None

    async def health(self, request: Request) -> Response:
        """Tell whether the model computes; if the last turn failed, by trying."""
        since = self._joiner.since
        if since and (taken := perf_counter() - since) > _HANGS:
            return _error(503, f"the model does not compute: one turn has taken {taken:.0f} s so far")
        try:
            trial = self._joiner.ask([("a", "b")] if self._joiner.broken else [])
            await asyncio.wait_for(asyncio.wrap_future(trial), _PATIENCE)
        except Overloaded:
            pass  # others' turns come first, and will tell
        except TimeoutError:
            return _error(503, f"the model does not compute: no answer in {_PATIENCE} s, and an error before")
        except Exception as error:
            return _error(503, f"the model does not compute: {_said(error)}")
        return JSONResponse({"status": "ok", "model": self.name})

    async def info(self, request: Request) -> Response:
        """Tell what was loaded, but not from where."""
        record = asdict(self._engine.info)
        del record["path"]
        return JSONResponse({"model": self.name, "max_pairs": self._max_pairs, **record})

    async def models(self, request: Request) -> Response:
        """List the one model, as clients ask OpenAI's servers."""
        return JSONResponse({"object": "list", "data": [{"id": self.name, "object": "model"}]})

    async def measured(self, request: Request) -> Response:
        """Return the metrics."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def counted(self, path: str, handler: _Handler) -> _Handler:
        """Return the handler with its requests counted and its errors turned into answers."""

        async def respond(request: Request) -> Response:
            started, status = perf_counter(), _GONE  # if cancelled, the client no longer waits
            try:
                response = await self._respond(request, handler)
                status = response.status_code
                return response
            finally:
                self._metrics.answered(path, status, perf_counter() - started)

        return respond

    async def _respond(self, request: Request, handler: _Handler) -> Response:
        try:
            return await handler(request)
        except InputError as error:
            return _error(422, str(error))
        except Overloaded as error:
            return _error(429, str(error), {"Retry-After": "1"})
        except Closed:
            return _error(503, _CLOSING)
        except asyncio.CancelledError:
            if not self.closing:
                raise
            return _error(503, _CLOSING)
        except HTTPException as error:
            return _error(error.status_code, error.detail)
        except ClientDisconnect:
            return Response(status_code=_GONE)
        except Exception as error:
            logging.getLogger("segue").exception("%s failed", request.scope["path"])
            return _error(500, _said(error))

    async def _answer(self, asked: Asked, request: Request, held: int) -> Answer:
        """Wait for the answer, holding bytes besides the texts; give up if the client disconnects."""
        try:
            future = self._joiner.ask(
                asked.pairs, truncation=asked.truncation, max_tokens=asked.max_tokens, least_held=held
            )
        except (InputError, Overloaded, Closed):
            raise
        except SegueError as error:  # the engine is closed, or was loaded before a fork
            raise HTTPException(503, str(error)) from error
        answer = asyncio.wrap_future(future)
        gone = asyncio.ensure_future(request.receive())  # a server sends nothing else after the body
        either: set[asyncio.Future[Any]] = {answer, gone}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and gone.result()["type"] == "http.disconnect" and not answer.done():
                raise ClientDisconnect
            return await answer  # a middleware may send other messages, again and again
        except SegueError as error:
            raise error.of(
                asked.name if asked.single else f"{asked.name}[{error.index}]"
            ) from error.__cause__
        finally:
            answer.cancel()
            gone.cancel()


async def _body(request: Request, most: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise HTTPException(413, f"the body: more than {most} bytes")
    return bytes(body)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, SegueError) else f"{type(error).__name__}: {error}"


def _headers(answer: Answer) -> dict[str, str]:
    timing = f"queue;dur={1000 * answer.waited:.2f}, compute;dur={1000 * answer.computed:.2f}"
    return {"Server-Timing": timing, "X-Truncated-Pairs": str(int(answer.truncated.sum()))}


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    text = text.encode(errors="backslashreplace").decode()  # half a surrogate pair has no UTF-8 form
    body = {"error": text, "error_type": _KINDS.get(status, "Request"), "message": text, "detail": text}
    return JSONResponse(body, status_code=status, headers=headers)
