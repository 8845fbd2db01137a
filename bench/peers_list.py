"""Who is compared: the function that loads each peer, its environment, and what may be chosen for it.

Peers whose pins clash get environments of their own: sentence-transformers' ONNX backend needs optimum-onnx,
which stops at transformers 4; its OpenVINO backend needs optimum-intel, which stops at transformers 5.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

__all__ = ["PEERS", "PRESENT", "REFERENCE", "SMOKE", "Peer", "chosen"]

PRESENT = "present"  # the environment that the script itself runs in
_HERE = Path(__file__).resolve().parent
_TRIED = (1, 2, 4, 8, 16, 32, 64, 128)  # pairs a batch
_TOKENS = (128, 256, 512, 1024, 2048)  # a batch, where its size is a budget


@dataclass(frozen=True)
class Peer:
    """One way of scoring pairs. `batches`, in pairs, or in tokens where `order` is "budget", are tried in a
    calibration if there are several.

    The scores of one that is not `exact` are rounded on purpose. `options` are arguments of the function.
    """

    key: str
    name: str
    function: str
    environment: str
    packages: tuple[str, ...]  # whose versions are reported
    batches: tuple[int, ...] = _TRIED
    order: str = "sorted"
    timed: bool = True
    cold: bool = True
    exact: bool = True
    options: Mapping[str, str] = field(default_factory=dict)
    module: Path = _HERE / "peers_engines.py"


def chosen(keys: list[str] | None, peers: Sequence[Peer]) -> list[Peer]:
    """Return those of `peers` with these keys, and segue: all others are compared with it. None: all.

    Raises:
        ValueError: there is no such peer.
    """
    unknown = sorted(set(keys or ()) - {peer.key for peer in peers})
    if unknown:
        raise ValueError(f"peers: no {', '.join(unknown)}; there are {', '.join(peer.key for peer in peers)}")
    return [peer for peer in peers if keys is None or peer.key in {"segue", *keys}]


_ONNX = ("onnxruntime", "tokenizers")
_TORCH = ("torch", "transformers")
_SENTENCES = ("sentence-transformers", *_TORCH)
_CROSS_ENCODER = _HERE / "peers_cross_encoder.py"

PEERS = (
    Peer("segue", "segue", "segue", PRESENT, ("segue", *_ONNX), batches=(0,)),
    Peer(
        "st-torch",
        "sentence-transformers CrossEncoder, PyTorch",
        "sentence_transformers_torch",
        "sentence-transformers",
        _SENTENCES,
        module=_CROSS_ENCODER,
    ),
    Peer(
        "st-onnx",
        "sentence-transformers CrossEncoder, ONNX Runtime",
        "sentence_transformers_onnx",
        "sentence-transformers-onnx",
        (*_SENTENCES, "optimum-onnx", "onnxruntime"),
        module=_CROSS_ENCODER,
    ),
    Peer(
        "st-openvino",
        "sentence-transformers CrossEncoder, OpenVINO",
        "sentence_transformers_openvino",
        "sentence-transformers-openvino",
        (*_SENTENCES, "optimum-intel", "openvino"),
        module=_CROSS_ENCODER,
    ),
    Peer("transformers", "transformers on PyTorch, SDPA, sorted", "transformers_torch", PRESENT, _TORCH),
    Peer("ort", "ONNX Runtime, padded, sorted", "onnxruntime_padded", PRESENT, _ONNX),
    Peer(
        "ort-streams",
        "ONNX Runtime, padded, sorted, a batch a thread",
        "onnxruntime_streams",
        PRESENT,
        _ONNX,
        cold=False,
    ),
    Peer(
        "ort-budget",
        "ONNX Runtime, padded, a batch a thread, batch in tokens",
        "onnxruntime_streams",
        PRESENT,
        _ONNX,
        batches=_TOKENS,
        order="budget",
        cold=False,
    ),
    Peer(
        "ort-32-given",
        "ONNX Runtime, padded, 32 as they come",
        "onnxruntime_padded",
        PRESENT,
        _ONNX,
        batches=(32,),
        order="given",
        cold=False,
    ),
    Peer(
        "ort-32-sorted",
        "ONNX Runtime, padded, 32 sorted",
        "onnxruntime_padded",
        PRESENT,
        _ONNX,
        batches=(32,),
        cold=False,
    ),
    Peer(
        "openvino",
        "OpenVINO, padded, sorted, request queue",
        "openvino_padded",
        "openvino",
        ("openvino", "tokenizers"),
    ),
    Peer(
        "flashrank",
        "FlashRank's way: 100 as they come, one batch",
        "flashrank",
        "light",
        ("FlashRank", *_ONNX),
        batches=(100,),
        order="given",
    ),
    Peer(
        "fastembed",
        "fastembed TextCrossEncoder, as they come",
        "fastembed",
        "light",
        ("fastembed", *_ONNX),
        order="given",
    ),
    Peer(
        "bare",
        "a bare script: tokenizers and ONNX Runtime",
        "bare",
        PRESENT,
        _ONNX,
        batches=(1,),
        order="given",
        timed=False,
        module=_HERE / "peers_bare.py",
    ),
)
# Of the present environment alone, without a calibration, and one of them without a cold start.
SMOKE = (
    PEERS[0],
    *(replace(p, batches=(8,), cold=False) for p in PEERS if p.key == "transformers"),
    *(replace(p, cold=True) for p in PEERS if p.key == "ort-32-sorted"),
)
REFERENCE = Peer(
    "reference", "PyTorch, one pair at a time", "transformers_torch", PRESENT, _TORCH, batches=(1,)
)
