"""The ops as PyTorch operators, `torch.ops.segue.<name>`, for models that are compiled or exported.

`import segue.kernels.library` registers them. Names, arguments and meaning are those of
`segue.kernels.reference`, without `live` and `out`: an operator returns a new tensor, of the dtype of the
first tensor of floats. On a GPU it runs the kernel; on a CPU the twin, so that a model can be traced and
tried on any machine, with or without triton; on a CPU under TRITON_INTERPRET=1 the kernel again.

Gradients are refused, in a trace too: call under torch.no_grad(). The kernel checks that shapes and dtypes
agree when it runs, not in a trace; a twin accepts anything that PyTorch can make fit. `Library.define` adds 5
µs to a call, where `torch.library.custom_op` adds 25 to 40; calling a launcher adds nothing.
"""

from __future__ import annotations

__all__ = ["SCHEMAS"]

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from segue import kernels
from segue.kernels import reference

SCHEMAS = {
    "add_layer_norm": "(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps) -> Tensor",
    "cls_attention": (
        "(Tensor q, Tensor x, Tensor cu_seqlens, Tensor key_weight, Tensor value_weight, Tensor value_bias, "
        "int heads, *, SymInt? longest=None) -> Tensor"
    ),
    "embed": (
        "(Tensor input_ids, Tensor token_type_ids, Tensor position_ids, Tensor word, Tensor token_type, "
        "Tensor position, Tensor weight, Tensor bias, float eps) -> Tensor"
    ),
    "first_rows": "(Tensor x, Tensor cu_seqlens) -> Tensor",
    "linear": "(Tensor x, Tensor weight, Tensor bias, Tensor? residual=None) -> Tensor",
    "linear_gelu": "(Tensor x, Tensor weight, Tensor bias) -> Tensor",
    "packed_attention": "(Tensor qkv, Tensor cu_seqlens, int heads, *, SymInt? longest=None) -> Tensor",
    "pool_classify": (
        "(Tensor cls, Tensor pooler_weight, Tensor pooler_bias, Tensor classifier_weight, "
        "Tensor classifier_bias) -> Tensor"
    ),
    "softmax": "(Tensor x) -> Tensor",
}
# an op's empty result, from the arguments that are not keyword-only
_EMPTY: dict[str, Callable[..., Tensor]] = {
    "add_layer_norm": lambda x, *_: x.new_empty(x.shape),
    "cls_attention": lambda q, *_: q.new_empty(q.shape),
    "embed": lambda ids, _, __, word, *___: word.new_empty((ids.shape[0], word.shape[1])),
    "first_rows": lambda x, bounds: x.new_empty((bounds.shape[0] - 1, x.shape[1])),
    "linear": lambda x, weight, *_: x.new_empty((x.shape[0], weight.shape[0])),
    "linear_gelu": lambda x, weight, _: x.new_empty((x.shape[0], weight.shape[0])),
    "packed_attention": lambda qkv, *_: qkv.new_empty((qkv.shape[0], qkv.shape[1] // 3)),
    "pool_classify": lambda cls, _, __, weight, ___: cls.new_empty((cls.shape[0], weight.shape[0])),
    "softmax": lambda x: x.new_empty(x.shape),
}


def _twin(name: str) -> Callable[..., Tensor]:
    twin = getattr(reference, name)

    def run(*arguments: Any, **named: Any) -> Tensor:
        _refuse_gradients(name, arguments)
        # into its own tensor: with no rows, a twin may return a view of its input, as an operator may not
        return twin(*arguments, out=_EMPTY[name](*arguments), **named)

    return run


def _fake(name: str) -> Callable[..., Tensor]:
    def run(*arguments: Any, **named: Any) -> Tensor:
        _refuse_gradients(name, arguments)
        return _EMPTY[name](*arguments)

    return run


def _without_triton(name: str) -> Callable[..., Tensor]:
    # looked up when called, so that the import that fails says what is missing
    return lambda *arguments, **named: getattr(kernels, name)(*arguments, **named)


def _refuse_gradients(name: str, arguments: tuple[Any, ...]) -> None:
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments):
        raise ValueError(
            f"{name}: a tensor requires a gradient, which kernels do not give; call under torch.no_grad(), "
            "or take segue.kernels.reference"
        )


_HAVE_TRITON = find_spec("triton") is not None
if _HAVE_TRITON:
    from segue.kernels.launching import INTERPRETED
else:
    INTERPRETED = False

_LIBRARY = torch.library.Library("segue", "DEF")  # what is registered lives as long as this
for _name, _schema in SCHEMAS.items():
    _LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
    _launcher = getattr(kernels, _name) if _HAVE_TRITON else _without_triton(_name)
    _LIBRARY.impl(_name, _launcher, "CUDA")
    _LIBRARY.impl(_name, _launcher if INTERPRETED else _twin(_name), "CPU")
    torch.library.register_fake(f"segue::{_name}", _fake(_name), lib=_LIBRARY)
