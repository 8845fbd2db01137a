"""`segue pretrain`: both tasks learnt from scratch, a killed run resumed, and what cannot work refused."""

from __future__ import annotations

import argparse
import errno
import io
import json
import logging
import math
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from segue import Engine
from segue.errors import BundleError, InputError, SegueError
from segue.export import export_checkpoint, pretraining
from segue.export.packing import pack_epoch
from segue.export.pretrain import _OPTIONS, add_arguments, pretrain, run
from segue.export.pretraining_run import drop_older, last_checkpoint, mark_complete, open_run
from segue.export.token_store import TokenStore

TOPICS = [["amber", "brook", "cedar", "delta"], ["ember", "fjord", "grove", "heath"],
          ["inlet", "jetty", "knoll", "ledge"], ["marsh", "north", "ocean", "ridge"]]  # fmt: skip
SHORT = {"size": "tiny", "vocab_size": 90, "batch_size": 4, "max_tokens": 24, "threads": 1}
KILLED = {**SHORT, "steps": 40, "save_steps": 4, "seed": 3}
ABSENT = object()


def sentence(draw: random.Random, topic: int) -> str:
    return " ".join(draw.choices(TOPICS[topic], k=draw.randint(2, 4))).capitalize() + "."


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Four documents, each with words of its own: B follows A where their words are of one document."""
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    file.write_text("\n\n".join(" ".join(sentence(draw, topic) for _ in range(300)) for topic in range(4)))
    return file


@pytest.fixture(scope="module")
def learnt(corpus, tmp_path_factory):
    """(folder, metrics, seconds) of a model that has learnt the corpus's rule."""
    out, began = tmp_path_factory.mktemp("learnt") / "out", time.monotonic()
    options = SHORT | {"batch_size": 32, "steps": 200, "learning_rate": 2e-3}
    metrics = pretrain(corpus, out=out, **options)
    return out, metrics, time.monotonic() - began


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    return out, pretrain(corpus, out=out, **KILLED)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return transformers.BertForPreTraining.from_pretrained(folder).state_dict()


def assert_same_result(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ours, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (one, other))
    assert ours | {"seconds": 0} == theirs | {"seconds": 0}


def command(corpus: Path, out: Path, *more: str) -> list[str]:
    flags = [part for name, value in KILLED.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return [sys.executable, "-m", "segue", "pretrain", str(corpus), "--out", str(out), *flags, *more]


def test_a_tiny_model_learns_both_tasks_from_scratch(learnt):
    out, metrics, seconds = learnt
    assert metrics["evaluation"]["nsp_accuracy"] >= 0.95
    assert metrics["evaluation"]["instances"] >= 200
    assert seconds < 120
    first, last = metrics["curve"][0], metrics["curve"][-1]
    assert last["mlm_loss"] < 0.6 * first["mlm_loss"]
    assert last["nsp_loss"] < 0.4 * first["nsp_loss"]
    assert [point["step"] for point in metrics["curve"]] == list(range(20, 201, 20))
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_rate_warms_up_and_decays(learnt):
    _, metrics, _ = learnt
    rates = {point["step"]: point["learning_rate"] for point in metrics["curve"]}
    assert rates[200] < 2e-5 < rates[180] < rates[100] < rates[20] <= 2e-3
    assert rates[100] == pytest.approx(2e-3 * 100 / 190, rel=0.02)


def test_the_curve_reaches_to_the_last_step(corpus, tmp_path):
    metrics = pretrain(corpus, out=tmp_path / "out", **SHORT | {"steps": 5, "save_steps": 3})
    assert [point["step"] for point in metrics["curve"]] == [3, 5]


def test_transformers_loads_what_is_written(learnt):
    out, _, _ = learnt
    model = transformers.AutoModelForPreTraining.from_pretrained(out).eval()
    assert type(model) is transformers.BertForPreTraining
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, 128)
    assert model.config.max_position_embeddings == 512
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    batch = tokenizer(
        ["Amber delta.", "Amber delta."], ["Brook.", "Knoll inlet."], return_tensors="pt", padding=True
    )
    is_next = model(**batch).seq_relationship_logits.softmax(-1)[:, 0]
    assert is_next[0] > 0.8 > 0.2 > is_next[1], "logit 0 is IsNext"


