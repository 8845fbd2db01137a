"""`segue serve`: load a model, warm it up, and answer requests until a signal says to stop."""

from __future__ import annotations

import os
import signal
import socket
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from types import FrameType
from typing import Any

import uvicorn

from segue.engine import Engine
from segue.errors import InputError
from segue.options import count, load_options
from segue.report import Info
from segue.serving.app import MAX_BODY_BYTES, MAX_PAIRS, MAX_WAITING, Service, create_app
from segue.terminal import printable

__all__ = ["add_arguments", "run"]

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_ALARM = getattr(signal, "SIGALRM", None)  # Windows has none
_MARGIN = 5  # seconds beyond the grace in which the turn that is computed may end
_LATEST = 2**31 - 1  # seconds that an alarm can count
_KEEP_ALIVE = 75  # seconds; proxies reuse a connection for up to 60, and one just closed loses a request

_EPILOG = """\
paths:
  POST /score                     {"queries": "A", "documents": ["B", ...]}, or as many queries; as in vLLM
  POST /predict                   {"inputs": [["A", "B"], ...]}: each label of each pair; as in
                                  text-embeddings-inference
  POST /rerank                    {"query": "A", "texts": ["B", ...]}; as in text-embeddings-inference
  POST /v1/rerank, /v2/rerank     {"query": "A", "documents": ["B", ...], "top_n": 3}; as in Jina, Cohere
                                  and vLLM
  GET  /health, /info, /metrics

Requests that arrive while the model computes are batched together next; scores do not depend on
that any more than on a batch. There is no encryption and no password: use a proxy, or stay on this
machine, as by default. While it serves, SIGTERM, SIGHUP or Ctrl-C lets it answer pending requests
for at most --grace seconds, then exit with 0; a second signal ends it without answering them. Where
the model hangs, it exits with 1 some seconds later.

exit codes: 0 stopped by a signal, 1 failure, 2 bad usage or input"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments, except those that choose and load a model."""
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1, this machine only")
    add("--port", type=_port, default=8000, help="0: any free port; default: 8000")
    add("--name", help="what answers call the model; default: its folder's name")
    group = parser.add_argument_group("limits")
    add = group.add_argument
    add("--max-pairs", type=count, metavar="N", default=MAX_PAIRS, help=f"per request; default: {MAX_PAIRS}")
    add(
        "--max-waiting",
        type=count,
        metavar="N",
        default=MAX_WAITING,
        help="pairs, of 64 MiB at most, that may wait before requests are refused with 429; "
        f"default: {MAX_WAITING}",
    )
    add(
        "--max-body",
        type=count,
        metavar="BYTES",
        default=MAX_BODY_BYTES,
        help=f"per request; default: {MAX_BODY_BYTES}",
    )
    add("--grace", type=count, metavar="SECONDS", default=30, help="time to shut down in; default: 30")


def run(arguments: Namespace) -> None:
    """Serve until a signal comes. The address is bound first, so that mistakes show at once."""
    with (
        _bound(arguments.host, arguments.port) as listening,
        Engine.load(arguments.model, **load_options(arguments)) as engine,
    ):
        engine.warmup(progress=sys.stderr is not None and sys.stderr.isatty())
        app = create_app(
            engine,
            name=arguments.name,
            max_pairs=arguments.max_pairs,
            max_waiting=arguments.max_waiting,
            max_body_bytes=arguments.max_body,
        )
        server = _Server(app.state.service, engine.info, app, arguments.grace)
        # Under nohup SIGHUP is ignored, and stays so.
        wanted = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        # uvicorn sets the same handlers, but only once it runs, and none for SIGHUP
        before = {number: signal.signal(number, server.handle_exit) for number in wanted}
        if _ALARM:
            before[_ALARM] = signal.signal(_ALARM, _leave)
        try:
            listening.listen()
            server.run([listening])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            app.state.service.close()
            if _ALARM:
                signal.alarm(0)


class _Server(uvicorn.Server):
    """Says on stderr where it listens, once it does. A first signal ends it after it has answered pending
    requests; a second one, without."""

    def __init__(self, service: Service, info: Info, app: Any, grace: int) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",  # httptools loses the body of a POST that offers HTTP/2, as Java's clients do
                log_config=None,
                log_level="error",  # warnings concern clients: a line or two for each bad request
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=grace,
                timeout_keep_alive=_KEEP_ALIVE,
            )
        )
        self._service = service
        self._serves = f"{service.name} by {info.executor} on {info.device}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or ():
            address = _address(*listening.getsockname()[:2])
            print(f"segue: {printable(self._serves)} at http://{address}", file=sys.stderr, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's own, which raises the signal again in the end, and leaves at once if it comes twice.
        self._service.closing = True
        if self.should_exit:
            for task in set(self.server_state.tasks):
                task.get_loop().call_soon_threadsafe(task.cancel)
        elif _ALARM:
            signal.alarm(min(int(self.config.timeout_graceful_shutdown or 0) + _MARGIN, _LATEST))
        self.should_exit = True


def _leave(sig: int, frame: FrameType | None) -> None:
    """End the process although the model still computes, as where a device hangs."""
    print("segue: the model does not end what it computes; left it", file=sys.stderr, flush=True)
    os._exit(1)


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket with that address, on which nobody listens yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InputError(f"host: {host!r} is no address: {error}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise OSError(f"{_address(host, port)}: {error.strerror}") from None
    return bound


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 5 or int(text) > 65535:
        raise ArgumentTypeError(f"expected a whole number from 0 to 65535, got {text!r}")
    return int(text)
