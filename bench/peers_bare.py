"""The least script that scores a pair: tokenizers and onnxruntime, one pair at a time, lists for arrays.

Cold starts are compared with it; called as the peers of `peers_engines` are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

__all__ = ["bare"]

Pairs = list[tuple[str, str]]


def bare(checkpoint: Path, threads: int, order: str) -> Callable[[Pairs, int], list[float]]:
    """Neither batches nor chooses threads."""
    import onnxruntime
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    session = onnxruntime.InferenceSession(checkpoint / "onnx" / "model.onnx")

    def score(pairs: Pairs, batch: int) -> list[float]:
        found = []
        for pair in pairs:
            row = tokenizer.encode(*pair)
            feed = {
                "input_ids": [row.ids],
                "attention_mask": [row.attention_mask],
                "token_type_ids": [row.type_ids],
            }
            found.append(float(session.run(["probabilities"], feed)[0][0, 0]))
        return found

    return score
