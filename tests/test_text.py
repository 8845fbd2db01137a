"""Token ids, segment ids and truncation, with the Hugging Face fast tokenizer as the judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segue import BundleError, InputError
from segue.batching import pack
from segue.text import PairEncoder, number_pairs, truncated_lengths

MODES = ("longest_first", "only_first", "only_second")
AWKWARD = [
    "",
    " ",
    "\x00\x07\ufffd\u200b",
    "The cat slept on the rug.",
    "it likes sleeping all day",
    "[SEP] in the text, [CLS] and [MASK] too [UNK]",
    "Ünïcödé naïve café ﬁne Ⅷ",
    "山田太郎は山へ行った。漢字",
    "a" * 150 + " word",
    "emoji 👩‍👩‍👧 and \u202eright to left עברית العربية",
    "tabs\tand\nnewlines\r\n  many   spaces",
    "don't can't (brackets) — dashes… $4.50 50% #tag @name http://example.org/a?b=c",
    "##ing ##ed ing",
]
texts = st.one_of(
    st.sampled_from(AWKWARD),
    st.text(max_size=40),
    st.text(alphabet="aeiou rstln.,'\"", max_size=200),
    st.lists(st.sampled_from(["the", "man", "went", "running", "[SEP]", "é", "山", "."]), max_size=60).map(
        " ".join
    ),
)


@pytest.fixture(scope="module", params=["lower", "cased"])
def tokenizers(
    request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]
) -> tuple[PairEncoder, Any]:
    """Return ours and the judge, from the same files."""
    return _both(make_checkpoint(lowercase=request.param == "lower"))


def _both(folder: Path) -> tuple[PairEncoder, Any]:
    from transformers import PreTrainedTokenizerFast

    judge = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )
    return PairEncoder(folder / "tokenizer.json", 512), judge


def _judged(judge: Any, a: str, b: str, mode: str, limit: int) -> tuple[list[int], list[int]] | None:
    """Return ids and segment ids as transformers has them, or None where it refuses."""
    try:  # lists, because a bare empty second text is dropped without a word
        got = judge([a], [b], truncation=mode, max_length=limit, padding=False, return_token_type_ids=True)
    except BaseException:  # the library panics where nothing would be left of the side to cut
        return None
    return got["input_ids"][0], got["token_type_ids"][0]


def _ours(encoder: PairEncoder, a: str, b: str, mode: str, limit: int) -> tuple[list[int], list[int]] | None:
    try:
        encoded = encoder.encode([(a, b)], truncation=mode, max_tokens=limit)
    except InputError:
        return None
    batch = pack(encoded, np.array([0]))
    return batch.input_ids.tolist(), batch.token_type_ids.tolist()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    a=texts, b=texts, mode=st.sampled_from(MODES), limit=st.one_of(st.integers(3, 20), st.integers(3, 512))
)
def test_ids_and_segments_are_those_of_transformers(tokenizers, a, b, mode, limit):
    encoder, judge = tokenizers
    assert _ours(encoder, a, b, mode, limit) == _judged(judge, a, b, mode, limit)


@pytest.mark.parametrize("mode", MODES)
def test_every_limit_truncates_as_transformers_does(tokenizers, mode):
    encoder, judge = tokenizers
    sides = ["the man went to the store", "he bought milk", "a", ""]
    for limit in range(3, 24):
        for a in sides:
            for b in sides:
                assert _ours(encoder, a, b, mode, limit) == _judged(judge, a, b, mode, limit), (a, b, limit)


def test_an_empty_second_sentence_is_still_a_pair(tokenizers):
    encoder, _ = tokenizers
    ids, types = _ours(encoder, "the", "", "longest_first", 512)
    assert ids == [encoder.cls_id, ids[1], encoder.sep_id, encoder.sep_id]
    assert types == [0, 0, 0, 1]


def test_a_tokenizers_own_truncation_and_padding_do_not_leak(tokenizers):
    """The files truncate and pad to 16 tokens; pairs of 3 and of 43 tokens must keep their lengths."""
    encoder, _ = tokenizers
    encoded = encoder.encode([("", ""), ("the " * 20, "the " * 20)])
    assert encoded.lengths.tolist() == [3, 43]
    assert not encoded.cut.any()


def test_sentences_and_pairs_are_kept_once():
    sentences, numbered = number_pairs([("a", "b"), ["b", "a"], np.array(["a", "b"]), ("a", "a")])
    assert sentences == ["a", "b"]
    assert numbered.tolist() == [[0, 1], [1, 0], [0, 1], [0, 0]]


def test_each_distinct_sentence_is_tokenised_once(tokenizers):
    encoder, _ = tokenizers
    encoded = encoder.encode([("the man", f"{i} men") for i in range(50)] * 4)
    assert len(encoded.starts) - 1 == 51
    assert len(encoded.pairs) == 50
    assert encoded.inverse.tolist() == list(range(50)) * 4


def test_pairs_packed_together_are_the_pairs_packed_alone(tokenizers):
    encoder, _ = tokenizers
    pairs = [(a, b) for a in AWKWARD for b in AWKWARD[::-1]]
    encoded = encoder.encode(pairs, max_tokens=30)
    rows = np.random.default_rng(0).permutation(len(encoded.pairs))
    batch = pack(encoded, rows)
    alone = [pack(encoded, np.array([row])) for row in rows]
    for name in ("input_ids", "token_type_ids", "position_ids"):
        assert getattr(batch, name).tolist() == np.concatenate([getattr(one, name) for one in alone]).tolist()
    assert all(one.position_ids.tolist() == list(range(len(one.input_ids))) for one in alone)
    assert batch.cu_seqlens.tolist() == [0, *np.cumsum([len(one.input_ids) for one in alone])]


@pytest.mark.parametrize(
    ("pairs", "index", "words"),
    [
        (None, None, "None"),
        (5, None, "int 5"),
        ("a string", None, "str 'a string'"),
        (b"bytes", None, "bytes"),
        ({"a": "b"}, None, "dict"),
        (("a", "b"), 0, "one pair alone goes into a list"),
        ([("a", "b"), None], 1, "got None"),
        ([("a", "b"), 7], 1, "got int 7"),
        ([("a",)], 0, "expected two strings"),
        ([("a", "b"), ("a", "b", "c")], 1, "expected two strings"),
        ([("a", None)], 0, "(str, None)"),
        ([(b"a", "b")], 0, "(bytes, str)"),
        ([("a", 1.5)], 0, "(str, float)"),
        ([{"a", "b"}], 0, "set"),
        (np.array("ab"), None, "pairs"),
        (np.array(["ab", "cd"]), 0, "expected (str, str)"),
        ([np.array(1)], 0, "expected two strings"),
        ([np.array([["a", "b"], ["c", "d"]])], 0, "(ndarray, ndarray)"),
        ([("fine", "too"), ("ok", "broken \ud800 half")], 1, "second text has a lone surrogate"),
        ([("\udfff", "b")], 0, "first text has a lone surrogate"),
    ],
)
def test_what_is_no_pair_is_refused_by_name(tokenizers, pairs, index, words):
    encoder, _ = tokenizers
    with pytest.raises(InputError) as caught:
        encoder.encode(pairs)
    assert caught.value.index == index
    assert words in str(caught.value)
    assert index is None or str(caught.value).startswith(f"pairs[{index}]: ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"truncation": "right"}, "truncation: expected one of longest_first"),
        ({"truncation": True}, "truncation: expected one of"),
        ({"max_tokens": 2}, "max_tokens: expected 3 to 512, got 2"),
        ({"max_tokens": 513}, "got 513"),
        ({"max_tokens": True}, "got True"),
        ({"max_tokens": 12.0}, "got 12.0"),
        ({"max_tokens": "12"}, "got '12'"),
    ],
)
def test_options_are_checked_even_without_pairs(tokenizers, options, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")) as caught:
        tokenizers[0].encode([], **options)
    assert caught.value.index is None


def test_truncation_error_names_the_first_pair_that_is_too_long(tokenizers):
    encoder, _ = tokenizers
    pairs = [("z", "the"), ("the", "a"), ("the man went", "the"), ("man", "the man went")]
    with pytest.raises(InputError, match=r"pairs\[2\]: 7 tokens, more than 6, and truncation='error'"):
        encoder.encode(pairs, truncation="error", max_tokens=6)
    assert encoder.encode(pairs, truncation="error", max_tokens=7).lengths.max() == 7


def test_a_mode_that_would_leave_nothing_says_so():
    with pytest.raises(
        InputError, match="leave nothing of the second text: it has 2 tokens, and 2 must go"
    ) as caught:
        truncated_lengths(np.array([[1, 1], [4, 2]]), 4, "only_second")
    assert caught.value.index == 1


def test_a_megabyte_of_text_is_no_error(tokenizers):
    encoder, judge = tokenizers
    text = "the man went to the store " * 40_000
    assert _ours(encoder, text, "the", "longest_first", 512) == _judged(
        judge, text, "the", "longest_first", 512
    )


def test_no_pairs_are_no_error(tokenizers):
    encoded = tokenizers[0].encode([])
    assert encoded.pairs.shape == (0, 2)
    assert encoded.lengths.shape == encoded.inverse.shape == (0,)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 3}'])
def test_an_unreadable_tokenizer_is_a_bundle_error(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(BundleError, match=r"tokenizer.json: not a readable tokenizer"):
        PairEncoder(path, 512)


def test_a_tokenizer_of_another_template_is_refused(tmp_path, make_checkpoint):
    from tokenizers import Tokenizer
    from tokenizers.processors import RobertaProcessing

    tokenizer = Tokenizer.from_file(str(make_checkpoint() / "tokenizer.json"))
    tokenizer.post_processor = RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BundleError, match=r"not \[CLS\] A \[SEP\] B \[SEP\]"):
        PairEncoder(tmp_path / "tokenizer.json", 512)