def test_the_exported_model_predicts_as_in_pytorch_to_the_pair(learnt, tmp_path):
    out, _, _ = learnt
    draw = random.Random(1)
    topics = [(draw.randrange(4), draw.randrange(4)) for _ in range(200)]
    pairs = [(sentence(draw, a), sentence(draw, b)) for a, b in topics]
    model = transformers.BertForPreTraining.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    with torch.no_grad():
        batch = tokenizer(*map(list, zip(*pairs, strict=True)), return_tensors="pt", padding=True)
        logits = model(**batch).seq_relationship_logits
    export_checkpoint(out, tmp_path / "bundle")
    scores = Engine.load(tmp_path / "bundle").score(pairs)
    assert scores == pytest.approx(logits.softmax(-1)[:, 0].numpy(), abs=1e-5)
    theirs = (logits.argmax(-1) == 0).tolist()
    assert (scores > 0.5).tolist() == theirs
    right = sum(found == (a == b) for found, (a, b) in zip(theirs, topics, strict=True))
    assert right >= 0.9 * len(pairs)


def test_killed_at_a_random_step_it_resumes_to_the_same_result(corpus, uninterrupted, tmp_path):
    expected, _ = uninterrupted
    out, draw = tmp_path / "out", random.Random()
    process = subprocess.Popen(command(corpus, out), stderr=subprocess.PIPE, cwd=tmp_path)
    target = out / f"checkpoint-{draw.choice([4, 8, 12, 16])}"
    while not target.exists():
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.15))  # in the middle of the checkpoint, or of the steps after it
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "metrics.json").exists()
    done = subprocess.run(command(corpus, out, "--resume"), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nsp=" not in done.stderr, "a bar is for terminals"
    assert "40 steps: next sentence 0." in done.stdout
    assert_same_result(out, expected)


def test_every_state_a_kill_can_leave_resumes_to_the_same_result(corpus, uninterrupted, tmp_path):
    expected, _ = uninterrupted
    finished = tmp_path / "finished"
    shutil.copytree(expected, finished)
    (finished / "metrics.json").unlink()
    (finished / "model.safetensors").write_bytes(b"cut off")
    pretrain(corpus, out=finished, **KILLED, resume=True)
    assert_same_result(finished, expected)

    cut = tmp_path / "cut"
    shutil.copytree(expected, cut)
    (cut / "checkpoint-40" / "complete").unlink()
    (cut / "checkpoint-40" / "optimizer.pt").write_bytes(b"cut off")
    pretrain(corpus, out=cut, **KILLED, resume=True)
    assert_same_result(cut, expected)

    early = tmp_path / "early"
    early.mkdir()
    shutil.copy(expected / "pretraining.json", early)
    (early / "tokens").mkdir()
    (early / "tokens" / "ids").write_bytes(b"cut off")
    (early / "tokenizer.json").write_text("{")
    pretrain(corpus, out=early, **KILLED, resume=True)
    assert_same_result(early, expected)


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "model.safetensors",
        "config.json",
    ],
)
def test_a_checkpoint_that_lost_a_file_is_refused(corpus, uninterrupted, tmp_path, name):
    """The trainer would start afresh whatever is missing, and train another model."""
    out = shutil.copytree(uninterrupted[0], tmp_path / "out")
    file = out / "checkpoint-40" / name
    data = file.read_bytes()
    file.unlink()
    with pytest.raises(BundleError, match=f"resume: .*checkpoint-40/{name} is missing"):
        pretrain(corpus, out=out, **KILLED, resume=True)
    for spoilt in (b"", data[:100], bytes(len(data))):
        file.write_bytes(spoilt)
        with pytest.raises(BundleError, match=f"resume: .*checkpoint-40/{name} is not what was saved"):
            last_checkpoint(out)
    (out / "checkpoint-40" / "complete").write_bytes(b"")
    with pytest.raises(BundleError, match="complete: not readable as JSON"):
        last_checkpoint(out)


