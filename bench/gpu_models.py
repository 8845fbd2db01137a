"""Models of real sizes with random weights, the same in PyTorch and in a bundle; batches and texts for them.

Weights are drawn on the spot, from a fixed seed, put into transformers' module, saved as a checkpoint, read
by `segue.export.checkpoint` as any other, and laid where the prepared graph says. The executor then reads
that graph, as always. Nothing here needs the exporter, and nothing is downloaded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from gpu_prepare import WORK
from torch import Tensor

import segue
from segue.batching import PackedBatch, plan
from segue.bundle import MODEL, TOKENIZER, WEIGHTS, Dimensions, Manifest, sha256, write_manifest
from segue.engine import DEFAULT_MODEL
from segue.executors import Executor, open_executor
from segue.export.checkpoint import load_bert, read_checkpoint

__all__ = ["Model", "Work", "batch_of", "batches_of", "texts"]


class Model(NamedTuple):
    """A bundle and, if its weights are random, the same network in transformers, float32 on the CPU."""

    name: str
    bundle: Path
    longest: int
    words: int
    module: torch.nn.Module | None


class Work:
    """What was prepared, the models made of it, and executors, each opened once."""

    def __init__(
        self,
        prepared: Path,
        folder: Path,
        device: torch.device,
        bundle: Path | None,
        precisions: Sequence[str],
    ) -> None:
        """Read work.json; `folder` is for the models. `bundle` replaces the one that is scored from text."""
        work = json.loads((prepared / WORK).read_text(encoding="utf-8"))
        self.workloads: dict[str, list[int]] = work["workloads"]
        self.budgets: list[int] = work["budgets"]
        self.rooflines, self.ceilings = work["rooflines"], work["ceilings"]
        self.device, self.smoke, self.precisions = device, device.type == "cpu", precisions
        self._sizes = {name: Dimensions(**sizes) for name, sizes in work["models"].items()}
        self._prepared, self._folder = prepared, folder
        self._models: dict[str, Model] = {}
        self._executors: dict[tuple[str, str, bool], Executor] = {}
        self._bundle = bundle or (None if self.smoke else DEFAULT_MODEL)

    @property
    def names(self) -> list[str]:
        """Models with random weights."""
        return list(self._sizes)

    @property
    def scored(self) -> list[str]:
        """All models: the bundle that is scored from text comes first."""
        return ([self._bundle.name] if self._bundle else []) + self.names

    def model(self, name: str) -> Model:
        """The model of that name."""
        if name not in self._models:
            if self._bundle and name == self._bundle.name:
                about = json.loads((self._bundle / "segue.json").read_text())
                words = about["dimensions"]["vocab_size"]
                self._models[name] = Model(name, self._bundle, about["max_tokens"], words, None)
            else:
                folder, sizes = self._folder / name, self._sizes[name]
                module = write_bundle(self._prepared / f"{name}.onnx", sizes, folder)
                self._models[name] = Model(name, folder, sizes.positions, sizes.vocab_size, module)
        return self._models[name]

    def executor(self, name: str, precision: str, invariant: bool) -> Executor:
        """The Triton executor of a model, laid out for the largest batches there are."""
        key = name, precision, invariant
        if key not in self._executors:
            model = self.model(name)
            self._executors[key] = open_executor(
                model.bundle / MODEL,
                executor="triton",
                device="auto",
                precision=precision,
                threads=1,
                batch_tokens=max(self.budgets),
                longest=model.longest,
                batch_invariant=invariant,
            )
        return self._executors[key]

    def close(self, name: str, precision: str, invariant: bool) -> None:
        """Give back the memory of an executor that is not needed again."""
        if executor := self._executors.pop((name, precision, invariant), None):
            executor.close()


def write_bundle(graph: Path, dimensions: Dimensions, folder: Path) -> torch.nn.Module:
    """Make the bundle `folder` of a prepared graph and random weights, and return transformers' module."""
    module = _random(dimensions)
    checkpoint = folder / "checkpoint"
    module.save_pretrained(checkpoint)
    source = read_checkpoint(checkpoint)
    state = load_bert(source).state_dict()
    shutil.copy(graph, folder / MODEL)
    with (folder / WEIGHTS).open("wb") as file:
        for weight in onnx.load(str(graph), load_external_data=False).graph.initializer:
            if weight.data_location == onnx.TensorProto.EXTERNAL:
                where = {entry.key: entry.value for entry in weight.external_data}
                values = state[weight.name].numpy()
                assert list(weight.dims) == list(values.shape), weight.name
                assert (file.tell(), values.nbytes) == (int(where["offset"]), int(where["length"])), (
                    weight.name
                )
                file.write(values.tobytes())
    shutil.rmtree(checkpoint)
    shutil.copy(DEFAULT_MODEL / TOKENIZER, folder / TOKENIZER)
    manifest = Manifest(
        head=source.head,
        max_tokens=dimensions.positions,
        dimensions=dimensions,
        layout="packed",
        flat=False,
        precision="float32",
        source={"architecture": source.architecture, "name": "random weights"},
        versions={"segue": segue.__version__, "torch": torch.__version__},
        parity={"against": "nothing: a benchmark measures it"},
        files={name: sha256(folder / name) for name in (MODEL, WEIGHTS, TOKENIZER)},
    )
    write_manifest(folder, manifest)
    return module


