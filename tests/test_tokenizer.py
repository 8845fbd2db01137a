"""Tokenizers: both forms as transformers reads them, nothing of their own accord, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from segue.errors import BundleError
from segue.export.sentences import SENTENCES
from segue.export.tokenizer import max_tokens, read_tokenizer

TEXTS = [*SENTENCES, "", "naïve ÉCOLE", "山口", "[MASK] a\tb", "x" * 150]
# a special token as transformers 4 wrote it
CLS = {"__type": "AddedToken", "content": "[CLS]", "normalized": False, "single_word": False}


@pytest.fixture
def folder(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A checkpoint that a test may spoil."""
    return Path(shutil.copytree(make_checkpoint(), tmp_path / "checkpoint"))


def _edit(path: Path, **changes: Any) -> None:
    kept = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in kept.items() if value is not ...}))


def _agrees_with_transformers(folder: Path) -> None:
    ours, theirs = read_tokenizer(folder, 10**6), transformers.AutoTokenizer.from_pretrained(folder)
    for a, b in zip(TEXTS, reversed(TEXTS), strict=True):
        found, expected = ours.encode(a, b), theirs([a], [b])
        assert found.ids == expected["input_ids"][0]
        assert found.type_ids == expected["token_type_ids"][0]


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.txt"])
def test_either_form_of_the_tokenizer_is_read_as_transformers_does(
    make_checkpoint: Callable[..., Path], tmp_path: Path, form: str, lowercase: bool
) -> None:
    folder = Path(shutil.copytree(make_checkpoint(lowercase=lowercase), tmp_path / "checkpoint"))
    (folder / {"vocab.txt": "tokenizer.json", "tokenizer.json": "vocab.txt"}[form]).unlink()
    _agrees_with_transformers(folder)


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize(
    "changes",
    [
        {"do_lower_case": False},
        {"do_lower_case": ...},
        {"strip_accents": False},
        {"strip_accents": True, "do_lower_case": False},
        {"tokenize_chinese_chars": False},
        {"tokenizer_class": "BertTokenizerFast", "never_split": ["man"], "do_basic_tokenize": False},
        {"tokenizer_class": ...},
        {"cls_token": CLS, "additional_special_tokens": []},
    ],
    ids=str,
)
def test_the_settings_win_over_tokenizer_json(folder: Path, form: str, changes: dict[str, Any]) -> None:
    if form == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    _edit(folder / "tokenizer_config.json", **changes)
    _agrees_with_transformers(folder)


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tokenizer_config.json", {"additional_special_tokens": ["man"]}),
        ("tokenizer_config.json", {"extra_special_tokens": {"someone": "man"}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": {"content": "man", "special": True}}}),
        ("special_tokens_map.json", {"additional_special_tokens": ["man"]}),
        ("added_tokens.json", {"man": 5}),
    ],
    ids=str,
)
def test_tokens_that_the_settings_add_are_added(
    folder: Path, form: str, name: str, changes: dict[str, Any]
) -> None:
    if form == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    assert len(read_tokenizer(folder, 10**6).encode("themanman", add_special_tokens=False).ids) != 3
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    _edit(folder / name, **changes)
    found = read_tokenizer(folder, 10**6).encode("themanman", add_special_tokens=False)
    assert found.tokens == ["the", "man", "man"]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert found.ids == theirs("themanman", add_special_tokens=False)["input_ids"]


