"""What an engine says about itself and a pair: plain records, ready for JSON by `dataclasses.asdict`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segue.batching import PackedBatch
from segue.bundle import Dimensions, Head, Manifest
from segue.encoded import Encoded
from segue.executors import Executor
from segue.head import probabilities
from segue.text import PairEncoder

__all__ = ["Explanation", "Info"]


@dataclass(frozen=True)
class Info:
    """What was loaded and chosen. `versions` and `parity` date from the export."""

    path: str
    executor: str
    device: str
    precision: str  # of the arithmetic; `stored` is that of the weights in the file
    stored: str
    threads: int
    max_tokens: int
    max_batch_tokens: int
    head: Head
    dimensions: Dimensions
    plan: list[str]
    source: dict[str, str]
    parity: dict[str, Any]
    versions: dict[str, str]
    python: str

    @classmethod
    def of(cls, path: Path, manifest: Manifest, executor: Executor) -> Info:
        """Gather the information from the parts of an engine."""
        return cls(
            path=str(path),
            executor=executor.name,
            device=executor.device,
            precision=executor.precision,
            stored=manifest.precision,
            threads=executor.threads,
            max_tokens=manifest.max_tokens,
            max_batch_tokens=executor.batch_tokens,
            head=manifest.head,
            dimensions=manifest.dimensions,
            plan=executor.description,
            source=manifest.source,
            parity=manifest.parity,
            versions=manifest.versions,
            python=sys.version.split()[0],
        )


@dataclass(frozen=True)
class Explanation:
    """One pair as the model sees it, token by token, and the model's output for it."""

    tokens: list[str]
    token_ids: list[int]
    token_type_ids: list[int]
    positions: list[int]
    truncated: tuple[int, int]  # tokens cut from A and from B
    labels: tuple[str, ...]
    logits: list[float]
    probabilities: list[float]
    score: float | None  # None where the model has no positive label

    @classmethod
    def of(
        cls,
        batch: PackedBatch,
        encoded: Encoded,
        encoder: PairEncoder,
        logits: NDArray[np.float32],
        head: Head,
    ) -> Explanation:
        """Build it from a batch of one pair and its logits, `[C]`."""
        values = probabilities(logits, head).tolist()
        first, second = encoded.cut[0].tolist()
        return cls(
            tokens=encoder.tokens(batch.input_ids),
            token_ids=batch.input_ids.tolist(),
            token_type_ids=batch.token_type_ids.tolist(),
            positions=batch.position_ids.tolist(),
            truncated=(first, second),
            labels=head.labels,
            logits=logits.tolist(),
            probabilities=values,
            score=None if head.positive is None else values[head.positive],
        )