def batch_of(lengths: list[int], seed: int = 0, *, words: int = 30_000) -> PackedBatch:
    """Pairs of so many random words each, out of so many; which words depends on a pair's place in the
    list."""
    draw = np.random.default_rng(seed)
    sizes = np.array(lengths)
    bounds = np.cumsum([0, *sizes])
    ids = draw.integers(words // 30, words, bounds[-1])
    positions = np.arange(bounds[-1]) - np.repeat(bounds[:-1], sizes)
    types = (positions > np.repeat(sizes // 2, sizes)).astype(np.int64)
    ids[bounds[:-1]], ids[bounds[1:] - 1] = 101, 102
    return PackedBatch(ids, types, positions, bounds)


def batches_of(whole: PackedBatch, tokens: int) -> tuple[list[np.ndarray], list[PackedBatch]]:
    """The rows of each batch of up to so many tokens, and the batch, the longest pairs first."""
    bounds = whole.cu_seqlens
    rows = plan(np.diff(bounds), tokens)
    batches = []
    for some in rows:
        places = np.concatenate([np.arange(bounds[i], bounds[i + 1]) for i in some])
        parts = (part[places] for part in (whole.input_ids, whole.token_type_ids, whole.position_ids))
        batches.append(PackedBatch(*parts, np.cumsum([0, *np.diff(bounds)[some]])))
    return rows, batches


def texts(tokenizer: Path, lengths: list[int], seed: int = 0) -> list[tuple[str, str]]:
    """Pairs of texts of so many tokens, three special ones included: words that are a token each."""
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_file(str(tokenizer)).get_vocab()
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2)
    draw = np.random.default_rng(seed)
    pairs = []
    for length in lengths:
        drawn = [words[i] for i in draw.integers(0, len(words), length - 3)]
        pairs.append((" ".join(drawn[: len(drawn) // 2]), " ".join(drawn[len(drawn) // 2 :])))
    return pairs


def _random(dimensions: Dimensions) -> Any:
    """transformers' classifier; the scale is such that logits differ from pair to pair by about one."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    sizes = asdict(dimensions)
    config = transformers.BertConfig(
        num_hidden_layers=sizes["layers"],
        hidden_size=sizes["hidden_size"],
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["intermediate_size"],
        vocab_size=sizes["vocab_size"],
        max_position_embeddings=sizes["positions"],
        type_vocab_size=sizes["token_types"],
        num_labels=2,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        empty = transformers.BertForSequenceClassification(config)
    module = empty.to_empty(device="cpu").eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.copy_(_scaled(name, noise))
        for name, buffer in module.named_buffers():
            buffer.copy_(torch.arange(buffer.shape[-1]) if "position" in name else torch.zeros(()))
    return module


def _scaled(name: str, noise: Tensor) -> Tensor:
    if "LayerNorm.weight" in name:
        return 1 + 0.2 * noise
    if noise.ndim == 1:
        return 0.1 * noise
    return noise if "embeddings" in name else noise * 1.5 / noise.shape[1] ** 0.5
