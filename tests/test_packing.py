"""BERT's packing recipe, counted on documents whose tokens are their own places."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from segue.errors import InputError
from segue.export.instances import IS_NEXT, NOT_NEXT
from segue.export.packing import pack_epoch


def make_store(*documents: list[int]) -> SimpleNamespace:
    """A store of documents given by the lengths of their sentences; token number t has the id t."""
    lengths = np.concatenate([np.array(document) for document in documents])
    sentences = np.concatenate([[0], np.cumsum(lengths)])
    bounds = np.concatenate([[0], np.cumsum([len(document) for document in documents])])
    ids = np.arange(sentences[-1], dtype=np.int32)
    return SimpleNamespace(ids=ids, sentences=sentences.astype(np.int64), documents=bounds.astype(np.int64))


def make_mixed(documents: int = 40) -> SimpleNamespace:
    draw = np.random.default_rng(0)
    return make_store(*(draw.integers(1, 40, draw.integers(1, 60)).tolist() for _ in range(documents)))


def document_of(store, tokens):
    sentence = np.searchsorted(store.sentences, tokens, side="right") - 1
    return np.searchsorted(store.documents, sentence, side="right") - 1


def epochs(store, count: int, **options):
    return np.concatenate([pack_epoch(store, epoch=epoch, **options) for epoch in range(count)])


@cache
def expected(sentences: int, chunk: int) -> tuple[float, float]:
    """(instances, IsNext among them) that a document of so many equal sentences is expected to give, `chunk`
    of them reaching the target: by the recipe, over all ways the coin and the split can fall."""
    if not sentences:
        return 0.0, 0.0
    if min(chunk, sentences) == 1:
        instances, follow = expected(sentences - 1, chunk)
        return instances + 1, follow
    size = min(chunk, sentences)
    after = expected(sentences - size, chunk)
    again = [expected(sentences - split, chunk) for split in range(1, size)]
    instances, follow = (np.array(after) + np.mean(again, axis=0)) / 2
    return float(instances + 1), float(follow + 0.5)


@pytest.mark.parametrize(
    ("length", "short"), [(7, 0.0), (7, 0.1), (7, 1.0), (20, 0.5), (50, 0.0), (60, 0.1), (200, 0.1)]
)
def test_the_share_of_is_next_is_the_recipes(length, short):
    """Documents of 23 sentences of `length` tokens, 61 tokens to fill. Summed over documents, IsNext minus
    share times instances has mean 0, and 0 is within 4.5 of its standard errors."""
    sentences, room, rounds = 23, 61, 12
    store = make_store(*[[length] * sentences] * 150)
    full = np.array(expected(sentences, -(-room // length)))
    shorter = np.mean([expected(sentences, -(-t // length)) for t in range(2, room + 1)], axis=0)
    instances, follow = (1 - short) * full + short * shorter
    share = follow / instances
    excess = []
    for epoch in range(rounds):
        made = pack_epoch(store, max_tokens=room + 3, short=short, epoch=epoch)
        owner = document_of(store, made["a"])
        count = np.bincount(owner, minlength=150)
        excess += [*(np.bincount(owner, made["label"] == IS_NEXT, minlength=150) - share * count)]
    if share == 0:
        assert not np.any(excess), "a sentence that fills the target is always followed by another document's"
        return
    assert abs(sum(excess)) <= 4.5 * np.sqrt(np.sum(np.square(excess)))
    assert share <= 0.5


def test_the_expectation_itself():
    """Two sentences in one chunk: half the time both are used; else one remains, which is a chunk of one."""
    assert expected(2, 2) == (1.5, 0.5)
    assert expected(3, 1) == (3.0, 0.0)


def test_a_chunk_is_split_anywhere_alike():
    """Of 21 sentences of a token each, A gets 1 to 20, whether the others become B or are put back."""
    store = make_store(*[[1] * 400] * 100)
    made = epochs(store, 5, max_tokens=24, short=0.0)
    left = 400 - made["a"] % 400
    for label in (IS_NEXT, NOT_NEXT):
        split = made["a_tokens"][(made["label"] == label) & (left >= 21)]
        counts, mean = np.bincount(split, minlength=21)[1:], len(split) / 20
        assert len(counts) == 20
        assert mean > 100
        assert np.all(np.abs(counts - mean) < 4.5 * np.sqrt(mean))


def test_a_false_b_is_from_a_different_document_and_a_true_one_follows():
    store = make_mixed()
    made = epochs(store, 50, max_tokens=64)
    a_end = made["a"] + made["a_tokens"]
    owner, other = document_of(store, made["a"]), document_of(store, made["b"])
    true = made["label"] == IS_NEXT
    assert len(made) > 20_000
    assert set(made["label"]) == {IS_NEXT, NOT_NEXT} == {0, 1}
    assert np.all((owner == other) == true)
    assert np.all(made["b"][true] >= a_end[true])
    whole = made["a_tokens"] + made["b_tokens"] < 61
    assert np.all((made["b"] == a_end)[true & whole]), "untruncated, it begins where A ends"
    b_end = made["b"] + made["b_tokens"]
    for edge in (made["a"], a_end, made["b"], b_end):
        assert np.all(np.isin(edge[whole], store.sentences)), "and sides are whole sentences"
    for first, tokens in (("a", "a_tokens"), ("b", "b_tokens")):
        last = made[first] + made[tokens] - 1
        assert np.array_equal(document_of(store, made[first]), document_of(store, last)), "a side is of one"


@pytest.mark.parametrize(("sizes", "rounds"), [((1, 1), 3000), ((1, 40), 200), ((3, 2), 500)])
def test_two_documents_are_enough(sizes, rounds):
    """Ten draws of a document at random would miss the other one once in a thousand times."""
    store = make_store(*([5] * size for size in sizes))
    made = epochs(store, rounds, max_tokens=13)
    false = made[made["label"] == NOT_NEXT]
    assert len(false) >= 2 * rounds
    assert np.all(document_of(store, false["a"]) != document_of(store, false["b"]))


def test_a_false_b_begins_at_any_sentence_of_the_others_alike():
    """The others have sentences of a token each, so that none is cut off at its front."""
    store = make_store([5] * 300, [1] * 3, [1], [1] * 6)
    made = epochs(store, 300, max_tokens=64, short=0.0)
    false = made[(made["label"] == NOT_NEXT) & (document_of(store, made["a"]) == 0)]
    counts = np.bincount(np.searchsorted(store.sentences, false["b"]), minlength=310)
    assert not counts[:300].any()
    mean = counts[300:].mean()
    assert mean > 300
    assert np.all(np.abs(counts[300:] - mean) < 4.5 * np.sqrt(mean))


def test_a_false_b_goes_on_to_the_target_or_its_documents_end():
    store = make_store([1] * 40, [1] * 50)
    made = epochs(store, 200, max_tokens=33, short=0.0)
    false = made[made["label"] == NOT_NEXT]
    a_document, b_document = document_of(store, false["a"]), document_of(store, false["b"])
    a_left = store.sentences[store.documents[a_document + 1]] - false["a"]
    b_left = store.sentences[store.documents[b_document + 1]] - false["b"]
    assert np.array_equal(false["b_tokens"], np.minimum(30 - false["a_tokens"], b_left))
    assert np.all(false["a_tokens"] <= np.maximum(np.minimum(30, a_left) - 1, 1)), "A leaves one, if it can"


def test_with_sentences_of_one_token_each_is_used_exactly_once():
    """They fill any target exactly, so nothing is cut; what a false B displaced was put back."""
    store = make_store([1] * 500, [1] * 3, [1], [1] * 77)
    for epoch in range(50):
        made = pack_epoch(store, max_tokens=23, epoch=epoch)
        used = [np.arange(i["a"], i["a"] + i["a_tokens"]) for i in made]
        used += [np.arange(i["b"], i["b"] + i["b_tokens"]) for i in made if i["label"] == IS_NEXT]
        assert np.array_equal(np.sort(np.concatenate(used)), store.ids)


def test_nothing_is_lost_but_by_truncation():
    """As and true Bs lie end to end; gaps are only beside a side of an instance that is full, so cut."""
    store, room = make_mixed(), 61
    gaps = 0
    for epoch in range(20):
        made = pack_epoch(store, max_tokens=room + 3, epoch=epoch)
        full = made["a_tokens"] + made["b_tokens"] == room
        true = made["label"] == IS_NEXT
        start = np.concatenate([[0], made["a"], made["b"][true], store.ids[-1:] + 1])
        tokens = np.concatenate([[0], made["a_tokens"], made["b_tokens"][true], [0]])
        cut = np.concatenate([[False], full, full[true], [False]])
        order = np.argsort(start, kind="stable")
        gap = start[order][1:] - (start + tokens)[order][:-1]
        assert np.all(gap >= 0), "no token is used twice"
        assert np.all((cut[order][1:] | cut[order][:-1])[gap > 0])
        gaps += np.sum(gap > 0)
    assert gaps > 1000


def test_truncation_takes_from_the_longer_side_one_at_a_time():
    """Two sentences a document, every pair of lengths: what is left is what taking one by one leaves."""
    sizes = [1, 2, 9, 10, 11, 12, 20, 57]
    for room in (20, 21):
        store = make_store(*([a, b] for a in sizes for b in sizes))
        made = epochs(store, 40, max_tokens=room + 3, short=0.0)
        true = made[made["label"] == IS_NEXT]
        seen = set()
        for row in true:
            first = store.documents[document_of(store, row["a"])]
            a, b = np.diff(store.sentences[first : first + 3]).tolist()
            seen.add((a, b))
            while a + b > room:
                if a > b:
                    a -= 1
                else:
                    b -= 1
            assert (row["a_tokens"], row["b_tokens"]) == (a, b)
        # a chunk of two needs a first sentence that does not fill the target
        assert seen == {(a, b) for a in sizes for b in sizes if a < room}


def test_truncation_takes_from_front_or_back_by_a_coin():
    """Of 41 tokens A keeps 21 of 40, B 20 of 90: of 19 and 70 lost, those at the front are binomial."""
    store = make_store(*[[40, 90]] * 200)
    made = epochs(store, 40, max_tokens=44, short=0.0)
    true = made[made["label"] == IS_NEXT]
    first = store.sentences[store.documents[document_of(store, true["a"])]]
    for front, lost in ((true["a"] - first, 19), (true["b"] - first - 40, 70)):
        count, mean, variance = len(front), lost / 2, lost / 4
        assert count > 3000
        assert abs(front.mean() - mean) < 4.5 * np.sqrt(variance / count)
        assert abs(front.var() - variance) < 4.5 * variance * np.sqrt(2 / count)


def test_a_tenth_of_the_documents_has_a_short_target():
    """Sentences are of a token each: instances of a document with the target t have at most t, some have t,
    and t is uniform from 2 to the full 61."""
    store = make_store(*[[1] * 300] * 400)
    targets = []
    for epoch in range(10):
        made = pack_epoch(store, max_tokens=64, epoch=epoch)
        filled = np.zeros(400, dtype=int)
        np.maximum.at(filled, document_of(store, made["a"]), made["a_tokens"] + made["b_tokens"])
        targets += filled.tolist()
    targets = np.array(targets)
    assert targets.min() >= 2
    assert targets.max() == 61
    share = 0.1 * 59 / 60  # of the random targets one in 60 is the full one
    assert abs(np.mean(targets < 61) - share) < 4.5 * np.sqrt(share * (1 - share) / len(targets))
    short = targets[targets < 61]
    counts = np.histogram(short, bins=np.arange(2, 62, 59 / 5))[0]  # five classes of about a fifth each
    assert np.all(np.abs(counts - len(short) / 5) < 4.5 * np.sqrt(len(short) / 5) + len(short) / 59)


def test_one_sentence_documents_are_used_but_never_followed():
    store = make_store([5], [6], [7, 8], [9])
    made = epochs(store, 200, max_tokens=64)
    owner = document_of(store, made["a"])
    assert np.all(made["label"][owner != 2] == NOT_NEXT)
    assert np.all(np.bincount(owner)[[0, 1, 3]] == 200)


def test_an_epoch_is_a_function_of_its_seed_and_number():
    store = make_mixed()
    one = pack_epoch(store, seed=3, epoch=2)
    assert np.array_equal(one, pack_epoch(store, seed=3, epoch=2))
    others = [pack_epoch(store, seed=3, epoch=1), pack_epoch(store, seed=2, epoch=2), pack_epoch(store)]
    assert len({other.tobytes() for other in others} | {one.tobytes()}) == 4


def test_shuffled_as_a_whole():
    store = make_mixed(2000)
    whole = pack_epoch(store)
    assert np.sum(np.diff(document_of(store, whole["a"])) != 0) > 0.9 * len(whole)


def test_an_instance_fits_and_has_two_sides():
    store = make_mixed()
    for max_tokens in (5, 6, 17, 512):
        made = epochs(store, 3, max_tokens=max_tokens)
        assert made["a_tokens"].min() >= 1
        assert made["b_tokens"].min() >= 1
        assert (made["a_tokens"] + made["b_tokens"]).max() <= max_tokens - 3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_tokens": 4}, "max_tokens: expected 5 or more"),
        ({"short": 1.5}, "short: expected a probability"),
        ({"seed": -1}, "seed"),
        ({"epoch": -1}, "epoch"),
    ],
)
def test_refused(options, reason):
    with pytest.raises(InputError, match=reason):
        pack_epoch(make_mixed(), **options)
