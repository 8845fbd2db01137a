"""Fine-tuning on next sentences: it learns, what it writes loads, what cannot work is refused before."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import textwrap
from itertools import count, islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from segue.errors import BundleError, InputError
from segue.export import default_scores, measures, training, training_data
from segue.export.corpus import Document
from segue.export.default_model import average
from segue.export.default_scores import calibrate, cosines, next_probabilities, token_sums
from segue.export.fine_tuning import fine_tune
from segue.export.instances import Pair, Recipe, Source, draw_pairs
from segue.export.masking import IGNORED
from segue.export.pretraining_data import collate

WORDS = [f"w{i:02d}" for i in range(24)]
RECIPE = Recipe(same_document=0.1, clause=0.1, unmarked=0.25)
SHORT = {"recipe": RECIPE, "batch_size": 4, "max_tokens": 16}
TOY = {"recipe": Recipe(sides=(1,)), "learning_rate": 2e-3, "batch_size": 32, "max_tokens": 16, "threads": 1}


def write_init(folder, words=WORDS):
    """A one-layer BERT over these words, whose tokenizer file carries truncation and padding of its own."""
    from tokenizers import BertWordPieceTokenizer

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *words]
    tokenizer = BertWordPieceTokenizer({word: i for i, word in enumerate(vocabulary)})
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_attention_heads=2,
        num_hidden_layers=1,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,  # far from the flat start that so small a network takes long to leave
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    return write_init(tmp_path_factory.mktemp("init"))


@pytest.fixture(scope="module")
def sources():
    """Documents of one word each: B follows A where it is of the same word."""
    rng = random.Random(0)
    return [
        Source("toy", tuple(Document(w, tuple(f"{w} {w}." for _ in range(rng.randint(3, 6)))) for w in WORDS))
    ]


def test_the_loop_learns_and_what_it_writes_loads(init, sources, tmp_path):
    metrics = fine_tune(sources, init=init, out=tmp_path, steps=300, **TOY)
    assert metrics["steps"] == 300
    assert metrics["pairs"] == 300 * 32
    assert metrics["curve"][-1]["nsp_loss"] < 0.1 < metrics["curve"][0]["nsp_loss"]
    assert "mlm_loss" not in metrics["curve"][0]
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(metrics))

    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertForPreTraining"]
    model = transformers.AutoModelForNextSentencePrediction.from_pretrained(tmp_path).eval()
    assert type(model) is transformers.BertForNextSentencePrediction
    assert model.config.hidden_dropout_prob == 0.1, "dropout is off in training only"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    batch = tokenizer(["w03 w03.", "w03"], ["w03.", "w05 w05."], return_tensors="pt", padding=True)
    assert batch["input_ids"].shape == (2, 8)
    is_next = model(**batch).logits.softmax(-1)[:, 0]
    assert is_next[0] > 0.9 > 0.1 > is_next[1], "logit 0 is IsNext"

    file = json.loads((tmp_path / "tokenizer.json").read_text())
    assert file["truncation"] is None
    assert file["padding"] is None
    assert (tmp_path / "vocab.txt").read_text().split("\n")[2:6] == ["[CLS]", "[SEP]", "[MASK]", "."]
    assert tokenizer.model_max_length == 64


def test_masked_words_are_learnt_beside(init, sources, tmp_path):
    metrics = fine_tune(
        sources, init=init, out=tmp_path, steps=160, masks=0.5, **{**TOY, "learning_rate": 5e-3}
    )
    first, last = metrics["curve"][0], metrics["curve"][-1]
    assert last["mlm_loss"] < 0.8 * first["mlm_loss"], "the words that are left tell the hidden one"
    assert last["nsp_loss"] < 0.8 * first["nsp_loss"]
    _, report = transformers.BertForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]


def test_whole_batches_are_masked_as_bert_does(init, sources):
    _, tokenizer = training.load(init, max_tokens=32)
    options = {"batch_size": 8, "max_tokens": 32, "seed": 0}
    items = list(
        islice(training_data.Batches(sources, Recipe(), tokenizer, masks=0.3, **options), 8 * 32 * 20)
    )
    masked = ["labels" in item for item in items]
    runs = [set(masked[start : start + 8]) for start in range(0, len(masked), 8)]
    assert all(len(run) == 1 for run in runs)
    share = sum(run == {True} for run in runs) / len(runs)
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / len(runs)) ** 0.5
    mask = tokenizer.token_to_id("[MASK]")
    for item in items:
        if "labels" not in item:
            assert mask not in item["input_ids"]
            continue
        hidden = item["labels"] != IGNORED
        assert hidden.sum() == max(1, round(0.15 * len(hidden)))
        assert (item["input_ids"][~hidden] != mask).all()
        assert tokenizer.token_to_id("[SEP]") not in item["labels"]


def test_the_last_layer_is_whole_where_words_are_asked_for(init):
    model, _ = training.load(init, max_tokens=32)
    ids = torch.tensor([[2, 5, 6, 3, 7, 3]])
    labels = torch.full_like(ids, IGNORED)
    labels[0, 4] = 8
    wanted = {"labels": labels, "next_sentence_label": torch.tensor([0])}
    whole = model(ids, **wanted)
    training._narrow(model.bert.encoder.layer[-1])
    model.bert.encoder.layer[-1].narrow = False
    assert {name: loss.item() for name, loss in model(ids, **wanted).items()} == {
        name: loss.item() for name, loss in whole.items()
    }
    model.bert.encoder.layer[-1].narrow = True
    alone = model(ids, next_sentence_label=torch.tensor([0]))
    assert set(alone) == {"loss", "nsp_loss"}
    assert torch.allclose(alone["nsp_loss"], whole["nsp_loss"], atol=1e-6)


@pytest.fixture
def teacher(init, monkeypatch):
    """An encoder in which sentences have a cosine of one if they are of the same word, else of zero."""

    def token_sums(encoder, sentences):
        assert encoder == init
        return {sentence: np.eye(len(WORDS))[WORDS.index(sentence[:3])] for sentence in sentences}

    monkeypatch.setattr(default_scores, "token_sums", token_sums)
    return init


def test_an_encoder_teaches_its_cosines(init, sources, teacher, tmp_path):
    metrics = fine_tune(sources, init=init, out=tmp_path, steps=300, teacher=teacher, **TOY)
    last = metrics["curve"][-1]
    assert last["cosine_loss"] < 0.1, "their variance is 0.25"
    assert last["nsp_loss"] < 0.4
    _, report = transformers.BertForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"], "what reads off the cosine goes with the run"


def test_the_cosine_that_is_taught_is_that_of_the_sides(init, sources):
    _, tokenizer = training.load(init, max_tokens=32)
    recipe = Recipe(sides=(1, 1), unmarked=0.5)
    pairs = list(islice(draw_pairs(sources, recipe, seed=3), 8 * 32))
    sums = token_sums(init, (s for d in sources[0].documents for s in d.sentences))
    batches = training_data.Batches(
        sources, recipe, tokenizer, batch_size=8, max_tokens=32, sums=sums, seed=3
    )
    taught = [item["similarity"] for item in islice(batches, 8 * 32)]
    whole = [Pair(a[0], b[0], 0, "") for a, b in (pair.sentences for pair in pairs) if len(a) == len(b) == 1]
    assert 40 < len(whole) < 200, "sides of one sentence, whose cosine is a sentence's own"
    alone = cosines(init, whole)
    assert np.isin(np.round(alone, 5), np.round(taught, 5)).all()
    assert len(set(np.round(alone, 3))) > 10
    assert collate([{**next(iter(batches)), "similarity": np.float32(0.5)}])["similarity"].tolist() == [0.5]


def test_dropout_is_of_the_run_alone(init, sources, tmp_path):
    plain = fine_tune(sources, init=init, out=tmp_path / "plain", steps=3, **SHORT)
    dropped = fine_tune(sources, init=init, out=tmp_path / "dropped", steps=3, dropout=0.5, **SHORT)
    assert (plain["dropout"], dropped["dropout"]) == (0.0, 0.5)
    weights = [
        transformers.BertModel.from_pretrained(tmp_path / name).pooler.dense.weight
        for name in ("plain", "dropped")
    ]
    assert not torch.equal(*weights)
    config = json.loads((tmp_path / "dropped" / "config.json").read_text())
    assert (config["hidden_dropout_prob"], config["attention_probs_dropout_prob"]) == (0.1, 0.1)


def test_mixed_precision_learns_too(init, sources, teacher, tmp_path, monkeypatch):
    """As on a GPU; a CPU has its precision too, but slowly."""
    monkeypatch.setattr(training, "precision", lambda: {"bf16": True, "use_cpu": True})
    metrics = fine_tune(sources, init=init, out=tmp_path, steps=300, masks=0.1, teacher=teacher, **TOY)
    assert metrics["curve"][-1]["nsp_loss"] < 0.5
    assert metrics["curve"][-1]["cosine_loss"] < 0.15
    kept = transformers.BertModel.from_pretrained(tmp_path, dtype="auto")
    assert {parameter.dtype for parameter in kept.parameters()} == {torch.float32}


def test_same_seed_same_weights(init, sources, tmp_path):
    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        fine_tune(sources, init=init, out=tmp_path / name, steps=3, seed=seed, **SHORT)
        return transformers.BertForNextSentencePrediction.from_pretrained(tmp_path / name).state_dict()

    first, again, other = weights("a", 1), weights("b", 1), weights("c", 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_run_by_the_clock_ends_in_time(init, sources, tmp_path, monkeypatch):
    """On a clock that each look moves a second, so that no machine is too slow for it."""
    ticks = count()
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    metrics = fine_tune(sources, init=init, out=tmp_path, minutes=2, learning_rate=1e-2, saves=3, **SHORT)
    assert 20 < metrics["steps"] < 120
    assert 115 <= metrics["seconds"] <= 130
    assert len(list(tmp_path.glob("checkpoint-*"))) == 3


def test_frozen_words_and_intermediate_checkpoints(init, sources, tmp_path, capsys):
    seen = []

    def watch(model, tokenizer):
        seen.append(tokenizer.encode("w01").tokens)
        return {"seen": float(len(seen))}

    fine_tune(
        sources,
        init=init,
        out=tmp_path,
        steps=8,
        learning_rate=1e-2,
        train_words=False,
        saves=3,
        watch=watch,
        **SHORT,
    )
    before = transformers.BertModel.from_pretrained(init).state_dict()
    after = transformers.BertModel.from_pretrained(tmp_path).state_dict()
    words = "embeddings.word_embeddings.weight"
    assert torch.equal(before[words], after[words])
    assert not torch.equal(
        before["embeddings.position_embeddings.weight"], after["embeddings.position_embeddings.weight"]
    )
    checkpoints = list(tmp_path.glob("checkpoint-*"))
    assert len(checkpoints) == len(seen) == 3
    assert seen[0] == ["[CLS]", "w01", "[SEP]"]
    assert "{'seen': 1.0}" in capsys.readouterr().out
    transformers.BertForNextSentencePrediction.from_pretrained(checkpoints[0])


def test_the_narrow_last_layer_changes_nothing(init):
    model, tokenizer = training.load(init, max_tokens=32)
    pairs = [Pair("w01 w02 w03 w04", "w05", 0, ""), Pair("w06", "w07.", 1, "")]
    before = next_probabilities(model, tokenizer, pairs)
    training._narrow(model.bert.encoder.layer[-1])
    rows = []
    model.bert.pooler.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[1]))
    assert np.allclose(next_probabilities(model, tokenizer, pairs), before, atol=1e-6)
    assert rows == [1], "only the [CLS] row is computed"


def test_schedule_warms_up_and_decays_to_zero():
    rates = [training._schedule(step / 1000) for step in range(1001)]
    peak = max(range(1001), key=rates.__getitem__)
    assert rates[0] == 0 == rates[1000]
    assert rates[peak] == pytest.approx(1)
    assert 0.04 < peak / 1000 < 0.1
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert np.allclose(np.diff(rates[peak:]), -1 / (1000 - peak))
    assert training._schedule(1.2) == 0


def test_batches_are_of_about_one_length(init, sources):
    _, tokenizer = training.load(init, max_tokens=32)
    batches = training_data.Batches(sources, Recipe(), tokenizer, batch_size=8, max_tokens=32, seed=0)
    stream = iter(batches)
    lengths = np.array([[len(next(stream)["input_ids"]) for _ in range(8)] for _ in range(64)])
    padding = 1 - lengths.sum() / (8 * lengths.max(axis=1)).sum()
    shuffled = np.random.default_rng(0).permutation(lengths.ravel()).reshape(64, 8)
    assert padding < 0.05 < 1 - shuffled.sum() / (8 * shuffled.max(axis=1)).sum()
    steps = np.diff(lengths.max(axis=1)[:32])
    assert (steps > 0).any(), "batches come in no order of length"
    assert (steps < 0).any()


def test_encode_pairs_cuts_a_share_as_berts_packing_does(init):
    _, tokenizer = training.load(init, max_tokens=32)
    words = [f"w{i:02d}" for i in range(24)] * 4  # every run of them says where it was
    pairs = [Pair(" ".join(words[:n]), " ".join(words), 0, "") for n in (3, 40, 90) for _ in range(400)]
    draw = np.random.default_rng(0)
    items = training_data.encode_pairs(tokenizer, pairs, 67, packed=1.0, draw=draw)
    lengths = np.array([len(item["input_ids"]) for item in items])
    full = lengths == 67
    assert lengths.min() >= 5
    assert abs((~full).mean() - 0.1) < 0.03, "a tenth is short"
    first_word, met = tokenizer.token_to_id("w00"), 0
    for item, pair in zip(items, pairs, strict=True):
        ids = np.array(item["input_ids"])
        b = np.flatnonzero(item["token_type_ids"])
        for side in ids[1 : b[0] - 1], ids[b[:-1]]:
            assert len(side) >= 1
            assert (np.diff(side) % 24 == 1).all(), "one run of the side's words"
        if len(ids) == 67 and len(pair.a) > 200:
            assert abs(len(b) - 1 - 32) <= 1, "both sides lose until they are of a length"
            met += ids[b[0]] == first_word
    assert 0 < met < 200, "mostly the sides no longer meet"

    plain = training_data.encode_pairs(tokenizer, pairs, 67)
    mixed = training_data.encode_pairs(tokenizer, pairs, 67, packed=0.3, draw=draw)
    assert 0.2 < np.mean([a != b for a, b in zip(plain, mixed, strict=True)]) < 0.4


def test_encode_pairs_cuts_the_longer_side_away_from_where_the_sides_meet(init):
    _, tokenizer = training.load(init, max_tokens=32)
    for left in range(12):
        for right in range(12):
            a, b = WORDS[:left], WORDS[12 : 12 + right]
            pair = Pair(" ".join(a), " ".join(b), 0, "")
            [item] = training_data.encode_pairs(tokenizer, [pair], 12)
            while len(a) + len(b) > 9:
                a, b = (a[1:], b) if len(a) > len(b) else (a, b[:-1])
            assert tokenizer.decode(item["input_ids"], skip_special_tokens=False) == " ".join(
                ["[CLS]", *a, "[SEP]", *b, "[SEP]"]
            )
            assert item["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)


def test_it_is_imported_without_torch_and_says_what_is_missing(tmp_path):
    program = """
        import sys
        sys.modules["transformers"] = None
        from segue.export.fine_tuning import fine_tune
        from segue.export.instances import Recipe, Source
        from segue.export.corpus import Document
        from segue import ExecutorUnavailable
        assert "torch" not in sys.modules
        documents = Document("1", ("A.", "B.")), Document("2", ("C.", "D."))
        try:
            fine_tune([Source("a", documents)], init="x", out="y", recipe=Recipe())
        except ExecutorUnavailable as error:
            print(error)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert "needs transformers" in done.stdout
    assert "segue[train]" in done.stdout


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"steps": 0}, "steps: expected more than 0, got 0"),
        ({"minutes": -1.0}, "minutes"),
        ({"minutes": math.nan}, "minutes"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_tokens": 65}, "max_tokens: expected 8 to 64, got 65"),
    ],
)
def test_refused_options(init, sources, tmp_path, options, reason):
    with pytest.raises(InputError, match=reason):
        fine_tune(sources, init=init, out=tmp_path / "out", recipe=RECIPE, **options)
    assert not (tmp_path / "out").exists()


