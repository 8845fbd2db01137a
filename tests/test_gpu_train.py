"""bench/gpu_train.py and what it carries: nothing is lost on the way to a GPU and back. No GPU takes part."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gpu_train
import pytest
import torch
from safetensors.torch import load_file

from segue.export import default_corpora
from segue.export.corpus import Document
from segue.export.default_corpora import gather, prepare


@pytest.fixture
def checkpoint(make_checkpoint: Any) -> Path:
    return make_checkpoint(architecture="BertForPreTraining")


def test_what_is_prepared_is_what_was_fetched(checkpoint, tmp_path, monkeypatch):
    novels = {"Emma": [Document("Emma, 1", ("One — “two”.", "Three."))], "Persuasion": []}
    articles = [Document("Alien", ("Four.", "Five."))]
    monkeypatch.setattr(default_corpora, "fetch", lambda folder: None)
    monkeypatch.setattr(default_corpora, "unpack", lambda folder: (checkpoint, novels, articles))
    prepare(tmp_path / "work", tmp_path / "carried")
    monkeypatch.setattr(default_corpora, "fetch", None)
    encoder, *texts = gather(tmp_path / "carried")
    assert texts == [novels, articles]
    assert {file.name for file in encoder.iterdir()} == {file.name for file in checkpoint.iterdir()}
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, encoder))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == torch.float16
        assert torch.equal(after[name], tensor.half())


def test_a_checkpoint_comes_home_in_parts(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_train, "_PART", 100_000)
    (tmp_path / "out").mkdir()
    gpu_train.bring_home(checkpoint, tmp_path / "out")
    parts = sorted((tmp_path / "out").glob("model.safetensors.*"))
    assert len(parts) > 2
    assert max(part.stat().st_size for part in parts) == 100_000
    gpu_train.main(["--join", str(tmp_path / "out"), "--to", str(tmp_path / "home")])
    names = {file.name for file in checkpoint.iterdir()} - {"vocab.txt"}
    assert {file.name for file in (tmp_path / "home").iterdir()} == names
    home = load_file(tmp_path / "home" / "model.safetensors")
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        assert torch.equal(home[name], tensor.half())
    with pytest.raises(SystemExit, match=r"holds no model\.safetensors\.00"):
        gpu_train.join(tmp_path / "home", tmp_path / "again")


def test_what_the_training_leaves_comes_home_even_if_the_rest_fails(checkpoint, tmp_path, monkeypatch):
    from segue.export import default_model

    asked: list[list[str]] = []

    def measure_fails(arguments: list[str]) -> None:
        asked.append(arguments)
        out = Path(arguments[arguments.index("--out") + 1])
        out.mkdir(parents=True)
        for file in checkpoint.iterdir():
            (out / file.name).write_bytes(file.read_bytes())
        raise RuntimeError("measuring failed")

    monkeypatch.setattr(default_model, "main", measure_fails)
    with pytest.raises(SystemExit, match="no GPU here"):
        gpu_train.main(["--prepared", "carried", "--out", str(tmp_path / "out")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="measuring failed"):
        gpu_train.main(["--prepared", "carried", "--out", str(tmp_path / "out"), "--minutes", "7"])
    assert asked == [
        [
            "--work",
            "carried",
            "--out",
            str(tmp_path / "out" / "whole"),
            "--minutes",
            "7.0",
            "--batch-size",
            "128",
        ]
    ]
    found = {file.name for file in (tmp_path / "out").iterdir()}
    assert found == {file.name for file in checkpoint.iterdir()} - {"vocab.txt", "model.safetensors"} | {
        "model.safetensors.00"
    }
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "bert"
    assert "segue.export.default_model" in sys.modules