def test_a_run_is_resumed_from_anywhere_by_any_name_of_its_corpus(corpus, uninterrupted, monkeypatch):
    out, before = uninterrupted
    monkeypatch.chdir(corpus.parent)
    after = pretrain(Path("corpus.txt"), out=os.path.relpath(out), **KILLED, resume=True)
    assert after["evaluation"] == before["evaluation"]


LATE = """
import os, time
from transformers import Trainer
from segue.cli import main

save = Trainer._save_rng_state

def late(trainer, folder):
    time.sleep(int(os.environ["RANK"]))  # the second process writes its own state when the first is done
    save(trainer, folder)

Trainer._save_rng_state = late
raise SystemExit(main())
"""


def test_several_processes_train_one_model(corpus, tmp_path):
    out = tmp_path / "out"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = [
        "--size",
        "tiny",
        "--batch-size",
        "2",
        "--max-tokens",
        "24",
        "--epochs",
        "0.05",
        "--threads",
        "1",
    ]
    (tmp_path / "late.py").write_text(LATE)
    code = [*torchrun, "late.py", "pretrain", str(corpus), "--out", str(out), *options]
    done = subprocess.run(code, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    epoch = len(pack_epoch(TokenStore(out / "tokens"), max_tokens=24))
    assert metrics["steps"] == round(0.05 * epoch / 4), "two instances on each of two devices"
    assert done.stdout.count("next sentence") == 1
    saved, last = weights(out), weights(last_checkpoint(out))
    assert all(torch.equal(saved[name], last[name]) for name in saved)
    marked = json.loads((last_checkpoint(out) / "complete").read_text())
    assert {"rng_state_0.pth", "rng_state_1.pth"} < {*marked}
    assert {*marked, "complete"} == {path.name for path in last_checkpoint(out).iterdir()}
    with pytest.raises(InputError, match=r"resume: devices: .* was started with 2, got 1"):
        pretrain(
            corpus, out=out, size="tiny", batch_size=2, max_tokens=24, epochs=0.05, threads=1, resume=True
        )


def test_the_last_complete_checkpoint_counts(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step in (8, 16, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    mark_complete(tmp_path / "checkpoint-8")
    mark_complete(tmp_path / "checkpoint-16")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-16"
    assert not (tmp_path / "checkpoint-100").exists()
    assert (tmp_path / "checkpoint-8").exists()


def test_what_is_no_checkpoint_is_the_users(tmp_path):
    """Whether a run is resumed, or drops the checkpoints before the last two."""
    mine = ["checkpoint-0-mine", "checkpoint-\u00b2", "checkpoint-3 old", "checkpoint-", "checkpoint-07"]
    for name in mine:
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-30").write_text("mine")
    (tmp_path / "checkpoint-4").symlink_to(tmp_path / mine[0])
    assert last_checkpoint(tmp_path) is None
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    drop_older(tmp_path)
    kept = ["checkpoint-10", "checkpoint-11", "checkpoint-30", "checkpoint-4"]
    assert sorted(os.listdir(tmp_path)) == sorted([*mine, *kept])


def test_the_trainer_removes_no_folder_of_the_users(corpus, uninterrupted, tmp_path):
    out = shutil.copytree(uninterrupted[0], tmp_path / "out")
    shutil.rmtree(out / "checkpoint-40")
    (out / "checkpoint-9-mine").mkdir()
    pretrain(corpus, out=out, **KILLED, resume=True)
    assert {path.name for path in out.glob("checkpoint-*")} == {
        "checkpoint-9-mine",
        "checkpoint-36",
        "checkpoint-40",
    }
    ours, theirs = weights(out), weights(uninterrupted[0])
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_losses_are_shown_on_a_terminal_or_told_once_a_minute(monkeypatch, caplog, terminal):
    caplog.set_level(logging.INFO, logger="segue")

    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    monkeypatch.setattr(sys, "stderr", stream := Stream())
    state = types.SimpleNamespace(is_world_process_zero=True, max_steps=4, global_step=2)
    bar = pretraining._Progress()
    bar.on_train_begin(None, state, None)
    for _ in range(2):
        bar.on_log(None, state, None, logs={"mlm_loss": 1.5, "nsp_loss": 0.25})
    bar.on_train_end(None, state, None)
    assert ("mlm=1.500, nsp=0.250" in stream.getvalue()) == terminal
    assert bool(stream.getvalue()) == terminal
    said = [] if terminal else ["step 2 of 4: losses of masked words 1.500, of next sentences 0.250"]
    assert [record.getMessage() for record in caplog.records] == said


def test_from_a_checkpoint_with_whole_words_by_epochs(corpus, learnt, tmp_path, capsys):
    init, _, _ = learnt
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    out = tmp_path / "out"
    arguments = [str(corpus), "--out", str(out), "--init", str(init), "--whole-words", "--epochs", "0.05"]
    arguments += ["--max-tokens", "24", "--batch-size", "8", "--learning-rate", "1e-5", "--threads", "1"]
    run(parser.parse_args(arguments))
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["steps"] == round(0.05 * len(pack_epoch(TokenStore(out / "tokens"), max_tokens=24)) / 8)
    assert metrics["evaluation"]["nsp_accuracy"] >= 0.95, "it goes on from what was learnt"
    assert (out / "vocab.txt").read_bytes() == (init / "vocab.txt").read_bytes()
    assert f"{metrics['steps']} steps: next sentence" in capsys.readouterr().out
    assert set(_OPTIONS) | {"corpus", "out"} == set(vars(parser.parse_args(arguments)))


def test_both_losses_are_hugging_faces_own(learnt):
    out, _, _ = learnt
    ours, theirs = pretraining.load(out).eval(), transformers.BertForPreTraining.from_pretrained(out).eval()
    batch = transformers.AutoTokenizer.from_pretrained(out)(
        ["amber brook cedar", "north"], ["delta", "ocean ridge"], return_tensors="pt", padding=True
    )
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, 1], labels[0, 2], labels[1, 1] = 7, 8, 9
    inputs = {**batch, "labels": labels, "next_sentence_label": torch.tensor([0, 1])}
    found = ours(**inputs)
    assert found["loss"].item() == pytest.approx(theirs(**inputs).loss.item(), rel=1e-5)
    assert found["loss"] == found["mlm_loss"] + found["nsp_loss"]
    inputs["labels"] = torch.full_like(labels, -100)
    assert ours(**inputs)["mlm_loss"] == 0, "a batch in which nothing can be masked"
    assert torch.equal(ours(**batch).prediction_logits, theirs(**batch).prediction_logits)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"init": "x"}, "one of init and size"),
        ({"size": "huge"}, "size: expected tiny, mini, small, base, or init, got 'huge'"),
        ({"size": None}, "size: expected"),
        ({"steps": 1, "epochs": 1.0}, "one of steps and epochs"),
        ({"steps": 0}, "steps: expected an integer from 1 to 4294967295, got 0"),
        ({"steps": 2**32}, "steps: expected an integer from 1 to 4294967295, got 4294967296"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"threads": 100_000}, "threads: expected an integer from 1 to 1024, got 100000"),
        ({"save_steps": 0}, "save_steps"),
        ({"seed": -1}, "seed: expected an integer from 0 to 4294967295, got -1"),
        ({"epochs": math.nan}, "epochs: expected a finite number above 0, got nan"),
        ({"epochs": 1e30}, "epochs: expected at most 4294967295 steps, got 1e.30, which is "),
        ({"epochs": 1e308}, "epochs: expected at most 4294967295 steps"),
        ({"learning_rate": math.inf}, "learning_rate: expected a finite number above 0, got inf"),
        ({"warm_up": 1.0}, "warm_up"),
        ({"max_tokens": 513}, "max_tokens: expected at most 512, got 513"),
        ({"vocab_size": 10}, "size: expected .* for the letters alone"),
        ({"vocab": "vocab.txt"}, "vocab_size: a vocabulary is given"),
        ({"vocab": "nowhere", "vocab_size": None}, "vocabulary: 'nowhere'"),
        ({"vocab": ".", "vocab_size": None, "cased": True}, "cased: '.' itself says"),
        ({"vocab": ""}, "vocab: expected a path, got ''"),
        ({"init": "", "size": None}, "init: expected a path, got ''"),
        ({"resume": True}, "resume: nothing to resume in .*out"),
    ],
)
def test_refused_options(corpus, tmp_path, options, reason):
    with pytest.raises(InputError, match=reason):
        pretrain(corpus, out=tmp_path / "out", **SHORT | options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (ABSENT, "does not exist"),
        ({}, "holds no text"),
        ({"one.txt": b"One. Two. Three."}, "one document only"),
        ({"a.txt": b"One.", "b.txt": b"Two."}, "single sentence"),
        ({"a.txt": b"One. Two.", "b.bin": b"\x00\x01"}, "binary file"),
        ({"a.txt": b"One. Two.", "b.txt": b"\xff\xfe"}, "not UTF-8"),
    ],
)
def test_refused_corpora(content, reason, tmp_path):
    folder = tmp_path / "corpus"
    if content is not ABSENT:
        folder.mkdir()
        for name, data in content.items():
            (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=reason):
        pretrain(folder, out=tmp_path / "out", **SHORT)
    assert not (tmp_path / "out").exists()


