"""The engine as its users meet it, on tiny random models, with transformers as the judge of every number."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import segue.export
from segue import BundleError, Engine, ExecutorUnavailable, InputError, SegueError
from segue.batching import PackedBatch
from segue.bundle import read_bundle
from segue.cache import exported
from segue.export.sentences import SENTENCES

HEADS = {
    "nsp": {"architecture": "BertForNextSentencePrediction"},
    "pretraining": {"architecture": "BertForPreTraining"},
    "one label": {"architecture": "BertForSequenceClassification", "num_labels": 1},
    "two labels": {"architecture": "BertForSequenceClassification", "num_labels": 2},
    "five labels": {"architecture": "BertForSequenceClassification", "num_labels": 5},
}

BYTES = pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there")


def ragged_pairs(count: int, seed: int = 0, longest: int = 60) -> list[tuple[str, str]]:
    """Return pairs of 0 to `longest` words a side, most of them short."""
    draw = random.Random(seed)
    words = " ".join(SENTENCES).split()

    def side() -> str:
        return " ".join(draw.choices(words, k=int(longest * draw.random() ** 3)))

    return [(side(), side()) for _ in range(count)]


class Judge:
    """A checkpoint in transformers, one pair at a time: no padding, no batch."""

    def __init__(self, checkpoint: Path) -> None:
        import transformers

        architecture = json.loads((checkpoint / "config.json").read_text())["architectures"][0]
        self.model = getattr(transformers, architecture).from_pretrained(checkpoint).eval()
        self.tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(checkpoint / "tokenizer.json"), cls_token="[CLS]", sep_token="[SEP]"
        )

    def logits(self, pairs: list[tuple[str, str]], **options: Any) -> np.ndarray:
        import torch

        rows = []
        for a, b in pairs:
            encoded = self.tokenizer(
                [a],
                [b],
                return_tensors="pt",
                return_token_type_ids=True,  # this class leaves them out unless asked
                truncation="longest_first",
                **({"max_length": 512} | options),
            )
            with torch.no_grad():
                output = self.model(**encoded)
            rows.append(output.get("logits", output.get("seq_relationship_logits"))[0].numpy())
        return np.stack(rows)


@pytest.fixture(scope="module")
def engine(make_bundle: Callable[..., Path]) -> Engine:
    return Engine.load(make_bundle(), threads=1)


@pytest.fixture
def executed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the tokens of each batch that the executor is given from here on."""
    tokens: list[int] = []
    run = engine._executor.run

    def noting(batches: Iterable[PackedBatch]) -> Iterator[np.ndarray]:
        return run(tokens.append(len(batch.input_ids)) or batch for batch in batches)

    monkeypatch.setattr(engine._executor, "run", noting)
    return tokens


@pytest.mark.parametrize("head", HEADS)
def test_every_head_scores_as_transformers_does(make_checkpoint, make_bundle, head):
    pairs = [*ragged_pairs(40), ("", ""), ("the man", ""), ("\x00", "\ufffd"), ("word " * 700, "man " * 300)]
    wanted = Judge(make_checkpoint(**HEADS[head])).logits(pairs)
    engine = Engine.load(make_bundle(**HEADS[head]), threads=1)
    logits = engine.predict(pairs, output="logit")
    assert np.abs(logits - wanted).max() <= 1e-4 * max(1, np.abs(wanted).max())
    wanted = wanted.astype(np.float64)
    if head == "one label":
        wanted = 1 / (1 + np.exp(-wanted))
    else:
        wanted = np.exp(wanted) / np.exp(wanted).sum(axis=1, keepdims=True)
    assert np.abs(engine.predict(pairs) - wanted).max() <= 1e-5
    if head != "five labels":
        column = 1 if head == "two labels" else 0
        assert np.abs(engine.score(pairs) - wanted[:, column]).max() <= 1e-5


@pytest.mark.parametrize("limit", [3, 5, 17, 64, 511])
def test_truncated_pairs_score_as_transformers_scores_them(make_checkpoint, engine, limit):
    pairs = [("word " * 600, "man " * 20), ("a", "rain " * 600), *ragged_pairs(10, seed=limit, longest=200)]
    wanted = Judge(make_checkpoint()).logits(pairs, max_length=limit)
    assert np.abs(engine.predict(pairs, output="logit", max_tokens=limit) - wanted).max() < 1e-4


def test_a_score_does_not_depend_on_batch_mates_or_order(engine, make_bundle):
    pairs = ragged_pairs(300, seed=1)
    together = engine.score(pairs)
    assert together.std() > 0.05  # a constant would pass everything below
    alone = np.concatenate([engine.score([pair]) for pair in pairs])
    assert np.abs(together - alone).max() <= 2e-6
    order = np.random.default_rng(0).permutation(len(pairs))
    assert np.abs(engine.score([pairs[i] for i in order]) - together[order]).max() <= 2e-6
    for budget in (1, 100, 100_000):
        other = Engine.load(make_bundle(), threads=1, max_batch_tokens=budget)
        assert np.abs(other.score(pairs) - together).max() <= 2e-6


