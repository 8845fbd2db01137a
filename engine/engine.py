"""The engine: load a model, score pairs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from segue.batching import pack, plan, plan_stepwise
from segue.bundle import MANIFEST, Manifest, read_bundle, stored_precision
from segue.checks import positive_whole
from segue.encoded import Encoded, Ints
from segue.errors import BundleError, InputError, SegueError
from segue.executors import Executor, check_choice, execute, open_executor
from segue.executors.ending import each_whole
from segue.head import check_output, positive_column, scores
from segue.ranking import about_documents, check_ranking, ranking
from segue.report import Explanation, Info
from segue.text import PairEncoder, check_iterable
from segue.threads import available_threads
from segue.windows import MOST_PAIRS, characters, windows

if TYPE_CHECKING:
    from logging import Logger

__all__ = ["DEFAULT_MODEL", "Engine", "warn_truncated"]

DEFAULT_MODEL = Path(__file__).parent / "models" / "nsp-minilm"
# Bounds of the grid in which attention lays out pairs: its tokens, as a multiple of a full batch's, and its
# scores for each token of a full batch, 16 MB in a batch of 2048. More would leave the cache, and take more
# memory than all the rest.
_GRID_SLACK = 2
_GRID_SCORES = 2048
_MOST_TOKENS = 2**31 - 1  # of a batch; executors count in 32 bits
_MOST_THREADS = 1024  # more than a machine has only take memory: a hundred thousand took 16 GB
_WINDOW_PAIRS = 1024  # per CPU thread, in a window of a stream: more would only make scores wait
_SENTENCES = 1024  # encoded first; later twice as many, while a device runs what was encoded before


class Engine:
    """A BERT that scores sentence pairs. Safe to share between threads; not usable after a fork.

    Pickles as the arguments it was loaded with. As a context manager it closes itself.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        executor: Executor,
        arguments: dict[str, Any],
    ) -> None:
        """Put the parts together; use `Engine.load` to get an engine."""
        self._manifest, self._executor, self._arguments = manifest, executor, arguments
        self._encoder = PairEncoder(path / "tokenizer.json", manifest.max_tokens)
        self._path = path
        self._process = os.getpid()
        self._closed = False

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        executor: str = "auto",
        precision: str | None = None,
        batch_invariant: bool = True,
        threads: int | None = None,
        max_batch_tokens: int | None = None,
    ) -> Self:
        """Load a bundle, a Hugging Face BERT checkpoint folder, or the NSP model that ships with segue.

        Args:
            path: a folder; None for the model in the package. A checkpoint is exported once and cached,
                which needs the extra `export`.
            device: "auto", "cpu", "cuda" or "cuda:N". "auto" uses a GPU if one works.
            executor: "auto", "onnxruntime" or "triton".
            precision: of the arithmetic: "float32", "float16", "bfloat16"; None: the executor's best. "int8",
                on a CPU, uses a bundle stored in int8, or exports `path` to int8 and caches it like a
                checkpoint: half the time, and scores that differ by hundredths.
            batch_invariant: keep a pair's score the same to the bit in any batch, under triton; on a CPU it
                always is. False lets triton use a faster matrix library that does not.
            threads: CPU threads of onnxruntime; None: as many as affinity and control group allow. The
                tokenizer has as many for new words as RAYON_NUM_THREADS says.
            max_batch_tokens: most tokens of a batch, unless a pair alone has more; None: what suits the
                executor. On a CPU, where there are many batches, each thread computes one.

        Raises:
            InputError: an option has no such value.
            BundleError: the folder is no bundle or checkpoint that this version runs exactly, or int8 would
                change its scores too much.
            ExecutorUnavailable: something asked for by name is not available here.
            SegueError: `path` has to be exported, and there is no place to keep the result.
        """
        arguments = {
            "device": device,
            "executor": executor,
            "precision": precision,
            "batch_invariant": batch_invariant,
            "threads": threads,
            "max_batch_tokens": max_batch_tokens,
        }
        if not isinstance(batch_invariant, bool):
            raise InputError(f"batch_invariant: expected True or False, got {batch_invariant!r}")
        threads = positive_whole("threads", threads, available_threads(), most=_MOST_THREADS)
        batch_tokens = positive_whole("max_batch_tokens", max_batch_tokens, None, most=_MOST_TOKENS)
        check_choice(executor, device, precision)
        bundle = _bundle_folder(path, precision)
        manifest = read_bundle(bundle)
        if manifest.layout != "packed":
            raise BundleError(
                f"{bundle}: the {manifest.layout} layout is for other runtimes; segue runs --layout packed"
            )
        opened = open_executor(
            bundle / "model.onnx",
            executor=executor,
            device=device,
            precision=precision,
            threads=threads,
            batch_tokens=batch_tokens,
            longest=manifest.max_tokens,
            batch_invariant=batch_invariant,
            dimensions=manifest.dimensions,
            stored=manifest.precision,
        )
        arguments["path"] = None if path is None else str(Path(path).resolve())
        return cls(bundle, manifest, opened, arguments)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of `predict`'s columns."""
        return self._manifest.head.labels

    @property
    def info(self) -> Info:
        """What was loaded, what was chosen and how it runs."""
        return Info.of(self._path, self._manifest, self._executor)

    def score(
        self,
        pairs: Iterable[Sequence[str]],
        *,
        output: str = "probability",
        truncation: str = "longest_first",
        max_tokens: int | None = None,
        progress: bool = False,
    ) -> NDArray[np.float32]:
        """Return the score of each pair, `[N]`, in the order given: the probability of the positive label.

        Args:
            pairs: lists, tuples or numpy rows of two strings.
            output: "probability", or "logit" for the head's output before softmax or sigmoid.
            truncation: "longest_first", "only_first", "only_second", or "error" to refuse pairs that are too
                long.
            max_tokens: from 3 to the model's limit, the default; the three special tokens count.
            progress: show a bar on stderr.

        Raises:
            InputError: names the pair or option and what is wrong with it.
            SegueError: this engine is closed or was loaded before a fork, the process is ending in another
                thread, the device failed, or the model gave a value that is not finite.
        """
        column = positive_column(self._manifest.head)
        values = self.predict(
            pairs, output=output, truncation=truncation, max_tokens=max_tokens, progress=progress
        )
        return np.ascontiguousarray(values[:, column])

    def predict(
        self,
        pairs: Iterable[Sequence[str]],
        *,
        output: str = "probability",
        truncation: str = "longest_first",
        max_tokens: int | None = None,
        progress: bool = False,
    ) -> NDArray[np.float32]:
        """Return one value per label, `[N, C]`; `labels` names the columns. Otherwise as in `score`."""
        check_output(output)
        encoded = self._encode(pairs, truncation, max_tokens)
        logits = self._logits(encoded, progress)
        warn_truncated(encoded.truncated, len(encoded.inverse))
        return scores(logits, self._manifest.head, output)

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        truncation: str = "longest_first",
        max_tokens: int | None = None,
    ) -> list[dict[str, Any]]:
        """Order documents by the score of (query, document), best first; equal scores keep the order given.

        Args:
            top_k: how many to return; None: all.
            truncation: as in `score`; "only_second" keeps the query whole.
            max_tokens: as in `score`.

        Returns:
            `{"corpus_id": index in documents, "score": float}`, with "text" if `return_documents` is set.
            Scores are computed in float64 from the logits, so that those near 1 do not become ties.

        Raises:
            InputError: names the document or option and what is wrong with it.
            SegueError: as in `score`.
        """
        texts, top_k = check_ranking(query, documents, top_k, self._manifest.head)
        with about_documents():
            encoded = self._encode([(query, text) for text in texts], truncation, max_tokens)
            logits = self._logits(encoded)
        warn_truncated(encoded.truncated, len(encoded.inverse))
        return ranking(logits, self._manifest.head, texts, top_k, return_documents)

    def score_iter(
        self,
        pairs: Iterable[Sequence[str]],
        *,
        output: str = "probability",
        truncation: str = "longest_first",
        max_tokens: int | None = None,
    ) -> Iterator[float]:
        """Yield the score of each pair, in order, from an iterable of any length, in bounded memory.

        Pairs are read in windows, small ones first. If a pair is bad or the iterable raises, the scores of
        all pairs before it are yielded first. Arguments and errors as in `score`.
        """
        column = positive_column(self._manifest.head)
        rows = self.predict_iter(pairs, output=output, truncation=truncation, max_tokens=max_tokens)
        return (float(row[column]) for row in rows)

    def predict_iter(
        self,
        pairs: Iterable[Sequence[str]],
        *,
        output: str = "probability",
        truncation: str = "longest_first",
        max_tokens: int | None = None,
    ) -> Iterator[NDArray[np.float32]]:
        """Yield one value per label, `[C]`, for each pair. Otherwise as in `score_iter`."""
        return self._predict_iter(pairs, output, truncation, max_tokens)

    def explain(
        self, first: str, second: str, *, truncation: str = "longest_first", max_tokens: int | None = None
    ) -> Explanation:
        """Return a pair as the model sees it, and the model's output for it."""
        try:
            encoded = self._encode([(first, second)], truncation, max_tokens, whole=True)
            logits = self._logits(encoded)[0]
        except SegueError as error:
            raise (error if error.index is None else type(error)(error.reason)) from error.__cause__
        warn_truncated(encoded.truncated, 1)
        batch = pack(encoded, np.array([0]))
        return Explanation.of(batch, encoded, self._encoder, logits, self._manifest.head)

    def warmup(self, progress: bool = False) -> None:
        """Do in advance what the first calls would wait for, then run a short pair and one of full length.

        On a GPU this compiles every kernel (and keeps it on disk) and captures every GPU graph. It is best
        called before other threads use that GPU: under PyTorch before 2.13 none may draw random numbers on it
        during a capture. On a CPU with several threads it opens the session for calls of many batches, which
        holds a second copy of the weights. Logs, at level INFO, how many steps and seconds it took.

        Args:
            progress: show a bar on stderr.
        """
        started = perf_counter()
        self._encoder.warm_up()
        steps = each_whole(self._executor.warm_up())
        count = sum(1 for _ in (_counted(steps) if progress else steps))
        longest = max(1, self._manifest.max_tokens - 4)  # three special tokens and one of "b"
        for size in (1, longest):
            self._logits(self._encode([("a " * size, "b")], "longest_first", None))
        _logger().info("warm-up: %d steps and two pairs in %.2f s", count, perf_counter() - started)

    def close(self) -> None:
        """Free the model's memory. From then on, anything but `info` and `labels` raises SegueError."""
        self._closed = True
        if os.getpid() == self._process:  # else, in a fork, a thread left behind may hold a lock
            self._executor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, tuple[type[Self], dict[str, Any]]]:
        return _loaded, (type(self), self._arguments)

    def __repr__(self) -> str:
        return f"<segue.Engine {self._path.name} on {self._executor.device} by {self._executor.name}>"

    def _encode(
        self, pairs: Iterable[Any], truncation: str, max_tokens: int | None, *, whole: bool = False
    ) -> Encoded:
        if self._closed:
            raise SegueError("this engine is closed")
        if os.getpid() != self._process:
            raise SegueError(
                "this engine was loaded before a fork, and its threads stayed behind: "
                "load one in each process, or start processes by 'spawn'"
            )
        return self._encoder.begin(
            pairs,
            truncation=truncation,
            max_tokens=max_tokens,
            at_once=_SENTENCES if self._executor.overlaps else None,
            whole=whole,
        )

    def _logits(self, encoded: Encoded, progress: bool = False) -> NDArray[np.float32]:
        """Return [N, C]; pairs not encoded yet are encoded on the way."""
        batches = self._plan(encoded)
        logits = execute(self._executor, encoded, batches, labels=len(self.labels), progress=progress)
        return logits[encoded.inverse]

    def _plan(self, encoded: Encoded) -> Iterator[Ints]:
        """Yield the rows of each batch."""

        def cut(lengths: Ints) -> list[Ints]:
            total = int(lengths.sum())
            tokens, grid, squares = self._executor.tokens_at_once(total), None, None
            if self._executor.grid:
                grid, squares = _GRID_SLACK * tokens, _GRID_SCORES * tokens // self._manifest.dimensions.heads
            return plan(lengths, tokens, grid, squares, self._executor.lanes(total))

        return plan_stepwise(encoded, cut)

    def _predict_iter(
        self,
        pairs: Iterable[Any],
        output: str,
        truncation: str,
        max_tokens: int | None,
        weigh: Callable[[Any], int] = characters,
    ) -> Iterator[NDArray[np.float32]]:
        """As `predict_iter`. weigh: how many characters the caller also holds for a pair that was read."""
        check_output(output)
        self._encode([], truncation, max_tokens)  # options are refused at the call, not at the first pair
        check_iterable("pairs", pairs, "(str, str)")
        most = MOST_PAIRS
        if not self._executor.overlaps:  # some ten seconds of work
            most = min(most, _WINDOW_PAIRS * self._executor.threads)
        return self._stream(windows(pairs, weigh, most), output, truncation, max_tokens)

    def _stream(
        self,
        pairs: Iterable[tuple[int, list[Any]]],
        output: str,
        truncation: str,
        max_tokens: int | None,
    ) -> Iterator[NDArray[np.float32]]:
        truncated = seen = 0
        log: Logger | None = None
        try:
            for start, window in pairs:
                encoded, logits, error = self._until_bad(window, truncation, max_tokens)
                truncated += encoded.truncated
                seen += len(logits)
                if truncated:  # the stream may end as Python exits, when nothing can be imported
                    log = log or _logger()
                yield from scores(logits, self._manifest.head, output)
                if error is not None:
                    raise error.at(start + len(logits))
        finally:
            warn_truncated(truncated, seen, log)

    def _until_bad(
        self, pairs: list[Any], truncation: str, max_tokens: int | None
    ) -> tuple[Encoded, NDArray[np.float32], SegueError | None]:
        """Return the results for the pairs before the first bad one, and what is wrong with that one."""
        bad: SegueError | None = None
        while True:  # an earlier pair may have another kind of fault, found only once this one is gone
            try:
                encoded = self._encode(pairs, truncation, max_tokens)
                return encoded, self._logits(encoded), bad
            except SegueError as error:
                if error.index is None:
                    raise
                bad, pairs = error, pairs[: error.index]


