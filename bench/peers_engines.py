"""How each peer loads the model and scores pairs with it: a function a peer, run in that peer's environment.

`peer(checkpoint, threads, order)` imports its library, loads, and returns `score(pairs, batch)`, which gives
the logistic function of the model's only logit for each pair, in the order given. `order` is "sorted" (by
tokens, longest first), "budget" (so, but `batch` counts tokens, padding too, not pairs) or "given", where the
peer's library leaves the choice. All of a call counts: tokenising, batching, padding, computing. No default
of a library is changed but the number of threads, the limit of a pair's tokens and, in OpenVINO, the
precision (float32 unless another is asked for) and the hint that throughput counts. `file` is a model in the
checkpoint folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "fastembed",
    "feeds",
    "flashrank",
    "onnxruntime_padded",
    "onnxruntime_streams",
    "openvino_padded",
    "segue",
    "tokenizer",
    "transformers_torch",
]

Pairs = list[tuple[str, str]]
Scorer = Callable[[Pairs, int], Any]
Feeds = Iterator[tuple[list[int], dict[str, np.ndarray]]]  # the indices of a batch's pairs, its arrays
_LONGEST = 512
_FLOAT32 = "onnx/model.onnx"


def segue(checkpoint: Path, threads: int, order: str, *, bundle: str = "packed") -> Scorer:
    """A bundle beside the checkpoint, nothing chosen but the threads; it plans its own batches."""
    from segue import Engine

    engine = Engine.load(checkpoint.parent / bundle, threads=threads, device="cpu")
    return lambda pairs, batch: engine.score(pairs)


def transformers_torch(checkpoint: Path, threads: int, order: str) -> Scorer:
    """BertForSequenceClassification with scaled_dot_product_attention, in padded batches."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        checkpoint, attn_implementation="sdpa"
    ).eval()

    def score(pairs: Pairs, batch: int) -> np.ndarray:
        first, second = (list(side) for side in zip(*pairs, strict=True))
        encoded = tokenizer(first, second, truncation=True, max_length=_LONGEST)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        logits = np.empty(len(pairs), dtype=np.float32)
        with torch.inference_mode():
            for some in _batches(lengths, batch, order):
                part = {name: [values[i] for i in some] for name, values in encoded.items()}
                padded = tokenizer.pad(part, return_tensors="pt")
                logits[some] = model(**padded).logits[:, 0].numpy()
        return _sigmoid(logits)

    return score


def onnxruntime_padded(checkpoint: Path, threads: int, order: str, *, file: str = _FLOAT32) -> Scorer:
    """ONNX Runtime on the padded graph, tokenised by `tokenizers`; what a careful user writes by hand."""
    session = _session(checkpoint / file, threads)
    return _padded(
        checkpoint, order, lambda feeds: ((some, session.run(["logits"], feed)[0]) for some, feed in feeds)
    )


def onnxruntime_streams(checkpoint: Path, threads: int, order: str, *, file: str = _FLOAT32) -> Scorer:
    """The same in `threads` threads, each with a batch of its own: none waits for another."""
    from concurrent.futures import ThreadPoolExecutor

    session, pool = _session(checkpoint / file, 1), ThreadPoolExecutor(threads)
    return _padded(
        checkpoint,
        order,
        lambda feeds: pool.map(lambda item: (item[0], session.run(["logits"], item[1])[0]), feeds),
    )


def openvino_padded(
    checkpoint: Path, threads: int, order: str, *, file: str = _FLOAT32, precision: str = "f32"
) -> Scorer:
    """OpenVINO on the same file, tokenised in the same way, through its queue of requests.

    Compiled for throughput: each stream of threads has its own batch, which was faster here than all threads
    on one batch after another.
    """
    import openvino

    compiled = openvino.Core().compile_model(
        checkpoint / file,
        "CPU",
        {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
        },
    )
    logits = compiled.output("logits")
    queue = openvino.AsyncInferQueue(compiled)
    found: list[tuple[list[int], np.ndarray]] = []
    queue.set_callback(lambda request, some: found.append((some, request.get_tensor(logits).data.copy())))

    def run(feeds: Feeds) -> list[tuple[list[int], np.ndarray]]:
        found.clear()
        for some, feed in feeds:
            queue.start_async(feed, some)
        queue.wait_all()
        return found

    return _padded(checkpoint, order, run)