def test_no_padding_is_executed(engine, executed):
    pairs = ragged_pairs(200, seed=2)
    engine.score(pairs)
    asked = sum(len(engine.explain(*pair).tokens) for pair in set(pairs))
    assert sum(executed[: -len(set(pairs))]) == asked
    assert len(executed) - len(set(pairs)) > 1  # more than one batch, so that sorting and cutting took part


def test_duplicates_cost_one(engine, executed):
    values = engine.score([("the man", "went to the store")] * 10_000)
    assert (
        executed == [len(engine.explain("the man", "went to the store").tokens)] * 2
    )  # one is explain's own
    assert len(values) == 10_000
    assert len(set(values.tolist())) == 1


def test_empty_input_gives_empty_output(engine, executed):
    assert engine.score([]).shape == (0,)
    assert engine.score([]).dtype == np.float32
    assert engine.predict([]).shape == (0, 2)
    assert engine.rank("q", []) == []
    assert list(engine.score_iter([])) == []
    assert executed == []


def test_any_iterable_of_any_pair_is_taken_and_left_as_it_was(engine):
    pairs = [["the man", "went"], ["he", "slept"]]
    before = [list(pair) for pair in pairs]
    wanted = engine.score(pairs).tolist()
    assert pairs == before
    for form in (
        tuple(map(tuple, pairs)),
        np.array(pairs),
        np.array(pairs, dtype=object),
        (p for p in pairs),
    ):
        assert engine.score(form).tolist() == wanted


def test_scores_are_float32_and_contiguous(engine):
    values = engine.score([("a", "b"), ("c", "d")])
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    assert engine.predict([("a", "b")]).dtype == np.float32


def test_rank_orders_documents_and_keeps_ties_in_input_order(engine):
    documents = [text for text in SENTENCES[:6] for _ in range(3)]
    found = engine.rank("The man went to the store.", documents)
    scores = [entry["score"] for entry in found]
    assert scores == sorted(scores, reverse=True)
    assert sorted(entry["corpus_id"] for entry in found) == list(range(len(documents)))
    for one, other in itertools.pairwise(found):
        if one["score"] == other["score"]:
            assert one["corpus_id"] < other["corpus_id"]
    assert len({entry["score"] for entry in found}) == 6
    singly = engine.score([("The man went to the store.", text) for text in documents])
    assert max(abs(entry["score"] - singly[entry["corpus_id"]]) for entry in found) < 1e-6


def test_rank_gives_plain_values_and_cuts_to_top_k(engine):
    documents = list(SENTENCES[:5])
    found = engine.rank("The man went to the store.", documents, top_k=2, return_documents=True)
    assert json.loads(json.dumps(found)) == found
    assert [entry["text"] for entry in found] == [documents[entry["corpus_id"]] for entry in found]
    assert found == engine.rank("The man went to the store.", documents, return_documents=True)[:2]
    assert len(engine.rank("q", documents, top_k=99)) == 5


def test_rank_truncates_as_it_is_told(engine):
    query, documents = "the man went " * 20, ["to the store " * 20, "penguins " * 30, "a"]
    for options in ({"truncation": "only_second", "max_tokens": 100}, {"truncation": "only_first"}, {}):
        found = engine.rank(query, documents, **options)
        scored = engine.score([(query, text) for text in documents], **options)
        for entry in found:
            assert entry["score"] == pytest.approx(scored[entry["corpus_id"]], abs=2e-6)
    with pytest.raises(InputError, match=r"^documents\[1\]: \d+ tokens, more than 100, and"):
        engine.rank("a", ["b", "penguins " * 100], truncation="error", max_tokens=100)


def test_rank_tells_apart_what_float32_cannot(engine, monkeypatch):
    """Margins of 20 and of 30 are both 1.0 as float32 probabilities."""
    logits = np.float32([[20, 0], [30, 0], [25, 0]])
    monkeypatch.setattr(engine._executor, "run", lambda batches: (logits for _ in batches))
    same_length = ["a", "b", "c"]
    assert engine.score([("q", text) for text in same_length]).tolist() == [1, 1, 1]
    assert [entry["corpus_id"] for entry in engine.rank("q", same_length)] == [1, 2, 0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((None, ["a"]), "query: expected str, got NoneType"),
        (("q", "text"), "documents: expected an iterable of str, got str 'text'"),
        (("q", None), "documents: expected an iterable of str, got None"),
        (("q", ["a", None]), r"documents[1]: expected str, got NoneType"),
        (("q", ["a", "\ud800"]), r"documents[1]: the second text has a lone surrogate"),
        (("a \udfff", []), r"query: a lone surrogate, '\udfff', at character 2: it is no valid Unicode"),
        (("q", ["a"], 0), "top_k: expected a whole number from 1, got 0"),
        (("q", ["a"], 1.5), "top_k: expected a whole number from 1, got 1.5"),
    ],
)
def test_rank_refuses_by_name(engine, arguments, words):
    with pytest.raises(InputError) as caught:
        engine.rank(*arguments)
    assert words in str(caught.value)


