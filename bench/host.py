"""From text to packed batches: segue beside the Hugging Face tokenizer, on the same pairs and threads.

    python bench/host.py [--text FILE ...] [--share 1.0] [--rounds 5] [--threads N] [--write] [--json FILE]

Prose is drawn by Zipf's law from the shipped tokenizer's words; --text adds files' words. The ids and
segment ids of every pair are compared first. Then these take turns: transformers' call at the best of three
batch sizes; tokenizers without it; segue with an encoder that has seen nothing, and with one that has encoded
as many other pairs. Prints Markdown; --write puts it into bench/results/host-2-cores.md.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import chain, pairwise, product
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import segue.text
from segue.batching import pack, plan
from segue.engine import DEFAULT_MODEL
from segue.machine import cpu_name
from segue.text import PairEncoder
from segue.threads import available_threads

__all__ = ["RESULT", "main"]

RESULT = Path(__file__).parent / "results" / "host-2-cores.md"
FILE = DEFAULT_MODEL / "tokenizer.json"
LIMIT, BATCH_TOKENS = 512, 8192
SIZES = (32, 256, 1024)  # pairs that transformers is given at once
OURS = "segue, other pairs seen before"
ABOUT = """`{command}`. Ids and segment ids of every pair are the same in all ways.
transformers makes padded arrays of a batch, as models take them; tokenizers alone is asked for ids and
segment ids of all pairs, end to end. segue numbers sentences, looks their words up, in the vocabulary too
once 8,192 were new, has the other new ones tokenised, plans batches of 8,192 tokens and packs them. Tokens
are those of all pairs, without padding."""
HEADER = "| way | tokens/s | cores | tokens per core's second | seconds, times segue's |"
PARTS = ("numbering", "looking words up", "tokenising new words", "reading their ids")
PARTS += ("the rest of encoding", "planning", "packing")
Pairs = list[tuple[str, str]]


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, then time, then print."""
    arguments = _parser().parse_args(argv)
    os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)  # read when the library first needs threads
    sources = {"Words drawn by Zipf's law": _drawn()}
    for file in arguments.text or []:
        sources[f"The words of {file.name}"] = file.read_text(encoding="utf-8").split()
    report = {}
    for source, words in sources.items():
        works = _workloads(words, arguments.share).items()
        report[source] = {name: _measure(*pairs, arguments.rounds) for name, pairs in works}
    page = "\n".join(_lines(report, arguments))
    print(page)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.write:
        RESULT.write_text(page + "\n", encoding="utf-8")


def _drawn() -> list[str]:
    """Return words as varied as an encyclopaedia's, the vocabulary's first most often; some compounds."""
    draw, count = np.random.default_rng(1), 700_000
    vocabulary = json.loads(FILE.read_text(encoding="utf-8"))["model"]["vocab"]
    known = [word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 1]
    frequency = (np.arange(len(known)) + 2.7) ** -1.05
    words = draw.choice(known, count, p=frequency / frequency.sum())
    words = np.where(draw.random(count) < 0.05, np.char.add(words, draw.choice(known, count)), words)
    words = np.where(draw.random(count) < 0.1, np.char.capitalize(words), words)
    marks = draw.choice(["", ",", ".", ";", ")"], count, p=[0.87, 0.06, 0.05, 0.01, 0.01])
    return np.char.add(words, marks).tolist()