def flashrank(checkpoint: Path, threads: int, order: str) -> Scorer:
    """FlashRank's own session and tokenizer, fed as its `rerank` feeds them: a list is one padded batch.

    `rerank` itself takes one query only, so its few steps are written out for pairs here. It leaves the
    number of threads to ONNX Runtime. `batch` is the length of a list: its users send a query's candidates.
    """
    from flashrank import Ranker
    from flashrank.Config import model_file_map

    model_file_map[checkpoint.name] = "onnx/model.onnx"
    ranker = Ranker(checkpoint.name, cache_dir=str(checkpoint.parent), max_length=_LONGEST)

    def score(pairs: Pairs, batch: int) -> np.ndarray:
        found = []
        for start in range(0, len(pairs), batch):
            encoded = ranker.tokenizer.encode_batch([list(pair) for pair in pairs[start : start + batch]])
            feed = {
                "input_ids": np.array([row.ids for row in encoded]).astype(np.int64),
                "attention_mask": np.array([row.attention_mask for row in encoded]).astype(np.int64),
                "token_type_ids": np.array([row.type_ids for row in encoded]).astype(np.int64),
            }
            found.append(_sigmoid(ranker.session.run(None, feed)[0].flatten()))
        return np.concatenate(found)

    return score


def fastembed(checkpoint: Path, threads: int, order: str, *, file: str = _FLOAT32) -> Scorer:
    """fastembed's TextCrossEncoder, which takes pairs as they come; its own default is batches of 64."""
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    name = "local/cross-encoder"
    TextCrossEncoder.add_custom_model(name, sources=ModelSource(hf=name), model_file=file)
    encoder = TextCrossEncoder(name, threads=threads, cuda=False, specific_model_path=str(checkpoint))

    def score(pairs: Pairs, batch: int) -> np.ndarray:
        return _sigmoid(np.array(list(encoder.rerank_pairs(pairs, batch_size=batch)), dtype=np.float32))

    return score


def tokenizer(checkpoint: Path) -> Any:
    """The checkpoint's own, which cuts a pair to as many tokens as the model takes."""
    import tokenizers

    made = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    made.enable_truncation(_LONGEST)
    return made


def feeds(encoded: list[Any], batch: int, order: str) -> Feeds:
    """Yield padded arrays, filled row by row from what was tokenised once."""
    lengths = [len(row) for row in encoded]
    for some in _batches(lengths, batch, order):
        shape = len(some), max(lengths[i] for i in some)
        ids, mask, segments = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        for row, i in enumerate(some):
            ids[row, : lengths[i]] = encoded[i].ids
            mask[row, : lengths[i]] = 1
            segments[row, : lengths[i]] = encoded[i].type_ids
        yield some, {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}


def _session(model: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _padded(
    checkpoint: Path, order: str, run: Callable[[Feeds], Iterable[tuple[list[int], np.ndarray]]]
) -> Scorer:
    """Score with a runtime that takes padded arrays; `run` makes logits `[B, 1]` of each, in any order."""
    encoder = tokenizer(checkpoint)

    def score(pairs: Pairs, batch: int) -> np.ndarray:
        encoded = encoder.encode_batch(pairs)
        logits = np.empty(len(pairs), dtype=np.float32)
        for some, values in run(feeds(encoded, batch, order)):
            logits[some] = values[:, 0]
        return _sigmoid(logits)

    return score


def _batches(lengths: list[int], batch: int, order: str) -> Iterator[list[int]]:
    """Yield the indices of the pairs of each batch."""
    numbers = list(range(len(lengths)))
    if order != "given":
        numbers.sort(key=lambda i: -lengths[i])
    start = 0
    while start < len(numbers):
        longest = lengths[numbers[start]]
        size = max(1, batch // longest) if order == "budget" else batch
        yield numbers[start : start + size]
        start += size


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))