def test_a_head_without_a_positive_label_predicts_but_does_not_score(make_bundle):
    engine, unread = Engine.load(make_bundle(**HEADS["five labels"]), threads=1), iter(["a"])
    for call in (lambda: engine.score([]), lambda: engine.rank("q", unread), lambda: engine.score_iter([])):
        with pytest.raises(InputError, match="none is declared positive"):
            call()
    assert list(unread) == ["a"]
    assert engine.predict([("a", "b")]).shape == (1, len(engine.labels)) == (1, 5)
    assert engine.explain("a", "b").score is None


def test_a_label_declared_positive_at_export_is_the_score(make_bundle):
    options = HEADS["five labels"] | {"labels": ["no", "little", "some", "much", "all"]}
    engine = Engine.load(make_bundle(**options, positive="much"), threads=1)
    pairs = ragged_pairs(5)
    assert engine.score(pairs).tolist() == engine.predict(pairs)[:, 3].tolist()


def test_a_stream_is_scored_lazily_and_in_order(engine):
    pairs = ragged_pairs(400, seed=3)
    read = []
    stream = engine.score_iter(read.append(pair) or pair for pair in pairs)
    first = next(stream)
    assert isinstance(first, float)
    assert len(read) == 64
    assert np.abs(np.array([first, *stream]) - engine.score(pairs)).max() <= 2e-6
    endless = engine.score_iter(itertools.cycle(pairs))
    assert len(list(itertools.islice(endless, 2000))) == 2000


@pytest.mark.parametrize("place", [0, 1, 63, 64, 200])
@pytest.mark.parametrize("bad", [("a", None), ("a", "\ud800"), 5])
def test_a_stream_gives_all_scores_before_a_bad_pair_and_names_it(engine, place, bad):
    pairs = [*ragged_pairs(place), bad, ("a", "\udfff")]
    given = []

    def read() -> None:
        given.extend(engine.score_iter(pairs))

    with pytest.raises(InputError) as caught:
        read()
    assert caught.value.index == place
    assert f"pairs[{place}]: " in str(caught.value)
    assert len(given) == place


def test_a_stream_that_truncates_before_a_bad_pair_says_so_once(engine, caplog):
    stream = engine.score_iter([("word " * 30, "man"), ("a", "\ud800"), ("a", None)], max_tokens=20)
    with caplog.at_level(logging.WARNING, logger="segue"):
        assert isinstance(next(stream), float)
        with pytest.raises(InputError, match=r"pairs\[1\]: the second text has a lone surrogate"):
            next(stream)
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 1 pairs were longer than the limit and were truncated"
    ]