def _workloads(words: list[str], share: float) -> dict[str, tuple[Pairs, Pairs]]:
    """Return the pairs of each kind of work, and as many others from further on in `words`."""
    draw, count = np.random.default_rng(0), max(1, round(1000 * share))

    def sizes(count: int) -> list[int]:  # in words: log-normal, mean about 60 tokens
        tokens = np.clip(draw.lognormal(np.log(59) - 0.32, 0.8, count), 8, 500)
        return np.maximum((tokens - 3) / 1.33, 2).astype(int).tolist()

    made = {}
    for name, lengths in (
        ("20 queries x the same passages", [8] * 20 + sizes(count)),
        ("distinct pairs of mixed lengths", [size // 2 for size in sizes(4 * count) for _ in "AB"]),
        ("distinct short pairs", [4] * (16 * count)),
    ):
        ends = np.cumsum([0, *lengths, *lengths]).tolist()
        if ends[-1] > len(words):
            raise SystemExit(f"{ends[-1]} words are needed, and there are {len(words)}")
        texts = [" ".join(words[start:end]) for start, end in pairwise(ends)]
        halves = texts[: len(lengths)], texts[len(lengths) :]
        if "queries" in name:
            made[name] = tuple(list(product(some[:20], some[20:])) for some in halves)
        else:
            made[name] = tuple(list(zip(some[::2], some[1::2], strict=True)) for some in halves)
    return made


def _measure(pairs: Pairs, others: Pairs, rounds: int) -> dict[str, Any]:
    """Compare, then time every way on `pairs`; `others` are what one of segue's encoders has seen."""
    names = ["input_ids", "token_type_ids", "attention_mask"]
    call = PreTrainedTokenizerFast(tokenizer_file=str(FILE), model_input_names=names, pad_token="[PAD]")
    library = Tokenizer.from_file(str(FILE))
    library.enable_truncation(LIMIT)
    tokens = _check(pairs, call, library)
    size = min(SIZES, key=lambda size: _clock(_padded, pairs[:: len(pairs) // 1000 or 1], call, size)[0])
    seconds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    parts: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(rounds):
        seconds[f"transformers, {size} pairs at once"].append(_clock(_padded, pairs, call, size))
        seconds["tokenizers, nothing padded"].append(_clock(_flat, pairs, library))
        for name, seen in (("segue, every word new", []), (OURS, others)):
            encoders = [PairEncoder(FILE, LIMIT) for _ in range(2)]
            for encoder in encoders:
                _packed(seen, encoder)
            seconds[name].append(_clock(_packed, pairs, encoders[0]))
            parts[name].append(_parts(pairs, encoders[1]))
    return {"pairs": len(pairs), "tokens": tokens, "seconds": seconds, "parts": parts}


def _check(pairs: Pairs, call: Any, library: Any) -> int:
    """Return the number of tokens; SystemExit if the ids or segment ids of a pair differ."""
    theirs, (encoded, batches) = _padded(pairs, call, 256), _packed(pairs, PairEncoder(FILE, LIMIT))
    for name, flat in zip(("input_ids", "token_type_ids"), _flat(pairs, library), strict=True):
        found: dict[int, Any] = {}
        for rows, batch in batches:
            found |= zip(rows.tolist(), np.split(getattr(batch, name), batch.cu_seqlens[1:-1]), strict=True)
        ours = [found[row] for row in encoded.inverse.tolist()]
        masked = chain.from_iterable(zip(one[name], one["attention_mask"], strict=True) for one in theirs)
        for index, (own, (row, mask)) in enumerate(zip(ours, masked, strict=True)):
            if not np.array_equal(own, row[mask == 1]):
                raise SystemExit(f"pairs[{index}]: {name} differ, so nothing is timed: {pairs[index]}")
        assert np.array_equal(np.concatenate(ours), flat), f"{name} of tokenizers alone differ"
    return len(flat)


def _padded(pairs: Pairs, call: Any, size: int) -> list[Any]:
    """Return padded arrays of `size` pairs each."""
    options = {"padding": True, "truncation": True, "max_length": LIMIT, "return_tensors": "np"}
    some = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    return [call(*map(list, zip(*part, strict=True)), **options) for part in some]


def _flat(pairs: Pairs, library: Any) -> list[np.ndarray]:
    """Return ids and segment ids of all pairs, end to end: the least that the library can be asked for."""
    some = (pairs[start : start + 256] for start in range(0, len(pairs), 256))
    rows = [(one.ids, one.type_ids) for part in some for one in library.encode_batch_fast(part)]
    return [np.fromiter(chain.from_iterable(part), dtype=np.int64) for part in zip(*rows, strict=True)]


def _packed(pairs: Pairs, encoder: PairEncoder) -> tuple[Any, list[Any]]:
    """Return what `Engine.score` makes of the pairs before it computes."""
    encoded = encoder.encode(pairs)
    return encoded, [(rows, pack(encoded, rows)) for rows in plan(encoded.lengths, BATCH_TOKENS)]


def _clock(way: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    """Return wall-clock seconds, and those of all cores."""
    started, worked = time.perf_counter(), time.process_time()
    way(*arguments)
    return time.perf_counter() - started, time.process_time() - worked


def _parts(pairs: Pairs, encoder: PairEncoder) -> dict[str, float]:
    """Return the seconds of each part of segue's work, by clocks put between the parts."""
    spent: dict[str, list[float]] = {}

    def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        taken = spent.setdefault(name, [0.0, 0])  # seconds, calls under way

        def run(*arguments: Any, **options: Any) -> Any:
            taken[1] += 1
            started = time.perf_counter()
            value = function(*arguments, **options)
            taken[1] -= 1
            taken[0] += 0 if taken[1] else time.perf_counter() - started  # the outermost call has it all
            return value

        return run

    words, number = encoder._words, segue.text.number_pairs
    whole = words._tokenizer
    words._tokenizer = SimpleNamespace(
        encode_batch_fast=timed(whole.encode_batch_fast, "read"),
        get_added_tokens_decoder=whole.get_added_tokens_decoder,
        get_vocab=whole.get_vocab,
        model=whole.model,
    )
    words._learn, words.spell = timed(words._learn, "learn"), timed(words.spell, "spell")
    segue.text.number_pairs = timed(number, "number")
    encoded = timed(encoder.encode, "encode")(pairs)
    segue.text.number_pairs = number
    for rows in timed(plan, "plan")(encoded.lengths, BATCH_TOKENS):
        timed(pack, "pack")(encoded, rows)
    read, learn, spell, number, encode, *rest = (seconds for seconds, _ in spent.values())
    taken = (number, spell - learn, read, learn - read, encode - number - spell, *rest)
    return dict(zip(PARTS, taken, strict=True))


def _lines(report: dict[str, Any], arguments: argparse.Namespace) -> list[str]:
    texts = "".join(f" {file.name}" for file in arguments.text or ())
    command = f"python bench/host.py{' --text' if texts else ''}{texts} --write"
    lines = [f"# From text to packed batches, on {arguments.threads} CPU cores", ""]
    lines.append(ABOUT.format(command=command))
    for source, works in report.items():
        lines += ["", f"## {source}"]
        for name, found in works.items():
            seconds, tokens, parts = found["seconds"], found["tokens"], found["parts"]
            lines += [
                "",
                f"{name}: {found['pairs']:,} pairs, {tokens:,} tokens",
                "",
                HEADER,
                "|---" * 5 + "|",
            ]
            for way, taken in seconds.items():
                wall, worked = map(median, zip(*taken, strict=True))
                times = median(a[0] / b[0] for a, b in zip(taken, seconds[OURS], strict=True))
                rates = f"{tokens / wall:,.0f} | {worked / wall:.1f} | {tokens / worked:,.0f}"
                lines.append(f"| {way} | {rates} | {times:.2f} |")
            lines += ["", f"| ms | {' | '.join(parts)} |", "|---" * 3 + "|"]
            for part in PARTS:
                each = " | ".join(f"{1e3 * median(one[part] for one in way):.1f}" for way in parts.values())
                lines.append(f"| {part} | {each} |")
    using = [f"{arguments.threads} threads of {cpu_name()}"]
    using += [f"{name} {version(name)}" for name in ("tokenizers", "transformers", "numpy")]
    return [*lines, "", f"Medians of {arguments.rounds} rounds; {', '.join(using)}"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--text", type=Path, nargs="+", help="files of UTF-8 prose")
    parser.add_argument("--share", type=float, default=1.0, help="of the full number of pairs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    main()