def _loaded(kind: type[Engine], arguments: dict[str, Any]) -> Engine:
    """Load an engine again, for pickle. Every pickler stores a module's function by name; of a class
    method cloudpickle and dill pickle the code, which `datasets`, having dill recurse, cannot hash."""
    return kind.load(**arguments)


def _counted(steps: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the steps while a bar on stderr counts them."""
    from tqdm import tqdm

    with tqdm(unit="step", desc="warm-up", leave=False, disable=sys.stderr is None) as bar:
        for done, count in steps:
            bar.total = count
            bar.update(done - bar.n)
            yield done, count


def _bundle_folder(path: str | os.PathLike[str] | None, precision: str | None) -> Path:
    """Return the bundle in `path`, or one exported from it: from a checkpoint, or from a bundle to int8."""
    if not isinstance(path, str | os.PathLike | None):
        raise InputError(f"path: expected a folder's name or None, got {path!r}")
    folder = DEFAULT_MODEL if path is None else Path(path)
    try:
        bundle = (folder / MANIFEST).is_file()
        if bundle and (precision != "int8" or stored_precision(folder) == "int8"):
            return folder.resolve()
        if not folder.is_dir():
            raise BundleError(f"{folder}: no such folder; models are read from disk, and none is downloaded")
        checkpoint = (folder / "config.json").is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise BundleError(f"{folder}: {error.strerror}") from error
    if bundle or checkpoint:
        from segue.cache import exported

        return exported(folder, "int8" if precision == "int8" else "float32")
    raise BundleError(f"{folder}: neither a bundle ({MANIFEST}) nor a Hugging Face checkpoint (config.json)")


def _logger() -> Logger:
    import logging  # 7 ms, which a process with nothing to log need not pay

    return logging.getLogger("segue")


def warn_truncated(count: int, pairs: int, log: Logger | None = None) -> None:
    """Log how many pairs of a call were shortened, if any were."""
    if count:
        (log or _logger()).warning(
            "%d of %d pairs were longer than the limit and were truncated", count, pairs
        )