def test_a_stream_that_is_left_until_the_process_ends_says_so_too(make_bundle):
    code = f"""
from segue import Engine
stream = Engine.load({str(make_bundle())!r}, threads=1).score_iter([("word " * 30, "man")] * 2, max_tokens=20)
next(stream)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "2 of 2 pairs were longer than the limit and were truncated\n"


@pytest.fixture
def overlapping(engine, monkeypatch) -> Iterator[tuple[Engine, list[str]]]:
    """An engine whose executor runs beside the host, four sentences ahead; what happens is listed."""
    events: list[str] = []
    with pickle.loads(pickle.dumps(engine)) as other:
        words, executor = other._encoder._words, other._executor
        spell, logits = words.spell, executor._logits
        monkeypatch.setattr("segue.engine._SENTENCES", 4)
        monkeypatch.setattr(executor, "overlaps", True, raising=False)
        monkeypatch.setattr(executor, "batch_tokens", 64)
        monkeypatch.setattr(executor, "grid", False, raising=False)
        monkeypatch.setattr(executor, "_another", None)
        monkeypatch.setattr(words, "spell", lambda some: events.append(f"{len(some)} read") or spell(some))
        monkeypatch.setattr(executor, "_logits", lambda *all: events.append("run") or logits(*all))
        yield other, events


def test_what_is_encoded_runs_while_the_rest_is_not(engine, overlapping):
    other, events = overlapping
    pairs = [("the man went to the store " * (5 + i % 3), f"it likes sleeping {i}") for i in range(12)]
    pairs += pairs[:4]
    expected = engine.score(pairs)
    assert np.abs(other.score(pairs) - expected).max() <= 2e-6
    assert sum(event == "run" for event in events) >= 4
    assert [event for event in events if event != "run"] == ["4 read", "8 read", "3 read"]
    assert events.index("run") < events.index("3 read")
    documents = [second for _, second in pairs]
    ranks = [[one["corpus_id"] for one in e.rank("the man", documents)] for e in (engine, other)]
    assert ranks[0] == ranks[1]
    assert np.abs(np.array(list(other.score_iter(pairs))) - expected).max() <= 2e-6


@pytest.mark.parametrize("bad", [("a", "\ud800"), ("man " * 600, "a")])
def test_a_bad_pair_among_what_is_encoded_late_is_named_as_ever(overlapping, bad):
    other, events = overlapping
    pairs = [*((f"the man went {i} " * 4, f"b {i}") for i in range(20)), bad, ("a", "\udfff")]
    given: list[float] = []
    with pytest.raises(InputError, match=r"pairs\[20\]: "):
        other.score(pairs[:21], truncation="error")
    assert events.index("run") < len(events) - 1, "some ran before it was found"
    with pytest.raises(InputError, match=r"pairs\[20\]: "):
        given.extend(other.score_iter(pairs, truncation="error"))
    assert np.abs(np.array(given) - other.score(pairs[:20])).max() <= 2e-6
    if bad[0] == "a":
        with pytest.raises(InputError, match=r"documents\[1\]: "):
            other.rank("man", ["a", bad[1]])


def test_stream_options_are_refused_at_the_call(engine):
    for options in ({"output": "x"}, {"truncation": "x"}, {"max_tokens": 1}):
        with pytest.raises(InputError, match=next(iter(options))):
            engine.score_iter([], **options)
    with pytest.raises(InputError, match="pairs: expected an iterable"):
        engine.score_iter("text")


def test_a_call_that_truncates_says_so_once(engine, caplog):
    pairs = [("word " * 30, "man"), ("a", "b"), ("word " * 30, "man"), ("man " * 40, "")]
    with caplog.at_level(logging.WARNING, logger="segue"):
        engine.score(pairs, max_tokens=20)
        assert [record.getMessage() for record in caplog.records] == [
            "3 of 4 pairs were longer than the limit and were truncated"
        ]
        caplog.clear()
        list(engine.score_iter(pairs * 100, max_tokens=20))
        assert [record.getMessage() for record in caplog.records] == [
            "300 of 400 pairs were longer than the limit and were truncated"
        ]
        caplog.clear()
        engine.score(pairs)
        assert not caplog.records


def test_explain_shows_what_the_model_sees(engine):
    seen = engine.explain("The man", "went [SEP] zzq", max_tokens=512)
    assert seen.tokens[:4] == ["[CLS]", "the", "man", "[SEP]"]
    assert seen.tokens[-1] == "[SEP]"
    assert seen.token_type_ids == [0] * 4 + [1] * (len(seen.tokens) - 4)
    assert seen.positions == list(range(len(seen.tokens)))
    assert seen.labels == ("IsNext", "NotNext")
    assert seen.truncated == (0, 0)
    assert seen.score == seen.probabilities[0] == engine.score([("The man", "went [SEP] zzq")])[0]
    assert engine.explain("man " * 50_000, "a").truncated == (49_500 - 8, 0), "read whole, however long"
    cut = engine.explain("man " * 30, "a " * 10, max_tokens=20, truncation="only_first")
    assert cut.truncated == (23, 0)
    assert len(cut.tokens) == 20


def test_explain_of_no_strings_is_refused(engine):
    with pytest.raises(InputError, match=r"^expected \(str, str\), got \(str, None\)"):
        engine.explain("a", None)


def test_explain_says_that_it_truncates(engine, caplog):
    with caplog.at_level(logging.WARNING, logger="segue"):
        engine.explain("man " * 30, "a", max_tokens=20)
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 1 pairs were longer than the limit and were truncated"
    ]


def test_a_graph_with_other_logits_than_labels_is_refused(make_bundle, tmp_path):
    folder = shutil.copytree(make_bundle(**HEADS["two labels"]), tmp_path / "bundle")
    manifest = json.loads((folder / "segue.json").read_text())
    manifest["head"] |= {"kind": "multiclass", "labels": ["no", "maybe", "yes"], "positive": None}
    (folder / "segue.json").write_text(json.dumps(manifest))
    with (
        Engine.load(folder) as engine,
        pytest.raises(
            BundleError, match=r"the graph gives logits \[1, 2\] for 1 pairs, the head has 3 labels"
        ),
    ):
        engine.predict([("a", "b")])


def test_of_several_that_want_an_export_one_makes_it(make_checkpoint, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    export, made = segue.export.export_checkpoint, []

    def slowly(source: Path, bundle: Path, **options: Any) -> None:
        made.append(bundle)
        time.sleep(0.2)
        export(source, bundle, **options)

    monkeypatch.setattr(segue.export, "export_checkpoint", slowly)
    source = make_checkpoint()
    with caplog.at_level(logging.INFO, logger="segue"), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(exported, [source] * 4, ["float32"] * 4))
    assert [record.getMessage() for record in caplog.records if record.name == "segue"] == [
        f"exporting {source} in float32, once: kept as {found[0]}"
    ]
    assert (made, set(found)) == ([found[0]], {found[0]})


def test_an_unusable_cache_is_named(make_checkpoint, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "file"))
    with pytest.raises(SegueError, match=r"file: no place for exported models .*SEGUE_CACHE"):
        Engine.load(make_checkpoint())
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / ("x" * 300)))
    with pytest.raises(SegueError, match=r"xxx: no place .*File name too long.*SEGUE_CACHE"):
        Engine.load(make_checkpoint())
    monkeypatch.delenv("SEGUE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home directory")))
    with pytest.raises(SegueError, match=r"no place .*there is no home folder.*SEGUE_CACHE"):
        Engine.load(make_checkpoint())


def test_a_cache_that_fills_up_is_named(make_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    full = OSError(errno.ENOSPC, "No space left on device")  # as from a write, which names no file
    monkeypatch.setattr("segue.export.publish.save_graph", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(SegueError, match=r"no place for exported models .No space left on .*SEGUE_CACHE"):
        Engine.load(make_checkpoint())
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_what_killed_exports_left_in_the_cache_is_removed_a_day_later(make_checkpoint, tmp_path, monkeypatch):
    for name, days in (("old", 2), ("new", 0)):
        (tmp_path / f".segue-{name}").mkdir()
        (tmp_path / f".segue-{name}" / "model.onnx").touch()
        os.utime(tmp_path / f".segue-{name}", (time.time() - days * 86400,) * 2)
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    monkeypatch.setattr("segue.export.publish.save_graph", lambda *_: (_ for _ in ()).throw(BundleError("")))
    with pytest.raises(BundleError):
        Engine.load(make_checkpoint())
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".segue-new"}


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no such mode there")
@pytest.mark.parametrize(
    ("variable", "folder", "mode"),
    [
        ("XDG_CACHE_HOME", "segue", 0o700),
        ("SEGUE_CACHE", ".", 0o755),
    ],
)
def test_only_a_cache_that_was_named_is_for_other_users(
    variable, folder, mode, make_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.delenv("SEGUE_CACHE", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "cache"))
    monkeypatch.setattr("segue.export.publish.save_graph", lambda *_: (_ for _ in ()).throw(BundleError("")))
    before = os.umask(0o022)
    try:
        with pytest.raises(BundleError):
            Engine.load(make_checkpoint())
    finally:
        os.umask(before)
    assert (tmp_path / "cache" / folder).stat().st_mode & 0o777 == mode


def test_a_cache_that_takes_nothing_is_named(make_checkpoint, tmp_path, monkeypatch):
    real = os.mkdir

    def forbidden(path: Any, *arguments: Any) -> None:  # root ignores the mode of a folder
        if Path(path).parent == tmp_path:
            raise PermissionError(13, "Permission denied", path)
        real(path, *arguments)

    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "mkdir", forbidden)
    with pytest.raises(SegueError, match=r"no place for exported models .Permission denied.: .*SEGUE_CACHE"):
        Engine.load(make_checkpoint())


@pytest.mark.parametrize(
    "name",
    [b"x" * 240, "é".encode() * 120, pytest.param(b"m\xfc", marks=BYTES)],
    ids=["long", "wide", "not UTF-8"],
)
def test_a_checkpoint_of_any_name_is_exported(make_checkpoint, tmp_path, monkeypatch, name):
    import segue.export

    def export_checkpoint(checkpoint: Path, out: Path, **_: str) -> None:
        outs.append(out.name)
        raise BundleError("far enough")

    outs: list[str] = []
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    monkeypatch.setattr(segue.export, "export_checkpoint", export_checkpoint, raising=False)
    folder = Path(shutil.copytree(make_checkpoint(), os.fsdecode(bytes(tmp_path) + b"/" + name)))
    (folder / os.fsdecode(name[:200])).touch()
    with pytest.raises(BundleError, match="far enough"):
        Engine.load(folder)
    assert len(outs[0].encode()) <= 100 + 17


@pytest.mark.parametrize(
    ("path", "said"),
    [("x" * 5000, "xxx: (File name too long|no such folder)"), ("a\0b", "no such folder")],
    ids=["long", "zero"],
)
def test_what_can_name_no_folder_is_refused(path, said):
    with pytest.raises(BundleError, match=said):
        Engine.load(path)


@BYTES
def test_a_folder_whose_name_is_not_utf8_is_refused_as_such(make_bundle, tmp_path):
    folder = shutil.copytree(make_bundle(), os.fsdecode(bytes(tmp_path) + b"/\xff"))
    with pytest.raises(BundleError, match="the name is not UTF-8"):
        Engine.load(folder, device="cpu")


def test_a_name_in_utf8_is_one_whatever_the_locale(make_bundle, tmp_path):
    """Python takes it for ASCII with bytes that it cannot read."""
    folder = os.fsencode(shutil.copytree(make_bundle(), tmp_path / "ö 名"))
    code = f"""