def test_what_fails_early_leaves_nothing_behind(corpus, tmp_path, monkeypatch):
    words = tmp_path / "vocab.txt"
    words.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(InputError, match="no word but special tokens"):
        pretrain(corpus, out=tmp_path / "out", **SHORT | {"vocab": words, "vocab_size": None})
    assert not (tmp_path / "out").exists()

    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "a.txt")

    monkeypatch.setattr("segue.export.documents._lines", fail)
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "out", tmp_path / "empty"):
        with pytest.raises(PermissionError, match=r"a\.txt"):
            pretrain(corpus, out=out, **SHORT)
    assert not (tmp_path / "out").exists()
    assert os.listdir(tmp_path / "empty") == []


def test_the_padding_is_the_vocabularys(corpus, uninterrupted, tmp_path):
    """Its embedding begins as zero and learns nothing as an input, as no ordinary word's may."""
    lines = (uninterrupted[0] / "vocab.txt").read_text().splitlines()
    words = tmp_path / "vocab.txt"
    words.write_text("\n".join([*lines[1:], lines[0]]))
    options = SHORT | {"vocab": words, "vocab_size": None, "steps": 1}
    pretrain(corpus, out=tmp_path / "out", **options)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pad_token_id"] == len(lines) - 1
    table = pretraining.new(config).get_input_embeddings().weight
    assert (table == 0).all(dim=1).nonzero().tolist() == [[len(lines) - 1]]