DECODER = {"added_tokens_decoder": {"2": {"content": "[CLS]", "special": True}}}


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize(
    ("settings", "special", "added"),
    [
        # as transformers 4.34 to 4.57 write them: names there, objects here
        ({"additional_special_tokens": ["man"]}, {"additional_special_tokens": [{"content": "man"}]}, None),
        ({"mask_token": None, "additional_special_tokens": None}, {"mask_token": "[MASK]"}, None),
        # once there is a decoder, the two other files are not read
        (DECODER, {"additional_special_tokens": ["man"], "cls_token": "the"}, {"man": 5}),
        # BERT's own among those that were added
        (DECODER, None, {"[CLS]": 2, "[UNK]": 1, "[MASK]": 4}),
        ({"bos_token": "man"}, None, None),
    ],
    ids=str,
)
def test_tokens_in_files_of_several_versions(
    folder: Path, form: str, settings: dict[str, Any], special: Any, added: Any
) -> None:
    if form == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    _edit(folder / "tokenizer_config.json", **settings)
    for name, found in ("special_tokens_map.json", special), ("added_tokens.json", added):
        if found is not None:
            (folder / name).write_text(json.dumps(found))
    text = "themanman [CLS] [cls] [unk]man [MASK]the [mask] [SEP]"
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = read_tokenizer(folder, 10**6)
    assert ours.encode(text, "the").ids == theirs([text], ["the"])["input_ids"][0]


def test_an_added_token_that_is_not_called_special_is_found_in_any_case(folder: Path) -> None:
    _edit(folder / "tokenizer_config.json", added_tokens_decoder={"5": {"content": "man"}})
    found = read_tokenizer(folder, 10**6).encode("theMANman", add_special_tokens=False)
    assert found.tokens == ["the", "man", "man"]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert found.ids == theirs("theMANman", add_special_tokens=False)["input_ids"]


def test_the_flags_of_a_listed_token_count_though_a_role_names_it(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    listed = {"4": {"content": "[MASK]", "special": True, "single_word": True}}
    _edit(folder / "tokenizer_config.json", mask_token="[MASK]", added_tokens_decoder=listed)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)(
        "the[MASK]man [MASK]", add_special_tokens=False
    )
    found = read_tokenizer(folder, 10**6).encode("the[MASK]man [MASK]", add_special_tokens=False)
    assert found.ids == theirs["input_ids"]
    assert found.ids.count(4) == 1


def test_berts_own_tokens_are_not_added_again(folder: Path) -> None:
    """As plain ones, which would be found in lower case too."""
    (folder / "added_tokens.json").write_text(json.dumps({"[CLS]": 2, "[UNK]": 1, "[MASK]": 4}))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)("[cls] [unk]man", add_special_tokens=False)
    found = read_tokenizer(folder, 10**6).encode("[cls] [unk]man", add_special_tokens=False)
    assert found.ids == theirs["input_ids"]
    assert not {1, 2, 4} & {*found.ids}


def test_a_token_that_only_tokenizer_json_adds_is_refused_where_the_settings_name_all(folder: Path) -> None:
    tokenizer = read_tokenizer(folder, 10**6)
    tokenizer.add_special_tokens(["man"])
    tokenizer.save(str(folder / "tokenizer.json"))
    _agrees_with_transformers(folder)
    _edit(folder / "tokenizer_config.json", **DECODER)
    with pytest.raises(BundleError, match=r"tokenizer\.json adds 'man', which added_tokens_decoder lacks"):
        read_tokenizer(folder, 10**6)
    _edit(folder / "tokenizer_config.json", additional_special_tokens=["man"])
    _agrees_with_transformers(folder)


def test_electras_tokenizer_is_berts(folder: Path) -> None:
    _edit(folder / "tokenizer_config.json", tokenizer_class="ElectraTokenizerFast", do_lower_case=False)
    _agrees_with_transformers(folder)


@pytest.mark.parametrize("key", ["cls_token", "sep_token", "unk_token"])
def test_settings_that_name_other_special_tokens_are_refused(folder: Path, key: str) -> None:
    _edit(folder / "tokenizer_config.json", **{key: "man"})
    with pytest.raises(BundleError, match=f"{key}: 'man', where tokenizer.json has '.{key[:3].upper()}.'"):
        read_tokenizer(folder, 10**6)
    (folder / "special_tokens_map.json").write_text(json.dumps({key: "the"}))
    with pytest.raises(BundleError, match=f"special_tokens_map.json: {key}: 'the', where .* has 'man'"):
        read_tokenizer(folder, 10**6)


def test_the_class_may_stand_in_config_json(folder: Path) -> None:
    _edit(folder / "tokenizer_config.json", tokenizer_class=...)
    _edit(folder / "config.json", tokenizer_class="BertJapaneseTokenizer")
    with pytest.raises(BundleError, match="tokenizer_class: 'BertJapaneseTokenizer' is not BERT's"):
        read_tokenizer(folder, 10**6)