import os
from segue import Engine
print(Engine.load(os.fsdecode({folder!r}), device="cpu").score([("a", "b")]))
"""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | plain, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout.startswith("[0."), done.stderr


def test_many_threads_share_an_engine(engine):
    """24 threads with ragged batches; each answer is compared with the one computed alone."""
    pairs = ragged_pairs(400, seed=4)
    wanted = dict(zip(pairs, engine.score(pairs).tolist(), strict=True))

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(15):
            some = draw.choices(pairs, k=draw.randint(0, 40))
            for pair, value in zip(some, engine.score(some).tolist(), strict=True):
                assert value == pytest.approx(wanted[pair], rel=0, abs=2e-6), pair

    with ThreadPoolExecutor(24) as threads:
        list(threads.map(work, range(24)))


class Mine(Engine):
    """A class of the caller's own."""


@pytest.mark.parametrize("kind", [Engine, Mine])
def test_an_engine_pickles_as_the_arguments_it_was_loaded_with(make_bundle, kind):
    engine = kind.load(make_bundle(), threads=1, max_batch_tokens=777)
    copy = pickle.loads(pickle.dumps(engine))
    assert type(copy) is type(engine) is type(engine.__enter__())
    assert copy.info == engine.info
    assert copy.score([("a", "b")]) == engine.score([("a", "b")])


