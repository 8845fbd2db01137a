"""Exported graphs against transformers, which is the judge: head classes, sizes, forms, 3 to 512 tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from segue.batching import PackedBatch
from segue.export.verify import LOGIT_LIMIT, PROBABILITY_LIMIT, Arrays, differences, padded, sample

NSP, CLASSIFIER = "BertForNextSentencePrediction", "BertForSequenceClassification"


def _batches(folder: Path) -> list[PackedBatch]:
    longest = json.loads((folder / "segue.json").read_text())["max_tokens"]
    return sample(Tokenizer.from_file(str(folder / "tokenizer.json")), longest)


def _run(folder: Path) -> Arrays:
    """Return what plain onnxruntime gives for the sample."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    classic = session.get_inputs()[1].name == "attention_mask"
    parts = [
        session.run(["logits", "probabilities"], padded(batch) if classic else vars(batch))
        for batch in _batches(folder)
    ]
    logits, probabilities = (np.concatenate(part) for part in zip(*parts, strict=True))
    return logits, probabilities


def _judge(checkpoint: Path, folder: Path, *, half: bool = False) -> Arrays:
    """Return what transformers gives for the same pairs, padded, with the activation of segue.json."""
    architecture = json.loads((checkpoint / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(checkpoint).float().eval()
    if half:
        model = model.half().float()
    logits = []
    for batch in _batches(folder):
        inputs = {name: torch.from_numpy(array) for name, array in padded(batch).items()}
        with torch.no_grad():
            output = model(**inputs)
        logits.append(output.seq_relationship_logits if "PreTraining" in architecture else output.logits)
    found = torch.cat(logits)
    activation = json.loads((folder / "segue.json").read_text())["head"]["activation"]
    probabilities = {"softmax": found.softmax(-1), "sigmoid": found.sigmoid(), "identity": found}[activation]
    return found.numpy(), probabilities.numpy()


def _assert_equal(found: Arrays, expected: Arrays) -> None:
    assert found[0].shape == expected[0].shape
    assert found[0].dtype == found[1].dtype == np.float32
    assert np.ptp(expected[0], axis=0).max() > 0.2, "the judge gives every pair the same: nothing is shown"
    regression = np.array_equal(expected[0], expected[1])
    probability, logit = differences(found, expected, regression=regression)
    assert probability <= PROBABILITY_LIMIT
    assert logit <= LOGIT_LIMIT


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": NSP},
        {"architecture": "BertForPreTraining", "seed": 3},
        {"architecture": CLASSIFIER, "num_labels": 1},
        {"architecture": CLASSIFIER, "num_labels": 2},
        {"architecture": CLASSIFIER, "num_labels": 5},
        {"architecture": CLASSIFIER, "num_labels": 1, "config": {"problem_type": "regression"}},
        {"architecture": NSP, "config": {"layer_norm_eps": 0.5}},
        {"architecture": NSP, "hidden_size": 64, "heads": 1, "layers": 1, "vocab_size": 1009},
        {
            **{"architecture": CLASSIFIER, "num_labels": 3, "hidden_size": 128, "heads": 8, "layers": 3},
            **{"vocab_size": 337, "intermediate_size": 200, "positions": 131},
        },
        {"architecture": NSP, "hidden_size": 384, "heads": 12, "layers": 2, "vocab_size": 701, "seed": 9},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_transformers_is_the_judge(
    make_checkpoint: Callable[..., Path], make_bundle: Callable[..., Path], options: dict[str, Any]
) -> None:
    folder = make_bundle(**options)
    _assert_equal(_run(folder), _judge(make_checkpoint(**options), folder))


@pytest.mark.parametrize("options", [{"flat": True}, {"layout": "padded"}], ids=str)
def test_other_forms_of_the_graph_give_the_same(
    make_checkpoint: Callable[..., Path], make_bundle: Callable[..., Path], options: dict[str, Any]
) -> None:
    folder = make_bundle(**options)
    found = _run(folder)
    _assert_equal(found, _judge(make_checkpoint(), folder))
    difference = differences(found, _run(make_bundle()))
    assert max(difference) <= (0 if "flat" in options else 5e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "float16"},
        {"precision": "float16", "layout": "padded"},
        {"architecture": CLASSIFIER, "num_labels": 1, "precision": "float16", "flat": True},
    ],
    ids=str,
)
def test_float16_weights_are_the_checkpoint_rounded(
    make_checkpoint: Callable[..., Path], make_bundle: Callable[..., Path], options: dict[str, Any]
) -> None:
    folder = make_bundle(**options)
    checkpoint = make_checkpoint(**{k: v for k, v in options.items() if k in ("architecture", "num_labels")})
    found = _run(folder)
    _assert_equal(found, _judge(checkpoint, folder, half=True))
    parity = json.loads((folder / "segue.json").read_text())["parity"]
    distance = differences(found, _judge(checkpoint, folder))
    assert distance[0] == pytest.approx(parity["rounding_max_probability_difference"], abs=PROBABILITY_LIMIT)


def test_a_pair_alone_is_a_pair_in_a_batch(make_bundle: Callable[..., Path]) -> None:
    """In the graph itself, without the engine: any batch mates, any order, the same probability to 2e-6."""
    folder = make_bundle()
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    short, *_ = _batches(folder)
    (together,) = session.run(["probabilities"], vars(short))
    bounds = short.cu_seqlens
    for pair, (start, end) in enumerate(pairwise(bounds)):
        alone = {name: array[start:end] for name, array in vars(short).items()}
        (found,) = session.run(["probabilities"], alone | {"cu_seqlens": np.array([0, end - start])})
        assert np.abs(found[0] - together[pair]).max() <= 2e-6
