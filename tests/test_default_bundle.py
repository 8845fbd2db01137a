"""The model in the package: this project's seeds, and parity on the real encoder's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from segue import Engine
from segue.engine import DEFAULT_MODEL
from segue.export.sentences import SENTENCES

SEEDS = Path(__file__).parent / "seeds.tsv"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load()


@pytest.fixture(scope="module")
def judge() -> Any:
    """Return transformers' model with the weights that model.onnx holds, whose names are a `Bert`'s."""
    import torch
    import transformers

    sizes = Engine.load().info.dimensions
    config = transformers.BertConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.intermediate_size,
        max_position_embeddings=sizes.positions,
        type_vocab_size=sizes.token_types,
    )
    model = transformers.BertForNextSentencePrediction(config).eval()
    graph = onnx.load(DEFAULT_MODEL / "model.onnx").graph
    weights = {
        tensor.name: torch.tensor(numpy_helper.to_array(tensor)).float()
        for tensor in graph.initializer
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    }
    missing, unknown = model.load_state_dict(_as_transformers(weights, sizes.layers), strict=False)
    assert (missing, unknown) == ([], [])
    return model


def _as_transformers(weights: dict[str, Any], layers: int) -> dict[str, Any]:
    named = {
        "embeddings.word.weight": "embeddings.word_embeddings.weight",
        "embeddings.token_type.weight": "embeddings.token_type_embeddings.weight",
        "embeddings.position.weight": "embeddings.position_embeddings.weight",
        "embeddings.norm.weight": "embeddings.LayerNorm.weight",
        "embeddings.norm.bias": "embeddings.LayerNorm.bias",
        "head.pooler.weight": "pooler.dense.weight",
        "head.pooler.bias": "pooler.dense.bias",
    }
    parts = {
        "attention_output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "intermediate": "intermediate.dense",
        "output": "output.dense",
        "output_norm": "output.LayerNorm",
    }
    found = {f"bert.{theirs}": weights[ours] for ours, theirs in named.items()}
    found |= {
        f"cls.seq_relationship.{kind}": weights[f"head.classifier.{kind}"] for kind in ("weight", "bias")
    }
    for number in range(layers):
        ours, theirs = f"layers.{number}", f"bert.encoder.layer.{number}"
        for kind in ("weight", "bias"):
            for part, name in parts.items():
                found[f"{theirs}.{name}.{kind}"] = weights[f"{ours}.{part}.{kind}"]
            if number < layers - 1:
                query, key, value = weights[f"{ours}.qkv.{kind}"].chunk(3)
            else:
                query, value = (weights[f"{ours}.{name}.{kind}"] for name in ("query", "value"))
                key = weights.get(f"{ours}.key.{kind}", 0 * query)  # a bias of keys changes nothing
            for name, tensor in {"query": query, "key": key, "value": value}.items():
                found[f"{theirs}.attention.self.{name}.{kind}"] = tensor
    return found


def test_the_seeds_of_this_project_hold(engine):
    pairs = [line.split("\t") for line in SEEDS.read_text(encoding="utf-8").splitlines()]
    milk, penguins, sleeping, rates = engine.score(pairs)
    assert milk > 0.5
    assert milk > penguins
    assert sleeping > 0.5
    assert sleeping > rates


def test_the_real_weights_score_as_transformers_scores_them(engine, judge):
    """From 3 to 512 tokens, and beyond, where the pair is truncated."""
    import torch
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(DEFAULT_MODEL / "tokenizer.json"), cls_token="[CLS]", sep_token="[SEP]"
    )
    text = " ".join(SENTENCES)
    words = text.split()
    sizes = [0, 1, 2, 5, 9, 17, 33, 60, 120, 200, 350, 600]
    pairs = [(" ".join(words[:size]), " ".join(words[7 : 7 + size // 2 + size % 3])) for size in sizes]
    pairs += [
        (SENTENCES[0], SENTENCES[1]),
        ("Ünïcödé 山 ﬁ", "\x00 [SEP] [MASK]"),
        (text * 9, ""),
        ("", text * 9),
    ]
    lengths = []
    for pair, found in zip(pairs, engine.predict(pairs, output="logit"), strict=True):
        encoded = tokenizer(
            [pair[0]],
            [pair[1]],
            return_tensors="pt",
            return_token_type_ids=True,
            truncation="longest_first",
            max_length=512,
        )
        lengths.append(encoded["input_ids"].shape[1])
        assert engine.explain(*pair).token_ids == encoded["input_ids"][0].tolist()
        with torch.no_grad():
            wanted = judge(**encoded).logits[0].double().numpy()
        assert np.abs(found - wanted).max() <= 1e-4 * max(1, np.abs(wanted).max())
        probability = np.exp(wanted[0]) / np.exp(wanted).sum()
        assert abs(engine.score([pair])[0] - probability) <= 1e-5
    assert (min(lengths), max(lengths)) == (3, 512)


def test_the_card_states_what_the_bundle_stores(engine):
    card = (DEFAULT_MODEL / "README.md").read_text(encoding="utf-8")
    for word in ("Apache-2.0", "Jane Austen", "Wikipedia", "accuracy"):
        assert word in card, word
    assert engine.info.source["architecture"] == "BertForPreTraining"
    assert engine.labels == ("IsNext", "NotNext")
