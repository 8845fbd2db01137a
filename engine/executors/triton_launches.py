"""A plan laid out on a device: its weights, its buffers, and the launches of a batch of given sizes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segue import kernels
from segue.errors import BundleError
from segue.executors.triton_buckets import Bucket
from segue.executors.triton_feed import Feed
from segue.executors.triton_memory import arrange, arrange_numbers, columns_of, scratch_of
from segue.executors.triton_plan import PAIRS, TOKENS, Plan, Step
from segue.executors.triton_products import library, linear

__all__ = ["Launches"]

_TAKE_LONGEST = ("packed_attention", "cls_attention")
_TAKE_LIVE = ("embed", "linear", "linear_gelu", "add_layer_norm")


class Launches:
    """All that lies on the device. Addresses never change, so that what was launched can be replayed."""

    def __init__(
        self,
        plan: Plan,
        most: Bucket,
        device: torch.device,
        dtype: torch.dtype,
        *,
        stream: torch.cuda.Stream | None,
        library_rows: int | None,
    ) -> None:
        """Lay it out for batches of up to `most`, computed in `stream`, which is the current one.

        Args:
            library_rows: linear layers of so many rows or more go to the matrix library; None: none.

        Raises:
            BundleError: a weight that `dtype` cannot hold.
        """
        self.plan, self.most, self.library_rows = plan, most, library_rows
        self.weights = {name: _weight(name, array, dtype).to(device) for name, array in plan.weights.items()}
        self._places, size = arrange(plan, {TOKENS: most.tokens, PAIRS: most.pairs})
        self.arena = torch.empty(size, device=device, dtype=dtype)
        self.feed = Feed(most, device, stream)
        self.logits = torch.empty(most.pairs, plan.labels, device=device, dtype=torch.float32)
        hidden = next(step.columns for step in plan.steps if step.output == plan.steps[-1].inputs[0])
        self.pooled = torch.empty(most.pairs, hidden, device=device, dtype=torch.float32)

    def launch(self, sizes: Bucket) -> None:
        """Launch the whole plan for these sizes, on the numbers that the feed holds."""
        parts, _ = arrange_numbers(sizes.tokens, sizes.pairs)
        values = {name: self.feed.numbers[part] for name, part in parts.items()} | self._values(sizes)
        with nullcontext() if self.library_rows is None else library():
            for step in self.plan.steps:
                inputs = (values[name] if name in values else self.weights[name] for name in step.inputs)
                if self._by_library(step, sizes):
                    linear(*inputs, out=values[step.output])
                    continue
                options = dict(step.options)
                if step.op in _TAKE_LONGEST:
                    options["longest"] = sizes.longest
                if step.op in _TAKE_LIVE:
                    options["live"] = values[step.rows]
                if step.op == "pool_classify":
                    options["pooled"] = self.pooled[: sizes.pairs]
                if step.scratch:
                    options["scratch"] = values[scratch_of(step)]
                getattr(kernels, step.op)(*inputs, **options, out=values[step.output])

    def close(self) -> None:
        """Give the memory back."""
        self.weights.clear()
        self.feed.close()
        self.arena = self.logits = self.pooled = torch.empty(0)

    def describe(self) -> list[str]:
        """A line on its size, then one for each launch."""
        weights = sum(tensor.nbytes for tensor in self.weights.values()) / 1e6
        products = f", linear by PyTorch from {self.library_rows} rows" if self.library_rows else ""
        return [
            f"weights {weights:.1f} MB, arena {self.arena.nbytes / 1e6:.1f} MB for {self.most.tokens} "
            f"tokens, {len(self.plan.steps)} launches{products}",
            *(f"{step.name}: {step.op} -> [{step.rows}, {step.columns}]" for step in self.plan.steps),
        ]

    def _values(self, sizes: Bucket) -> dict[str, Tensor]:
        """Where the results of the steps, and their scratch, lie, for these sizes."""
        values = {}
        for step in self.plan.steps[:-1]:
            rows = _rows(step, sizes)
            for name, columns in columns_of(step).items():
                start = self._places[name]
                values[name] = self.arena[start : start + rows * columns].view(rows, columns)
        values[self.plan.steps[-1].output] = self.logits[: sizes.pairs]
        return values

    def _by_library(self, step: Step, sizes: Bucket) -> bool:
        fewest = self.library_rows
        return step.op == "linear" and fewest is not None and _rows(step, sizes) >= fewest


def _rows(step: Step, sizes: Bucket) -> int:
    return sizes.tokens if step.rows == TOKENS else sizes.pairs


def _weight(name: str, values: NDArray[Any], dtype: torch.dtype) -> Tensor:
    most = torch.finfo(dtype).max
    if values.size and float(np.abs(values).max()) > most:
        raise BundleError(
            f"{name} holds values that {str(dtype).partition('.')[2]} cannot (above {most:.5g}): "
            "take another precision"
        )
    return torch.from_numpy(values.copy()).to(dtype)