@pytest.mark.parametrize("added", [False, True])
def test_a_vocabulary_without_its_unknown_token_is_refused(folder: Path, added: bool) -> None:
    """Though the token may be added to it: WordPiece finds none there."""
    stored = json.loads((folder / "tokenizer.json").read_text())
    del stored["model"]["vocab"]["[UNK]"]
    tokens = [token for token in stored["added_tokens"] if added or token["content"] != "[UNK]"]
    stored["added_tokens"] = tokens
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(BundleError, match=r"lacks its token for unknown words, '\[UNK\]'"):
        read_tokenizer(folder, 10**6)


def test_special_tokens_that_are_to_be_split_are_refused(folder: Path) -> None:
    _edit(folder / "tokenizer_config.json", split_special_tokens=True)
    with pytest.raises(BundleError, match="split_special_tokens: segue takes a special token in a text for"):
        read_tokenizer(folder, 10**6)


def test_without_settings_the_defaults_are_transformers_own(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    _agrees_with_transformers(folder)


def test_another_class_is_what_its_tokenizer_json_says(folder: Path) -> None:
    settings = folder / "tokenizer_config.json"
    _edit(settings, tokenizer_class="PreTrainedTokenizerFast", do_lower_case=False)
    with pytest.raises(BundleError, match="model_input_names: expected for a PreTrainedTokenizerFast"):
        read_tokenizer(folder, 10**6)
    _edit(settings, model_input_names=["input_ids", "token_type_ids", "attention_mask"], mask_token="man")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    found = read_tokenizer(folder, 10**6).encode("themanman", "the").ids
    assert found == theirs(["themanman"], ["the"])["input_ids"][0]
    assert read_tokenizer(folder, 10**6).encode("The", "MAN").tokens == [
        "[CLS]",
        "the",
        "[SEP]",
        "man",
        "[SEP]",
    ]


def test_a_file_from_before_models_had_a_type_is_read(folder: Path) -> None:
    """bert-base-uncased has one."""
    stored = json.loads((folder / "tokenizer.json").read_text())
    assert stored["model"].pop("type") == "WordPiece"
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    _agrees_with_transformers(folder)


def test_truncation_and_padding_do_not_leak(folder: Path) -> None:
    tokenizer = read_tokenizer(folder, 10**6)
    assert tokenizer.truncation is None
    assert tokenizer.padding is None
    assert len(tokenizer.encode("", "").ids) == 3
    assert len(tokenizer.encode("man " * 600, "milk " * 600).ids) == 1203


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(10**30, 512), (128, 128), (1024, 512), (None, 512), (0, 512), (2, 512), (3, 3), (64.0, 64)],
)
def test_the_longest_pair(folder: Path, limit: Any, expected: int) -> None:
    _edit(folder / "tokenizer_config.json", model_max_length=limit)
    assert max_tokens(folder, 512) == expected
    _edit(folder / "tokenizer_config.json", model_max_length=..., max_len=limit)
    assert max_tokens(folder, 512) == expected
    (folder / "tokenizer_config.json").unlink()
    assert max_tokens(folder, 512) == 512


ROBERTA = {
    "type": "RobertaProcessing",
    "sep": ["[SEP]", 3],
    "cls": ["[CLS]", 2],
    "trim_offsets": True,
    "add_prefix_space": False,
}


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("normalizer", {"type": "Lowercase"}, "normalizer.type: 'Lowercase' is not BERT's"),
        ("normalizer", None, "normalizer.type: None is not BERT's, which has 'BertNormalizer'"),
        ("pre_tokenizer", {"type": "WhitespaceSplit"}, "pre_tokenizer.type: 'WhitespaceSplit'"),
        ("post_processor", None, r"does not build a pair as \[CLS\] A \[SEP\] B \[SEP\]"),
        ("post_processor", ROBERTA, r"does not build a pair as \[CLS\] A \[SEP\] B \[SEP\]"),
        ("model", {"type": "Unheard"}, "not a tokenizer"),
    ],
    ids=str,
)
def test_tokenizers_that_are_not_berts(folder: Path, part: str, value: Any, said: str) -> None:
    _edit(folder / "tokenizer.json", **{part: value})
    with pytest.raises(BundleError, match=said):
        read_tokenizer(folder, 10**6)


