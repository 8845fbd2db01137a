"""The model of `peers_model` in int8, as the tool of each runtime makes it.

packed-int8/                                     segue's bundle
checkpoint/onnx/model_qint8.onnx                 of the padded graph, by ONNX Runtime, dynamically quantised:
                                                 in essence what optimum's and sentence-transformers'
                                                 exporters do
checkpoint/openvino/openvino_model_qint8.xml     of the same graph, by NNCF, calibrated on other pairs
checkpoint/openvino/openvino_model_int8_weights.xml    the same, its weights alone
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from peers_int8 import ONNX_INT8, OPENVINO_INT8, OPENVINO_WEIGHTS, SEGUE_INT8
from peers_model import convert_with
from workloads import make_pairs

from segue.export import export_checkpoint

__all__ = ["make_int8", "make_openvino_int8"]

_NNCF = Path(__file__).resolve().with_name("peers_nncf.py")
_CALIBRATION = 300  # pairs, NNCF's own default
_SEED = 1  # that of the timed pairs is 0: their ranges must not be known beforehand


def make_int8(checkpoint: Path) -> None:
    """Quantise for segue and for ONNX Runtime, anew each time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    bundle = checkpoint.parent / SEGUE_INT8
    shutil.rmtree(bundle, ignore_errors=True)
    export_checkpoint(checkpoint, bundle, precision="int8")
    quantize_dynamic(
        checkpoint / "onnx" / "model.onnx",
        checkpoint / ONNX_INT8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )


def make_openvino_int8(checkpoint: Path, python: Path) -> None:
    """Quantise with the `nncf` of another environment, unless that was done.

    Raises:
        Unavailable: it cannot.
    """
    if not (checkpoint / OPENVINO_INT8).exists():
        pairs = checkpoint.parent / "calibration.json"
        pairs.write_text(json.dumps(make_pairs("mixed", _CALIBRATION, seed=_SEED)), encoding="utf-8")
        convert_with(python, _NNCF, checkpoint, pairs, checkpoint / OPENVINO_INT8)
    if not (checkpoint / OPENVINO_WEIGHTS).exists():
        convert_with(python, _NNCF, checkpoint, checkpoint / OPENVINO_WEIGHTS)
