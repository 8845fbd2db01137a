"""The ops as PyTorch operators: PyTorch's own checks, eager, compiled and exported, and what is refused."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from kernel_tools import LAUNCHES, launches, run_python
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from segue import kernels
from segue.kernels import reference
from segue.kernels.library import SCHEMAS


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _bounds(*lengths: int) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


CLS = (_random(3, 8), _random(6, 8), _bounds(2, 0, 4), _random(8, 8), _random(8, 8), _random(8), 2)
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("add_layer_norm", (_random(5, 16), _random(5, 16), _random(16), _random(16), 1e-12), {}),
    ("cls_attention", CLS, {}),
    ("cls_attention", CLS, {"longest": 4}),
    (
        "embed",
        (
            *(torch.tensor(ids) for ids in ([3, 0, 4], [0, 1, 1], [0, 1, 2])),
            *(_random(5, 16), _random(2, 16), _random(3, 16), _random(16), _random(16), 1e-12),
        ),
        {},
    ),
    ("first_rows", (_random(6, 24), _bounds(2, 0, 4)), {}),
    ("linear", (_random(5, 16), _random(24, 16), _random(24)), {}),
    ("linear", (_random(5, 16), _random(24, 16), _random(24), _random(5, 24)), {}),
    ("linear_gelu", (_random(5, 16), _random(24, 16), _random(24)), {}),
    ("packed_attention", (_random(6, 24), _bounds(2, 4), 2), {}),
    ("packed_attention", (_random(6, 24), _bounds(2, 4), 2), {"longest": 4}),
    (
        "pool_classify",
        (_random(5, 16), _random(16, 16) / 4, _random(16), _random(2, 16), _random(2)),
        {},
    ),
    ("softmax", (_random(5, 3),), {}),
]
each_call = pytest.mark.parametrize(
    ("op", "arguments", "named"), CALLS, ids=[f"{op}-{i}" for i, (op, *_) in enumerate(CALLS)]
)


@each_call
def test_pytorchs_own_checks(op: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    with launches() as made:
        torch.library.opcheck(getattr(torch.ops.segue, op).default, arguments, named)
    assert made


@each_call
def test_an_eager_call_is_the_kernel(op: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    with launches() as made:
        found = getattr(torch.ops.segue, op)(*arguments, **named)
    assert len(made) == LAUNCHES.get(op, 1)
    assert torch.equal(found, getattr(kernels, op)(*arguments, **named))
    by_name = dict(zip(inspect.signature(getattr(reference, op)).parameters, arguments, strict=False))
    assert torch.equal(found, getattr(torch.ops.segue, op)(**by_name, **named))


@each_call
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_fake_result_is_like_the_real_one(
    op: str, arguments: tuple[Any, ...], named: dict[str, Any], dtype: torch.dtype
) -> None:
    cast = [x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments]
    wide = [
        torch.cat([x, x], 1)[:, : x.shape[1]] if isinstance(x, Tensor) and x.dim() == 2 else x for x in cast
    ]
    real = getattr(torch.ops.segue, op)(*wide, **named)
    assert real.dtype == dtype
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in wide]
        found = getattr(torch.ops.segue, op)(*fakes, **named)
    assert (found.shape, found.dtype, found.stride()) == (real.shape, real.dtype, real.stride())
    meta = [x.to("meta") if isinstance(x, Tensor) else x for x in cast]
    assert getattr(torch.ops.segue, op)(*meta, **named).shape == real.shape


def test_each_op_has_the_signature_of_its_twin() -> None:
    assert sorted(SCHEMAS) == sorted(kernels.__all__) == sorted({op for op, *_ in CALLS})
    for op in SCHEMAS:
        arguments = getattr(torch.ops.segue, op).default._schema.arguments
        found = [(x.name, x.kwarg_only, x.has_default_value()) for x in arguments]
        parameters = inspect.signature(getattr(reference, op)).parameters.values()
        assert found == [
            (p.name, p.kind == p.KEYWORD_ONLY, p.default is not p.empty)
            for p in parameters
            if p.name not in ("live", "pooled", "scratch", "out")
        ]


class Model(nn.Module):
    """A layer of BERT and the [CLS] rows of another, over every operator: 13 launches."""

    def __init__(self, hidden: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        shapes = {
            "word": (30, hidden),
            "segment": (2, hidden),
            "position": (16, hidden),
            "scale": (hidden,),
            "shift": (hidden,),
            "qkv": (3 * hidden, hidden),
            "qkv_bias": (3 * hidden,),
            "up": (24, hidden),
            "up_bias": (24,),
            "down": (hidden, 24),
            "pooler": (hidden, hidden),
            "classifier": (2, hidden),
            "classifier_bias": (2,),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(_random(*shape) / 2))

    def forward(self, ids: Tensor, segments: Tensor, positions: Tensor, cu_seqlens: Tensor) -> Tensor:
        ops = torch.ops.segue
        norm = (self.scale, self.shift, 1e-12)
        hidden = ops.embed(ids, segments, positions, self.word, self.segment, self.position, *norm)
        context = ops.packed_attention(ops.linear(hidden, self.qkv, self.qkv_bias), cu_seqlens, self.heads)
        hidden = ops.add_layer_norm(context, hidden, *norm)
        wide = ops.linear_gelu(hidden, self.up, self.up_bias)
        hidden = ops.linear(wide, self.down, self.shift, hidden)
        first = ops.first_rows(hidden, cu_seqlens)
        key_value = self.qkv[16:32], self.qkv[32:], self.qkv_bias[32:]
        first = ops.cls_attention(first, hidden, cu_seqlens, *key_value, self.heads)
        return ops.softmax(
            ops.pool_classify(first, self.pooler, self.shift, self.classifier, self.classifier_bias)
        )


def _batch(*lengths: int) -> tuple[Tensor, ...]:
    ids = torch.arange(sum(lengths)) * 7 % 30
    positions = torch.cat([torch.arange(length) for length in lengths])
    return ids, positions % 2, positions, _bounds(*lengths)


def _with_twins(model: Model, batch: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch.ops, "segue", reference)
        return model(*batch)


def _same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


BATCHES = [_batch(3, 5), _batch(4, 1, 2)]  # one pair is a case of its own to PyTorch, as one row is


def test_a_compiled_model_is_one_graph_for_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graphs = Model(), []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return torch._dynamo.backends.registry.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for batch in BATCHES:
        with torch.no_grad(), launches() as made:
            found = compiled(*batch)
        assert len(made) == 13
        _same(found, _with_twins(model, batch, monkeypatch))
    assert len(graphs) == 1


def test_an_exported_model_takes_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (tokens, bounds) = Model(), (torch.export.Dim("T"), torch.export.Dim("bounds", min=3))
    shapes = ({0: tokens}, {0: tokens}, {0: tokens}, {0: bounds})
    with torch.no_grad():
        program = torch.export.export(model, BATCHES[0], dynamic_shapes=shapes)
        names = {
            str(node.target).split(".")[1] for node in program.graph.nodes if "segue" in str(node.target)
        }
        assert names == set(SCHEMAS)
        for batch in BATCHES:
            with launches() as made:
                found = program.module()(*batch)
            assert len(made) == 13
            _same(found, _with_twins(model, batch, monkeypatch))


def test_what_is_wrong_is_said_by_the_launcher() -> None:
    ops = torch.ops.segue
    with pytest.raises(ValueError, match=r"residual: expected shape \[5, 16\], got \[4, 16\]"):
        ops.add_layer_norm(_random(5, 16), _random(4, 16), _random(16), _random(16), 1e-12)
    with pytest.raises(ValueError, match="cu_seqlens: expected 0 to 6"):
        ops.packed_attention(_random(6, 24), _bounds(2, 5), 2)
    with pytest.raises(RuntimeError, match="missing value for argument 'bias'"):
        ops.linear(_random(5, 16), _random(24, 16))


def test_a_gradient_is_refused_eagerly_and_in_a_trace() -> None:
    model, refusal = Model(), "requires a gradient, which kernels do not give"
    with pytest.raises(ValueError, match=refusal):
        model(*BATCHES[0])
    with pytest.raises(ValueError, match=refusal):
        torch.export.export(model, BATCHES[0])
    with pytest.raises(torch._dynamo.exc.TorchRuntimeError, match=refusal):
        torch.compile(model, backend="aot_eager")(*BATCHES[0])


WITHOUT_A_GPU = """
import sys
{before}
import torch, segue.kernels.library
from segue.kernels import reference

x, weight, bias = torch.randn(5, 24), torch.randn(8, 24), torch.randn(8)
found = torch.ops.segue.linear_gelu(x, weight, bias)
assert torch.equal(found, reference.linear_gelu(x, weight, bias))
found = torch.ops.segue.packed_attention(x.double(), torch.tensor([0, 2, 5]), 2)
assert torch.equal(found, reference.packed_attention(x.double(), torch.tensor([0, 2, 5]), 2))
nothing = torch.zeros(0, 24)
found = torch.ops.segue.packed_attention(nothing, torch.tensor([0, 0]), 2)
assert found.shape == (0, 8)
assert found.untyped_storage()._cdata != nothing.untyped_storage()._cdata  # the twin gives a view of it
try:
    torch.ops.segue.softmax(x.requires_grad_())
except ValueError as error:
    assert "softmax: a tensor requires a gradient" in str(error)
    print("refused")
"""


@pytest.mark.parametrize("before", ["", "sys.modules['triton'] = None"], ids=["triton", "no triton"])
def test_on_a_cpu_that_does_not_interpret_they_are_the_twins(before: str) -> None:
    assert run_python(WITHOUT_A_GPU.format(before=before), interpreted=False) == "refused\n"