def test_refused_places(corpus, learnt, tmp_path):
    out, _, _ = learnt
    with pytest.raises(InputError, match="out: expected a path, got ''"):
        pretrain(corpus, out="", **SHORT)
    with pytest.raises(InputError, match="holds a run; --resume goes on with it"):
        pretrain(corpus, out=out, **SHORT)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is taken"):
        pretrain(corpus, out=tmp_path / "file", **SHORT)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "pretraining.json.part").write_text("{")
    open_run(tmp_path / "begun", {"seed": 1}, resume=False)
    open_run(tmp_path / "begun", {"seed": 1}, resume=True)
    with pytest.raises(InputError, match="inside the corpus"):
        pretrain(corpus.parent, out=corpus.parent / "out", **SHORT)
    assert os.listdir(corpus.parent) == ["corpus.txt"]
    assert (tmp_path / "file").read_bytes() == b""


def test_what_is_refused_takes_away_no_more_than_it_made(tmp_path, monkeypatch):
    (tmp_path / "corpus.txt").write_text("One. Two. Three.")
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    monkeypatch.chdir(tmp_path / "out")
    for out in (".", tmp_path / "link", tmp_path / "out"):
        with pytest.raises(InputError, match="one document only"):
            pretrain(tmp_path / "corpus.txt", out=out, **SHORT)
        assert sorted(os.listdir(tmp_path)) == ["corpus.txt", "link", "out"]
        assert os.listdir(tmp_path / "out") == []


