"""Token ids, segment ids and truncation, with the Hugging Face fast tokenizer as the judge."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer

import segue.words
from segue import BundleError, InputError, SegueError
from segue.batching import pack
from segue.encoded import truncated_lengths
from segue.text import PairEncoder, _distinct, _far_too_long, _plain, number_pairs

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
    "a|b | c ||| |\u0338 |",
    "\u0301the \u0301 man\u0301 \u00a0a\u2003b\u3000c \u1100\u1161 \u11a8",
]
texts = st.one_of(
    st.sampled_from(AWKWARD),
    st.text(max_size=40),
    st.text(alphabet="aeiou rstln.,'\"", max_size=200),
    st.lists(
        st.sampled_from(["the", "man", "went", "running", "[SEP]", "é", "山", ".", "|", "\u0301", "\t", ""]),
        max_size=60,
    ).map(" ".join),
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
    try:  # lists, because a bare empty second text is silently dropped
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


far_too_long = st.builds(
    lambda part, times, rest: part * times + rest,
    st.sampled_from(
        ["the man went ", "a ", "running ", "x" * 120 + " ", " " * 50, "\t", "山", "각 ", "[SEP] ", "|"]
    ),
    st.integers(1, 2000),
    texts,
)


def _kept(encoder: PairEncoder, pair: tuple[str, str], **options: Any) -> Any:
    """Return what is left of a pair, and whether tokens were lost; or the reason why there is nothing."""
    try:
        encoded = encoder.begin([pair], **options).all()
    except InputError as error:
        return str(error)
    batch = pack(encoded, np.array([0]))
    return batch.input_ids.tolist(), batch.token_type_ids.tolist(), encoded.truncated


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    a=st.one_of(texts, far_too_long),
    b=far_too_long,
    turned=st.booleans(),
    mode=st.sampled_from((*MODES, "error")),
    limit=st.one_of(st.integers(3, 20), st.integers(3, 100)),
)
def test_texts_far_too_long_are_truncated_as_if_all_of_them_were_read(tokenizers, a, b, turned, mode, limit):
    encoder, _ = tokenizers
    pair, options = (b, a) if turned else (a, b), {"truncation": mode, "max_tokens": limit}
    assert _kept(encoder, pair, **options) == _kept(encoder, pair, **options, whole=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("part", ["the man went ", ",", "山", "x" * 120 + " "])
def test_texts_far_too_long_are_truncated_as_transformers_truncates_them(tokenizers, mode, part):
    """One side alone: of two, the library would make all pairs of what it cut from each."""
    encoder, judge = tokenizers
    for limit in (3, 8, 64):
        for pair in (("he bought", part * 1500), (part * 1500, "he bought")):
            assert _ours(encoder, *pair, mode, limit) == _judged(judge, *pair, mode, limit)


@pytest.mark.parametrize("part", ["he bought milk ", ",", "山"])
@pytest.mark.parametrize(
    ("mode", "turned"),
    [("longest_first", False), ("longest_first", True), ("only_second", False), ("only_first", True)],
)
def test_what_lies_far_beyond_the_limit_is_not_read(fresh, monkeypatch, mode, turned, part):
    read: list[str] = []
    spell = fresh._words.spell

    def spy(sentences):
        read.extend(sentences)
        return spell(sentences)

    monkeypatch.setattr(fresh._words, "spell", spy)
    pair = ("the man went to the store", part * 10_000)
    encoded = fresh.encode([pair[::-1] if turned else pair], truncation=mode, max_tokens=64)
    assert encoded.lengths.tolist() == [64]
    assert encoded.truncated == 1
    assert max(map(len, read)) <= 8 * (64 + 100 + 6)
    whole = fresh.begin([pair], max_tokens=64, whole=True).all()
    assert whole.cut.tolist() == [[0, len(spell([pair[1]])[0]) - int(whole.kept[0, 1])]]


def test_two_long_texts_are_read_whole_as_their_lengths_are_compared(fresh, monkeypatch):
    """The longer one gets the odd token."""
    ends = [("a " * 400, "b " * 500, "b"), ("a " * 500, "b " * 400, "a")]
    for first, second, longer in ends:
        kept = fresh.encode([(first, second)], max_tokens=20).kept[0].tolist()
        assert kept == ([8, 9] if longer == "b" else [9, 8])


def test_a_text_is_whole_beside_one_that_might_have_more_than_half_the_tokens():
    """A letter is at most one token; another character may decompose into several."""
    pairs = np.array([[0, 1]])
    assert _far_too_long(["a" * 8, "b " * 100], pairs, 17, 160) == {1}
    assert _far_too_long(["b " * 100, "a" * 8], pairs, 17, 160) == {0}
    assert _far_too_long(["b " * 80, "a" * 8], pairs, 17, 160) == set()
    assert _far_too_long(["a" * 9, "b " * 100], pairs, 17, 160) == set()
    assert _far_too_long(["각" * 2, "b " * 100], pairs, 17, 160) == {1}
    assert _far_too_long(["각" * 3, "b " * 100], pairs, 17, 160) == set()
    assert _far_too_long(["a", "b " * 100, "c" * 9], np.array([[0, 1], [1, 2]]), 17, 160) == set()


def test_reasons_count_the_tokens_of_whole_texts(fresh):
    for mode, reason in (
        ("error", r"^pairs\[1\]: 3006 tokens, more than 16, and"),
        ("only_first", r"it has 3 tokens, and 2990 must go$"),
    ):
        with pytest.raises(InputError, match=reason):
            fresh.encode([("a", "b"), ("a b c", "the " * 3000)], truncation=mode, max_tokens=16)


def test_a_lone_surrogate_is_named_however_far_it_stands(fresh):
    with pytest.raises(InputError, match=r"lone surrogate, '\\ud800', at character 4000"):
        fresh.encode([("a", "the " * 1000 + "\ud800")], max_tokens=16)


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


items = st.one_of(
    st.tuples(st.sampled_from("abcde"), st.sampled_from("abcde")),
    st.lists(st.sampled_from("abc"), min_size=2, max_size=2),
    st.sampled_from(
        [
            *[("a",), [], ("a", "b", "c"), None, "ab", b"ab", {"a", "b"}, ("a", None), (b"a", "b"), ["a", 1]],
            *[7, np.array(["a", "b"]), np.array(["a"]), np.array("ab"), (np.str_("a"), "b")],
        ]
    ),
)


def _numbered(pairs: Any) -> Any:
    try:
        sentences, numbered = number_pairs(pairs)
    except InputError as error:
        return error.index, str(error)
    return list(map(str, sentences)), numbered.tolist()


@settings(max_examples=300, deadline=None)
@given(pairs=st.lists(items, max_size=6))
def test_pairs_in_a_list_and_from_a_stream_are_numbered_alike(pairs):
    """A list of plain pairs is checked as a whole; anything else, like any stream, pair by pair."""
    assert not _plain(iter(pairs))
    assert _numbered(pairs) == _numbered(tuple(pairs)) == _numbered(iter(pairs))
    plain = all(type(pair) in (list, tuple) and list(map(type, pair)) == [str, str] for pair in pairs)
    assert _plain(pairs) == plain


def test_a_stream_is_read_once_and_no_further_than_its_first_bad_pair():
    def stream() -> Iterator[Any]:
        yield "a", "b"
        yield "c", None
        raise AssertionError("read on")

    with pytest.raises(InputError, match=r"pairs\[1\]: expected \(str, str\), got \(str, None\)"):
        number_pairs(stream())


def test_strings_of_another_class_are_strings(tokenizers):
    class Text(str):
        def split(self, *_: Any) -> list[str]:
            raise AssertionError("a text's own methods are not asked")

    rows = [(Text("a b"), np.str_("c")), ["c", Text("a b")]]
    assert not _plain(rows)
    encoded, plain = (tokenizers[0].encode(pairs) for pairs in (rows, [("a b", "c"), ["c", "a b"]]))
    assert encoded.ids.tolist() == plain.ids.tolist()
    assert encoded.pairs.tolist() == plain.pairs.tolist() == [[0, 1], [1, 0]]


@given(rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_distinct_pairs_keep_their_order(rows):
    rows = np.array(rows, dtype=np.int64).reshape(-1, 2)
    distinct, inverse = _distinct(rows, 5)
    assert list(map(tuple, distinct.tolist())) == list(dict.fromkeys(map(tuple, rows.tolist())))
    assert distinct[inverse].tolist() == rows.tolist()


def test_pairs_that_come_in_order_are_not_sorted(monkeypatch):
    monkeypatch.setattr(np, "unique", None)
    rows = np.array([[0, 1], [0, 2], [3, 1], [3, 2]])
    assert _distinct(rows, 4)[0] is rows
    with pytest.raises(TypeError):
        _distinct(rows[::-1], 4)


class Reader:
    """A tokenizer that notes what it is given to read."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.texts = tokenizer, []

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.texts += texts
        return self.tokenizer.encode_batch_fast(texts, **options)


