"""The recipe of the model that ships with segue, from fetching its texts to measuring it: `make model`.

    python -m segue.export.default_model [--work DIR] [--out DIR] [--minutes 70] [--threads N]

What is held out is fixed here by name; nothing is trained or tuned on it.
"""

from __future__ import annotations

__all__ = ["ARTICLES_HELD_OUT", "NOVEL_HELD_OUT", "RECIPE", "SEEDS", "main", "split", "training_sources"]

import argparse
import json
from itertools import islice
from pathlib import Path
from typing import Any

from segue.export.corpus import Document
from segue.export.default_corpora import fetch, unpack
from segue.export.default_scores import calibrate, cosines, next_probabilities, seed_scores
from segue.export.instances import IS_NEXT, Pair, Recipe, Source, draw_pairs
from segue.export.measures import accuracy, auc, best_threshold, calibration_error
from segue.export.pretrain import pretrain
from segue.export.training import load, save

NOVEL_HELD_OUT = "Persuasion"
ARTICLES_HELD_OUT = (
    "Aardvark", "Abacus", "Abortion", "Achilles", "Alaska", "Albedo", "Alchemy", "Algae", "Amphibian",
    "Andre Agassi", "Animal Farm", "Apollo 11", "Art", "Arthur Schopenhauer", "Asphalt",
)  # fmt: skip
ARTICLES_TO_TUNE_ON = ("Aikido", "Andorra", "Andrei Tarkovsky", "Aruba", "Astronaut")

# Never trained on; the first follower is the true one.
SEEDS = (
    ("the man went to the store", "he bought a gallon of milk", "penguins are flightless birds"),
    ("The cat slept on the rug.", "It likes sleeping all day.", "Interest rates rose again in March."),
)
RECIPE = Recipe(same_document=0.1, other_source=0.05, sides=(0.6, 0.25, 0.15), clause=0.1, unmarked=0.25)
_MEASURED = {"other document": Recipe(), "same document, not adjacent": Recipe(same_document=1.0)}


def main(argv: list[str] | None = None) -> None:
    """Fetch, decode, train, calibrate, measure; `metrics.json` beside the checkpoint says how it went."""
    arguments = _parser().parse_args(argv)
    fetch(arguments.work)
    encoder, novels, articles = unpack(arguments.work)
    train, tune, held_out = split(novels, articles)
    if not arguments.measure:
        pretrain(
            training_sources(train),
            init=encoder,
            out=arguments.out,
            recipe=RECIPE,
            minutes=arguments.minutes,
            learning_rate=2e-4,
            batch_size=32,
            max_tokens=72,
            seed=arguments.seed,
            threads=arguments.threads,
            train_words=False,
            save_minutes=15,
            watch=lambda model, tokenizer: seed_scores(model, tokenizer, SEEDS),
        )
    measured = measure(arguments.out, encoder, train, tune, held_out, pairs=arguments.pairs)
    file = arguments.out / "metrics.json"
    metrics = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(metrics | measured, indent=1) + "\n")
    print(json.dumps(measured, indent=1))


def split(novels: dict[str, list[Document]], articles: list[Document]) -> tuple[dict, dict, dict]:
    """(train, tune, held out), each documents by source: "articles" and the novels' titles.

    Held out are a novel and fifteen articles; for tuning, five articles and every tenth chapter of the rest.
    """
    missing = {NOVEL_HELD_OUT} - set(novels) | set(ARTICLES_HELD_OUT) - {a.name for a in articles}
    assert not missing, f"held out, but not there: {sorted(missing)}"
    aside = {*ARTICLES_HELD_OUT, *ARTICLES_TO_TUNE_ON}
    train = {"articles": [a for a in articles if a.name not in aside and len(a.sentences) > 1]}
    tune = {"articles": [a for a in articles if a.name in ARTICLES_TO_TUNE_ON]}
    held_out = {"articles": [a for a in articles if a.name in ARTICLES_HELD_OUT]}
    for title, chapters in novels.items():
        if title == NOVEL_HELD_OUT:
            held_out[title] = chapters
        else:
            train[title] = [chapter for i, chapter in enumerate(chapters) if i % 10 != 9]
            tune[title] = [chapter for i, chapter in enumerate(chapters) if i % 10 == 9]
    return train, tune, held_out