def test_a_run_whose_tokens_are_gone_is_kept(corpus, uninterrupted, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(uninterrupted[0], out)
    shutil.rmtree(out / "tokens")
    before = sorted(out.rglob("*"))
    with pytest.raises(BundleError, match="resume: this run's tokens are gone or spoilt"):
        pretrain(corpus, out=out, **KILLED, resume=True)
    assert sorted(out.rglob("*")) == before


def test_a_training_that_diverges_says_so_and_is_not_kept_as_a_model(corpus, tmp_path):
    with pytest.raises(SegueError, match=r"diverged.*learning_rate 1e\+30 is too large"):
        pretrain(corpus, out=tmp_path / "out", **SHORT | {"steps": 3, "learning_rate": 1e30})
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_where_no_pair_follows_it_is_said(tmp_path, caplog):
    """A sentence fills the room of a pair, and a second one is only ever another document's."""
    text = "\n\n".join(f"One two three four five {n}. Six seven eight nine ten {n}." for n in range(6))
    (tmp_path / "corpus.txt").write_text(text)
    options = SHORT | {"steps": 1, "max_tokens": 8, "vocab_size": 200}
    with caplog.at_level(logging.WARNING, logger="segue"):
        metrics = pretrain(tmp_path / "corpus.txt", out=tmp_path / "out", **options)
    assert metrics["evaluation"]["is_next"] == 0
    assert "all fresh instances are NotNext" in caplog.text


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0", "No space left on device"),
        (
            "Error while serializing: I/O error: No space left on device (os error 28)",
            "No space left on device",
        ),
        ("Error while serializing: I/O error: File too large (os error 27)", "File too large"),
    ],
)
def test_a_full_disk_is_told_as_one(corpus, tmp_path, monkeypatch, said, reason):
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(pretraining, "train", fail)
    with pytest.raises(OSError, match=f"{reason}: .*out"):
        pretrain(corpus, out=tmp_path / "out", **SHORT | {"steps": 3})


def test_where_nothing_is_masked_nothing_is_measured(corpus, tmp_path, capsys):
    """A vocabulary without the corpus's words: all are [UNK], which is never masked."""
    words = tmp_path / "vocab.txt"
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "elsewhere"]))
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    line = [str(corpus), "--out", str(tmp_path / "out"), "--size", "tiny", "--vocab", str(words)]
    run(parser.parse_args([*line, "--steps", "1", "--batch-size", "2", "--max-tokens", "24"]))
    judged = json.loads((tmp_path / "out" / "metrics.json").read_text())["evaluation"]
    assert (judged["masked_tokens"], judged["mlm_loss"], judged["mlm_accuracy"]) == (0, None, None)
    assert "masked words none masked" in capsys.readouterr().out