def _reader(encoder: PairEncoder) -> Reader:
    encoder._words._tokenizer = Reader(encoder._words._tokenizer)
    return encoder._words._tokenizer


@pytest.fixture
def fresh(make_checkpoint) -> PairEncoder:
    return PairEncoder(make_checkpoint() / "tokenizer.json", 512)


def test_a_tokenizer_that_panics_for_want_of_threads_is_an_error_like_others(fresh, monkeypatch):
    class PanicException(BaseException):  # the package makes its own known to nobody
        pass

    def panic(*_: Any, **__: Any) -> Any:
        raise PanicException("no threads")

    with monkeypatch.context() as patched:
        patched.setattr(_reader(fresh), "encode_batch_fast", panic)
        with pytest.raises(SegueError, match=r"^the tokenizer failed: no threads$"):
            fresh.encode([("the man", "went")])
    assert len(fresh.encode([("the man", "went")]).pairs) == 1


def test_a_word_is_read_when_it_is_new_and_not_again(fresh):
    reader = _reader(fresh)
    fresh.encode([("the man", "went"), ("a  man", "the the")])
    (text,) = reader.texts
    assert sorted(text.split(" | ")) == ["", "a", "man", "the", "went"]
    first = fresh.encode([("went the", "man"), ("the", "a man")])
    assert reader.texts == [text]
    fresh.encode([("the store", "man")])
    assert reader.texts == [text, "store"]
    ids = [fresh._tokenizer.encode(text, add_special_tokens=False).ids for text in ("went the", "man")]
    assert first.ids.tolist()[: first.starts[2]] == ids[0] + ids[1]


