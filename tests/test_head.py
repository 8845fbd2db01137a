"""Which column is the score, and that no logit overflows."""

from __future__ import annotations

import numpy as np
import pytest

from segue import BundleError, InputError
from segue.bundle import Head
from segue.head import check_output, positive_column, probabilities, scores

NSP = Head("nsp", ("IsNext", "NotNext"), 0, "softmax")
BINARY = Head("binary", ("relevant",), 0, "sigmoid")
REGRESSION = Head("regression", ("similarity",), 0, "identity")
THREE = Head("multiclass", ("a", "b", "c"), None, "softmax")


def test_the_first_nsp_logit_is_is_next():
    assert positive_column(NSP) == 0
    assert probabilities(np.float32([[2, 0]]), NSP)[0, 0] == pytest.approx(1 / (1 + np.exp(-2)))


@pytest.mark.parametrize("head", [NSP, BINARY, THREE], ids=lambda head: head.kind)
@pytest.mark.parametrize("size", [0, 1, 90, 1e4, 1e38])
def test_probabilities_are_finite_whatever_the_logits(head, size):
    logits = np.float32([[size, -size, 0][: len(head.labels)], [-size, size, 1][: len(head.labels)]])
    with np.errstate(over="raise", invalid="raise"):
        values = probabilities(logits, head)
    assert values.dtype == np.float32
    assert ((values >= 0) & (values <= 1)).all()
    if len(head.labels) > 1:
        assert np.allclose(values.sum(axis=1), 1)


def test_probabilities_do_not_depend_on_other_rows():
    assert probabilities(np.float32([[1e4, 0], [-1e4, -1e4]]), NSP).tolist() == [[1, 0], [0.5, 0.5]]


def test_sigmoid_equals_its_definition():
    logits = np.linspace(-30, 30, 601, dtype=np.float64)[:, None]
    assert np.allclose(probabilities(logits, BINARY), 1 / (1 + np.exp(-logits)), rtol=1e-14)


def test_regression_and_logits_pass_unchanged():
    logits = np.float32([[3.5], [-2]])
    assert (probabilities(logits, REGRESSION) == logits).all()
    assert (scores(logits, BINARY, "logit") == logits).all()


def test_no_positive_label_names_both_ways_out():
    with pytest.raises(InputError, match=r"a, b, c .*`predict`.*`segue export --positive LABEL`"):
        positive_column(THREE)


@pytest.mark.parametrize("output", ["prob", None, True, "Probability"])
def test_unknown_outputs_are_refused(output):
    with pytest.raises(InputError, match="output: expected one of probability, logit"):
        check_output(output)


@pytest.mark.parametrize(
    "fields",
    [
        ("nsp", ("NotNext", "IsNext"), 0, "softmax"),
        ("nsp", ("IsNext", "NotNext"), 1, "softmax"),
        ("nsp", ("IsNext", "NotNext"), None, "softmax"),
        ("nsp", ("IsNext", "NotNext"), 0, "sigmoid"),
        ("binary", ("a", "b"), 1, "sigmoid"),
        ("binary", ("a",), 1, "sigmoid"),
        ("multiclass", ("a",), 0, "softmax"),
        ("regression", ("a",), 0, "sigmoid"),
        ("regression", ("a", "b"), 0, "identity"),
        ("regression", ("a", "b"), 0, "softmax"),
        ("pointwise", ("a",), 0, "sigmoid"),
    ],
)
def test_heads_that_contradict_themselves_are_refused(fields):
    with pytest.raises(BundleError, match="head"):
        Head(*fields)
