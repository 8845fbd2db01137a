"""Who is compared in int8: peers of `peers_list` on a model that their own tools quantised, beside float32.

Left out are FlashRank, which is ONNX Runtime in larger batches, and what runs on PyTorch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from peers_list import PEERS, Peer

__all__ = [
    "INT8",
    "INT8_SMOKE",
    "ONNX_INT8",
    "OPENVINO_INT8",
    "OPENVINO_WEIGHTS",
    "QUANTISED",
    "SEGUE_INT8",
]

SEGUE_INT8 = "packed-int8"  # beside the checkpoint; the others in it
ONNX_INT8 = "onnx/model_qint8.onnx"
OPENVINO_INT8 = "openvino/openvino_model_qint8.xml"
OPENVINO_WEIGHTS = "openvino/openvino_model_int8_weights.xml"

QUANTISED = {
    "segue": "`segue export --precision int8`: a scale for each row of a weight; what enters a product is "
    "rounded as it comes, with a scale for each token",
    "ONNX Runtime, alone or below sentence-transformers and fastembed": "`onnxruntime.quantization."
    "quantize_dynamic(weight_type=QInt8, per_channel=True)` of the padded graph: a scale for each column of "
    "a weight; what enters a product is rounded as it comes, with one scale for all of a batch",
    "OpenVINO, alone or below sentence-transformers": "`nncf.quantize(model_type=TRANSFORMER)` of the padded "
    "graph: the ranges of what enters a product are fixed beforehand, on 300 mixed pairs of another draw",
    "OpenVINO, weights compressed": "`nncf.compress_weights(mode=INT8_SYM)` of the padded graph: a scale for "
    "each row of a weight; what enters a product is rounded as it comes, in groups that OpenVINO chooses",
    "not quantised": "segue in float32, and OpenVINO on the float32 file with its precision set to bf16",
}


def _as(original: str, *packages: str, **changes: Any) -> Peer:
    """One of PEERS, changed, `packages` added."""
    (peer,) = (peer for peer in PEERS if peer.key == original)
    loose = {"exact": False, "cold": False, "packages": (*peer.packages, *packages)}
    return replace(peer, **(loose | changes))


_ONNX, _OPENVINO = {"file": ONNX_INT8}, {"file": OPENVINO_INT8}

INT8 = (
    _as("segue", name="segue, int8", options={"bundle": SEGUE_INT8}),
    _as("segue", key="segue-float32", name="segue, float32", exact=True),
    _as("st-onnx", options=_ONNX),
    _as("ort", options=_ONNX),
    _as("ort-streams", options=_ONNX),
    _as("ort-budget", options=_ONNX),
    _as("ort-32-sorted", options=_ONNX),  # what a library does by default
    _as("openvino", "nncf", options=_OPENVINO),
    _as(
        "openvino",
        "nncf",
        key="openvino-weights",
        name="OpenVINO, so, weights compressed",
        options={"file": OPENVINO_WEIGHTS},
    ),
    # Fast only where the CPU computes in bfloat16.
    _as(
        "openvino",
        key="openvino-bf16",
        name="OpenVINO, so, float32 file in bf16",
        options={"precision": "bf16"},
    ),
    _as("st-openvino", "nncf", options=_OPENVINO),
    _as("fastembed", options=_ONNX),
)
# Of the present environment alone, without a calibration.
INT8_SMOKE = tuple(
    replace(peer, batches=(peer.batches[0] and 8,))
    for peer in INT8
    if peer.key in ("segue", "segue-float32", "ort")
)