def test_what_loads_a_pickled_engine_is_found_by_its_name(engine):
    """cloudpickle and dill look only in the module, and pickle the code of what they do not find there."""
    loads, _ = engine.__reduce__()
    assert getattr(sys.modules[loads.__module__], loads.__name__) is loads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_an_engine_says_that_it_does_not_survive_a_fork(make_bundle):
    """Without the check the child waits forever for threads that it does not have."""
    code = f"""
import os, sys
from segue import Engine, SegueError
engine = Engine.load({str(make_bundle())!r}, threads=2)
engine.score([("a", "b")])
child = os.fork()
if child == 0:
    try:
        engine.score([("a", "b")])
    except SegueError as error:
        os._exit(7 if "loaded before a fork" in str(error) else 8)
    os._exit(9)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), engine.score([("a", "b")]).shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.split() == ["7", "(1,)"], done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("end", ["sys.exit(7)", "del engine; os._exit(7)", "engine.close(); os._exit(7)"])
def test_a_forked_process_that_has_an_engine_ends(make_bundle, end):
    """ONNX Runtime's sessions wait for their threads, which are not there."""
    code = f"""
import os, sys, time
from segue import Engine
engine = Engine.load({str(make_bundle())!r}, threads=2, max_batch_tokens=8)
engine.score([("a " * n, "b") for n in range(40)])
time.sleep(0.2)  # until their threads sleep: one that is awake may end by itself
child = os.fork()
if child == 0:
    {end}
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.split() == ["7"], done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_waits_for_no_lock_to_close_an_engine(make_bundle):
    """As when another thread warms the engine up or scores on a GPU: the lock is never released there."""
    code = f"""
import os, signal
from segue import Engine
engine = Engine.load({str(make_bundle())!r}, threads=2)
with engine._executor._opening:
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        engine.close()
        os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["7"], done.stderr


def test_many_pairs_are_scored_while_the_process_ends(make_bundle):
    """When Python starts nothing more in another thread."""
    code = f"""
import threading
import time
from segue import Engine
engine = Engine.load({str(make_bundle())!r}, threads=2, max_batch_tokens=8)
pairs = [("a " * n, "b") for n in range(40)]
def work():
    threading.main_thread().join()
    print(engine.score(pairs).shape)
threading.Thread(target=work).start()
{{}}
"""
    for before in ("", "engine.score(pairs)"):
        run = [sys.executable, "-c", code.format(before)]
        done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=60)
        assert done.stdout == "(40,)\n", done.stderr


def test_many_pairs_are_scored_while_the_process_begins_to_end(make_bundle):
    """When the pool already refuses work and the main thread still waits for what it has begun."""
    code = f"""
import threading
from segue import Engine
engine = Engine.load({str(make_bundle())!r}, threads=2, max_batch_tokens=8)
pairs = [("a " * n, "b") for n in range(40)]
engine.score(pairs)
_, pool = engine._executor._open_single()
ended, going = threading.Event(), threading.Event()
pool.submit(ended.wait)
def work():
    going.set()
    while True:
        try:
            pool.submit(int)
        except RuntimeError:
            break
    try:
        print(threading.main_thread().is_alive(), engine.score(pairs).shape)
    finally:
        ended.set()
threading.Thread(target=work).start()
going.wait()
"""
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "True (40,)\n", done.stderr


