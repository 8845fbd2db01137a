"""Heads: what the logits of each kind of checkpoint mean, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segue.bundle import Head
from segue.errors import BundleError, InputError
from segue.export.checkpoint import read_checkpoint
from segue.export.heads import choose_head

CLASSIFIER = "BertForSequenceClassification"
IDENTITY = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}


@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        ({"id2label": {"0": "x"}}, {}, Head("binary", ("x",), 0, "sigmoid")),
        ({"num_labels": 1}, {}, Head("binary", ("LABEL_0",), 0, "sigmoid")),
        ({"num_labels": 1} | IDENTITY, {}, Head("binary", ("LABEL_0",), 0, "sigmoid")),
        ({"num_labels": 1}, {"head": "regression"}, Head("regression", ("LABEL_0",), 0, "identity")),
        (
            {"id2label": {"0": "x"}, "problem_type": "regression"},
            {},
            Head("regression", ("x",), 0, "identity"),
        ),
        ({}, {}, Head("binary", ("LABEL_0", "LABEL_1"), 1, "softmax")),
        ({"id2label": {"1": "b", "0": "a"}}, {"positive": "a"}, Head("binary", ("a", "b"), 0, "softmax")),
        ({"num_labels": 3}, {}, Head("multiclass", ("LABEL_0", "LABEL_1", "LABEL_2"), None, "softmax")),
        (
            {"id2label": {"0": "a", "1": "b", "2": "c"}, "problem_type": "single_label_classification"},
            {"positive": "c"},
            Head("multiclass", ("a", "b", "c"), 2, "softmax"),
        ),
    ],
    ids=str,
)
def test_what_the_logits_mean(config: dict[str, Any], options: dict[str, str], expected: Head) -> None:
    assert choose_head(config, CLASSIFIER, **options) == expected


@pytest.mark.parametrize("architecture", ["BertForNextSentencePrediction", "BertForPreTraining"])
def test_an_nsp_head_is_what_it_is(architecture: str) -> None:
    expected = Head("nsp", ("IsNext", "NotNext"), 0, "softmax")
    assert choose_head({"id2label": {"0": "x"}}, architecture) == expected
    assert choose_head({}, architecture, positive="IsNext") == expected
    with pytest.raises(InputError, match="positive: BertFor"):
        choose_head({}, architecture, positive="NotNext")
    with pytest.raises(InputError, match="head: BertFor"):
        choose_head({}, architecture, head="regression")


@pytest.mark.parametrize(
    ("config", "options", "error", "said"),
    [
        ({"problem_type": "multi_label_classification"}, {}, BundleError, "problem_type: 'multi_label"),
        ({"problem_type": "regression"}, {}, BundleError, "problem_type: a regression of 2 values"),
        ({"id2label": {"0": "a", "2": "b"}}, {}, BundleError, "id2label"),
        ({"id2label": ["a"]}, {}, BundleError, "id2label"),
        ({"id2label": {}}, {}, BundleError, "id2label: expected a label for each of 0, 1"),
        ({"id2label": {"0": "no", "1": None}}, {}, BundleError, "id2label: expected names"),
        ({"id2label": {"0": "x", "1": "x"}}, {}, BundleError, "head.labels: 'x' is there twice"),
        ({"num_labels": 0}, {}, BundleError, "num_labels"),
        ({"num_labels": 10**12}, {}, BundleError, "num_labels: expected an integer from 1 to 65536"),
        ({"id2label": {"0": "\ud800"}}, {}, BundleError, r"id2label: '\\ud800' is no valid Unicode"),
        (
            {"num_labels": 1},
            {"library": {"activation_fn": "torch.nn.modules.activation.Tanh"}},
            BundleError,
            "config_sentence_transformers.json: activation_fn: torch.nn.modules.activation.Tanh",
        ),
        (
            {"num_labels": 1, "sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"},
            {},
            BundleError,
            "sbert_ce_default_activation_function: torch.nn.modules.activation.Tanh",
        ),
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
            {},
            BundleError,
            "Sigmoid is not supported for 2 labels",
        ),
        ({}, {"head": "regression"}, InputError, "head: a regression has one label, this checkpoint has 2"),
        ({}, {"head": "nsp"}, InputError, "head: expected 'regression' or nothing, got 'nsp'"),
        ({}, {"positive": "yes"}, InputError, "positive: expected one of LABEL_0, LABEL_1, got 'yes'"),
    ],
    ids=str,
)
def test_heads_that_are_refused(
    config: dict[str, Any], options: dict[str, str], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        choose_head(config, CLASSIFIER, **options)


def test_sentence_transformers_file_beside_the_config_is_read(tmp_path: Path) -> None:
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    config: dict[str, Any] = dict.fromkeys((*sizes, "max_position_embeddings", "type_vocab_size"), 4)
    config |= {"architectures": [CLASSIFIER], "num_labels": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    beside = tmp_path / "config_sentence_transformers.json"
    for function, found in (None, None), ("x.Sigmoid", "x.Sigmoid"), ("x.Identity", "x.Identity"):
        beside.write_text(json.dumps({"activation_fn": function, "default_prompt_name": None}))
        assert read_checkpoint(tmp_path).activation_fn == found
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"sbert_ce_default_activation_function": "x.Tanh"})
    )
    assert read_checkpoint(tmp_path).activation_fn == "x.Identity", "the newest place counts"
    beside.write_text('{"activation_fn": "x.Tanh"}')
    with pytest.raises(BundleError, match=r"transformers\.json: activation_fn: x\.Tanh is not supported"):
        read_checkpoint(tmp_path)
    beside.write_text('{"prompts": {"q": "query: "}, "default_prompt_name": "q"}')
    with pytest.raises(BundleError, match="default_prompt_name: segue puts no prompt before a text"):
        read_checkpoint(tmp_path)
