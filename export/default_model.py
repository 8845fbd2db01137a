"""The recipe of the model that ships with segue, from fetching its texts to measuring it: `make model`.

    python -m segue.export.default_model [--work DIR] [--out DIR] [--times 1.0] [--threads N]

What is held out is fixed here by name; nothing is trained or tuned on it.
"""

from __future__ import annotations

__all__ = [
    "ARTICLES_HELD_OUT",
    "NOVEL_HELD_OUT",
    "RECIPE",
    "SEEDS",
    "STAGES",
    "Stage",
    "average",
    "main",
    "split",
    "training_sources",
]

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from segue.export.corpus import Document
from segue.export.default_corpora import fetch, unpack
from segue.export.default_scores import calibrate, cosines, next_probabilities, seed_scores
from segue.export.fine_tuning import fine_tune
from segue.export.instances import IS_NEXT, Pair, Recipe, Source, draw_pairs
from segue.export.measures import accuracy, auc, best_threshold, calibration_error
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
RECIPE = Recipe(same_document=0.1, other_source=0.05, clause=0.1, unmarked=0.25)
_MEASURED = {"other document": Recipe(), "same document, not adjacent": Recipe(same_document=1.0)}


@dataclass(frozen=True)
class Stage:
    """A part of the training: minutes on one core, peak learning rate, longest pair, sentences a side."""

    minutes: float
    learning_rate: float
    max_tokens: int
    sides: tuple[float, ...]


# Short pairs first, of which a minute holds many; then the lengths that are asked for.
STAGES = (Stage(52.5, 2e-4, 64, (0.7, 0.2, 0.1)), Stage(56, 1.2e-4, 192, (1, 1, 1)))


def main(argv: list[str] | None = None) -> None:
    """Fetch, decode, train, average, calibrate, measure; `metrics.json` says how it went."""
    arguments = _parser().parse_args(argv)
    fetch(arguments.work)
    encoder, novels, articles = unpack(arguments.work)
    train, tune, held_out = split(novels, articles)
    if not arguments.measure:
        init = encoder
        for number, stage in enumerate(STAGES):
            out = arguments.out if stage is STAGES[-1] else arguments.work / f"stage-{number}"
            fine_tune(
                training_sources(train),
                init=init,
                out=out,
                recipe=replace(RECIPE, sides=stage.sides),
                minutes=stage.minutes * arguments.times,
                learning_rate=stage.learning_rate,
                batch_size=32,
                max_tokens=stage.max_tokens,
                seed=number,
                threads=arguments.threads,
                train_words=False,
                save_minutes=stage.minutes * arguments.times / 3.1,  # twice on the way, and at its end
                watch=lambda model, tokenizer: seed_scores(model, tokenizer, SEEDS),
            )
            init = out
        average([*sorted(arguments.out.glob("checkpoint-*")), arguments.out], arguments.out)
    measured = {
        **measure(arguments.out, tune, held_out, pairs=arguments.pairs),
        "cosine": measure_cosine(encoder, train, held_out, pairs=arguments.pairs),
        "stages": [asdict(stage) for stage in STAGES],
        "tuned_on": {name: [d.name for d in documents] for name, documents in tune.items()},
        "held_out": {name: [d.name for d in documents] for name, documents in held_out.items()},
    }
    file = arguments.out / "metrics.json"
    metrics = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(metrics | measured, indent=1) + "\n")
    print(json.dumps(measured, indent=1))


def average(checkpoints: Sequence[Path], out: Path) -> None:
    """Write the mean of the checkpoints' weights to `out`: steadier than any one of a noisy run (checkpoint
    averaging, as in Vaswani and others, 2017)."""
    models = [load(folder, max_tokens=8) for folder in checkpoints]
    states = [model.state_dict() for model, _ in models]
    model, tokenizer = models[-1]
    model.load_state_dict({name: sum(state[name] for state in states) / len(states) for name in states[0]})
    save(model, tokenizer, out)


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


def measure(folder: Path, tune: dict, held_out: dict, *, pairs: int) -> dict[str, Any]:
    """Calibrate the checkpoint in `folder` on the documents to tune on, then measure it on those held out,
    with one to three sentences a side."""
    model, tokenizer = load(folder, max_tokens=512)
    known = islice(draw_pairs(training_sources(tune), Recipe(), seed=1), pairs)
    temperature = calibrate(model, tokenizer, list(known))
    save(model, tokenizer, folder)
    measured = {}
    for name, judged in _judged(held_out, pairs, seed=2):
        probabilities, truth = next_probabilities(model, tokenizer, judged), _truth(judged)
        measured[name] = {
            "pairs": len(judged),
            "accuracy": round(accuracy(probabilities, truth), 4),
            "auc": round(auc(probabilities, truth), 4),
            "calibration_error": round(calibration_error(probabilities, truth), 4),
        }
    return {
        "temperature": temperature,
        "measured": measured,
        "seed_pairs": seed_scores(model, tokenizer, SEEDS),
    }


def measure_cosine(encoder: Path, train: dict, held_out: dict, *, pairs: int) -> dict[str, Any]:
    """The zero-training baseline on the same pairs, its threshold chosen on training documents."""
    novels = [chapter for name, chapters in train.items() if name != "articles" for chapter in chapters]
    alike = {name: train["articles"] if name == "articles" else novels for name in held_out}
    measured = {}
    for (name, known), (_, judged) in zip(
        _judged(alike, pairs // 2, seed=3), _judged(held_out, pairs, seed=2), strict=True
    ):
        threshold = best_threshold(cosines(encoder, known), _truth(known))
        scores, truth = cosines(encoder, judged), _truth(judged)
        measured[name] = {
            "accuracy": round(accuracy(scores, truth, threshold), 4),
            "auc": round(auc(scores, truth), 4),
            "threshold": round(threshold, 4),
        }
    return measured


def _judged(
    documents: dict[str, list[Document]], pairs: int, *, seed: int
) -> Iterator[tuple[str, list[Pair]]]:
    """(name, pairs) for each source and each kind of negative, half of the pairs being IsNext."""
    for source, found in documents.items():
        for kind, recipe in _MEASURED.items():
            drawn = draw_pairs([Source(source, tuple(found))], recipe, seed=seed)
            yield f"{source}, {kind}", list(islice(drawn, pairs))


def _truth(pairs: list[Pair]) -> list[bool]:
    return [pair.label == IS_NEXT for pair in pairs]


def _parser() -> argparse.ArgumentParser:
    work = Path("build/default-model")
    parser = argparse.ArgumentParser(prog="segue.export.default_model", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--work", type=Path, default=work / "work", help="what is fetched and decoded goes here"
    )
    parser.add_argument(
        "--out", type=Path, default=work / "nsp-minilm", help="the trained checkpoint goes here"
    )
    parser.add_argument(
        "--times",
        type=float,
        default=1.0,
        help="train so many times as long as the recipe says (default: %(default)s, 108 minutes)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--pairs", type=int, default=2000, help="pairs to measure on, each kind")
    parser.add_argument(
        "--measure", action="store_true", help="measure the checkpoint in --out, train nothing"
    )
    return parser


if __name__ == "__main__":
    main()