def test_where_the_system_grants_no_thread_many_pairs_are_refused(make_bundle, monkeypatch):
    def refused(_):
        raise RuntimeError("can't start new thread")

    pairs = [("a " * n, "b") for n in range(40)]
    with Engine.load(make_bundle(), threads=2, max_batch_tokens=8, device="cpu") as engine:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refused)
            with pytest.raises(SegueError, match=r"^onnxruntime has no threads: can't start new thread$"):
                engine.score(pairs)
        assert engine.score(pairs).shape == (40,)


@pytest.mark.parametrize("call", ["score([('a', 'b')], progress=True)", "warmup(progress=True)"])
def test_without_a_stderr_there_is_no_bar(make_bundle, call):
    code = f"""
import sys
from segue import Engine
assert sys.stderr is None
Engine.load({str(make_bundle())!r}, threads=2).{call}
print("done")
"""
    run = ["sh", "-c", '"$0" - 2>&-', sys.executable]
    done = subprocess.run(run, input=code, stdout=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.stdout == "done\n"


def test_a_closed_engine_says_so(make_bundle):
    with Engine.load(make_bundle(), threads=1) as engine:
        engine.score([("a", "b")])
    for call in (
        lambda: engine.score([]),
        lambda: engine.rank("q", ["d"]),
        lambda: engine.explain("a", "b"),
        lambda: engine.score_iter([]),
    ):
        with pytest.raises(SegueError, match="closed"):
            call()
    engine.close()


def test_info_says_what_was_chosen(make_bundle):
    engine = Engine.load(make_bundle(), threads=3, max_batch_tokens=100)
    info = engine.info
    manifest = read_bundle(make_bundle())
    assert (info.executor, info.device, info.precision) == ("onnxruntime", "cpu", "float32")
    assert (info.threads, info.max_batch_tokens, info.max_tokens) == (3, 100, 512)
    assert Path(info.path) == make_bundle()
    assert info.head == manifest.head
    assert info.parity == manifest.parity
    assert any("CPUExecutionProvider" in line for line in info.plan)


def test_warmup_changes_nothing(engine, caplog):
    before = engine.score([("a", "b")])
    with caplog.at_level(logging.INFO, logger="segue"):
        engine.warmup()
    assert engine.score([("a", "b")]) == before
    (record,) = caplog.records
    assert re.fullmatch(r"warm-up: [01] steps and two pairs in \d+\.\d\d s", record.getMessage())
    assert record.levelname == "INFO"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"device": "gpu"}, InputError, "device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ({"device": None}, InputError, "device"),
        ({"executor": "tensorrt"}, InputError, "executor: expected one of auto, onnxruntime, triton"),
        ({"precision": "int4"}, InputError, "precision: expected float32"),
        ({"threads": 10**6}, InputError, "threads: expected a whole number from 1 to 1024, got 1000000"),
        ({"threads": 0}, InputError, "threads: expected a whole number from 1 to 1024, got 0"),
        ({"threads": 1.5}, InputError, "threads"),
        ({"max_batch_tokens": -1}, InputError, "max_batch_tokens"),
        ({"max_batch_tokens": 2**31}, InputError, "whole number from 1 to 2147483647, got 2147483648"),
        ({"batch_invariant": "yes"}, InputError, "batch_invariant"),
        ({"executor": "triton", "device": "cuda"}, ExecutorUnavailable, "executor='triton', device='cuda'"),
        ({"precision": "float16"}, ExecutorUnavailable, "computes in float32"),
        ({"device": "cuda", "executor": "onnxruntime"}, ExecutorUnavailable, "onnxruntime-gpu"),
        ({"device": "cuda:1"}, ExecutorUnavailable, "device='cuda:1'"),
    ],
)
def test_an_explicit_request_is_honoured_or_fails_by_name(make_bundle, options, error, words):
    with pytest.raises(error) as caught:
        Engine.load(make_bundle(), **options)
    assert words in str(caught.value)


def test_a_cuda_provider_that_does_not_start_is_no_silent_cpu(make_bundle, monkeypatch):
    """As on a machine with onnxruntime-gpu and no GPU: the provider is listed, and the session lacks it."""
    import onnxruntime

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    with (
        pytest.raises(ExecutorUnavailable, match=r"device='cuda:0'.* did not start"),
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
    ):
        Engine.load(make_bundle(), device="cuda", executor="onnxruntime")
    assert Engine.load(make_bundle()).info.device == "cpu"