def test_refused_corpus_and_checkpoints(init, sources, tmp_path):
    out = tmp_path / "out"
    one = [Source("one", sources[0].documents[:1])]
    with pytest.raises(InputError, match="different document"):
        fine_tune(one, init=init, out=out, recipe=RECIPE)
    with pytest.raises(InputError, match=r"no config\.json"):
        fine_tune(sources, init=tmp_path, out=out, recipe=RECIPE)
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(InputError, match="'roberta'"):
        fine_tune(sources, init=tmp_path, out=out, recipe=RECIPE)
    (tmp_path / "config.json").write_bytes((init / "config.json").read_bytes())
    with pytest.raises(BundleError, match="no tokenizer"):
        fine_tune(sources, init=tmp_path, out=out, recipe=RECIPE)
    large = write_init(tmp_path / "large", [*WORDS, "more"])
    (large / "config.json").write_bytes((init / "config.json").read_bytes())
    with pytest.raises(BundleError, match="embedding table"):
        fine_tune(sources, init=large, out=out, recipe=RECIPE)
    config = json.loads((init / "config.json").read_text()) | {"vocab_size": 500}
    small = write_init(tmp_path / "small")
    (small / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="30 tokens, the model 500"):
        fine_tune(sources, init=small, out=out, recipe=RECIPE)
    assert not out.exists()


