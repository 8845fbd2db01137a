"""Quantise the padded graph with NNCF, for OpenVINO; run in an environment that has both.

    python peers_nncf.py CHECKPOINT [PAIRS] OUT

PAIRS is JSON, [[first, second], ...]: their activations give the ranges of what enters a product. They are
taken one at a time, so that there is no padding. Without PAIRS only the weights are quantised, and OpenVINO
rounds what they are multiplied with as it comes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from peers_engines import feeds, tokenizer

__all__ = ["main"]


def main() -> None:
    """Read, quantise, write."""
    import nncf
    import openvino

    checkpoint, *pairs, out = (Path(name) for name in sys.argv[1:])
    model = openvino.Core().read_model(checkpoint / "onnx" / "model.onnx")
    if pairs:
        texts = [tuple(pair) for pair in json.loads(pairs[0].read_text(encoding="utf-8"))]
        rows = [feed for _, feed in feeds(tokenizer(checkpoint).encode_batch(texts), 1, "given")]
        quantised = nncf.quantize(
            model, nncf.Dataset(rows), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows)
        )
    else:
        quantised = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    openvino.save_model(quantised, out, compress_to_fp16=False)


if __name__ == "__main__":
    main()
