"""Every op of the graph: an eager PyTorch twin in `reference`, and a Triton kernel.

Each op is imported on first use, because the kernels need triton and the twins do not. For models that are
compiled or exported, `import segue.kernels.library` registers them as PyTorch operators of the same names:
`torch.ops.segue.packed_attention` and so on.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = [
    "add_layer_norm",
    "cls_attention",
    "embed",
    "first_rows",
    "linear",
    "linear_gelu",
    "packed_attention",
    "pool_classify",
    "softmax",
]


_MODULES = {"linear_gelu": "_linear"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, f'_{name}')}"), name)
