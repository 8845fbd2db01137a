"""What a pre-training step sees: items, epochs, batches, and a course that can be taken up anywhere."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler

from segue.errors import InputError
from segue.export.documents import iter_documents
from segue.export.masking import IGNORED, Masking
from segue.export.packing import pack_epoch
from segue.export.pretraining_data import Course, Instances, collate
from segue.export.token_store import write_tokens
from segue.export.vocabulary import train_vocabulary

CLS, SEP, MASK = 2, 3, 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 7))) for _ in range(300)]
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    texts = ["".join(f"{' '.join(draw.choices(words, k=7))}. X" for _ in range(20)) for _ in range(30)]
    file.write_text("\n\n".join(texts))
    return file


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return train_vocabulary(corpus, size=200)


@pytest.fixture(scope="module")
def store(corpus, tokenizer, tmp_path_factory):
    return write_tokens(iter_documents(corpus), tokenizer, tmp_path_factory.mktemp("store"))


@pytest.fixture
def instances(store, tokenizer):
    return Instances(store, tokenizer, max_tokens=64, seed=7)


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def restored(item) -> np.ndarray:
    return np.where(item["labels"] == IGNORED, item["input_ids"], item["labels"])


def test_an_item_is_its_packed_sides_with_special_tokens(instances, store):
    packed = pack_epoch(store, max_tokens=64, seed=7, epoch=3)
    instances.set_epoch(3)
    assert len(instances) == len(packed) > 100
    for item, (a, b, a_tokens, b_tokens, label) in zip(instances, packed.tolist(), strict=True):
        sides = store.ids[a : a + a_tokens], store.ids[b : b + b_tokens]
        assert restored(item).tolist() == [CLS, *sides[0], SEP, *sides[1], SEP]
        assert item["token_type_ids"].tolist() == [0] * (a_tokens + 2) + [1] * (b_tokens + 1)
        assert item["next_sentence_label"] == label
        assert 5 <= len(item["input_ids"]) <= 64
        assert {item[name].dtype for name in ("input_ids", "token_type_ids", "labels")} == {
            np.dtype(np.int32)
        }


def test_an_item_is_a_function_of_seed_epoch_and_number(instances, store, tokenizer):
    first = [instances[i] for i in range(10)]
    assert all(same(instances[i], first[i]) for i in (9, 3, 0))
    instances.set_epoch(1)
    assert not any(same(instances[i], first[i]) for i in range(10))
    instances.set_epoch(0)
    assert all(same(instances[i], first[i]) for i in range(10))
    other = Instances(store, tokenizer, max_tokens=64, seed=8)
    assert not any(same(other[i], first[i]) for i in range(10))
    again = pickle.loads(pickle.dumps(instances))
    assert all(same(again[i], first[i]) for i in range(10))
    assert same(instances[-1], instances[len(instances) - 1])
    with pytest.raises(IndexError):
        instances[len(instances)]


def test_masks_are_fresh_every_epoch(store, tokenizer):
    """Over the same packed instances too: what two epochs mask is as good as independent."""
    instances = Instances(store, tokenizer, max_tokens=64)
    packed, masked = instances.packed, []
    for epoch in range(2):
        instances.set_epoch(epoch)
        instances.packed = packed
        masked.append(np.concatenate([item["labels"] != IGNORED for item in instances]))
    both, share = np.sum(masked[0] & masked[1]), masked[0].mean() * masked[1].mean()
    count = masked[0].size
    assert abs(both - share * count) < 6 * np.sqrt(share * count)


def test_another_seed_masks_other_tokens_of_the_same_instances(instances, store, tokenizer):
    other = Instances(store, tokenizer, max_tokens=64, seed=8)
    other.packed = instances.packed
    assert not any(np.array_equal(other[i]["labels"], instances[i]["labels"]) for i in range(10))


def test_each_item_has_masks_of_its_own(instances):
    full = [item["labels"] != IGNORED for item in instances if len(item["labels"]) == 64]
    assert len(full) > 100
    assert len({tuple(np.flatnonzero(places)) for places in full}) > 0.95 * len(full)


def test_a_batch_is_padded_to_its_longest(instances):
    items = sorted((instances[i] for i in range(50)), key=lambda item: len(item["input_ids"]))[::7]
    batch = collate(items)
    longest = len(items[-1]["input_ids"])
    assert {name: tuple(values.shape) for name, values in batch.items()} == {
        **dict.fromkeys(["input_ids", "token_type_ids", "attention_mask", "labels"], (8, longest)),
        "next_sentence_label": (8,),
    }
    assert {values.dtype for values in batch.values()} == {torch.int64}
    for row, item in enumerate(items):
        size = len(item["input_ids"])
        for name in ("input_ids", "token_type_ids", "labels"):
            assert batch[name][row, :size].tolist() == item[name].tolist()
        assert batch["attention_mask"][row].tolist() == [1] * size + [0] * (longest - size)
        assert not batch["input_ids"][row, size:].any()
        assert torch.all(batch["labels"][row, size:] == IGNORED)


def test_both_losses_of_bert(instances, tokenizer):
    import transformers

    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        intermediate_size=16,
    )
    out = transformers.BertForPreTraining(config)(**collate([instances[i] for i in range(8)]))
    assert torch.isfinite(out.loss)
    assert 1 < out.loss < 10, "ln 200 and ln 2, about"


def test_a_course_is_epoch_after_epoch(store, tokenizer, instances):
    sizes = [len(pack_epoch(store, max_tokens=64, seed=7, epoch=epoch)) for epoch in range(3)]
    assert len(set(sizes)) > 1, "epochs differ in length"
    course = Course(Instances(store, tokenizer, max_tokens=64, seed=7), sum(sizes) - 2)
    assert len(course) == sum(sizes) - 2
    expected = []
    for epoch in range(3):
        instances.set_epoch(epoch)
        expected += list(instances)
    assert all(same(one, other) for one, other in zip(course, expected[:-2], strict=True))
    for place in (sizes[0] - 1, sizes[0], sizes[0] + sizes[1], len(course) - 1, 0):
        resumed = Course(Instances(store, tokenizer, max_tokens=64, seed=7), len(course))
        assert same(resumed[place], expected[place]), "taken up anywhere"
        assert same(course[place], expected[place]), "or gone back to"
    with pytest.raises(IndexError):
        course[len(course)]


def test_workers_see_what_one_process_sees(store, tokenizer):
    def batches(workers: int):
        course = Course(Instances(store, tokenizer, max_tokens=64), 600)
        order = SequentialSampler(course)
        return DataLoader(course, batch_size=16, sampler=order, collate_fn=collate, num_workers=workers)

    for one, other in zip(batches(0), batches(2), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_options_reach_their_places(store, tokenizer):
    masking = Masking(share=0.5, whole_words=True)
    instances = Instances(store, tokenizer, max_tokens=32, masking=masking)
    assert np.array_equal(instances.packed, pack_epoch(store, max_tokens=32))
    assert max(len(item["input_ids"]) for item in instances) == 32
    masked = np.concatenate([item["labels"] != IGNORED for item in instances]).mean()
    assert 0.4 < masked < 0.5


def test_refused(store, tokenizer, corpus):
    with pytest.raises(InputError, match="max_tokens"):
        Instances(store, tokenizer, max_tokens=4)
    with pytest.raises(InputError, match="different vocabulary"):
        Instances(store, train_vocabulary(corpus, size=100))
    with pytest.raises(InputError, match="count: expected 1 instance or more, got 0"):
        Course(Instances(store, tokenizer), 0)
