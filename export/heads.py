"""What a checkpoint's logits mean: kind, labels, and which of them is the positive one.

    NSP (also of BertForPreTraining)   nsp          softmax; logit 0 is IsNext, which is positive
    one label                          binary       sigmoid; a regression if the problem type says so
    two labels                         binary       softmax, positive 1
    more                               multiclass   softmax, no positive label

BERT's own checkpoints, bert-base-uncased among them, call themselves BertForMaskedLM and hold the NSP head;
its smallest name no architecture, and their weights tell.

sentence-transformers leaves an `activation_fn` in a cross-encoder's config.json, or since its version 5 in a
file beside it: what its own `predict` applies to the logits by default. Identity there is a way to report
relevance, not a quantity that was fitted, so one label stays `binary`: the score is the sigmoid of that
library's number, which keeps the order, and the number itself is the logit. To use it as the score, say
head="regression". Any other function is refused.
"""

from __future__ import annotations

from typing import Any

from segue.bundle import HEAD_KINDS, Head
from segue.errors import BundleError, InputError

__all__ = ["CLASSIFIERS", "activation_fn", "choose_head"]

_MOST = 2**16  # unnamed labels, which are given names
# architecture -> the name of its classifier's weights
CLASSIFIERS = {
    "BertForNextSentencePrediction": "cls.seq_relationship",
    "BertForPreTraining": "cls.seq_relationship",
    "BertForMaskedLM": "cls.seq_relationship",
    "BertForSequenceClassification": "classifier",
}


def choose_head(
    config: dict[str, Any],
    architecture: str,
    *,
    library: dict[str, Any] | None = None,
    head: str | None = None,
    positive: str | None = None,
) -> Head:
    """Return the head of a checkpoint, by its config.json and the two options of `export_checkpoint`.

    Args:
        library: config_sentence_transformers.json, if there is one.

    Raises:
        BundleError: several labels at once (multi-label), or labels or an activation that are none of the
        above. InputError: an option does not fit the checkpoint.
    """
    if head not in (None, "regression"):
        raise InputError(f"head: expected 'regression' or nothing, got {head!r}")
    if CLASSIFIERS[architecture] != "classifier":
        if head is not None or positive not in (None, "IsNext"):
            raise InputError(
                f"{'head' if head else 'positive'}: {architecture} is an NSP model: IsNext is positive"
            )
        return Head("nsp", ("IsNext", "NotNext"), 0, HEAD_KINDS["nsp"])
    labels = _labels(config)
    problem = _problem(config, library, len(labels))
    if head == "regression" and len(labels) != 1:
        raise InputError(f"head: a regression has one label, this checkpoint has {len(labels)}")
    if head == "regression" or problem == "regression":
        kind, activation = "regression", "identity"
    elif len(labels) == 1:
        kind, activation = "binary", "sigmoid"
    else:
        kind, activation = "binary" if len(labels) == 2 else "multiclass", "softmax"
    return Head(kind, labels, _positive(labels, positive), activation)


def activation_fn(config: dict[str, Any], library: dict[str, Any] | None) -> str | None:
    """Return the name of the function that sentence-transformers applies to the logits, or None."""
    return _activation(config, library)[1]


def _activation(config: dict[str, Any], library: dict[str, Any] | None) -> tuple[str, str | None]:
    """Return where the function is named (the newest version's place wins) and its name."""
    nested = config.get("sentence_transformers")
    found = {
        "config_sentence_transformers.json: activation_fn": (library or {}).get("activation_fn"),
        "sentence_transformers.activation_fn": nested.get("activation_fn")
        if isinstance(nested, dict)
        else None,
        "sbert_ce_default_activation_function": config.get("sbert_ce_default_activation_function"),
    }
    named = ((where, str(function)) for where, function in found.items() if function is not None)
    return next(named, ("", None))


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the labels in logit order; LABEL_0, LABEL_1, … where the config names none, two by default."""
    named = config.get("id2label")
    if named is None:
        count = config.get("num_labels", 2)
        if type(count) is not int or not 1 <= count <= _MOST:
            raise BundleError(f"num_labels: expected an integer from 1 to {_MOST}, got {count!r}")
        return tuple(f"LABEL_{index}" for index in range(count))
    if not isinstance(named, dict) or set(named) != {str(index) for index in range(len(named))} or not named:
        raise BundleError(f"id2label: expected a label for each of 0, 1, …, got {named!r}")
    labels = [named[str(index)] for index in range(len(named))]
    if not all(isinstance(label, str | int) for label in labels):
        raise BundleError(f"id2label: expected names, got {named!r}")
    for label in map(str, labels):
        try:
            label.encode()
        except UnicodeEncodeError as error:
            raise BundleError(f"id2label: {label!r} is no valid Unicode") from error
    return tuple(map(str, labels))


def _problem(config: dict[str, Any], library: dict[str, Any] | None, labels: int) -> str | None:
    problem = config.get("problem_type")
    if problem not in (None, "regression", "single_label_classification"):
        raise BundleError(f"problem_type: {problem!r} is not supported: a pair has one label here")
    if problem == "regression" and labels != 1:
        raise BundleError(f"problem_type: a regression of {labels} values is not supported")
    allowed = ("Identity", "Sigmoid" if labels == 1 else "Softmax")
    where, function = _activation(config, library)
    if function is not None and function.rpartition(".")[2] not in allowed:
        raise BundleError(f"{where}: {function} is not supported for {labels} labels")
    return problem


def _positive(labels: tuple[str, ...], wanted: str | None) -> int | None:
    if wanted is None:
        return {1: 0, 2: 1}.get(len(labels))
    if labels.count(wanted) != 1:
        raise InputError(f"positive: expected one of {', '.join(labels)}, got {wanted!r}")
    return labels.index(wanted)
