"""From a PyTorch BERT to a bundle: checkpoint reading, ONNX export and its verification, training.

The entry point is `from segue.export import export_checkpoint`. It is imported on first use, because training
needs no onnx.
"""

from __future__ import annotations

from typing import Any

__all__ = ["export_checkpoint"]


def __getattr__(name: str) -> Any:
    if name != "export_checkpoint":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from segue.export.publish import export_checkpoint

    return export_checkpoint
