"""One engine as an ASGI application: paths, statuses, and what an answer says beside its body.

    POST /score /predict /rerank /v1/...   as in `segue.serving.dialects`
    GET  /health    200, or 503 where the model no longer computes
    GET  /info      what was loaded, what was chosen, the measured parity
    GET  /metrics   for Prometheus

Errors are `{"error": what is wrong and where, "error_type": ...}`: 413 too large, 422 Validation, 429
Overloaded, 500 Backend, 503 Unhealthy.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
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
from segue.errors import InputError, SegueError
from segue.head import positive_column
from segue.serving.body import Body
from segue.serving.dialects import DIALECTS, Asked, Dialect
from segue.serving.joining import Answer, Closed, Joiner, Overloaded
from segue.serving.metrics import Metrics

__all__ = ["MAX_BODY_BYTES", "MAX_PAIRS", "MAX_WAITING", "create_app"]

MAX_PAIRS = 1000
MAX_WAITING = 8192
MAX_BODY_BYTES = 8 << 20
_GONE = 499  # what nginx calls a client that did not wait for its answer
_Handler = Callable[[Request], Awaitable[Response]]


def create_app(
    engine: Engine,
    *,
    name: str | None = None,
    max_pairs: int = MAX_PAIRS,
    max_waiting: int = MAX_WAITING,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> Starlette:
    """Return an ASGI application that scores by `engine`, which stays open when it ends.

    Args:
        name: what answers call the model; None: its folder's name.
        max_pairs: in one request; more are refused with 413.
        max_waiting: pairs of all requests that may wait; more are refused with 429, unless none wait.
        max_body_bytes: of a request; longer ones are refused with 413.

    Raises:
        InputError: a limit is no whole number from 1.
    """
    max_pairs = positive_whole("max_pairs", max_pairs, MAX_PAIRS)
    max_waiting = positive_whole("max_waiting", max_waiting, MAX_WAITING)
    max_body_bytes = positive_whole("max_body_bytes", max_body_bytes, MAX_BODY_BYTES)
    joiner = Joiner(engine, max_waiting=max_waiting)
    metrics = Metrics(joiner)
    head, model = engine.info.head, name or Path(engine.info.path).name

    def answering(dialect: Dialect) -> _Handler:
        async def handle(request: Request) -> Response:
            asked = dialect.read(Body(await _body(request, max_body_bytes)))
            if dialect.needs_positive:
                positive_column(head)
            if len(asked.pairs) > max_pairs:
                raise HTTPException(413, f"{asked.name}: {len(asked.pairs)} pairs, more than {max_pairs}")
            answer = await _answer(request, joiner, asked)
            metrics.scored(answer)
            return JSONResponse(dialect.write(asked, answer, head, model), headers=_headers(answer))

        return handle

    async def health(request: Request) -> Response:
        if joiner.broken is not None:  # it may have been that request alone
            try:
                await asyncio.wrap_future(joiner.ask([("a", "b")]))
            except Exception as error:
                return _error(503, f"the model does not compute: {error}")
        return JSONResponse({"status": "ok", "model": model})

    async def info(request: Request) -> Response:
        return JSONResponse({"model": model, **asdict(engine.info), "max_pairs": max_pairs})

    async def measured(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def route(path: str, handler: _Handler, method: str) -> Route:
        async def counted(request: Request) -> Response:
            started = perf_counter()
            response = await _respond(request, handler)
            metrics.answered(path, response.status_code, perf_counter() - started)
            return response

        return Route(path, counted, methods=[method])

    posts = [route(path, answering(one), "POST") for one in DIALECTS for path in one.paths]
    gets = [("/health", health), ("/info", info), ("/metrics", measured)]
    routes = [*posts, *(route(path, handler, "GET") for path, handler in gets)]

    async def unrouted(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = error.detail
        if error.status_code == 404:
            paths = ", ".join(f"{'POST' if one in posts else 'GET'} {one.path}" for one in routes)
            detail = f"no such path: {request.url.path}; there are {paths}"
        return _error(error.status_code, detail, error.headers)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(joiner.close)

    app = Starlette(routes=routes, exception_handlers={HTTPException: unrouted}, lifespan=lifespan)
    app.state.model = model
    return app


async def _respond(request: Request, handler: _Handler) -> Response:
    try:
        return await handler(request)
    except InputError as error:
        return _error(422, str(error))
    except Overloaded as error:
        return _error(429, str(error), {"Retry-After": "1"})
    except HTTPException as error:
        return _error(error.status_code, error.detail)
    except (Closed, asyncio.CancelledError):  # the latter where the time to end in has passed
        return _error(503, str(Closed()))
    except ClientDisconnect:
        return Response(status_code=_GONE)
    except Exception as error:
        logging.getLogger("segue").exception("%s failed", request.url.path)
        return _error(500, f"{type(error).__name__}: {error}")


async def _body(request: Request, most: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise HTTPException(413, f"the body: more than {most} bytes")
    return bytes(body)


async def _answer(request: Request, joiner: Joiner, asked: Asked) -> Answer:
    """Wait for the answer, and give it up where the client goes away."""
    future = joiner.ask(asked.pairs, truncation=asked.truncation, max_tokens=asked.max_tokens)
    answer = asyncio.wrap_future(future)
    gone = asyncio.ensure_future(request.receive())  # after the body, nothing else is received
    either: set[asyncio.Future[Any]] = {answer, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    except SegueError as error:
        if error.index is None:
            raise
        raise type(error)(f"{asked.name}[{error.index}]: {error.reason}") from None
    finally:
        answer.cancel()
        gone.cancel()


def _headers(answer: Answer) -> dict[str, str]:
    timing = f"queue;dur={1000 * answer.waited:.2f}, compute;dur={1000 * answer.computed:.2f}"
    return {"Server-Timing": timing, "X-Truncated-Pairs": str(int(answer.truncated.sum()))}


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    kinds = {413: "Validation", 422: "Validation", 429: "Overloaded", 500: "Backend", 503: "Unhealthy"}
    body = {"error": text, "error_type": kinds.get(status, "Request")}
    return JSONResponse(body, status_code=status, headers=headers)
