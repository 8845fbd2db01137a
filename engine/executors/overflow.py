"""Whether products of int8 overflow on this CPU, asked of ONNX Runtime itself.

Without VNNI, x86 adds two products of an unsigned and a signed byte in 16 bits, which can hold no more than
half of the largest such sum; ONNX Runtime has a mode that is exact there, and slow everywhere. So the largest
sum is computed once, and the mode is for CPUs that get it wrong. The model that computes it is written out
here, as the engine has no package that writes one.
"""

from __future__ import annotations

from functools import cache

import numpy as np

__all__ = ["EXACT_INT8", "overflows"]

EXACT_INT8 = ("session.x64quantprecision", "1")  # a session's entry for the exact mode
_K, _N = 64, 16  # of the product: a row of x against all columns
_UINT8, _INT8, _INT32 = 2, 3, 6  # onnx.TensorProto's numbers


@cache
def overflows() -> bool:
    """Tell whether a sum of products of uint8 and int8 comes out wrong; 2 ms, once a process."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(_product(), options, providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": np.full((1, _K), 255, np.uint8)})[0]
    return bool((found != 255 * 127 * _K).any())


def _product() -> bytes:
    """The model y = MatMulInteger(x, 127), as onnx.proto numbers the fields of one."""
    weight = (
        _number(1, _K) + _number(1, _N) + _number(2, _INT8) + _field(8, b"w") + _field(9, b"\x7f" * _K * _N)
    )
    node = _field(1, b"x") + _field(1, b"w") + _field(2, b"y") + _field(4, b"MatMulInteger")
    graph = _field(1, node) + _field(2, b"product") + _field(5, weight)
    graph += _field(11, _value(b"x", _UINT8, _K)) + _field(12, _value(b"y", _INT32, _N))
    return _number(1, 8) + _field(7, graph) + _field(8, _number(2, 13))


def _value(name: bytes, kind: int, columns: int) -> bytes:
    shape = b"".join(_field(1, _number(1, size)) for size in (1, columns))
    return _field(1, name) + _field(2, _field(1, _number(1, kind) + _field(2, shape)))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)