def test_a_word_that_the_vocabulary_has_whole_needs_no_tokenizer(fresh):
    fresh.warm_up()
    reader = _reader(fresh)
    sides = "The man, the man. WENT! 4 i", "unman re-man man's man.. went? \u00e9 the\u00e9 ."
    encoded = fresh.encode([sides])
    (text,) = reader.texts
    assert sorted(text.split(" | ")) == ["man's", "man..", "re-man", "the\u00e9", "unman", "\u00e9"]
    ids = [fresh._tokenizer.encode(side, add_special_tokens=False).ids for side in sides]
    assert encoded.ids.tolist() == ids[0] + ids[1]


def test_a_word_that_is_too_long_for_the_tokenizer_is_unknown_though_the_vocabulary_has_it(
    tmp_path, make_checkpoint
):
    stored = json.loads((make_checkpoint() / "tokenizer.json").read_text())
    stored["model"]["max_input_chars_per_word"] = 3
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    encoder, judge = _both(tmp_path)
    encoder.warm_up()
    a, b = "the man went.", "store the"
    assert _ours(encoder, a, b, "longest_first", 512) == _judged(judge, a, b, "longest_first", 512)


def test_a_capital_in_the_vocabulary_is_not_found_where_text_is_lower_cased(tmp_path, make_checkpoint):
    stored = json.loads((make_checkpoint() / "tokenizer.json").read_text())
    vocabulary = stored["model"]["vocab"]
    vocabulary["The"] = len(vocabulary)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(stored))
    encoder = PairEncoder(path, 64)
    encoder.warm_up()
    assert encoder.encode([("The", "The.")]).ids.tolist() == [vocabulary[t] for t in ("the", "the", ".")]


def test_the_vocabulary_is_not_forgotten(fresh):
    fresh.warm_up()
    whole = fresh._words._whole
    assert fresh._words._known == whole
    fresh._words._room = 0
    fresh.encode([("the manman", "went")])
    assert fresh._words._known == whole
    assert fresh._words._known is not whole
    assert {*fresh._words._older} == {*whole, "manman"}


