"""sentence-transformers' CrossEncoder on each of its backends; called as the peers of `peers_engines` are.

Two of them load files in the checkpoint folder, where their exporters would put them: onnx/model.onnx and
openvino/openvino_model.xml, both of segue's padded export, or another `file` made of these.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["sentence_transformers_onnx", "sentence_transformers_openvino", "sentence_transformers_torch"]

Scorer = Callable[[list[tuple[str, str]], int], Any]
_LONGEST = 512


def sentence_transformers_torch(checkpoint: Path, threads: int, order: str) -> Scorer:
    """CrossEncoder on PyTorch. It sorts by characters itself."""
    return _cross_encoder(checkpoint, threads, backend="torch")


def sentence_transformers_onnx(
    checkpoint: Path, threads: int, order: str, *, file: str = "onnx/model.onnx"
) -> Scorer:
    """CrossEncoder on ONNX Runtime through optimum-onnx."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return _cross_encoder(
        checkpoint,
        threads,
        backend="onnx",
        model_kwargs={"file_name": file, "provider": "CPUExecutionProvider", "session_options": options},
    )


def sentence_transformers_openvino(
    checkpoint: Path,
    threads: int,
    order: str,
    *,
    file: str = "openvino/openvino_model.xml",
    precision: str = "f32",
) -> Scorer:
    """CrossEncoder on OpenVINO through optimum-intel."""
    settings = {"INFERENCE_NUM_THREADS": str(threads), "INFERENCE_PRECISION_HINT": precision}
    return _cross_encoder(
        checkpoint,
        threads,
        backend="openvino",
        model_kwargs={"file_name": file, "ov_config": settings},
    )


def _cross_encoder(checkpoint: Path, threads: int, **options: Any) -> Scorer:
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(threads)
    model = CrossEncoder(str(checkpoint), device="cpu", local_files_only=True, max_length=_LONGEST, **options)

    def score(pairs: list[tuple[str, str]], batch: int) -> Any:
        return model.predict(
            pairs, batch_size=batch, activation_fn=torch.nn.Sigmoid(), show_progress_bar=False
        )

    return score
