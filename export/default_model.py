"""The recipe of the model that ships with segue, from fetching its texts to measuring it: `make model`.

    python -m segue.export.default_model [--work DIR] [--out DIR] [--times 1.0 | --minutes M] [--threads N]

What is held out is fixed here by name; nothing is trained or tuned on it. Trains on a GPU if there is one.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from segue.export.corpus import Document
from segue.export.default_corpora import gather, prepare
from segue.export.default_measures import learning_curve, measure, measure_cosine
from segue.export.default_scores import seed_scores
from segue.export.fine_tuning import fine_tune
from segue.export.instances import Recipe, Source
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
_BATCH = 32  # pairs per step, which the stages' learning rates assume
_AVERAGED = 3  # the last checkpoints of a stage


@dataclass(frozen=True)
class Stage:
    """A part of the training. If it writes checkpoints on the way, the last three, the final one included,
    are averaged."""

    steps: int  # of 32 pairs
    learning_rate: float  # its peak
    max_tokens: int  # of a pair
    recipe: Recipe  # how pairs are drawn
    articles: float  # share of the pairs; the others are from novels
    masks: float  # share of the batches with masked words
    saves: int  # checkpoints on the way
    cosines: float = 0.0  # weight of the encoder's cosines as a second target; 0: they are not taught
    packed: float = 0.0  # share of the pairs that are cut as in packing
    dropout: float = 0.0
    taken: float = 1.0  # how far to go from the stage's first weights to its last (Wortsman and others, 2022)


STAGES = (
    # Short pairs first, since many fit into a minute; then the lengths wanted; then both tasks, and kinds of
    # negatives that topic does not give away; then longer sides, as BERT packs them, with the encoder's
    # knowledge of topics as another target; last, more weight on that, and sides cut as BERT cuts them, taken
    # only so far that short pairs do not suffer.
    Stage(1612, 2e-4, 64, replace(RECIPE, sides=(0.7, 0.2, 0.1)), 0.6, 0.0, 0),
    Stage(504, 1.2e-4, 192, replace(RECIPE, sides=(1, 1, 1)), 0.6, 0.0, 3),
    Stage(1478, 1.2e-4, 192, replace(RECIPE, sides=(1, 1, 1), same_document=0.15, swapped=0.1), 0.5, 0.33, 4),
    Stage(
        steps=2434,
        learning_rate=1.2e-4,
        max_tokens=160,
        recipe=replace(RECIPE, sides=(4, 4, 4, 2, 1), same_document=0.15, swapped=0.15),
        articles=0.5,
        masks=0.15,
        saves=4,
        cosines=4.0,
        dropout=0.1,
    ),
    Stage(
        steps=2044,
        learning_rate=1.2e-4,
        max_tokens=128,
        recipe=replace(RECIPE, sides=(4, 4, 4, 2, 1), same_document=0.15, swapped=0.1),
        articles=0.5,
        masks=0.1,
        saves=4,
        cosines=25.0,
        packed=0.5,
        taken=0.4,
    ),
)


def main(argv: list[str] | None = None) -> None:
    """Fetch, decode, train, average, calibrate, measure; `metrics.json` says how it went."""
    arguments = _parser().parse_args(argv)
    if arguments.prepare:
        prepare(arguments.work, arguments.prepare)
        return
    encoder, novels, articles = gather(arguments.work)
    train, tune, held_out = split(novels, articles)
    if not arguments.measure:
        init = encoder
        for number, stage in enumerate(STAGES):
            out = arguments.out if stage is STAGES[-1] else arguments.work / f"stage-{number}"
            fine_tune(
                training_sources(train, stage.articles),
                init=init,
                out=out,
                recipe=stage.recipe,
                **_length(stage, arguments),
                learning_rate=stage.learning_rate,
                batch_size=arguments.batch_size,
                max_tokens=stage.max_tokens,
                seed=number,
                threads=arguments.threads,
                train_words=False,
                masks=stage.masks,
                teacher=encoder if stage.cosines else None,
                cosine_weight=stage.cosines,
                packed=stage.packed,
                dropout=stage.dropout,
                saves=stage.saves,
                watch=lambda model, tokenizer: seed_scores(model, tokenizer, SEEDS),
            )
            average([*_checkpoints(out)[-_AVERAGED + 1 :], out], out)
            if stage.taken < 1:
                average([init, out], out, [1 - stage.taken, stage.taken])
            init = out
    found = {
        **measure(arguments.out, training_sources(tune), held_out, pairs=arguments.pairs),
        "seed_pairs": seed_scores(*load(arguments.out, max_tokens=512), SEEDS),
        "cosine": measure_cosine(encoder, train, held_out, pairs=arguments.pairs),
        "learning_curve": learning_curve(
            _course(arguments.work, arguments.out), tune, pairs=arguments.pairs // 4
        ),
        "stages": [asdict(stage) for stage in STAGES],
        "tuned_on": {name: [d.name for d in documents] for name, documents in tune.items()},
        "held_out": {name: [d.name for d in documents] for name, documents in held_out.items()},
    }
    file = arguments.out / "metrics.json"
    metrics = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(metrics | found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def average(checkpoints: Sequence[Path], out: Path, shares: Sequence[float] | None = None) -> None:
    """Write the mean of the checkpoints' weights, by share or all alike, to `out`: steadier than any one of a
    noisy run (checkpoint averaging, as in Vaswani and others, 2017)."""
    shares = shares or [1 / len(checkpoints)] * len(checkpoints)
    models = [load(folder, max_tokens=8) for folder in checkpoints]
    states = [model.state_dict() for model, _ in models]
    model, tokenizer = models[-1]
    parts = list(zip(states, shares, strict=True))
    model.load_state_dict({name: sum(state[name] * share for state, share in parts) for name in states[0]})
    save(model, tokenizer, out)


def split(novels: dict[str, list[Document]], articles: list[Document]) -> tuple[dict, dict, dict]:
    """(train, tune, held out), each documents by source: "articles" and the novels' titles.

    Held out: a novel, fifteen articles. For tuning: five articles, each tenth chapter of the other novels.
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


