"""The service one writes in an afternoon: sentence-transformers' CrossEncoder behind one path.

    python bench/servers_hand_written.py CHECKPOINT PORT THREADS torch|onnx [PROCESSES]

POST / takes {"query", "documents"} and gives an array of scores. A process scores requests one after the
other, with its share of the threads; one has them all by default. Several take connections from the same
port. On PyTorch, two requests at once in a process were slower. The ONNX backend loads onnx/model.onnx in the
checkpoint's folder. Knows nothing of segue.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Any

__all__ = ["main"]

_BATCH = {"torch": 4, "onnx": 8}  # the fastest of 1, 4, 8 and 32 for 20 passages, on two cores


def main(checkpoint: str, port: int, threads: int, backend: str, processes: int = 1) -> None:
    """Serve until the process is ended."""
    # asyncio sends small answers at once (TCP_NODELAY) only where the protocol is given.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    for _ in range(processes - 1):
        if os.fork() == 0:
            break
    threads //= processes

    import torch
    import uvicorn
    from sentence_transformers import CrossEncoder
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    torch.set_num_threads(threads)
    options: dict[str, Any] = {}
    if backend == "onnx":
        import onnxruntime

        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = threads
        options = {"provider": "CPUExecutionProvider", "session_options": session}
    model = CrossEncoder(
        checkpoint,
        device="cpu",
        local_files_only=True,
        max_length=512,
        backend=backend,
        model_kwargs=options,
    )
    turn = asyncio.Lock()

    async def score(request: Request) -> JSONResponse:
        asked = await request.json()
        pairs = [(asked["query"], text) for text in asked["documents"]]
        async with turn:
            scores = await run_in_threadpool(
                model.predict,
                pairs,
                batch_size=_BATCH[backend],
                activation_fn=torch.nn.Sigmoid(),
                show_progress_bar=False,
            )
        return JSONResponse(scores.tolist())

    app = Starlette(routes=[Route("/", score, methods=["POST"])])
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], *map(int, sys.argv[5:]))
