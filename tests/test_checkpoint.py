"""Reading checkpoints: however the weights are stored, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from segue.errors import BundleError
from segue.export.checkpoint import load_bert, read_checkpoint
from segue.export.weights import read_weights, weight_files, weights_sha256

ATTENTION = "bert.encoder.layer.0.attention.self"


@pytest.fixture
def folder(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A checkpoint that a test may spoil."""
    return Path(shutil.copytree(make_checkpoint(), tmp_path / "checkpoint"))


def _edit(path: Path, **changes: Any) -> None:
    kept = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in kept.items() if value is not ...}))


def _same_network(folder: Path, like: Path) -> None:
    found, expected = (load_bert(read_checkpoint(path)).state_dict() for path in (folder, like))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_shards_are_read_as_one(make_checkpoint: Callable[..., Path]) -> None:
    sharded = make_checkpoint(shard_size="100KB")
    assert len(weight_files(sharded)) > 2
    assert not (sharded / "model.safetensors").exists()
    _same_network(sharded, make_checkpoint())


def test_pytorch_files_single_and_sharded(make_checkpoint: Callable[..., Path], folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    _same_network(folder, make_checkpoint())

    (folder / "pytorch_model.bin").unlink()
    names = sorted(weights)
    shards = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, part in shards.items():
        torch.save({name: weights[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    _same_network(folder, make_checkpoint())


def test_old_names_of_the_layer_norms(make_checkpoint: Callable[..., Path], folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in weights.items()
    }
    assert renamed.keys() != weights.keys()
    save_file(renamed, folder / "model.safetensors")
    _same_network(folder, make_checkpoint())


def test_weights_stored_in_half_precision_are_widened(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, folder / "model.safetensors")
    state = load_bert(read_checkpoint(folder)).state_dict()
    word = weights["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(state["embeddings.word.weight"], word.bfloat16().float())


def test_the_harmless_extras_are_known_and_no_other(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    extras = {"bert.embeddings.position_ids": torch.arange(512), "cls.predictions.bias": torch.ones(3)}
    save_file(weights | extras, folder / "model.safetensors")
    load_bert(read_checkpoint(folder))
    save_file(weights | {"bert.adapter.weight": torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(BundleError, match=r"unknown: bert\.adapter\.weight"):
        load_bert(read_checkpoint(folder))


def test_berts_own_checkpoints_have_the_nsp_head_whatever_they_call_themselves(
    make_checkpoint: Callable[..., Path], folder: Path
) -> None:
    _edit(folder / "config.json", architectures=["BertForMaskedLM"])
    assert read_checkpoint(folder).head.kind == "nsp"
    _same_network(folder, make_checkpoint())
    weights = load_file(folder / "model.safetensors")
    del weights["cls.seq_relationship.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(BundleError, match=r"cls\.seq_relationship\.weight is missing"):
        load_bert(read_checkpoint(folder))


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [("nsp", "BertForNextSentencePrediction"), ("binary", "BertForSequenceClassification")],
)
def test_where_the_config_names_no_architecture_the_weights_tell(
    make_checkpoint: Callable[..., Path], tmp_path: Path, kind: str, architecture: str
) -> None:
    """As of bert-tiny and other first conversions of Google's BERTs."""
    made = make_checkpoint(architecture=architecture)
    folder = shutil.copytree(made, tmp_path / "copy")
    _edit(folder / "config.json", architectures=...)
    assert read_checkpoint(folder).head.kind == kind
    _same_network(folder, made)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: one for name, one in weights.items() if name.startswith("bert.")}, folder / "model.safetensors"
    )
    with pytest.raises(BundleError, match=r"architectures: expected one of .*, got None"):
        read_checkpoint(folder)


def _spoil_missing(weights: dict[str, torch.Tensor]) -> None:
    del weights["bert.encoder.layer.1.attention.self.key.bias"]


def _spoil_shape(weights: dict[str, torch.Tensor]) -> None:
    weights["bert.pooler.dense.weight"] = torch.ones(64, 63)


def _spoil_kind(weights: dict[str, torch.Tensor]) -> None:
    weights["cls.seq_relationship.bias"] = torch.ones(2, dtype=torch.int32)


def _spoil_value(weights: dict[str, torch.Tensor]) -> None:
    weights["bert.pooler.dense.bias"] = torch.full((64,), torch.nan)


def _spoil_query_kind(weights: dict[str, torch.Tensor]) -> None:
    weights[f"{ATTENTION}.query.weight"] = torch.ones(64, 64, dtype=torch.int8)


def _spoil_key_shape(weights: dict[str, torch.Tensor]) -> None:
    weights[f"{ATTENTION}.key.weight"] = torch.ones(64, 63)


def _spoil_key_value(weights: dict[str, torch.Tensor]) -> None:
    weights[f"{ATTENTION}.key.bias"] = torch.full((64,), torch.inf)


def _spoil_twice(weights: dict[str, torch.Tensor]) -> None:
    weights["bert.embeddings.LayerNorm.gamma"] = torch.ones(64)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_spoil_missing, r"layer\.1\.attention\.self\.key\.bias is missing"),
        (
            _spoil_shape,
            r"pooler\.dense\.weight: expected the shape \[64, 64\] by config.json, got \[64, 63\]",
        ),
        (_spoil_kind, r"seq_relationship\.bias: expected floating point, got torch\.int32"),
        (_spoil_value, r"pooler\.dense\.bias holds values that are not finite"),
        (_spoil_query_kind, r"self\.query\.weight: expected floating point, got torch\.int8"),
        (_spoil_key_shape, r"self\.key\.weight: expected the shape \[64, 64\] by .*, got \[64, 63\]"),
        (_spoil_key_value, r"self\.key\.bias holds values that are not finite"),
        (_spoil_twice, r"embeddings\.LayerNorm\.weight is there twice"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    folder: Path, spoil: Callable[[dict[str, torch.Tensor]], None], said: str
) -> None:
    weights = load_file(folder / "model.safetensors")
    spoil(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(BundleError, match=said):
        load_bert(read_checkpoint(folder))


def test_files_that_cannot_be_read_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BundleError, match=r"model\.safetensors: not readable as weights alone"):
        read_weights(folder)
    path.unlink()
    with pytest.raises(BundleError, match=r"no weights: looked for model\.safetensors"):
        read_weights(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(BundleError, match="not a plain file name"):
        read_weights(folder)
    index.write_text(json.dumps({"weight_map": {"a": "a.safetensors"}}))
    with pytest.raises(BundleError, match=r"a\.safetensors: missing"):
        read_weights(folder)
    index.write_text(json.dumps({"weight_map": {"a": 5}}))
    with pytest.raises(BundleError, match="5 is not a plain file name"):
        read_weights(folder)
    index.write_text("[]")
    with pytest.raises(BundleError, match="not an index of shards"):
        read_weights(folder)


class Boom:
    """Unpickled by anything but a weights-only reader, this writes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("boom"),))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_in_place_of_the_weights_is_told_from_broken_ones(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(BundleError, match=rf"{name}: .*: a pointer to them, of Git LFS: run"):
        load_bert(read_checkpoint(folder))


def test_an_adapter_beside_the_weights_is_not_left_out_silently(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(
        BundleError, match=r"adapter_config\.json: the adapter is not in the weights: merge it"
    ):
        weight_files(folder)
    with pytest.raises(BundleError, match="merge it"):
        load_bert(read_checkpoint(folder))


def test_a_pickle_is_never_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"bert.pooler.dense.bias": Boom()}, folder / "pytorch_model.bin")
    with pytest.raises(BundleError, match=r"pytorch_model\.bin: not readable as weights alone"):
        read_weights(folder)
    assert not (tmp_path / "boom").exists()
    for other in ([1], {"bert.pooler.dense.bias": 1}, {0: torch.ones(1)}):
        torch.save(other, folder / "pytorch_model.bin")
        with pytest.raises(BundleError, match="expected a mapping of names to tensors"):
            read_weights(folder)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(64, device="meta"),
        torch.ones(64).to_sparse(),
        torch.nested.nested_tensor([torch.ones(64)], layout=torch.jagged),
    ],
    ids=["meta", "sparse", "nested"],
)
def test_a_tensor_that_is_no_plain_numbers_is_named(folder: Path, tensor: torch.Tensor) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"bert.pooler.dense.bias": tensor}, folder / "pytorch_model.bin")
    with pytest.raises(
        BundleError, match=r"pooler\.dense\.bias: the tensor is without values, nested or sparse"
    ):
        read_weights(folder)


def test_the_sum_over_shards_is_the_sum_over_their_bytes(make_checkpoint: Callable[..., Path]) -> None:
    import hashlib

    sharded = make_checkpoint(shard_size="100KB")
    whole = b"".join(path.read_bytes() for path in weight_files(sharded))
    assert weights_sha256(sharded) == hashlib.sha256(whole).hexdigest()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "roberta"}, "model_type: 'roberta'"),
        ({"architectures": ["BertModel"]}, "architectures: expected one of BertForNextSentencePrediction"),
        ({"architectures": [["BertModel"]]}, "architectures"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type: 'relative_key'"),
        ({"hidden_act": "gelu_new"}, "hidden_act: 'gelu_new' is not supported .only gelu"),
        ({"hidden_act": "relu"}, "hidden_act: 'relu'"),
        ({"is_decoder": True}, "is_decoder: True"),
        ({"add_cross_attention": True}, "add_cross_attention: True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"num_attention_heads": 3}, "hidden_size: 64 is not a multiple of 3"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected an integer from 1 to 1000, got 0"),
        ({"num_hidden_layers": 1001}, "num_hidden_layers: expected an integer from 1 to 1000, got 1001"),
        ({"vocab_size": "335"}, "vocab_size: expected an integer from 1 to 16777216, got '335'"),
        ({"intermediate_size": ...}, "intermediate_size: expected an integer from 1 to 16777216, got None"),
        ({"hidden_size": 2**24 + 1}, "hidden_size: expected an integer from 1 to 16777216, got 16777217"),
        ({"hidden_size": 10**30}, "hidden_size: expected an integer from 1 to 16777216, got 1000000"),
        ({"type_vocab_size": 1}, "type_vocab_size"),
        ({"max_position_embeddings": 2}, "max_position_embeddings"),
        ({"layer_norm_eps": "tiny"}, "layer_norm_eps"),
    ],
    ids=str,
)
def test_what_cannot_be_reproduced_is_refused_by_name(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    _edit(folder / "config.json", **changes)
    with pytest.raises(BundleError, match=said) as caught:
        read_checkpoint(folder)
    assert str(folder / "config.json") in str(caught.value)


def test_the_largest_sizes_only_lack_their_weights(folder: Path) -> None:
    sizes = ("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings", "type_vocab_size")
    _edit(folder / "config.json", num_attention_heads=1, **dict.fromkeys(sizes, 2**24))
    with pytest.raises(
        BundleError, match=r"word_embeddings\.weight: expected the shape \[16777216, 16777216\]"
    ):
        load_bert(read_checkpoint(folder))


def test_a_config_that_may_not_be_read_is_not_said_to_be_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path, **_: Any) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", forbidden)  # root ignores the mode of a file
    with pytest.raises(BundleError, match=r"config\.json: not readable: Permission denied"):
        read_checkpoint(folder)


def test_an_epsilon_of_zero_is_one(folder: Path) -> None:
    _edit(folder / "config.json", layer_norm_eps=0)
    assert read_checkpoint(folder).eps == 0


def test_a_folder_without_a_usable_config(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a Hugging Face checkpoint folder"):
        read_checkpoint(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=r"file: no config\.json: not a Hugging Face checkpoint folder"):
        read_checkpoint(tmp_path / "file")
    for text, said in (
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("[1]", "expected an object, got list"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(BundleError, match=said):
            read_checkpoint(tmp_path)


def test_absent_settings_mean_what_transformers_means(folder: Path) -> None:
    absent = ("hidden_act", "is_decoder", "add_cross_attention", "layer_norm_eps")
    _edit(folder / "config.json", **dict.fromkeys(absent, ...))
    assert read_checkpoint(folder).eps == 1e-12 == transformers.BertConfig().layer_norm_eps
