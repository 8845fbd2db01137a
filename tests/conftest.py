"""Checkpoints and bundles for every test: tiny, random, of any class and size, written once a session.

`make_checkpoint(**options)` writes a Hugging Face folder, `make_bundle(**options)` exports one; both give the
path of a folder that is shared by all tests that ask for the same options, so it must not be changed (copy it
first).
"""

from __future__ import annotations

import json
import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Kernels run interpreted in this process, which triton settles when it is imported; a subprocess that has to
# compile them gets this as 0. With SEGUE_TESTS_ON_GPU=1 the tests of kernels, and they alone, run compiled:
# their tensors are then on the GPU.
if os.environ.get("SEGUE_TESTS_ON_GPU") == "1":
    import torch

    torch.set_default_device("cuda")
    os.environ["TRITON_INTERPRET"] = "0"
else:
    os.environ["TRITON_INTERPRET"] = "1"

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
EXPORT_OPTIONS = ("precision", "layout", "flat", "head", "positive")


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that writes a checkpoint folder with `write_checkpoint` and gives its path."""
    made: dict[str, Path] = {}

    def make(**options: Any) -> Path:
        key = json.dumps(options, sort_keys=True)
        if key not in made:
            made[key] = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def make_bundle(
    tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]
) -> Callable[..., Path]:
    """Return a function that exports such a checkpoint; it takes `export_checkpoint`'s options too."""
    made: dict[str, Path] = {}

    def make(**options: Any) -> Path:
        from segue.export import export_checkpoint

        key = json.dumps(options, sort_keys=True)
        if key not in made:
            chosen = {name: options.pop(name) for name in EXPORT_OPTIONS if name in options}
            folder = tmp_path_factory.mktemp("bundle") / "bundle"
            export_checkpoint(make_checkpoint(**options), folder, **chosen)
            made[key] = folder
        return made[key]

    return make


def write_checkpoint(
    folder: Path,
    *,
    architecture: str = "BertForNextSentencePrediction",
    hidden_size: int = 64,
    heads: int = 2,
    layers: int = 2,
    intermediate_size: int | None = None,
    vocab_size: int | None = None,
    positions: int = 512,
    num_labels: int = 2,
    labels: list[str] | None = None,
    seed: int = 0,
    lowercase: bool = True,
    config: dict[str, Any] | None = None,
    shard_size: str | None = None,
) -> Path:
    """Write a random model, its tokenizer.json and vocab.txt; `config` adds keys to config.json.

    `vocab_size` defaults to that of the vocabulary, about 330, and pads it with unused entries where larger.
    Every weight differs from every other (an exporter may merge equal ones), and the scale is such that
    logits differ from pair to pair by about one.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    vocabulary = _vocabulary(lowercase)
    vocabulary += [f"[unused{i}]" for i in range((vocab_size or 0) - len(vocabulary))]
    vocabulary = vocabulary[:vocab_size]
    if labels:
        num_labels = len(labels)
    named = (
        {"id2label": dict(enumerate(labels)), "label2id": {v: k for k, v in enumerate(labels)}}
        if labels
        else {}
    )
    settings = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        intermediate_size=intermediate_size or 4 * hidden_size,
        max_position_embeddings=positions,
        num_labels=num_labels,
        **named,
    )
    model = getattr(transformers, architecture)(settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "LayerNorm.weight" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * noise)
            elif "embeddings" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(noise * 1.5 / parameter.shape[1] ** 0.5)
    sizes = {"max_shard_size": shard_size} if shard_size else {}
    model.save_pretrained(folder, **sizes)
    if config:
        written = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(written | config))
    write_tokenizer(folder, vocabulary, lowercase=lowercase)
    return folder


def write_tokenizer(folder: Path, vocabulary: list[str], *, lowercase: bool) -> None:
    """Write vocab.txt, tokenizer_config.json, and a tokenizer.json with truncation and padding of its own."""
    from tokenizers import BertWordPieceTokenizer

    numbered = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = BertWordPieceTokenizer(numbered, lowercase=lowercase)
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    settings = {"do_lower_case": lowercase, "tokenizer_class": "BertTokenizer", "model_max_length": 10**30}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _vocabulary(lowercase: bool) -> list[str]:
    """Return a WordPiece vocabulary in which words, word pieces and unknown characters all occur."""
    from segue.export.sentences import SENTENCES

    text = " ".join(SENTENCES)
    text = text.lower() if lowercase else text
    cleaned = "".join(c if c.isalpha() and c.isascii() else " " for c in text)
    words = sorted({word for word in cleaned.split() if len(word) > 1})
    letters = string.ascii_lowercase + ("" if lowercase else string.ascii_uppercase) + string.digits
    pieces = ["##ing", "##ed", "##er", "##est", "##ly", "##s", "un", "re", "##able", "##ment"]
    single = list(letters + string.punctuation + "é“”山")
    return list(dict.fromkeys([*SPECIAL, *single, *(f"##{letter}" for letter in letters), *pieces, *words]))