def test_an_onnxruntime_of_which_files_are_missing_is_named(make_bundle):
    """As pip leaves it when onnxruntime and onnxruntime-gpu were installed, and one is uninstalled."""
    code = f"""
import importlib.machinery, sys, types
sys.modules["onnxruntime"] = package = types.ModuleType("onnxruntime")
package.__spec__ = importlib.machinery.ModuleSpec("onnxruntime", None)
from segue import Engine, ExecutorUnavailable
try:
    Engine.load({str(make_bundle())!r}, executor="onnxruntime")
except ExecutorUnavailable as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.match(r"executor='onnxruntime': cannot import name .* neither is whole: pip", done.stdout)


def test_a_signal_while_onnxruntime_is_imported_ends_the_process(make_bundle):
    """Its extension module makes an ImportError of what a signal's handler raises."""
    code = f"""
import sys
class Interrupted:
    def find_spec(self, name, *_):
        if name == "onnxruntime":
            raise ImportError("initialization failed") from SystemExit(143)
sys.meta_path.insert(0, Interrupted())
from segue import Engine
Engine.load({str(make_bundle())!r}, executor="onnxruntime")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (143, "")


@pytest.mark.parametrize(("threads", "most"), [(1, 1024), (2, 2048), (64, 8192)])
def test_the_windows_of_a_stream_are_some_seconds_of_work(engine, monkeypatch, threads, most):
    monkeypatch.setattr(engine._executor, "threads", threads)
    sizes: list[int] = []

    def no_logits(encoded: Any) -> np.ndarray:
        sizes.append(len(encoded.all().inverse))
        return np.zeros((len(encoded.inverse), 2), np.float32)

    monkeypatch.setattr(engine, "_logits", no_logits)
    assert sum(1 for _ in engine.score_iter([("a", "b")] * 30_000)) == 30_000
    assert max(sizes) == most


def test_values_that_are_not_finite_name_the_pair(engine, monkeypatch):
    def run(batches: Iterable[PackedBatch]) -> Iterator[np.ndarray]:
        for batch in batches:
            logits = np.zeros((len(batch.cu_seqlens) - 1, 2), dtype=np.float32)
            logits[0] = np.nan  # the longest pair comes first
            yield logits

    monkeypatch.setattr(engine._executor, "run", run)
    with pytest.raises(SegueError, match=r"pairs\[2\]: the model's logits are not finite"):
        engine.score([("a", "b"), ("a", "b"), ("the man went", "to the store")])
    with pytest.raises(SegueError, match=r"^documents\[1\]: the model's logits are not finite"):
        engine.rank("a", ["b", "to the store"])
    with pytest.raises(SegueError, match=r"^the model's logits are not finite"):
        engine.explain("a", "b")


def test_a_stream_ends_at_the_pair_that_is_not_finite(engine, monkeypatch):
    compute = engine._executor.run

    def run(batches: Iterable[PackedBatch]) -> Iterator[np.ndarray]:
        batches = list(batches)
        for batch, logits in zip(batches, compute(batches), strict=True):
            logits = logits.copy()
            logits[np.diff(batch.cu_seqlens) == 100] = np.inf
            yield logits

    monkeypatch.setattr(engine._executor, "run", run)
    pairs = [("a " * (97 if index == 150 else 1 + index % 50), "") for index in range(200)]
    scores: list[float] = []
    with pytest.raises(SegueError, match=r"^pairs\[150\]: the model's logits are not finite"):
        scores.extend(engine.score_iter(pairs))  # which reads them in windows of 64 and more
    assert len(scores) == 150


def test_a_checkpoint_folder_is_exported_once(make_checkpoint, make_bundle, tmp_path, monkeypatch):
    import segue.export

    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "cache"))
    checkpoint = Path(shutil.copytree(make_checkpoint(), tmp_path / "checkpoint"))
    pairs = ragged_pairs(5)
    wanted = Engine.load(make_bundle(), threads=1).score(pairs)
    assert np.abs(Engine.load(checkpoint, threads=1).score(pairs) - wanted).max() <= 2e-6
    exports = []
    export = segue.export.export_checkpoint
    monkeypatch.setattr(
        segue.export, "export_checkpoint", lambda *a, **k: exports.append(a) or export(*a, **k)
    )
    Engine.load(checkpoint)
    assert exports == []
    os.utime(checkpoint / "model.safetensors", ns=(0, 0))  # another state of the checkpoint
    Engine.load(checkpoint)
    assert len(exports) == 1


def test_a_checkpoint_exported_by_another_process_meanwhile_serves(
    make_checkpoint, make_bundle, tmp_path, monkeypatch
):
    import segue.export

    def export_checkpoint(checkpoint: Path, out: Path, **_: str) -> None:
        shutil.copytree(make_bundle(), out)
        raise BundleError(f"{out}: taken while the export ran")

    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    monkeypatch.setattr(segue.export, "export_checkpoint", export_checkpoint, raising=False)
    assert Engine.load(make_checkpoint(), threads=1).score([("a", "b")]).shape == (1,)
    monkeypatch.setattr(
        segue.export, "export_checkpoint", lambda *_, **__: (_ for _ in ()).throw(BundleError("bad"))
    )
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(BundleError, match="bad"):
        Engine.load(make_checkpoint())
