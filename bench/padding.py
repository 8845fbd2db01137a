"""What padding costs on this machine's CPU: segue beside the two usual ways of running the same checkpoint.

    python bench/padding.py CHECKPOINT [--pairs 256] [--rounds 5] [--threads N]

Text to probabilities, all of it counted but the loading: tokenising, batching, computing. The pairs'
lengths are log-normal with mean 59 tokens, drawn once. The answers of all ways are compared first; then
all are timed in turn, so that a drift of the machine's speed meets them alike. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import transformers

from segue import Engine
from segue.export import export_checkpoint
from segue.export.sentences import SENTENCES
from segue.threads import available_threads

__all__ = ["main"]

BATCH = 32  # pairs, what the libraries that pad take unless told otherwise
Pairs = list[tuple[str, str]]
Scorer = Callable[[Pairs], np.ndarray]


def main() -> None:
    """Compare, then time, then print."""
    arguments = _parser().parse_args()
    threads = arguments.threads or available_threads()
    torch.set_num_threads(threads)
    pairs = _pairs(arguments.pairs)
    with tempfile.TemporaryDirectory() as folder:
        export_checkpoint(arguments.checkpoint, Path(folder, "packed"))
        export_checkpoint(arguments.checkpoint, Path(folder, "padded"), layout="padded")
        tokenizer = _tokenizer(arguments.checkpoint)
        scorers: dict[str, Scorer] = {
            "transformers on PyTorch, batches of 32 as they come": _pytorch(arguments.checkpoint, tokenizer),
            "ONNX Runtime on the padded export, batches of 32 sorted by tokens": _padded(
                Path(folder, "padded", "model.onnx"), tokenizer, threads
            ),
            "segue": Engine.load(Path(folder, "packed"), threads=threads).predict,
        }
        answers = {name: scorer(pairs) for name, scorer in scorers.items()}  # this also warms everything up
    for name, answer in answers.items():
        assert np.abs(answer - answers["segue"]).max() < 1e-5, f"{name} scores something else"
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(arguments.rounds):
        for name, scorer in scorers.items():
            started = time.perf_counter()
            scorer(pairs)
            seconds[name].append(time.perf_counter() - started)
    _print(seconds, len(pairs), threads)


def _pairs(count: int) -> Pairs:
    """Return distinct pairs of prose; a word is about 1.3 tokens."""
    draw = np.random.default_rng(0)
    words = " ".join(SENTENCES).split()
    tokens = np.clip(draw.lognormal(np.log(59) - 0.32, 0.8, count), 8, 500)
    sizes = np.maximum((tokens - 3) / 1.3 / 2, 1).astype(int)
    return [(" ".join(draw.choice(words, size)), " ".join(draw.choice(words, size))) for size in sizes]


def _tokenizer(checkpoint: Path) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(checkpoint / "tokenizer.json"),
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _pytorch(checkpoint: Path, tokenizer: transformers.PreTrainedTokenizerFast) -> Scorer:
    architecture = getattr(transformers, transformers.AutoConfig.from_pretrained(checkpoint).architectures[0])
    model = architecture.from_pretrained(checkpoint).eval()

    def score(pairs: Pairs) -> np.ndarray:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(pairs), BATCH):
                first, second = zip(*pairs[start : start + BATCH], strict=True)
                encoded = tokenizer(
                    first, second, padding=True, truncation=True, max_length=512, return_tensors="pt"
                )
                rows.append(torch.softmax(model(**encoded).logits, dim=-1).numpy())
        return np.concatenate(rows)

    return score


def _padded(model: Path, tokenizer: transformers.PreTrainedTokenizerFast, threads: int) -> Scorer:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def score(pairs: Pairs) -> np.ndarray:
        encoded = tokenizer(*map(list, zip(*pairs, strict=True)), truncation=True, max_length=512)
        order = np.argsort([-len(ids) for ids in encoded["input_ids"]], kind="stable")
        rows = np.empty((len(pairs), 2), dtype=np.float32)
        for start in range(0, len(pairs), BATCH):
            some = order[start : start + BATCH]
            part = {name: [values[i] for i in some] for name, values in encoded.items()}
            padded = tokenizer.pad(part, return_tensors="np")
            feed = {name: values.astype(np.int64) for name, values in padded.items()}
            rows[some] = session.run(["probabilities"], feed)[0]
        return rows

    return score


def _print(seconds: dict[str, list[float]], pairs: int, threads: int) -> None:
    ours = statistics.median(seconds["segue"])
    print("| way | pairs/s | seconds, times segue's |\n|---|---|---|")
    for name, taken in seconds.items():
        ratio = statistics.median(theirs / own for theirs, own in zip(taken, seconds["segue"], strict=True))
        print(f"| {name} | {pairs / statistics.median(taken):.1f} | {ratio:.2f} |")
    print(
        f"\n{pairs} pairs, segue {ours:.2f} s; {threads} threads of {_processor()}; "
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"onnxruntime {onnxruntime.__version__}"
    )


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("checkpoint", type=Path, help="a Hugging Face folder with two labels")
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    return parser


if __name__ == "__main__":
    main()
