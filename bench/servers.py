"""`segue serve` beside other servers of cross-encoders: the same requests, one run, turn by turn.

    python bench/servers.py [--servers KEY ...] [--seconds 10] [--rounds 5] [--threads N] [--write] [--smoke]

Every server scores with the model of bench/peers.py, in an environment of its own below build/peers; all run
at once, but only one is asked at a time. Clients in this process, on the same cores, ask again as soon as
they are answered, over connections that stay open. First, a server's scores for some pairs are compared with
the engine's: if they differ, it is listed with the difference, and not timed. `--write` puts JSON and
Markdown into bench/results.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import date
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from peers_environments import Unavailable, python_of
from peers_model import make_model
from servers_list import LOADS, SERVERS, Load, Server
from servers_report import markdown
from workloads import Pair, make_pairs

from segue import Engine
from segue.machine import machine, versions
from segue.threads import available_threads

__all__ = ["main", "run"]

_ROOT = Path(__file__).resolve().parent.parent
_RESULTS = _ROOT / "bench" / "results"
_TOLERANCE = 1e-4  # of a probability, between float32 on one runtime and on another
_START = 120  # seconds to be ready in
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "0",
}


_SMOKE = (Load("short", 1, 2),)


def main(argv: list[str] | None = None) -> None:
    """Run, print the Markdown, write what is asked for."""
    arguments = _parser().parse_args(argv)
    wanted = [one for one in SERVERS if arguments.servers is None or one.key in {"segue", *arguments.servers}]
    record = run(arguments, wanted, _SMOKE if arguments.smoke else LOADS)
    text = markdown(record)
    print(text)
    if arguments.write:
        out = _RESULTS / f"servers-{record['threads']}-cores"
        out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        out.with_suffix(".md").write_text(text, encoding="utf-8")


def run(arguments: argparse.Namespace, servers: list[Server], loads: tuple[Load, ...]) -> dict[str, Any]:
    """Start all, check them, ask them in turn; return the record."""
    work: Path = arguments.work.resolve()
    threads = arguments.threads or available_threads()
    model = work / ("tiny" if arguments.smoke else "minilm")
    make_model(model, tiny=arguments.smoke)
    record: dict[str, Any] = {
        "command": shlex.join(["python", "bench/servers.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": machine(),
        "threads": threads,
        "servers": {},
        "refused": {},
        "loads": [],
    }
    with ExitStack() as stack:
        ports: dict[str, int] = {}
        for server in servers:
            print(f"starting {server.key}", file=sys.stderr, flush=True)
            try:
                python = python_of(server.environment, work / "environments")
                port = _started(stack, server, python, model, threads, work)
                difference = _difference(server, port, model / "packed", threads)
            except Unavailable as error:
                record["refused"][server.name] = str(error)
                continue
            if difference > _TOLERANCE:
                record["refused"][server.name] = (
                    f"its scores differ from the model's by up to {difference:.2g}"
                )
                continue
            ports[server.key] = port
            record["servers"][server.key] = {
                "name": server.name,
                "versions": _versions(python, server.packages),
            }
        if "segue" not in ports:
            raise SystemExit(f"nothing to compare with: {record['refused']}")
        running = [server for server in servers if server.key in ports]
        for load in loads:
            print(load, file=sys.stderr, flush=True)
            bodies = _bodies(load)
            rounds: dict[str, list[dict[str, float]]] = {server.key: [] for server in running}
            for number in range(arguments.rounds):
                for server in running[number % len(running) :] + running[: number % len(running)]:
                    asked = _ask(ports[server.key], server.path, bodies, load.clients, arguments.seconds)
                    rounds[server.key].append(
                        {
                            "pairs_per_second": load.documents * len(asked[1]) / asked[0],
                            "p50": float(np.quantile(asked[1], 0.5)),
                            "p95": float(np.quantile(asked[1], 0.95)),
                        }
                    )
            record["loads"].append({**vars(load), "seconds": arguments.seconds, "rounds": rounds})
    return record


def _started(stack: ExitStack, server: Server, python: Path, model: Path, threads: int, work: Path) -> int:
    """Start a server that ends with `stack`; return its port once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    (work / "logs").mkdir(parents=True, exist_ok=True)
    log = stack.enter_context((work / "logs" / f"serving-{server.key}.log").open("w"))
    environment = os.environ | _QUIET | {"OMP_NUM_THREADS": str(threads)}
    command = server.command(python, model, port, threads)
    # A group of its own, since a server may have several processes.
    process = subprocess.Popen(
        command, stdout=log, stderr=log, env=environment, cwd=work, start_new_session=True
    )
    stack.callback(_end, process)
    end = time.monotonic() + _START
    while time.monotonic() < end and process.poll() is None:
        try:
            _post(HTTPConnection("127.0.0.1", port, timeout=_START), server.path, _body([("a", "b")]))
        except (OSError, HTTPException):
            time.sleep(0.2)
        else:
            return port
    raise Unavailable(f"it does not answer: see {Path(log.name).name}")


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # it has ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _difference(server: Server, port: int, bundle: Path, threads: int) -> float:
    """Return the largest difference of its scores from the engine's, for one query's documents."""
    pairs = _of_one_query(make_pairs("mixed", 40, seed=1))
    with Engine.load(bundle, threads=threads, device="cpu") as engine:
        wanted = engine.score(pairs)
    found = server.scores(_post(HTTPConnection("127.0.0.1", port), server.path, _body(pairs)))
    if len(found) != len(wanted):
        raise Unavailable(f"{server.key}: {len(found)} scores for {len(wanted)} documents")
    return float(np.abs(np.array(found) - wanted).max())