def test_calibration_changes_confidence_alone(init):
    model, tokenizer = training.load(init, max_tokens=32)
    rng = random.Random(0)
    pairs = [Pair(a, rng.choice([a, "w00"]), rng.randint(0, 1), "") for a in rng.choices(WORDS, k=300)]
    odds = np.log(1 / next_probabilities(model, tokenizer, pairs) - 1)
    with torch.no_grad():  # far too sure of labels that are coins, yet not so sure that float32 rounds to 1
        model.cls.seq_relationship.weight *= 7 / np.abs(odds).max()
        model.cls.seq_relationship.bias *= 7 / np.abs(odds).max()
    before = next_probabilities(model, tokenizer, pairs)
    truth = [pair.label == 0 for pair in pairs]
    fitted = calibrate(model, tokenizer, pairs)
    temperature, bias = fitted["temperature"], fitted["bias"]
    after = next_probabilities(model, tokenizer, pairs)
    assert temperature > 1.5
    assert measures.calibration_error(after, truth) < measures.calibration_error(before, truth)
    odds_after, odds_before = (np.log(p / (1 - p)) for p in (after, before))
    assert np.allclose(odds_after, odds_before / temperature + bias, atol=1e-3)
    assert abs(after.mean() - np.mean(truth)) < 1e-3, "the likeliest bias has the mean right"