def training_sources(documents: dict[str, list[Document]]) -> list[Source]:
    """Three fifths articles, the rest novels by length. A novel's negatives come from the same novel: that is
    harder, and its names do not give them away."""
    length = {name: sum(len(d.sentences) for d in found) for name, found in documents.items()}
    novels = sum(length.values()) - length["articles"]
    return [
        Source(name, tuple(found), 0.6 if name == "articles" else 0.4 * length[name] / novels)
        for name, found in documents.items()
    ]


def measure(
    folder: Path, encoder: Path, train: dict, tune: dict, held_out: dict, *, pairs: int
) -> dict[str, Any]:
    """Calibrate the checkpoint in `folder` on the documents to tune on, then measure it on those held out,
    with one to three sentences a side, beside the encoder's own cosine similarity."""
    model, tokenizer = load(folder, max_tokens=512)
    temperature = calibrate(
        model, tokenizer, list(islice(draw_pairs(training_sources(tune), Recipe(), seed=1), pairs))
    )
    save(model, tokenizer, folder)
    found = {}
    for name, documents in held_out.items():
        alike = training_sources(train) if name != "articles" else []
        known = [s for s in alike if s.name != "articles"] or [Source(name, tuple(train[name]))]
        for kind, recipe in _MEASURED.items():
            judged = list(islice(draw_pairs([Source(name, tuple(documents))], recipe, seed=2), pairs))
            found[f"{name}, {kind}"] = {
                "pairs": len(judged),
                **_quality(next_probabilities(model, tokenizer, judged), judged),
                "cosine": _cosine_quality(
                    encoder, list(islice(draw_pairs(known, recipe, seed=3), pairs)), judged
                ),
            }
    names = {name: [d.name for d in found_] for name, found_ in held_out.items()}
    return {
        "temperature": temperature,
        "held_out": names,
        "tuned_on": {name: [d.name for d in documents] for name, documents in tune.items()},
        "measured": found,
        "seed_pairs": seed_scores(model, tokenizer, SEEDS),
    }


def _quality(probabilities, pairs: list[Pair]) -> dict[str, float]:
    truth = [pair.label == IS_NEXT for pair in pairs]
    figures = {
        "accuracy": accuracy(probabilities, truth),
        "auc": auc(probabilities, truth),
        "calibration_error": calibration_error(probabilities, truth),
    }
    return {name: round(value, 4) for name, value in figures.items()}


def _cosine_quality(encoder: Path, known: list[Pair], judged: list[Pair]) -> dict[str, float]:
    """The zero-training baseline, its threshold chosen on pairs of training documents of the same sort."""
    threshold = best_threshold(cosines(encoder, known), [pair.label == IS_NEXT for pair in known])
    scores, truth = cosines(encoder, judged), [pair.label == IS_NEXT for pair in judged]
    figures = {
        "accuracy": accuracy(scores, truth, threshold),
        "auc": auc(scores, truth),
        "threshold": threshold,
    }
    return {name: round(value, 4) for name, value in figures.items()}


def _parser() -> argparse.ArgumentParser:
    work = Path("build/default-model")
    parser = argparse.ArgumentParser(prog="segue.export.default_model", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--work", type=Path, default=work / "work", help="what is fetched and decoded goes here"
    )
    parser.add_argument(
        "--out", type=Path, default=work / "checkpoint", help="the trained checkpoint goes here"
    )
    parser.add_argument("--minutes", type=float, default=70.0, help="time to train (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=2000, help="pairs to measure on, each kind")
    parser.add_argument(
        "--measure", action="store_true", help="measure the checkpoint in --out, train nothing"
    )
    return parser


if __name__ == "__main__":
    main()
