"""The service one writes in an afternoon: sentence-transformers' CrossEncoder behind one path.

    python bench/servers_hand_written.py CHECKPOINT PORT THREADS torch|onnx

POST / takes {"query", "documents"} and gives an array of scores. Requests are scored one after the other, as
all cores work for each; on PyTorch, two at once were slower. The ONNX backend loads onnx/model.onnx in the
checkpoint's folder. Knows nothing of segue.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

__all__ = ["main"]

_BATCH = {"torch": 4, "onnx": 8}  # the fastest of 1, 4, 8 and 32 for 20 passages, on two cores


def main(checkpoint: str, port: int, threads: int, backend: str) -> None:
    """Serve until the process is ended."""
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
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
