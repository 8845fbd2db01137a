"""The bundle on disk: strict reading, and every way in which a folder can be wrong."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from segue import BundleError, Engine, InputError
from segue.bundle import MANIFEST, MODEL, TOKENIZER, read_bundle, sha256, write_manifest
from segue.onnx_file import external_data_locations


@pytest.fixture
def bundle(tmp_path: Path, make_bundle: Callable[..., Path]) -> Path:
    """Return a copy that a test may spoil."""
    return Path(shutil.copytree(make_bundle(), tmp_path / "bundle"))


def _edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((bundle / MANIFEST).read_text())
    change(data)
    (bundle / MANIFEST).write_text(json.dumps(data))


def _seal(bundle: Path) -> None:
    """Make the sums right again after a change, as an attacker would."""
    _edit(bundle, lambda data: data["files"].update({name: sha256(bundle / name) for name in data["files"]}))


def test_what_is_written_is_read(bundle, tmp_path):
    manifest = read_bundle(bundle)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in manifest.files:
        shutil.copy(bundle / name, copy)
    write_manifest(copy, manifest)
    assert read_bundle(copy) == manifest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.update(format=2), "format 2 is newer than this segue reads"),
        (lambda data: data.update(format="1"), "format: expected an integer"),
        (lambda data: data.update(format=True), "format: expected an integer"),
        (lambda data: data.update(format=0), "format: expected an integer from 1, got 0"),
        (lambda data: data.pop("format"), "format: expected an integer from 1, got None"),
        (lambda data: data.pop("head"), "head: missing"),
        (lambda data: data["head"].pop("positive"), "head.positive: missing"),
        (lambda data: data.update(colour="red"), "colour: unknown key"),
        (lambda data: data["dimensions"].update(depth=3), "dimensions.depth: unknown key"),
        (lambda data: data.update(max_tokens=0), "max_tokens: expected a positive integer, got 0"),
        (lambda data: data.update(max_tokens=True), "max_tokens: expected a positive integer"),
        (lambda data: data.update(flat=1), "flat: expected true or false"),
        (lambda data: data.update(files=[]), "files: expected an object of strings"),
        (lambda data: data["head"].update(labels="IsNext"), "head.labels: expected a list of strings"),
        (lambda data: data["head"].update(labels=["NotNext", "IsNext"]), "IsNext, NotNext in this order"),
        (lambda data: data["head"].update(positive=1), "positive 0"),
        (
            lambda data: data.update(max_tokens=2),
            "max_tokens: expected 3 to 512, the positions there are, got 2",
        ),
        (lambda data: data.update(max_tokens=513), "max_tokens: expected 3 to 512"),
        (
            lambda data: data["head"].update(kind="multiclass", labels=["x", "y", "x"], positive=None),
            "head.labels: 'x' is there twice",
        ),
        (
            lambda data: data["head"].update(kind="binary", labels=["x", "y", "z"], positive=1),
            "head.labels: 3 labels do not fit binary with softmax",
        ),
        (lambda data: data["files"].pop(TOKENIZER), "tokenizer.json is not listed"),
        (lambda data: data["files"].update({"../out.bin": "0"}), "'../out.bin' is not a plain file name"),
        (lambda data: data["files"].update({"more.bin": "0"}), "more.bin: missing"),
        (lambda data: data.update(layout="padded"), "the padded layout is for other runtimes"),
    ],
)
def test_a_wrong_manifest_names_the_key(bundle, change, words):
    _edit(bundle, change)
    with pytest.raises(BundleError) as caught:
        Engine.load(bundle)
    assert words in str(caught.value)
    assert "bundle" in str(caught.value)  # the folder is named


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000])
def test_an_unreadable_manifest_is_a_bundle_error(bundle, content):
    (bundle / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=MANIFEST):
        Engine.load(bundle)


@pytest.mark.parametrize("name", [MODEL, TOKENIZER])
def test_a_changed_byte_is_found(bundle, name):
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name}: sha256 is .* altered or cut short"):
        Engine.load(bundle)


@pytest.mark.parametrize("name", [MODEL, TOKENIZER])
@pytest.mark.parametrize("kept", [0, 0.3, 0.99])
def test_a_truncated_file_is_found_even_with_its_sum_right(bundle, name, kept):
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(BundleError, match=name):
        Engine.load(bundle)
    _seal(bundle)
    with pytest.raises(BundleError, match=name):
        Engine.load(bundle)


@pytest.mark.parametrize("name", [MODEL, TOKENIZER])
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        Engine.load(bundle)


@pytest.mark.parametrize("name", [MODEL, MANIFEST])
def test_a_file_that_may_not_be_read_is_named(bundle, name, monkeypatch):
    real = Path.open

    def refusing(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(BundleError, match=f"{name}: Permission denied"):
        read_bundle(bundle)


def test_folders_that_are_no_bundle_are_told_apart(tmp_path):
    with pytest.raises(BundleError, match="no such folder"):
        Engine.load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="neither a bundle"):
        Engine.load(tmp_path)
    with pytest.raises(InputError, match="path: expected a folder's name or None, got 5"):
        Engine.load(5)


def _with_external_data(bundle: Path, location: str) -> onnx.TensorProto:
    model = onnx.load(bundle / MODEL)
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    onnx.save(model, bundle / MODEL)
    (bundle / "inside.data").write_bytes(data)
    return tensor


@pytest.mark.parametrize(
    "location", ["../../../etc/passwd", "/etc/passwd", "inside.data", "a/../inside.data"]
)
def test_external_data_that_is_no_file_of_the_bundle_is_refused(bundle, location):
    """Even if it lies in the folder: what no sum covers could have been changed."""
    _with_external_data(bundle, location)
    _seal(bundle)
    with pytest.raises(BundleError, match=r"external data in '.*', which is not a file of this bundle"):
        Engine.load(bundle)


def test_external_data_cannot_hide_behind_a_number_of_more_than_32_bits(bundle):
    """ONNX Runtime reads a field's number without its upper bits, and so would find the file."""
    _with_external_data(bundle, "inside.data")
    model = onnx.load(bundle / MODEL, load_external_data=False)
    graph = onnx.ModelProto(graph=model.graph).SerializeToString()
    assert graph[0] == 7 << 3 | 2
    model.ClearField("graph")
    long = b"\xba\x80\x80\x80\x10"  # the same, and bit 32
    (bundle / MODEL).write_bytes(model.SerializeToString() + long + graph[1:])
    _seal(bundle)
    with pytest.raises(BundleError, match="not an ONNX file, or cut short"):
        Engine.load(bundle)