def test_whoever_may_read_one_file_may_read_all(learnt):
    out, metrics, _ = learnt
    modes = {stat.S_IMODE((out / name).stat().st_mode) for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1
    assert 0.3 < metrics["evaluation"]["is_next"] < 0.7


def test_a_resumed_run_has_the_options_it_was_started_with(corpus, uninterrupted, tmp_path):
    out, _ = uninterrupted
    for name, value in {"steps": 41, "seed": 4, "whole_words": True, "max_tokens": 25}.items():
        with pytest.raises(InputError, match=f"resume: {name}: .* was started with .*, got {value}"):
            pretrain(corpus, out=out, **KILLED | {name: value}, resume=True)
    with pytest.raises(InputError, match="resume: corpus: "):
        pretrain(corpus.parent, out=out, **KILLED, resume=True)
    (tmp_path / "pretraining.json").write_text("{")
    with pytest.raises(BundleError, match="no record of a run"):
        open_run(tmp_path, {}, resume=True)


def test_refused_checkpoints(corpus, make_checkpoint, tmp_path):
    def attempt(error: type[Exception], reason: str, init: Path, **options: Any) -> None:
        with pytest.raises(error, match=reason):
            pretrain(corpus, init=init, out=tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    good = make_checkpoint()
    attempt(BundleError, "no config.json", tmp_path)
    attempt(
        BundleError,
        "model_type: 'roberta' is not supported",
        make_checkpoint(config={"model_type": "roberta"}),
    )
    attempt(InputError, "max_tokens: expected at most 32, got 128", make_checkpoint(positions=32))
    attempt(InputError, "vocabulary: it has", make_checkpoint(vocab_size=900), vocab=good)
    attempt(InputError, "vocabulary: lowercase is", good, vocab=make_cased(good, tmp_path / "cased"))

    for name, data, reason in [
        ("model.safetensors", None, "no weights: looked for model.safetensors"),
        ("model.safetensors", b"not weights", "model.safetensors: not readable as weights alone"),
        ("tokenizer.json", b"{", "tokenizer"),
    ]:
        broken = tmp_path / "broken"
        shutil.copytree(good, broken)
        (broken / name).unlink()
        if data is not None:
            (broken / name).write_bytes(data)
        attempt(BundleError, reason, broken)
        shutil.rmtree(broken)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"num_hidden_layers": 3}, "lacks 16 weights of a BERT, one is bert.encoder.layer.2.attention"),
        ({"num_hidden_layers": 1}, r"config.json tells of no bert\.encoder\.layer\.1\."),
        (
            {"intermediate_size": 7},
            r"intermediate\.dense\.bias: expected the shape \[7\] by config.json, got",
        ),
        ({"pad_token_id": 10**6}, r"config\.json: no BERT can be made of it: Padding_idx must be within"),
        ({"hidden_dropout_prob": "x"}, r"config\.json: .*hidden_dropout_prob"),
        ({"initializer_range": "a"}, r"config\.json: .*initializer_range"),
        ({"layer_norm_eps": None}, r"config\.json: .*layer_norm_eps"),
        ({"dtype": "float7"}, r"config\.json: .*float7"),
        ({"chunk_size_feed_forward": 3}, r"config\.json: chunk_size_feed_forward: expected 0, got 3"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(make_checkpoint, tmp_path, changed, reason):
    folder = shutil.copytree(make_checkpoint(), tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match=reason):
        pretraining.load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("data", [b"", b"hello world", b"{}"])
def test_weights_that_are_none_are_refused(make_checkpoint, tmp_path, name, data):
    folder = shutil.copytree(make_checkpoint(), tmp_path / "checkpoint")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name}: not "):
        pretraining.load(folder)


def test_weights_that_are_not_finite_are_refused(learnt, tmp_path):
    folder = shutil.copytree(learnt[0], tmp_path / "checkpoint")
    stored = weights(folder)
    stored["bert.pooler.dense.bias"][0] = torch.nan
    (folder / "model.safetensors").unlink()
    torch.save(stored, folder / "pytorch_model.bin")
    with pytest.raises(
        BundleError, match=r"checkpoint: weights: bert\.pooler\.dense\.bias holds values that"
    ):
        pretraining.load(folder)


def test_a_model_without_heads_is_loaded_and_its_heads_are_new(learnt, tmp_path):
    stored = {name: tensor for name, tensor in weights(learnt[0]).items() if name.startswith("bert.")}
    old = {name.removeprefix("bert.").replace("Norm.weight", "Norm.gamma"): stored[name] for name in stored}
    torch.save(old | {"embeddings.position_ids": torch.arange(512)[None]}, tmp_path / "pytorch_model.bin")
    shutil.copy(learnt[0] / "config.json", tmp_path)
    loaded = pretraining.load(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)
    assert loaded["cls.seq_relationship.weight"].std() > 0


def make_cased(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint's tokenizer, but telling upper from lower case."""
    folder.mkdir()
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text()) | {"do_lower_case": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_the_command_is_described_without_torch_and_says_what_is_missing(corpus, tmp_path):
    program = """
        import sys
        sys.modules["transformers"] = None
        from segue.export.pretrain import pretrain
        from segue import ExecutorUnavailable
        assert not {"torch", "matplotlib"} & set(sys.modules)
        try:
            pretrain(sys.argv[1], size="tiny", out="out")
        except ExecutorUnavailable as error:
            print(error)
        """
    code = [sys.executable, "-c", textwrap.dedent(program), str(corpus)]
    done = subprocess.run(code, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stderr, done.returncode) == ("", 0)
    assert "needs transformers" in done.stdout
    assert "segue[train]" in done.stdout
    assert not (tmp_path / "out").exists()