def test_probabilities_and_cosines_are_transformers_own(init):
    model, tokenizer = training.load(init, max_tokens=32)
    pairs = [Pair("w01 w02 w03 w04", "w05", 0, ""), Pair("w06", "w07 w08.", 1, ""), Pair("w09", "w09", 1, "")]
    found = next_probabilities(model, tokenizer, pairs)
    encoder = transformers.BertModel.from_pretrained(init).eval()
    for pair, score, cosine in zip(pairs, found, cosines(init, pairs), strict=True):
        [item] = training_data.encode_pairs(tokenizer, [pair], 32)
        with torch.no_grad():
            logits = model.eval()(
                **{name: torch.tensor([row]) for name, row in item.items()}
            ).seq_relationship_logits
            a, b = (
                encoder(torch.tensor([tokenizer.encode(side).ids])).last_hidden_state[0].mean(0)
                for side in (pair.a, pair.b)
            )
        assert score == pytest.approx(logits.softmax(-1)[0, 0].item(), abs=1e-5)
        assert cosine == pytest.approx(torch.cosine_similarity(a, b, dim=0).item(), abs=1e-5)


def test_measures_by_hand():
    scores, truth = [0.9, 0.6, 0.6, 0.2], [True, True, False, False]
    assert measures.accuracy(scores, truth) == 0.75
    assert measures.auc(scores, truth) == (1 + 1 + 0.5 + 1) / 4
    assert measures.auc([1, 2], [True, False]) == 0.0
    assert math.isnan(measures.auc([1, 2], [True, True]))
    assert measures.best_threshold([3, 1, 2, 0], [True, False, True, False]) == 1.5
    assert measures.accuracy(scores, truth, measures.best_threshold(scores, truth)) == 0.75
    # one bin holds 0.9 (true), one both 0.6 (half true), one 0.2 (false)
    assert measures.calibration_error(scores, truth, bins=10) == pytest.approx((0.1 + 0.2 + 0.2) / 4)
    assert measures.calibration_error([1.0, 0.0], [True, False]) == 0