def test_the_vocabulary_is_read_once_enough_words_were_new(fresh):
    fresh.encode(
        [(" ".join(f"{i}th" for i in range(k, min(k + 500, 8180))), "the man") for k in range(0, 8180, 500)]
    )
    assert fresh._words._whole is None
    fresh.encode([("the store", " ".join(f"{i}x" for i in range(30)))])
    assert fresh._words._whole


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_vocabulary_s_words_are_spelt_as_the_tokenizer_spells_them(tokenizers, data):
    encoder, judge = tokenizers
    encoder.warm_up()
    known = st.sampled_from(sorted(judge.get_vocab()))
    word = st.one_of(known, known.map(str.upper), known.map(str.title), st.text(max_size=4))
    mark = st.sampled_from(["", ".", ",", "!?", "'s", "_", "|", "\u0301", "x", "7"])
    sides = [
        " ".join(a + b for a, b in data.draw(st.lists(st.tuples(word, mark), max_size=20))) for _ in range(2)
    ]
    expected = judge(list(dict.fromkeys(sides)), add_special_tokens=False)["input_ids"]
    for known in ({}, dict(encoder._words._whole)):  # every word is new, or room has run out
        encoder._words._known, encoder._words._older = known, {}
        encoded = encoder.encode([sides])
        assert encoded.ids.tolist() == [number for ids in expected for number in ids]


def test_words_with_a_bar_are_read_one_by_one(fresh):
    """The bar separates the words of a text, so one in a word would split it."""
    reader = _reader(fresh)
    encoded = fresh.encode([("the a|b | man", "|")])
    together, *alone = reader.texts
    assert together.count(" ") == 6
    assert sorted(alone) == ["a|b", "man", "the", "|"]
    bar, *_ = fresh._tokenizer.encode("|", add_special_tokens=False).ids
    assert (encoded.ids == bar).sum() == 3