def training_sources(documents: dict[str, list[Document]], articles: float = 0.5) -> list[Source]:
    """Articles have the share `articles`, novels the rest, by length. A novel's negatives are from that
    novel: harder, and names do not give them away."""
    length = {name: sum(len(d.sentences) for d in found) for name, found in documents.items()}
    novels = sum(length.values()) - length["articles"]
    return [
        Source(name, tuple(found), articles if name == "articles" else (1 - articles) * length[name] / novels)
        for name, found in documents.items()
    ]


def _length(stage: Stage, arguments: argparse.Namespace) -> dict[str, float]:
    if arguments.minutes:
        return {"minutes": arguments.minutes * stage.steps / sum(each.steps for each in STAGES)}
    return {"steps": max(1, round(stage.steps * arguments.times))}


def _course(work: Path, out: Path) -> list[tuple[int, Path]]:
    """(pairs trained on so far, checkpoint) of all checkpoints of a run, in order; each stage's last is its
    average."""
    course, done = [], 0
    for folder in *sorted(work.glob("stage-*")), out:
        metrics = json.loads((folder / "metrics.json").read_text())
        size = metrics["batch_size"]
        course += [(done + _step(found) * size, found) for found in _checkpoints(folder)]
        done += metrics["steps"] * size
        course.append((done, folder))
    return course


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


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
        "--prepare", type=Path, metavar="DIR", help="write there what is fetched, decoded, small, and end"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--times",
        type=float,
        default=1.0,
        help="train so many times as long as the recipe says (default: %(default)s)",
    )
    length.add_argument("--minutes", type=float, help="of training, all stages together")
    parser.add_argument("--batch-size", type=int, default=_BATCH, help="pairs a step (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--pairs", type=int, default=2000, help="pairs to measure on, each kind")
    parser.add_argument(
        "--measure", action="store_true", help="measure the checkpoint in --out, train nothing"
    )
    return parser


if __name__ == "__main__":
    main()
