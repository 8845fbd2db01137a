"""Masks: how many tokens, which ones, what they become."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import BertWordPieceTokenizer, Tokenizer
from tokenizers.models import WordPiece

from segue.errors import InputError
from segue.export.masking import IGNORED, Masking, Words, mask_tokens

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
UNUSED = ["[unused0]", "[unused1]"]
WORDS = [f"w{i}" for i in range(60)]
PIECES = [f"##p{i}" for i in range(30)]
VOCABULARY = [*UNUSED, *SPECIAL, *WORDS, *PIECES]  # BERT's has [unused0] among the first, too
PAD, UNK, CLS, SEP, MASK = range(2, 7)
FIRST, PIECE, END = 7, 67, 97


@pytest.fixture(scope="module")
def words() -> Words:
    return Words(BertWordPieceTokenizer({token: i for i, token in enumerate(VOCABULARY)}))


def instance(draw: np.random.Generator, a: int, b: int, pieces: bool = False) -> np.ndarray:
    sides = [draw.integers(FIRST, END if pieces else PIECE, size=n) for n in (a, b)]
    return np.array([CLS, *sides[0], SEP, *sides[1], SEP], dtype=np.int32)


def near(found: int, share: float, count: int) -> bool:
    """Whether so many of `count` are within 4.5 standard errors of the share."""
    return abs(found - share * count) <= 4.5 * np.sqrt(share * (1 - share) * count)


def test_what_is_known_of_a_vocabulary(words):
    assert words.mask == MASK
    assert np.flatnonzero(~words.ordinary).tolist() == [PAD, UNK, CLS, SEP, MASK]
    assert np.flatnonzero(words.continues).tolist() == list(range(PIECE, END))
    assert words.replacements.tolist() == list(range(FIRST, END)), "no special token, no row kept free"


@pytest.mark.parametrize("whole_words", [False, True])
def test_shares(words, whole_words):
    """15 % of the tokens; of these 80 % [MASK], 10 % a random word, 10 % as they were."""
    draw = np.random.default_rng(0)
    masking = Masking(whole_words=whole_words)
    chosen = hidden = kept = tokens = 0
    random = []
    for _ in range(2000):
        ids = instance(draw, 60, 65)
        seen, labels = mask_tokens(ids, words, masking, draw)
        at = labels != IGNORED
        assert np.array_equal(labels[at], ids[at]), "a label is what stood there"
        assert np.array_equal(seen[~at], ids[~at]), "nothing else changes"
        assert not at[[0, 61, 127]].any()
        assert at.sum() == 19 == round(128 * 0.15)
        chosen, tokens = chosen + at.sum(), tokens + len(ids)
        hidden += np.sum(seen[at] == MASK)
        kept += np.sum(seen[at] == ids[at])
        random += seen[at & (seen != MASK) & (seen != ids)].tolist()
    assert abs(chosen / tokens - 0.15) < 0.002
    assert near(hidden, 0.8, chosen)
    same = 0.1 / (END - FIRST)  # a random word may be the one that stood there
    assert near(kept, 0.1 + same, chosen)
    assert near(len(random), 0.1 - same, chosen)
    counts = np.bincount(random, minlength=END)
    assert not counts[:FIRST].any(), "never a special token"
    assert np.all(np.abs(counts[FIRST:] - len(random) / (END - FIRST)) < 4.5 * np.sqrt(len(random) / 90) + 1)


@pytest.mark.parametrize("whole_words", [False, True])
def test_every_place_alike(words, whole_words):
    draw = np.random.default_rng(1)
    ids, counts = instance(draw, 20, 17), np.zeros(40)
    for _ in range(4000):
        counts += mask_tokens(ids, words, Masking(whole_words=whole_words), draw)[1] != IGNORED
    ordinary = words.ordinary[ids]
    assert not counts[~ordinary].any()
    assert all(near(count, 6 / 37, 4000) for count in counts[ordinary])


@pytest.mark.parametrize(
    ("tokens", "masking", "expected"),
    [
        (1, Masking(), 1),  # at least one
        (14, Masking(), 3),  # 17 with the special ones: 2.55
        (7, Masking(), 2),  # 1.5, and Python rounds to even, as BERT's code does
        (509, Masking(), 77),
        (20, Masking(share=1.0), 20),  # no more than there are
        (20, Masking(share=0.5), 12),
    ],
)
def test_how_many(words, tokens, masking, expected):
    draw = np.random.default_rng(2)
    ids = np.array([CLS, *instance(draw, tokens, 0)[1:-2], SEP, SEP])
    assert np.sum(mask_tokens(ids, words, masking, draw)[1] != IGNORED) == expected


def test_special_tokens_are_none_whether_they_were_added_or_are_berts():
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[Q]", "man"]
    tokenizer = Tokenizer(WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["[Q]"])
    assert Words(tokenizer).ordinary.tolist() == [False] * 6 + [True]


def test_special_tokens_alone_give_no_mask(words):
    ids = np.array([CLS, UNK, SEP, UNK, UNK, SEP])
    for whole_words in (False, True):
        seen, labels = mask_tokens(ids, words, Masking(0.9, whole_words=whole_words), np.random.default_rng())
        assert np.array_equal(seen, ids)
        assert np.all(labels == IGNORED)


def _words_of(ids: np.ndarray) -> list[list[int]]:
    """Places of each word, one token after the other."""
    found: list[list[int]] = []
    for place, token in enumerate(ids):
        if token >= FIRST:
            follows = token >= PIECE and place > 0 and ids[place - 1] >= FIRST
            found[-1].append(place) if follows else found.append([place])
    return found


def test_whole_words(words):
    """Pieces go with their word, and words do not reach over a [SEP], even if a side begins with a piece."""
    draw = np.random.default_rng(3)
    total = room = over = 0
    for _ in range(1500):
        ids = instance(draw, 40, 40, pieces=True)
        ids[41 + 1] = PIECE
        ids[draw.integers(50, 80)] = UNK
        labels = mask_tokens(ids, words, Masking(whole_words=True), draw)[1]
        at = labels != IGNORED
        for word in _words_of(ids):
            assert at[word].all() or not at[word].any()
        assert 0 < at.sum() <= round(83 * 0.15)
        total, room = total + at.sum(), room + 12
        over += at[42] and not at[40]
    assert total > 0.97 * room, "hardly anything is left unfilled"
    assert over > 0


def test_a_word_longer_than_the_share_is_masked_all_the_same(words):
    ids = np.array([CLS, FIRST, PIECE, PIECE, SEP, FIRST, PIECE, SEP])
    for seed in range(20):
        labels = mask_tokens(ids, words, Masking(whole_words=True), np.random.default_rng(seed))[1]
        assert np.flatnonzero(labels != IGNORED).tolist() in ([1, 2, 3], [5, 6])


def test_a_function_of_its_random_numbers_and_no_change_of_input(words):
    ids = instance(np.random.default_rng(4), 50, 50)
    before = ids.copy()
    one, same, other = (mask_tokens(ids, words, Masking(), np.random.default_rng(s)) for s in (5, 5, 6))
    assert np.array_equal(ids, before)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one[0].dtype == one[1].dtype == np.int32


def test_refused():
    for share in (0.0, 1.1):
        with pytest.raises(InputError, match=r"masking\.share"):
            Masking(share)
    no_mask = {token: i for i, token in enumerate(VOCABULARY) if token != "[MASK]"}
    with pytest.raises(InputError, match=r"no \[MASK\]"):
        Words(BertWordPieceTokenizer(no_mask, mask_token="[SEP]"))
    with pytest.raises(InputError, match="no word but"):
        Words(BertWordPieceTokenizer({token: i for i, token in enumerate(SPECIAL)}))
