"""Embed: gathers a row from each of three tables, adds the three and normalises the sum, in one pass.

Memory-bound. With s bytes per element, i for a token's three ids together, and W rows of all tables that the
batch reads, each once:

    bytes = s * E * (W + T + 2) + i * T
    operations = 9 * T * E
"""

from __future__ import annotations

__all__ = ["cost", "embed"]

import triton
import triton.language as tl
from torch import Tensor

from segue.kernels.dependent import begin
from segue.kernels.door import check, check_columns, check_ids, check_live, check_out
from segue.kernels.launching import Cost, launch, target, unit
from segue.kernels.normalize import chunk_of, normalize, rows_of


@triton.jit(do_not_specialize=["rows"])
def _embed_kernel(
    input_ids_ptr, token_type_ids_ptr, position_ids_ptr,
    word_ptr, token_type_ptr, position_ptr, weight_ptr, bias_ptr, out_ptr, live_ptr,
    word_stride, token_type_stride, position_stride, out_stride,
    rows, eps,
    E: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, UNIT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    begin(EARLY)
    if live_ptr is not None:
        rows = tl.minimum(rows, tl.load(live_ptr).to(tl.int32))
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    column = tl.arange(0, CHUNK)[None, :]
    word = tl.load(input_ids_ptr + row, mask=live, other=0).to(tl.int64)[:, None] * (word_stride * UNIT)
    segment = tl.load(token_type_ids_ptr + row, mask=live, other=0).to(tl.int64)[:, None] * (
        token_type_stride * UNIT
    )
    place = tl.load(position_ids_ptr + row, mask=live, other=0).to(tl.int64)[:, None] * (
        position_stride * UNIT
    )
    live = live[:, None]
    tiles = ()
    for i in tl.static_range((E + CHUNK - 1) // CHUNK):  # triton 3.6 makes no constant of tl.cdiv
        mask = live & (i * CHUNK + column < E)
        offs = i * CHUNK + column
        total = tl.load(word_ptr + word + offs, mask=mask, other=0.0).to(tl.float32)
        total += tl.load(token_type_ptr + segment + offs, mask=mask, other=0.0).to(tl.float32)
        total += tl.load(position_ptr + place + offs, mask=mask, other=0.0).to(tl.float32)
        tiles += (total,)
    out_ptrs = out_ptr + row.to(tl.int64)[:, None] * (out_stride * UNIT) + column
    normalize(tiles, weight_ptr, bias_ptr, out_ptrs, live, eps, E, CHUNK)


def embed(
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    token_type: Tensor,
    position: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    live: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.embed`. Trusts that ids are below the rows of their tables: checking would wait for
    the device.

    Raises:
        ValueError: a tensor is of the wrong shape, dtype, device or stride, or the tables have no columns.
    """
    check("word", word, (None, None))
    check_columns("word", word)
    check_ids("input_ids", input_ids, None, like=word)
    hidden, tokens = word.shape[1], len(input_ids)
    check_ids("token_type_ids", token_type_ids, tokens, like=word)
    check_ids("position_ids", position_ids, tokens, like=word)
    check("token_type", token_type, (None, hidden), like=word)
    check("position", position, (None, hidden), like=word)
    check("weight", weight, (hidden,), like=word)
    check("bias", bias, (hidden,), like=word)
    check_live(live, like=word)
    out = check_out(out, (tokens, hidden), like=word, live=live)
    rows, warps = rows_of(target(word.device), hidden, tokens)
    strides = word.stride(0), token_type.stride(0), position.stride(0), out.stride(0)
    step = unit(*strides)
    launch(
        _embed_kernel, (triton.cdiv(tokens, rows),),
        input_ids, token_type_ids, position_ids, word, token_type, position, weight, bias, out, live,
        *(s // step for s in strides), tokens, eps,
        E=hidden, CHUNK=chunk_of(hidden), ROWS=rows, UNIT=step, num_warps=warps, device=word.device,
    )  # fmt: skip
    return out


def cost(*, T: int, E: int, W: int, s: int, i: int) -> Cost:
    """Return the cost of T tokens with ids of i bytes, which read W rows of E elements of s bytes."""
    return Cost(bytes=s * E * (W + T + 2) + i * T, operations=9 * T * E)