def test_a_vocabulary_without_a_bar_is_read_word_by_word_too(tmp_path):
    """As one that was trained on prose, of whose long texts the beginning is enough as well."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc", "##b"]
    tokenizer = BertWordPieceTokenizer({token: i for i, token in enumerate(vocabulary)})
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = PairEncoder(tmp_path / "tokenizer.json", 16)
    for text in ("a ab c", "a|b | c", "a x [UNK] c", "| |", "x", ""):
        expected = encoder._tokenizer.encode(text, "b").ids
        encoded = encoder.encode([(text, "b")])
        assert pack(encoded, np.array([0])).input_ids.tolist() == expected
    reader = _reader(encoder)
    assert encoder.encode([("bc " * 100_000, "b")]).truncated == 1
    assert sum(map(len, reader.texts)) < 10_000


def test_more_words_and_sentences_than_go_at_once(tokenizers):
    """1,024 sentences are looked up, and 16,384 words read, at a time; some are forgotten in between."""
    encoder, judge = tokenizers
    sides = [" ".join(f"{40 * i + j}th" for j in range(40)) + " the man" for i in range(2200)]
    encoded = encoder.encode(zip(sides[::2], sides[1::2], strict=True))
    expected = judge(sides, add_special_tokens=False)["input_ids"]
    assert encoded.ids.tolist() == [number for ids in expected for number in ids]
    assert np.diff(encoded.starts).tolist() == list(map(len, expected))
    assert max(len(encoder._words._known), len(encoder._words._older)) < 1024 * 40 + 12_000


def test_what_is_remembered_is_bounded(fresh):
    words = fresh._words
    room = words._room
    fresh.encode([("the man", "went")])
    assert words._room == room - len("themanwent") - 3 * 16
    words._room = 30
    reader = _reader(fresh)
    before = fresh.encode([("the store", "man")])
    assert sorted(words._known) == ["man", "store", "the", "went"]
    fresh.encode([("the store", "running")])  # one word more than there is room for
    assert (words._known, len(words._older), words._room) == ({}, 5, room)
    after = fresh.encode([("the store", "man")])
    assert after.ids.tolist() == before.ids.tolist()
    assert sorted(words._known) == ["man", "store", "the"]
    assert reader.texts == ["store", "running"]  # what was known before comes back unread
    words._room = 0
    fresh.encode([("a", "man")])
    assert sorted(words._older) == ["a", "man", "store", "the"]  # and what was not asked for since is gone


def test_of_one_text_with_far_more_words_only_some_are_remembered(fresh, monkeypatch):
    monkeypatch.setattr(segue.words, "_REMEMBERED", 400)
    fresh._words._room = 400  # for 20 of them
    fresh.encode([(" ".join(f"{i}th" for i in range(10, 90)), "")])
    assert len(fresh._words._older) == 20
    fresh.encode([("x" * 1000, "")])
    assert "x" * 1000 not in fresh._words._older


def test_words_that_other_threads_learn_meanwhile_disturb_no_choice_of_what_is_kept():
    class Growing(dict[str, bytes]):
        def __getitem__(self, word: str) -> bytes:
            self[f"{word}'s"] = b""
            return super().__getitem__(word)

    known = Growing((f"{i}th", b"") for i in range(20))
    assert list(segue.words._newest(known)) == [f"{i}th" for i in reversed(range(20))]


def test_threads_share_what_is_remembered(fresh, make_checkpoint):
    """With room for few words, so that they are forgotten constantly."""
    texts = [f"the man {i} went {i * i} {i % 7}ing" for i in range(400)]
    groups = [[(text, "a") for text in texts[i::8]] * 2 for i in range(8)]
    judge = PairEncoder(make_checkpoint() / "tokenizer.json", 512)
    expected = [judge.encode(pairs).ids.tolist() for pairs in groups]
    fresh._words._room = 0

    def encode(group: int) -> list[list[int]]:
        found = []
        for _ in range(20):
            found.append(fresh.encode(groups[group]).ids.tolist())
            fresh._words._room = min(fresh._words._room, 200)
        return found

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(encode, range(8))) == [[ids] * 20 for ids in expected]
    finally:
        sys.setswitchinterval(interval)


def test_a_word_another_thread_learns_meanwhile_is_not_lost(fresh):
    """What was known when room ran out may still grow: a thread that began before adds to it."""

    class Growing(dict[str, bytes]):
        def __contains__(self, word: object) -> bool:
            there = super().__contains__(word)
            self[str(word)] = known[str(word)]
            return there

    expected = fresh.encode([("the man", "went")]).ids.tolist()
    known = dict(fresh._words._known)
    fresh._words._known, fresh._words._older = {}, Growing()
    assert fresh.encode([("the man", "went")]).ids.tolist() == expected


def test_a_bad_sentence_leaves_nothing_behind(fresh):
    expected = fresh.encode([("the man", "went")]).ids.tolist()
    for _ in range(2):
        with pytest.raises(InputError, match=r"pairs\[1\]: the first text has a lone surrogate"):
            fresh.encode([("the man", "went"), ("a \ud800", "b")])
    assert "\ud800" not in fresh._words._known
    assert fresh.encode([("the man", "went")]).ids.tolist() == expected


def _added(content: str, **flags: bool) -> Callable[[Any], None]:
    from tokenizers import AddedToken

    options = {"special": True, "normalized": False, **flags}
    return lambda tokenizer: tokenizer.add_special_tokens([AddedToken(content, **options)])


def test_a_tokenizer_that_reads_word_by_word_may_have_tokens_of_its_own(tmp_path, make_checkpoint):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(make_checkpoint() / "tokenizer.json"))
    _added("<|q|>")(tokenizer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder, judge = _both(tmp_path)
    assert encoder._words._bar is not None
    for a, b in (("<|q|> the man", "x<|q|>|"), ("<|q|>", "<|q|><|q|> <|Q|>")):
        assert _ours(encoder, a, b, "longest_first", 512) == _judged(judge, a, b, "longest_first", 512)


def test_a_tokenizer_may_have_no_added_tokens(tmp_path, make_checkpoint):
    source, path = make_checkpoint() / "tokenizer.json", tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(source.read_bytes()) | {"added_tokens": []}))
    usual, bare = (PairEncoder(file, 512).encode([("the man", "went home.")]).ids for file in (source, path))
    assert bare.tolist() == usual.tolist()


@pytest.mark.parametrize("content", ["an", "e.", "."])
def test_a_token_that_may_stand_within_a_word_is_found_there(tmp_path, make_checkpoint, content):
    """Though the vocabulary has the whole word."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(make_checkpoint() / "tokenizer.json"))
    _added(content)(tokenizer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder, judge = _both(tmp_path)
    encoder.warm_up()
    a, b = "the man went home.", "like the store."
    assert _ours(encoder, a, b, "longest_first", 512) == _judged(judge, a, b, "longest_first", 512)


def _of_a_sequence(tokenizer: Any) -> None:
    from tokenizers.normalizers import Lowercase, Replace, Sequence

    tokenizer.normalizer = Sequence([Replace("e m", "y"), Lowercase()])


def _of_punctuation(tokenizer: Any) -> None:
    from tokenizers.pre_tokenizers import Split

    tokenizer.pre_tokenizer = Split(".", "isolated")


@pytest.mark.parametrize(
    "change",
    [
        _added("the man"),
        _added("went", normalized=True),
        _added("went", lstrip=True),
        _added("went", rstrip=True),
        _added("went", single_word=True),
        _of_a_sequence,
        _of_punctuation,
    ],
    ids=["a space", "normalized", "lstrip", "rstrip", "single_word", "normalizer", "pre-tokenizer"],
)
def test_a_tokenizer_that_reads_across_spaces_is_given_whole_sentences(tmp_path, make_checkpoint, change):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(make_checkpoint() / "tokenizer.json"))
    change(tokenizer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder, judge = _both(tmp_path)
    assert encoder._words._bar is None
    reader = _reader(encoder)
    pairs = [("the man went home.", "the  man"), ("he went", "the man went home.")]
    for _ in range(2):
        encoded = encoder.encode(pairs)
    assert sorted(reader.texts) == ["he went", "the  man", "the man went home."]
    for row, (a, b) in enumerate(pairs):
        batch = pack(encoded, np.array([row]))
        assert batch.input_ids.tolist() == _judged(judge, a, b, "longest_first", 512)[0]


def test_each_distinct_sentence_is_kept_once(tokenizers):
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
        ("x" * 50, None, f"str '{'x' * 36}..."),
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
        ([("fine", "too"), ("a", ["b", "c"])], 1, "expected (str, str), got (str, list)"),
        ([("a", ["b"])], 0, "(str, list)"),
        ([np.array([["a", "b"], ["c", "d"]])], 0, "(ndarray, ndarray)"),
        ([("fine", "too"), ("ok", "broken \ud800 half")], 1, "second text has a lone surrogate"),
        ([("\udfff", "b")], 0, "first text has a lone surrogate"),
        ([("the", "\ud800"), ("\ud800", "a")], 0, "second text has a lone surrogate"),
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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(st.tuples(texts, texts), max_size=25), again=st.integers(0, 5), at_once=st.integers(1, 9)
)
def test_step_by_step_all_is_as_at_once(tokenizers, pairs, again, at_once):
    """What a step has stays as it is when the next comes, and a pair is there once both its sides are."""
    encoder, _ = tokenizers
    pairs = [*pairs, *pairs[again:], *(pair[::-1] for pair in pairs[:again])]
    options = {"truncation": "longest_first", "max_tokens": 20}
    whole, encoded = encoder.encode(pairs, **options), encoder.begin(pairs, **options, at_once=at_once)
    names = ("ids", "starts", "kept")
    assert len(encoded.ids) == len(encoded.kept) == 0
    steps = []
    while encoded.more():
        steps.append([getattr(encoded, name) for name in names])
        done = len(encoded.kept)
        assert encoded.pairs[:done].max(initial=0) < len(encoded.starts) - 1
        assert done == len(encoded.pairs) or encoded.pairs[done].max() >= len(encoded.starts) - 1
    for name, now in zip(names, zip(*steps, strict=True), strict=False):
        assert all(np.array_equal(some, getattr(whole, name)[: len(some)]) for some in now)
    for name in (*names, "pairs", "inverse", "lengths", "cut"):
        assert np.array_equal(getattr(encoded, name), getattr(whole, name))
    sides = len({side for pair in pairs for side in pair})
    assert len(steps) == -(-max(sides - at_once, 0) // (2 * at_once)) + (sides > 0)
    assert not encoded.more()


@pytest.mark.parametrize("bad", ["\ud800", "the " * 9])
def test_a_pair_that_is_bad_in_a_later_step_is_named(fresh, bad):
    pairs = [("the", "a"), ("the", "a"), ("man", "went"), ("store", "to"), ("a", bad)]
    encoded = fresh.begin(pairs, truncation="error", max_tokens=8, at_once=2)
    assert encoded.more()
    assert len(encoded.lengths) == 1
    with pytest.raises(InputError) as caught:
        encoded.all()
    assert caught.value.index == 4


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