def test_tokenizers_that_do_not_fit(folder: Path) -> None:
    for rows in (300, 334):
        with pytest.raises(BundleError, match=f"highest id is 334, but the embedding table has {rows} rows"):
            read_tokenizer(folder, rows)
    _edit(folder / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    with pytest.raises(BundleError, match="model_input_names leaves token_type_ids out"):
        read_tokenizer(folder, 335)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_input_names": 5}, "model_input_names leaves token_type_ids out"),
        ({"cls_token": {"x": 1}}, "cls_token: expected an object with content, got {'x': 1}"),
        ({"extra_special_tokens": 5}, "extra_special_tokens: expected an object with content, got 5"),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder: expected an object, got"),
        ({"added_tokens_decoder": {"0": "[PAD]"}}, "added_tokens_decoder: expected an object with content"),
    ],
    ids=str,
)
def test_settings_of_another_shape_are_refused_by_name(folder: Path, changes: Any, said: str) -> None:
    (folder / "tokenizer.json").unlink()
    _edit(folder / "tokenizer_config.json", **changes)
    with pytest.raises(BundleError, match=re.escape(said)) as caught:
        read_tokenizer(folder, 335)
    assert "tokenizer_config.json" in str(caught.value)


def test_only_line_feeds_part_the_tokens_of_a_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with (folder / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("\u2028\nlast\n")
    assert read_tokenizer(folder, 337).token_to_id("last") == 336


def test_a_vocabulary_in_another_encoding_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    vocabulary = folder / "vocab.txt"
    vocabulary.write_bytes(vocabulary.read_bytes() + "é\n".encode("latin-1"))
    with pytest.raises(BundleError, match=r"vocab\.txt: not UTF-8"):
        read_tokenizer(folder, 336)


def test_truncation_on_the_left_is_refused(folder: Path) -> None:
    _edit(folder / "tokenizer_config.json", truncation_side="left")
    with pytest.raises(
        BundleError, match=r"tokenizer_config\.json: truncation_side: segue truncates on the right"
    ):
        read_tokenizer(folder, 335)
    _edit(folder / "tokenizer_config.json", truncation_side=...)
    truncation = {"direction": "Left", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
    _edit(folder / "tokenizer.json", truncation=truncation)
    with pytest.raises(BundleError, match=r"tokenizer\.json: truncation\.direction"):
        read_tokenizer(folder, 335)


def test_a_vocabulary_alone_has_its_limits(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    settings, vocabulary = folder / "tokenizer_config.json", folder / "vocab.txt"
    _edit(settings, added_tokens_decoder={"335": {"content": "<new>"}})
    with pytest.raises(BundleError, match=r"the added token '<new>' needs a tokenizer\.json"):
        read_tokenizer(folder, 10**6)
    fast = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["token_type_ids"]}
    _edit(settings, added_tokens_decoder=..., **fast)
    with pytest.raises(BundleError, match=r"'PreTrainedTokenizerFast' needs a tokenizer\.json"):
        read_tokenizer(folder, 10**6)
    _edit(settings, tokenizer_class=..., do_lower_case="yes")
    with pytest.raises(BundleError, match=r"tokenizer_config\.json"):
        read_tokenizer(folder, 10**6)
    _edit(settings, do_lower_case=True)
    vocabulary.write_text(vocabulary.read_text().replace("[SEP]\n", "[END]\n"))
    with pytest.raises(BundleError, match=r"the sep_token '\[SEP\]' is not in it"):
        read_tokenizer(folder, 10**6)
    vocabulary.unlink()
    with pytest.raises(BundleError, match=r"no tokenizer: looked for tokenizer\.json and vocab\.txt"):
        read_tokenizer(folder, 10**6)