def test_external_data_that_the_bundle_lists_is_read(bundle):
    before = Engine.load(bundle).score([("the man", "went")])
    _with_external_data(bundle, "inside.data")
    _edit(bundle, lambda data: data["files"].update({"inside.data": ""}))
    _seal(bundle)
    assert Engine.load(bundle).score([("the man", "went")]) == before


def test_locations_are_found_wherever_a_tensor_may_stand(tmp_path):
    """In an initializer, a constant, a subgraph, a function and a sparse tensor, after an unknown field."""

    def tensor(location: str) -> onnx.TensorProto:
        proto = onnx.TensorProto(
            name=location, data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL
        )
        proto.external_data.add(key="offset", value="0")
        proto.external_data.add(key="location", value=location)
        return proto

    def constant(location: str) -> onnx.NodeProto:
        return onnx.helper.make_node("Constant", [], ["c"], value=tensor(location))

    branch = onnx.helper.make_graph([constant("branch")], "branch", [], [])
    others = onnx.helper.make_graph([constant("graphs")], "graphs", [], [])
    lists = {"graphs": [others], "tensors": [tensor("tensors")]}
    node = onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch, **lists)
    graph = onnx.helper.make_graph(
        [node, constant("node")], "graph", [], [], initializer=[tensor("initializer")]
    )
    graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=tensor("values"), indices=tensor("indices"))
    )
    function = onnx.helper.make_function("segue", "F", [], ["c"], [constant("function")], [])
    function.attribute_proto.append(onnx.helper.make_attribute("default", tensor("default")))
    model = onnx.helper.make_model(graph, functions=[function])
    path = tmp_path / MODEL
    unknown = b"\xa1\x06" + bytes(8)  # field 100, of eight bytes
    path.write_bytes(unknown + model.SerializeToString())
    found = external_data_locations(path)
    assert found == {"branch", "node", "initializer", "values", "indices", "function", "default", *lists}


def _nested(depth: int) -> bytes:
    """Graphs in attributes of nodes of graphs."""
    content = b""
    for field in (*(0x32, 0x2A, 0x0A) * depth, 0x3A):  # from within: a graph, its attribute, its node
        size, prefix = len(content), bytes([field])
        while size > 0x7F:
            prefix += bytes([size & 0x7F | 0x80])
            size >>= 7
        content = prefix + bytes([size]) + content
    return content


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 100, b"\xff" * 10**6, b"not an onnx file at all", b"\x3a\xff\x01", _nested(2000)],
    ids=range(6),
)
def test_what_is_no_onnx_file_is_a_bundle_error(tmp_path, content):
    path = tmp_path / MODEL
    path.write_bytes(content)
    with pytest.raises(BundleError, match=MODEL):
        external_data_locations(path)
