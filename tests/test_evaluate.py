"""`segue evaluate`: pairs that are what they are called, figures anyone can recompute, and clear refusals."""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers

from segue import Engine
from segue.cli import main
from segue.errors import BundleError, ExecutorUnavailable, InputError
from segue.export import checkpoint_scores, export_checkpoint
from segue.export.corpus import Document
from segue.export.documents import iter_documents
from segue.export.evaluate import _MODEL, _OPTIONS, add_arguments, evaluate
from segue.export.evaluation import KINDS, PairSet, distance, drawn_set, measured, packed_set
from segue.export.instances import Recipe, Source, draw_pairs
from segue.export.masking import IGNORED
from segue.export.measures import auc
from segue.export.packing import pack_epoch
from segue.export.pretrain import pretrain
from segue.export.pretraining_data import Instances
from segue.export.sentences import SENTENCES
from segue.export.token_store import write_tokens
from segue.export.tokenizer import read_tokenizer
from segue.export.words_head import has_words_head

SMALL = {"layers": 1, "hidden_size": 16}
FEW = {"pairs": 40, "threads": 1, "max_tokens": 24}
TOPICS = [["amber", "brook", "cedar", "delta"], ["ember", "fjord", "grove", "heath"],
          ["inlet", "jetty", "knoll", "ledge"], ["marsh", "north", "ocean", "ridge"]]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory) -> Iterator[None]:
    """Checkpoints are exported into a folder of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGUE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    texts = [" ".join(draw.sample(SENTENCES, 12) + draw.sample(SENTENCES, 12)) for _ in range(4)]
    file.write_text("\n\n".join(texts), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def bundle(make_bundle) -> Path:
    return make_bundle(**SMALL)


@pytest.fixture(scope="module")
def both_heads(make_checkpoint) -> Path:
    return make_checkpoint(architecture="BertForPreTraining", **SMALL)


def numbered(*sizes: int) -> list[Document]:
    """Documents with sentences such as "2:17." : document, number."""
    return [Document(str(d), tuple(f"{d}:{i}." for i in range(size))) for d, size in enumerate(sizes)]


def places(side: str) -> list[tuple[int, int]]:
    """(document, number) of each sentence of a side."""
    return [tuple(map(int, word.rstrip(".").split(":"))) for word in side.split()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [400, 7])
def test_a_kind_is_what_it_is_called(kind, count):
    found = drawn_set(numbered(40, 30, 16, 5, 1), kind, pairs=count, sides=3, seed=2)
    assert (found.name, len(found.pairs)) == (kind, count)
    assert found.truth.sum() == (count + 1) // 2
    assert found.documents == (3 if "adjacent" in kind else 4)
    for pair, follows in zip(found.pairs, found.truth, strict=True):
        a, b = places(pair.a), places(pair.b)
        (document, last), (other, first) = a[-1], b[0]
        assert follows == ((other, first) == (document, last + 1)), pair
        if not follows and kind == "other document":
            assert document != other
        elif not follows and kind == "swapped":
            assert b[-1] == (a[0][0], a[0][1] - 1), "side B ends where side A begins"
        elif not follows:
            assert document == other
            assert first - last > 3 or a[0][1] - b[-1][1] > 3
    if count > 100:
        assert {len(places(pair.a)) for pair in found.pairs} == {1, 2, 3}
        negatives = [places(p.a)[0] for p, next_ in zip(found.pairs, found.truth, strict=True) if not next_]
        positives = [places(p.a)[0] for p, next_ in zip(found.pairs, found.truth, strict=True) if next_]
        assert {document for document, _ in negatives} == {document for document, _ in positives}
        assert len(set(negatives)) > 20, "from all over the documents"


@pytest.mark.parametrize("sides", [1, 2, 3])
def test_documents_for_pairs_that_are_not_adjacent_are_just_long_enough(sides):
    def kinds(size: int) -> set[str]:
        recipe = Recipe(positives=0.0, same_document=1.0, sides=(1,) * sides)
        stream = draw_pairs([Source("a", tuple(numbered(size, size)))], recipe)
        return {next(stream).kind for _ in range(3000)}

    kind, least = "same document, not adjacent", 3 * sides + 7
    assert kinds(least) == {"not adjacent"}
    assert kinds(least - 1) == {"not adjacent", "other document"}
    assert isinstance(drawn_set(numbered(least, least), kind, pairs=9, sides=sides), PairSet)
    why = drawn_set(numbered(least, least - 1), kind, pairs=9, sides=sides)
    assert why == f"it takes two documents of {least} sentences or more, and there are 1"


@pytest.mark.parametrize(
    ("kind", "size", "expected"),
    [
        ("same document, not adjacent", 16, 0.63),
        ("same document, not adjacent", 40, 0.51),
        ("other document", 16, 0.5),
    ],
)
def test_how_far_the_place_of_side_b_tells_the_label(kind, size, expected):
    """As `drawn_set` says."""
    found = drawn_set(numbered(*[size] * 6), kind, pairs=20_000, sides=3)
    middles = [(places(pair.b)[0][1] + places(pair.b)[-1][1]) / 2 for pair in found.pairs]
    assert auc(-np.abs(np.array(middles) - (size - 1) / 2), found.truth) == pytest.approx(expected, abs=0.015)


def test_the_seed_is_everything_and_kinds_share_no_draws():
    documents = numbered(40, 30)
    sets = {kind: drawn_set(documents, kind, pairs=60, sides=2, seed=5) for kind in KINDS}
    assert sets == {kind: drawn_set(documents, kind, pairs=60, sides=2, seed=5) for kind in KINDS}
    assert sets["swapped"] != drawn_set(documents, "swapped", pairs=60, sides=2, seed=6)
    positives = [tuple((p.a, p.b) for p in one.pairs[:30]) for one in sets.values()]
    assert len(set(positives)) == 3


def test_packed_pairs_are_berts_instances_read_back(corpus, both_heads, tmp_path):
    tokenizer = read_tokenizer(both_heads, 10**6)
    texts = ["I do not know. It's “[SEP]” unfriendly, zz! " * 5, "Café 山 owners. Seven; the mill. " * 5]
    odd = [Document(str(i), tuple(text.split(". "))) for i, text in enumerate(texts)]
    store = write_tokens([*iter_documents(corpus), *odd], tokenizer, tmp_path)
    found = packed_set(store, tokenizer, pairs=10**6, max_tokens=24, seed=3)
    instances = pack_epoch(store, max_tokens=24, seed=3)
    assert (len(found.pairs), found.documents) == (len(instances), 6)
    assert found.truth.tolist() == (instances["label"] == 0).tolist()
    assert found.pairs[:5] == packed_set(store, tokenizer, pairs=5, max_tokens=24, seed=3).pairs
    whole = cut = 0
    for pair, (a, b, a_tokens, b_tokens, _) in zip(found.pairs, instances.tolist(), strict=True):
        for text, start, tokens in ((pair.a, a, a_tokens), (pair.b, b, b_tokens)):
            ids = store.ids[start : start + tokens].tolist()
            if tokenizer.id_to_token(ids[0]).startswith("##"):
                cut += 1
                assert not text.startswith("##")
                ids = ids[next((i for i, n in enumerate(ids) if not _continues(tokenizer, n)), len(ids)) :]
                assert tokenizer.encode(text, add_special_tokens=False).ids[-len(ids) or 10**6 :] == ids
            else:
                whole += 1
                assert tokenizer.encode(text, add_special_tokens=False).ids == ids
    assert whole > 50
    assert cut > 5, "words that the packing cut occur"


def _continues(tokenizer, number: int) -> bool:
    return tokenizer.id_to_token(number).startswith("##")


def test_packed_pairs_keep_marks_apart_where_the_tokenizer_does_not_part_them(both_heads, tmp_path):
    tokenizer = read_tokenizer(both_heads, 10**6)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    documents = [Document(str(i), ("the man , the store .", "he bought milk !") * 9) for i in range(2)]
    store = write_tokens(documents, tokenizer, tmp_path)
    found = packed_set(store, tokenizer, pairs=9, max_tokens=24)
    unknown = tokenizer.token_to_id("[UNK]")
    for pair in found.pairs:
        ids = tokenizer.encode(pair.a, pair.b).ids
        assert unknown not in ids
        assert len(ids) <= 24


def test_measures_by_hand():
    found = measured(
        np.array([0.9, 0.8, 0.3, 0.6, 0.1]),
        np.array([True, True, True, False, False]),
        np.array([True, False, False, False, True]),
    )
    assert {name: found[name] for name in ("pairs", "is_next", "truncated")} == {
        "pairs": 5, "is_next": 3, "truncated": 2,
    }  # fmt: skip
    assert found["accuracy"] == 0.6
    assert found["auc"] == round(5 / 6, 6)  # 0.3 lies below 0.6
    assert found["calibration_error"] == pytest.approx((0.1 + 0.2 + 0.7 + 0.6 + 0.1) / 5)
    assert [one["pairs"] for one in found["bins"]] == [1] * 5
    assert found["bins"][1] == {"pairs": 1, "probability": 0.3, "is_next": 1.0}
    assert measured(np.array([0.4]), np.array([True]), np.array([False]))["auc"] is None
    with pytest.raises(InputError, match="none to measure"):
        measured(np.empty(0), np.empty(0, bool), np.empty(0, bool))


def test_distances_by_hand():
    found = distance(np.array([0.49, 0.2, 0.9, 0.5]), np.array([0.51, 0.1, 0.95, 0.5]))
    assert found == {"pairs": 4, "decisions_differ": 1, "largest_difference": pytest.approx(0.1)}
    assert distance(np.empty(0), np.empty(0))["largest_difference"] == 0.0


def test_a_model_that_always_says_the_same(corpus, make_checkpoint, tmp_path):
    """Its classifier is nothing but a bias: P(IsNext) is the softmax of that, whatever the pair."""
    folder = shutil.copytree(make_checkpoint(**SMALL), tmp_path / "checkpoint")
    weights = load_file(folder / "model.safetensors")
    weights["cls.seq_relationship.weight"].zero_()
    weights["cls.seq_relationship.bias"] = torch.tensor([2.0, 0.0])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    metrics = evaluate(corpus, model=folder, **FEW | {"pairs": 30})
    always = 1 / (1 + np.exp(-2.0))
    assert list(metrics["next_sentence"]) == [*KINDS, "all", "packed"]
    for name, found in metrics["next_sentence"].items():
        share = found["is_next"] / found["pairs"]
        assert share == 0.5 or name == "packed"
        assert found["accuracy"] == round(share, 6)
        assert found["auc"] == 0.5
        assert found["calibration_error"] == pytest.approx(abs(always - share), abs=1e-5)
        (one,) = found["bins"]
        assert one["pairs"] == found["pairs"]
        assert one["probability"] == pytest.approx(always, abs=1e-5)
    assert metrics["masked_words"] is None
    assert metrics["reference"] is None


def test_every_figure_is_that_of_its_own_pairs(corpus, bundle):
    metrics = evaluate(corpus, model=bundle, seed=4, sides=2, **FEW)
    documents = list(iter_documents(corpus))
    with Engine.load(bundle, device="cpu", threads=1) as engine:
        for kind in KINDS:
            pairs = drawn_set(documents, kind, pairs=40, sides=2, seed=4).pairs
            scores = engine.score([(pair.a, pair.b) for pair in pairs])
            right = sum((score > 0.5) == (pair.label == 0) for score, pair in zip(scores, pairs, strict=True))
            found = metrics["next_sentence"][kind]
            assert found["accuracy"] == right / 40
            assert sum(one["pairs"] * one["probability"] for one in found["bins"]) == pytest.approx(
                float(scores.sum()), abs=1e-3
            )
    assert metrics["documents"] == 4
    assert metrics["sentences"] == sum(len(document.sentences) for document in documents)
    assert metrics["model"]["path"] == str(bundle)
    again = evaluate(corpus, model=bundle, seed=4, sides=2, **FEW)
    assert again | {"seconds": 0} == metrics | {"seconds": 0}


def test_all_is_the_sum_of_the_kinds(corpus, bundle):
    sets = evaluate(corpus, model=bundle, reference=True, **FEW)["next_sentence"]
    kinds = [sets[kind] for kind in KINDS]
    for name in ("pairs", "is_next", "truncated"):
        assert sets["all"][name] == sum(found[name] for found in kinds)
    assert sets["all"]["accuracy"] == pytest.approx(sum(f["accuracy"] for f in kinds) / 3, abs=1e-5)
    assert sum(one["pairs"] for one in sets["all"]["bins"]) == 120


def test_pairs_beyond_the_models_limit_are_counted(corpus, make_bundle, caplog):
    metrics = evaluate(corpus, model=make_bundle(positions=32, **SMALL), pairs=40, threads=1)
    assert metrics["options"]["max_tokens"] == 32, "not 128: the model's limit"
    documents = list(iter_documents(corpus))
    tokenizer = read_tokenizer(make_bundle(positions=32, **SMALL), 10**6)
    for kind in KINDS:
        pairs = drawn_set(documents, kind, pairs=40, sides=3).pairs
        lengths = [len(tokenizer.encode(pair.a, pair.b).ids) for pair in pairs]
        assert metrics["next_sentence"][kind]["truncated"] == sum(n > 32 for n in lengths) > 0
    assert metrics["next_sentence"]["packed"]["truncated"] < metrics["next_sentence"]["all"]["truncated"]
    assert len([r for r in caplog.records if "truncated" in r.message]) == 1


def test_a_kind_that_cannot_be_drawn_is_left_out_and_said(bundle, tmp_path, capsys):
    file = tmp_path / "short.txt"
    file.write_text("\n\n".join(" ".join(SENTENCES[i : i + 6]) for i in range(5)), encoding="utf-8")
    assert main(["evaluate", str(file), "--model", str(bundle), "--pairs", "10"]) == 0
    out = capsys.readouterr().out
    assert "left out: same document, not adjacent: it takes two documents of 16 sentences" in out
    metrics = evaluate(file, model=bundle, pairs=10)
    assert list(metrics["next_sentence"]) == ["other document", "swapped", "all", "packed"]
    assert metrics["next_sentence"]["all"]["pairs"] == 20
    assert list(metrics["left_out"]) == ["same document, not adjacent"]


def test_masked_words_are_judged_as_transformers_judges_them(corpus, both_heads, tmp_path):
    found = evaluate(corpus, model=both_heads, seed=1, **FEW)["masked_words"]
    tokenizer = read_tokenizer(both_heads, 10**6)
    store = write_tokens(iter_documents(corpus), tokenizer, tmp_path)
    instances = Instances(store, tokenizer, max_tokens=24, seed=1)
    model = transformers.BertForMaskedLM.from_pretrained(both_heads).eval()
    losses, right = [], []
    for i in range(40):  # one by one: nothing is padded
        item = {name: torch.from_numpy(instances[i][name]).long()[None] for name in ("input_ids", "labels")}
        segments = torch.from_numpy(instances[i]["token_type_ids"]).long()[None]
        with torch.no_grad():
            logits = model(input_ids=item["input_ids"], token_type_ids=segments).logits[0]
        for place in (item["labels"][0] != IGNORED).nonzero()[:, 0].tolist():
            label = item["labels"][0, place]
            losses.append(-logits[place].log_softmax(-1)[label].item())
            right.append(logits[place].argmax().item() == label)
    assert found["instances"] == 40
    assert found["masked_tokens"] == len(losses) > 40
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["accuracy"] == pytest.approx(np.mean(right), abs=1e-6)


def test_where_no_word_can_be_masked_there_is_nothing_to_measure(both_heads, tmp_path, capsys):
    """Every token is [UNK]: no word of the text is in the vocabulary."""
    for name in "abcd":
        (tmp_path / name).write_text("\n\n".join(["\u0416 \u0416"] * 3), encoding="utf-8")
    line = ["evaluate", str(tmp_path), "--model", str(both_heads), "--pairs", "4"]
    assert main([*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["masked_words"]
    assert (found["masked_tokens"], found["accuracy"], found["loss"]) == (0, None, None)
    assert main(line) == 0
    assert "masked words: nothing to measure, no token of 4 packed pairs" in capsys.readouterr().out


def test_a_config_that_only_the_engine_can_do_with_is_refused(corpus, make_checkpoint, tmp_path, monkeypatch):
    folder = shutil.copytree(make_checkpoint(**SMALL), tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text()) | {"hidden_dropout_prob": "x"}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.delattr(Engine, "score")
    with pytest.raises(BundleError, match=r"config\.json: .*hidden_dropout_prob"):
        evaluate(corpus, model=folder, reference=True, **FEW)


def test_the_words_head_is_found_in_every_form(make_checkpoint, both_heads, tmp_path):
    assert has_words_head(both_heads)
    assert not has_words_head(make_checkpoint(**SMALL))
    sharded = make_checkpoint(architecture="BertForPreTraining", shard_size="20KB", **SMALL)
    assert (sharded / "model.safetensors.index.json").is_file()
    assert has_words_head(sharded)
    torch.save(load_file(both_heads / "model.safetensors"), tmp_path / "pytorch_model.bin")
    assert has_words_head(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cut off")
    with pytest.raises(BundleError, match="not readable"):
        has_words_head(tmp_path)


def test_pretrained_then_exported_it_decides_as_in_pytorch_to_the_pair(tmp_path):
    """pretrain -> transformers loads it -> export -> Engine -> evaluate."""
    draw = random.Random(0)

    def text(topic: int, sentences: int) -> str:
        words = (draw.choices(TOPICS[topic], k=draw.randint(2, 4)) for _ in range(sentences))
        return " ".join(" ".join(some).capitalize() + "." for some in words)

    for name, sentences in (("train", 300), ("held-out", 60)):
        documents = "\n\n".join(text(topic, sentences) for topic in range(4))
        (tmp_path / f"{name}.txt").write_text(documents)
    held_out, model = tmp_path / "held-out.txt", tmp_path / "model"
    options = {"size": "tiny", "vocab_size": 90, "steps": 200, "batch_size": 32, "max_tokens": 24}
    pretrain(tmp_path / "train.txt", out=model, learning_rate=2e-3, threads=1, **options)
    metrics = evaluate(held_out, model=model, pairs=100, max_tokens=24, reference=True, threads=1)
    assert metrics["reference"]["decisions_differ"] == 0
    assert metrics["reference"]["pairs"] == 300 + metrics["next_sentence"]["packed"]["pairs"]
    assert 0 < metrics["reference"]["largest_difference"] < 1e-4
    assert metrics["masked_words"]["masked_tokens"] > 0

    judge = transformers.AutoModelForNextSentencePrediction.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    export_checkpoint(model, tmp_path / "bundle")
    exported = evaluate(held_out, model=tmp_path / "bundle", pairs=100, max_tokens=24, threads=1)
    for kind in KINDS:
        pairs = drawn_set(list(iter_documents(held_out)), kind, pairs=100, sides=3).pairs
        with torch.no_grad():
            sides = [list(side) for side in zip(*((pair.a, pair.b) for pair in pairs), strict=True)]
            logits = judge(**tokenizer(*sides, return_tensors="pt", padding=True)).logits
        theirs = (logits.argmax(-1) == torch.tensor([pair.label for pair in pairs])).sum().item()
        assert round(metrics["next_sentence"][kind]["accuracy"] * 100) == theirs
        assert round(exported["next_sentence"][kind]["accuracy"] * 100) == theirs
    learnt = metrics["next_sentence"]
    assert learnt["other document"]["accuracy"] >= 0.85, "topics tell"
    assert learnt["swapped"]["accuracy"] < 0.65, "and an order that means nothing does not"


def test_what_differs_from_the_reference_is_counted_where_it_is(corpus, both_heads, monkeypatch):
    honest = checkpoint_scores.next_probabilities

    def crooked(folder, encoded):
        values = honest(folder, encoded).copy()
        values[:3] = 1 - values[:3]  # of the first kind
        values[-1] = 1 - values[-1]  # packed
        return values

    exact = evaluate(corpus, model=both_heads, reference=True, **FEW)
    assert exact["reference"]["decisions_differ"] == 0
    assert exact["reference"]["largest_difference"] < 1e-5
    assert exact["reference"]["by"].startswith("transformers ")
    monkeypatch.setattr(checkpoint_scores, "next_probabilities", crooked)
    metrics = evaluate(corpus, model=both_heads, reference=True, **FEW)
    counts = {n: found["reference"]["decisions_differ"] for n, found in metrics["next_sentence"].items()}
    assert list(counts.values()) == [3, 0, 0, 3, 1]
    assert metrics["reference"]["decisions_differ"] == 4
    assert metrics["next_sentence"]["swapped"]["reference"]["largest_difference"] < 1e-5


def test_a_bundles_reference_is_float32_on_the_cpu(corpus, bundle, monkeypatch):
    loaded = []
    load = Engine.load.__func__

    def watched(cls, path=None, **options):
        loaded.append((str(path), options["device"], options["executor"], options["precision"]))
        return load(cls, path, **options)

    monkeypatch.setattr(Engine, "load", classmethod(watched))
    metrics = evaluate(corpus, model=bundle, reference=True, **FEW)
    assert loaded == [(str(bundle), "auto", "auto", None), (str(bundle), "cpu", "onnxruntime", "float32")]
    assert metrics["reference"]["by"] == "onnxruntime, float32, cpu"
    assert metrics["reference"]["decisions_differ"] == 0
    assert metrics["masked_words"] is None


def test_the_command_prints_a_table(corpus, both_heads, capsys, tmp_path):
    out = tmp_path / "new" / "out"
    line = ["evaluate", str(corpus), "--model", str(both_heads), "--pairs", "40", "--max-tokens", "24"]
    assert main([*line, "--threads", "1", "--reference", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    assert (out / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(out)) == ["metrics.json", "reliability.png"]
    rows = said.splitlines()
    start = next(i for i, row in enumerate(rows) if row.startswith("negatives "))
    names = [*KINDS, "all of these", "packed to 24 tokens"]
    for row, name, found in zip(rows[start + 1 :], names, metrics["next_sentence"].values(), strict=False):
        assert row.startswith(f"{name} ")
        cells = row.removeprefix(name).split()
        assert cells[:4] == [str(found[key]) for key in ("documents", "pairs", "is_next", "truncated")]
        figures = [f"{found[key]:.3f}" for key in ("accuracy", "auc", "calibration_error")]
        assert cells[4:7] == figures
        assert cells[7] == "0"
        assert len(row) == len(rows[start]), "columns are aligned"
    assert f"masked words: {metrics['masked_words']['accuracy']:.3f} right" in said
    assert f"model: {both_heads}, onnxruntime on cpu, float32" in rows, "not the folder it was exported to"
    assert "reference: transformers" in said
    assert rows[-1] == f"written to {out}"


def test_the_command_prints_json_and_nothing_else(corpus, bundle, capsys):
    line = ["evaluate", str(corpus), "--model", str(bundle), "--pairs", "10", "--sides", "1", "--json"]
    assert main(line) == 0
    metrics = json.loads(capsys.readouterr().out)
    expected = evaluate(corpus, model=str(bundle), pairs=10, sides=1)
    assert metrics | {"seconds": 0} == expected | {"seconds": 0}
    assert main(line[:-1]) == 0
    assert "masked words: the model has no head for them" in capsys.readouterr().out


def test_every_argument_reaches_the_function(corpus):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = set(vars(parser.parse_args([str(corpus)])))
    assert given | {"model", *_MODEL} == {*_OPTIONS, "corpus", "json"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pairs": 0}, "pairs: expected an integer from 2 to 4294967295, got 0"),
        ({"pairs": True}, "pairs: expected"),
        ({"pairs": None}, "pairs: expected"),
        ({"sides": 0}, "sides: expected an integer from 1 to 1000, got 0"),
        ({"sides": 10**9}, "sides: expected an integer from 1 to 1000, got 1000000000"),
        ({"sides": 1.5}, "sides"),
        ({"seed": -1}, "seed"),
        ({"max_tokens": 7}, "max_tokens: expected an integer from 8 to 4294967295, got 7"),
        ({"max_tokens": 513}, "max_tokens: expected at most 512, the model's limit, got 513"),
        ({"out": ""}, "out: expected a path, got ''"),
        ({"device": "toaster"}, "device"),
        ({"threads": 0}, "threads"),
    ],
)
def test_refused_options(corpus, bundle, options, reason):
    with pytest.raises(InputError, match=reason):
        evaluate(corpus, model=bundle, **options)


def test_refused_places(corpus, bundle, make_checkpoint, tmp_path):
    (tmp_path / "file").touch()
    for out, reason in (
        (tmp_path / "file", "is not a folder"),
        (bundle, "is a model's folder"),
        (make_checkpoint(**SMALL), "is a model's folder"),
        (corpus.parent / "out", "inside the corpus"),
    ):
        with pytest.raises(InputError, match=reason):
            evaluate(corpus.parent, model=bundle, out=out)
    assert os.listdir(corpus.parent) == ["corpus.txt"]


def test_a_folder_that_cannot_be_made_is_refused_before_any_scoring(corpus, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("segue.Engine.score", None)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"out: .*file/out' cannot be written to: Not a directory"):
        evaluate(corpus, model=bundle, out=tmp_path / "file" / "out")


def test_a_full_disk_is_named_and_keeps_the_figures_of_before(corpus, bundle, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "metrics.json").write_text("{}")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.json'"):
        evaluate(corpus, model=bundle, out=tmp_path, **FEW)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("metrics.json", "{}")]


def test_a_model_without_room_for_a_packed_pair_is_named(corpus, make_bundle):
    with pytest.raises(InputError, match="model: its limit is 5 tokens, and a packed pair takes 8"):
        evaluate(corpus, model=make_bundle(layers=1, positions=5))


def test_another_head_is_named(corpus, make_bundle):
    for options, found in (
        ({"num_labels": 1}, "a binary head with LABEL_0"),
        ({"labels": ["no", "yes", "perhaps"]}, "a multiclass head with no, yes, perhaps"),
    ):
        model = make_bundle(architecture="BertForSequenceClassification", **options, **SMALL)
        with pytest.raises(InputError, match=f"next sentence prediction, with the labels.*{found}"):
            evaluate(corpus, model=model)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (None, "does not exist"),
        ({}, "holds no text"),
        ({"one.txt": b"One. Two. Three."}, "one document only"),
        (
            {"a.txt": b"One. Two.", "b.txt": b"Three."},
            "two documents or more with two sentences or more, got 1",
        ),
        ({"a.txt": b"One. Two.", "b.bin": b"\x00\x01"}, "binary file"),
    ],
)
def test_refused_corpora_are_one_line_and_exit_code_2(files, reason, bundle, tmp_path, capsys):
    folder = tmp_path / "corpus"
    if files is not None:
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
    out = tmp_path / "out"
    assert main(["evaluate", str(folder), "--model", str(bundle), "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert (said.out, len(said.err.splitlines())) == ("", 1)
    assert said.err.startswith("segue: corpus: ")
    assert reason in said.err
    assert not out.exists()


@pytest.mark.parametrize("option", ["--pairs", "--sides"])
def test_nothing_to_draw_is_exit_code_2(corpus, bundle, option, capsys):
    assert main(["evaluate", str(corpus), "--model", str(bundle), option, "0"]) == 2
    assert f"{option[2:]}: expected an integer" in capsys.readouterr().err


def test_a_bundle_needs_no_pytorch_and_a_checkpoint_says_what_it_needs(
    corpus, bundle, both_heads, make_checkpoint, tmp_path
):
    program = (
        "import sys\n"
        "for name in sys.argv.pop(1).split(','): sys.modules[name] = None\n"
        "from segue.cli import main\n"
        "sys.exit(main(['evaluate', *sys.argv[1:]]))\n"
    )

    def run(missing: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, missing, str(corpus), "--pairs", "10", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    done = run("torch,transformers,onnx,matplotlib", "--model", bundle, "--reference", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "no reliability.png: matplotlib is not installed: pip install 'segue[train]'" in done.stderr
    assert os.listdir(tmp_path / "out") == ["metrics.json"]
    done = run("transformers", "--model", both_heads)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "needs transformers, which is not installed: pip install 'segue[train]'" in done.stderr
    done = run("transformers", "--model", make_checkpoint(**SMALL))
    assert done.returncode == 0, done.stderr
    assert "masked words: the model has no head for them" in done.stdout


@pytest.mark.parametrize(("architecture", "reference"), [
    ("BertForPreTraining", False), ("BertForNextSentencePrediction", True),
])  # fmt: skip
def test_missing_transformers_is_said_before_any_scoring(
    corpus, make_checkpoint, architecture, reference, monkeypatch
):
    model = make_checkpoint(architecture=architecture, **SMALL)
    monkeypatch.delitem(sys.modules, "segue.export.checkpoint_scores")
    monkeypatch.delattr("segue.export.checkpoint_scores")
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delattr(Engine, "score")
    with pytest.raises(ExecutorUnavailable, match=r"needs transformers.*segue\[train\]"):
        evaluate(corpus, model=model, reference=reference, **FEW)


def test_a_vocabulary_without_a_mask_is_refused_before_any_scoring(corpus, both_heads, tmp_path, monkeypatch):
    folder = shutil.copytree(both_heads, tmp_path / "checkpoint")
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).write_text((folder / name).read_text().replace("[MASK]", "[MASQUE]"))
    monkeypatch.delattr(Engine, "score")
    with pytest.raises(InputError, match=r"no \[MASK\]"):
        evaluate(corpus, model=folder, **FEW)