def test_auc_is_the_share_of_ordered_pairs():
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 9, 60), rng.random(60) < 0.4
    wins = [(p > n) + (p == n) / 2 for p in scores[truth] for n in scores[~truth]]
    assert measures.auc(scores, truth) == pytest.approx(np.mean(wins))


def test_pairs_are_drawn_from_the_seed(init, sources):
    _, tokenizer = training.load(init, max_tokens=32)
    first = next(draw_pairs(sources, Recipe(), seed=5))
    batches = training_data.Batches(sources, Recipe(), tokenizer, batch_size=1, max_tokens=32, seed=5)
    [item] = training_data.encode_pairs(tokenizer, [first], 32)
    stream = iter(batches)
    assert any(next(stream)["input_ids"] == item["input_ids"] for _ in range(32))


def test_an_average_is_the_mean_of_the_weights(init, tmp_path):
    folders = [tmp_path / name for name in ("one", "other", "out")]
    for seed, folder in enumerate(folders[:2]):
        training.set_seed(seed)  # of the head, which is new
        training.save(*training.load(init, max_tokens=32), folder)
    average(folders[:2], folders[2])
    one, other, mean = (training.load(folder, max_tokens=32)[0].state_dict() for folder in folders)
    head = "cls.seq_relationship.weight"
    assert not torch.equal(one[head], other[head])
    assert all(torch.allclose(mean[name], (one[name] + other[name]) / 2, atol=1e-7) for name in mean)
    average(folders[:2], folders[2], [0.75, 0.25])
    mean = training.load(folders[2], max_tokens=32)[0].state_dict()
    assert all(torch.allclose(mean[name], one[name] * 0.75 + other[name] * 0.25, atol=1e-7) for name in mean)