def _bodies(load: Load) -> list[bytes]:
    """Return requests of which no two are equal."""
    size = load.documents
    pairs = make_pairs(load.workload, 40 * size if size > 1 else 1000)
    return [_body(_of_one_query(pairs[i : i + size])) for i in range(0, len(pairs), size)]


def _of_one_query(pairs: list[Pair]) -> list[Pair]:
    return [(pairs[0][0], text) for _, text in pairs]


def _body(pairs: list[Pair]) -> bytes:
    return json.dumps({"query": pairs[0][0], "documents": [text for _, text in pairs]}).encode()


def _ask(
    port: int, path: str, bodies: list[bytes], clients: int, seconds: float
) -> tuple[float, list[float]]:
    """Let clients ask for so many seconds; return how long it took, and each request's latency."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        connection = HTTPConnection("127.0.0.1", port)
        place = number * len(bodies) // clients
        while (begun := time.perf_counter()) < end:
            _post(connection, path, bodies[place % len(bodies)])
            latencies.append(time.perf_counter() - begun)
            place += 1

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for asking in [pool.submit(client, number) for number in range(clients)]:
            asking.result()
    return time.perf_counter() - started, latencies


def _post(connection: HTTPConnection, path: str, body: bytes) -> Any:
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    if response.status != 200:
        raise Unavailable(f"{path}: {response.status} {text[:200]!r}")
    return json.loads(text)


def _versions(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    if python == Path(sys.executable):
        return {name: version for name, version in versions(*packages).items() if name in packages}
    program = "import json, sys; from importlib.metadata import version as v; "
    program += "print(json.dumps({name: v(name) for name in sys.argv[1:]}))"
    done = subprocess.run([python, "-P", "-c", program, *packages], capture_output=True, check=True)
    return dict(json.loads(done.stdout))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    keys = [server.key for server in SERVERS]
    parser.add_argument("--servers", nargs="+", choices=keys, metavar="KEY", help=f"of {', '.join(keys)}")
    parser.add_argument("--seconds", type=float, default=10, help="a server and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: as many as are granted")
    parser.add_argument("--work", type=Path, default=_ROOT / "build" / "peers", help="for models and logs")
    parser.add_argument("--write", action="store_true", help="into bench/results")
    parser.add_argument("--smoke", action="store_true", help="a tiny model: no figure of it means anything")
    return parser


if __name__ == "__main__":
    main()
