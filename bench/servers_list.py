"""Which servers are compared, how each is started and what it answers, and what they are asked.

Infinity's ONNX engine is not among them: version 0.0.78, with the newest optimum that its pins allow, finds
no model in a folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers_list import PRESENT

__all__ = ["LOADS", "SERVERS", "Load", "Server"]


@dataclass(frozen=True)
class Server:
    """One way of serving. `command` takes the interpreter, the model's folder, port and threads."""

    key: str
    name: str
    environment: str
    packages: tuple[str, ...]
    command: Callable[[Path, Path, int, int], list[str | Path]]
    path: str
    scores: Callable[[Any], list[float]]  # of an answer, in the order of the documents


@dataclass(frozen=True)
class Load:
    """What is asked: `documents` of a workload for one query, by so many clients."""

    workload: str
    documents: int
    clients: int


def _segue(python: Path, model: Path, port: int, threads: int) -> list[str | Path]:
    options = ["--port", str(port), "--threads", str(threads), "--device", "cpu"]
    return [python, "-P", "-m", "segue", "serve", "--model", model / "packed", *options]


def _infinity(python: Path, model: Path, port: int, threads: int) -> list[str | Path]:
    options = ["--engine", "torch", "--device", "cpu", "--no-bettertransformer", "--host", "127.0.0.1"]
    program = python.with_name("infinity_emb")
    return [program, "v2", "--model-id", model / "checkpoint", "--port", str(port), *options]


def _hand_written(
    backend: str, *, process_each: bool = False
) -> Callable[[Path, Path, int, int], list[str | Path]]:
    """process_each: a process for each thread, instead of one that has them all."""

    def command(python: Path, model: Path, port: int, threads: int) -> list[str | Path]:
        script = Path(__file__).with_name("servers_hand_written.py")
        processes = threads if process_each else 1
        where = [model / "checkpoint", str(port), str(threads)]
        return [python, "-P", script, *where, backend, str(processes)]

    return command


def _ranked(answer: Any) -> list[float]:
    results = sorted(answer["results"], key=lambda one: one["index"])
    return [one["relevance_score"] for one in results]


_SENTENCES = ("sentence-transformers", "torch", "transformers")
_INFINITY = ("infinity-emb", "torch", "transformers")
SERVERS = (
    Server("segue", "segue serve", PRESENT, ("segue", "onnxruntime"), _segue, "/v2/rerank", _ranked),
    Server(
        "written-torch",
        "CrossEncoder behind one HTTP route, written by hand, PyTorch",
        "servers",
        _SENTENCES,
        _hand_written("torch"),
        "/",
        list,
    ),
    Server(
        "written-onnx",
        "CrossEncoder behind one HTTP route, written by hand, ONNX Runtime",
        "servers-onnx",
        (*_SENTENCES, "optimum-onnx", "onnxruntime"),
        _hand_written("onnx"),
        "/",
        list,
    ),
    Server(
        "written-onnx-each",
        "CrossEncoder behind one HTTP route, written by hand, ONNX Runtime, a process a core",
        "servers-onnx",
        (*_SENTENCES, "optimum-onnx", "onnxruntime"),
        _hand_written("onnx", process_each=True),
        "/",
        list,
    ),
    Server("infinity", "Infinity, PyTorch", "infinity", _INFINITY, _infinity, "/rerank", _ranked),
)
LOADS = (
    Load("mixed", 1, 1),
    Load("mixed", 1, 16),
    Load("query-passage", 20, 1),
    Load("query-passage", 20, 8),
)
