"""The Triton executor, interpreted, on tiny models: its numbers, its graphs, its errors."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx.inliner
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interpreted import fixed_order
from kernel_tools import assert_as_exact, launches, run_python
from triton import knobs
from triton.runtime.errors import OutOfResources
from triton.runtime.jit import JitFunctionInfo
from triton_tools import FIVE_LABELS, LONGEST, NSP, ONE_LABEL, judge, open_triton, packed, run, run_eagerly

import segue.executors
from segue import BundleError, Engine, ExecutorUnavailable, InputError, SegueError, kernels
from segue.batching import pack
from segue.cli import main
from segue.executors import open_executor, triton_compiles, triton_device
from segue.executors import triton as triton_executor
from segue.executors.triton_buckets import Bucket, bucket_of
from segue.kernels import launching

MODELS = {"nsp": NSP, "one label": ONE_LABEL, "five labels, stored as float16": FIVE_LABELS}
MIXED = (3, LONGEST, 17, 33, 5)
PAIRS = [("the man", "a b c"), ("", ""), ("x y", "z w v u t"), ("q " * 50, "r " * 9)]


@pytest.fixture(scope="module", params=MODELS)
def any_bundle(request: pytest.FixtureRequest, make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(**MODELS[request.param])


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(**ONE_LABEL)


@pytest.fixture
def executor(bundle: Path) -> Any:
    return open_triton(bundle)


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Engine:
    return Engine.load(bundle, executor="triton", precision="float32", max_batch_tokens=64)


@pytest.fixture(scope="module")
def cpu(bundle: Path) -> Engine:
    return Engine.load(bundle, executor="onnxruntime", device="cpu", threads=1)


class FakeGraph:
    """What a capture gives, without a GPU: a replay launches again."""

    def __init__(self, launch: Callable[[], None]) -> None:
        self.launch, self.replays = launch, 0

    def replay(self) -> None:
        self.replays += 1
        self.launch()


# Numbers


def test_logits_are_those_of_onnx_runtime(any_bundle):
    batch = packed(MIXED)
    wanted = judge(any_bundle, batch)
    found = run(open_triton(any_bundle, batch_tokens=sum(MIXED)), batch)
    assert found.dtype == np.float32
    assert np.ptp(wanted, axis=0).min() > 0.2
    assert np.abs(found - wanted).max() <= 1e-4


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("model", ["nsp", "one label"])
def test_a_low_precision_is_at_most_twice_as_wrong_as_eager(make_bundle, model, precision):
    batch, dtype = packed(MIXED), getattr(torch, precision)
    executor = open_triton(make_bundle(**MODELS[model]), precision, sum(MIXED))
    found = torch.from_numpy(run(executor, batch))
    eager = run_eagerly(executor._launches.plan, batch, dtype, arithmetic=dtype)
    exact = run_eagerly(executor._launches.plan, batch, dtype, arithmetic=torch.float64)
    assert_as_exact(found.to(dtype), eager, exact)
    assert (found != found.to(dtype)).any(), "logits leave in float32, not rounded to the storage's precision"


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_pair_has_the_same_bits_in_any_batch_and_order(bundle, precision):
    executor = open_triton(bundle, precision, sum(MIXED))
    with fixed_order():
        together = run(executor, packed(MIXED))
        turned = run(executor, packed(MIXED[::-1]))
        alone = run(executor, *(packed([length]) for length in MIXED[:3]))
    assert len(np.unique(together)) == len(MIXED)
    assert turned[::-1].tobytes() == together.tobytes()
    assert alone.tobytes() == together[:3].tobytes()


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_rounding_up_to_a_bucket_changes_no_bit(bundle, precision):
    batches = [packed([3]), packed([33, 5]), packed([7] * 9)]
    executor = open_triton(bundle, precision)
    with fixed_order():
        exact = run(executor, *batches)
        executor._rounds = True
        with launches() as seen:
            rounded = run(executor, *batches)
    assert rounded.tobytes() == exact.tobytes()
    grids = {launch.grid for launch in seen if launch.kernel == "_mix_kernel"}
    assert {grid[0] for grid in grids} == {1, 4, 16}  # of 1, 2 and 9 pairs


def test_attention_is_told_the_longest_pair_of_its_batch(make_bundle, monkeypatch):
    """Its grid and its tile are chosen by that."""
    told: list[tuple[str, int]] = []
    for name in ("packed_attention", "cls_attention"):
        real = getattr(kernels, name)

        def noted(*some: Any, _name: str = name, _real: Any = real, longest: int, **options: Any) -> Any:
            told.append((_name, longest))
            return _real(*some, longest=longest, **options)

        monkeypatch.setattr(kernels, name, noted)
    run(open_triton(make_bundle(**NSP)), packed([5, 9]))
    assert set(told) == {("packed_attention", 9), ("cls_attention", 9)}


@given(st.lists(st.integers(3, LONGEST), min_size=1, max_size=12).filter(lambda lengths: sum(lengths) <= 64))
@settings(
    derandomize=True,
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
def test_ragged_batches_are_as_onnx_runtime_has_them(engine, cpu, lengths):
    batch = packed(lengths, seed=1)
    found, wanted = (run(e._executor, batch) for e in (engine, cpu))
    assert found.shape == wanted.shape == (len(lengths), 1)
    assert np.abs(found - wanted).max() <= 1e-4


def test_a_token_id_beyond_the_table_is_refused(executor, cpu):
    batch = pack(cpu._encoder.encode([("a b", "c")]).all(), np.array([0]))
    batch.input_ids[1] = executor._words
    with pytest.raises(SegueError, match=r"^batch: the token id \d+ is beyond the model's \d+ words$"):
        list(executor.run([batch]))
    batch.input_ids[1] -= 1
    assert np.isfinite(next(executor.run([batch]))).all()


@pytest.mark.parametrize("rounds", [False, True])
def test_nothing_is_left_of_the_batch_before(executor, rounds):
    """Before each batch all memory is NaN, and all numbers are outside any table."""
    executor._rounds = rounds
    batches = [packed([5, 9, 3]), packed([LONGEST]), packed([4, 4])]
    before = run(executor, *batches)
    again = []
    for batch in reversed(batches):
        executor._launches.arena.fill_(torch.nan)
        executor._launches.logits.fill_(torch.nan)
        executor._launches.feed.numbers.fill_(2**30)
        again.append(run(executor, batch))
    assert np.concatenate(again[::-1]).tobytes() == before.tobytes()


def test_batches_are_taken_while_others_run_and_come_back_in_order(executor):
    sizes = [[5, 9], [3], [7], [4, 4], [5], [6, 3, 3], [8]]
    taken: list[int] = []
    results = executor.run(taken.append(len(lengths)) or packed(lengths) for lengths in sizes)
    first = next(results)
    assert taken == [2, 1, 1, 2, 1], "the one that is computed, and as many on their way"
    kept = first.copy()
    rest = list(results)
    assert first.tobytes() == kept.tobytes(), "a result is the caller's own"
    assert np.concatenate([first, *rest]).tobytes() == run(executor, *map(packed, sizes)).tobytes()
    assert [len(logits) for logits in (first, *rest)] == [*map(len, sizes)]
    assert list(executor.run([])) == []


# Graphs


def test_a_bucket_is_launched_then_captured_then_replayed(executor, monkeypatch):
    events: list[tuple[str, Bucket]] = []
    monkeypatch.setattr(executor._launches, "launch", lambda sizes: events.append(("launch", sizes)))
    executor._rounds = True
    executor._record = lambda launch: events.append(("capture", None)) or FakeGraph(launch)
    run(executor, *(packed(lengths) for lengths in ([5], [9], [30], [20, 4], [21, 4], [8], [40], [22])))
    small, wide, long = Bucket(64, 1, 32), Bucket(64, 4, 32), Bucket(64, 1, 40)
    assert events == [
        ("launch", small),
        *[("launch", small), ("capture", None)],
        ("launch", small),  # replayed
        ("launch", wide),
        *[("launch", wide), ("capture", None)],
        ("launch", small),
        ("launch", long),
        ("launch", small),
    ]
    assert {bucket: graph.replays for bucket, graph in executor._graphs.items()} == {small: 3, wide: 0}


def test_a_graph_serves_every_batch_of_its_bucket(executor):
    batches = [packed([5, 9]), packed([20, 3, 7]), packed([31, 4])]
    wanted = run(executor, *batches)
    executor._rounds, executor._record = True, FakeGraph
    assert run(executor, *batches).tobytes() == wanted.tobytes()
    ((bucket, graph),) = executor._graphs.items()
    assert (bucket, graph.replays) == (Bucket(64, 4, 32), 1)


def test_warm_up_launches_and_captures_every_bucket_once(executor, monkeypatch):
    events: list[Bucket] = []
    monkeypatch.setattr(executor._launches, "launch", events.append)
    executor._rounds, executor._record = True, FakeGraph
    count = len(executor._buckets)
    assert list(executor.warm_up()) == [(n, 2 * count) for n in range(1, 2 * count + 1)]
    assert events == executor._buckets
    assert list(executor._graphs) == executor._buckets
    assert len(list(executor.warm_up())) == 2 * count
    assert len(events) == count  # nothing again
    run(executor, packed([5]))
    assert executor._graphs[Bucket(64, 1, 32)].replays == 1


def test_a_warm_up_ends_when_what_it_launched_has(executor, monkeypatch):
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(executor._launches, "launch", lambda sizes: None)
    executor._stream = FakeStream()
    list(executor.warm_up())
    assert executor._stream.waits == 1


def test_a_warm_up_finds_nothing_of_the_batch_before(executor, monkeypatch):
    """Its numbers lie where another bucket has others: lengths could be taken for bounds."""
    numbers, live = executor._launches.feed.numbers.fill_(2**30), []
    monkeypatch.setattr(executor._launches, "launch", lambda sizes: live.append(bool(numbers.any())))
    list(executor.warm_up())
    assert live == [False]


def test_shares_of_what_is_compiled_are_all_of_it_and_capture_nothing(executor, monkeypatch):
    events: list[Bucket] = []
    monkeypatch.setattr(executor._launches, "launch", events.append)
    for first in range(3):
        executor.compile(first, 3)
    assert sorted(events) == executor._buckets
    assert not executor._graphs


def test_a_capture_ends_whatever_happens_in_it(monkeypatch):
    events: list[Any] = []

    class Graph:
        def capture_begin(self, **options: object) -> None:
            events.append(options)

        def capture_end(self) -> None:
            events.append("end")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(triton_device, "_failed", [])

    def launch() -> None:
        events.append((gc.isenabled(), triton_device._capturing.locked()))

    assert isinstance(triton_device.record(launch, pool="shared"), Graph)
    assert triton_device._failed == []
    with pytest.raises(RuntimeError, match="no"):
        triton_device.record(_failing(RuntimeError("no")), pool="shared")
    # other threads may allocate, not capture; collecting a graph as garbage would spoil it
    begin = {"pool": "shared", "capture_error_mode": "thread_local"}
    assert events == [begin, (False, True), "end", begin, "end"]
    assert gc.isenabled()
    assert len(triton_device._failed) == 1
    assert not triton_device._capturing.locked()
    gc.disable()
    try:
        triton_device.record(launch, pool="shared")
        assert not gc.isenabled(), "whoever switched it off before finds it so"
    finally:
        gc.enable()


def test_a_capture_that_does_not_begin_is_ended_too(monkeypatch):
    """Code that is interrupted there cannot know whether it did."""
    events = []

    class Graph:
        def capture_begin(self, **options: object) -> None:
            raise KeyboardInterrupt

        def capture_end(self) -> None:
            events.append("end")
            raise RuntimeError("none was begun")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(triton_device, "_failed", [])
    with pytest.raises(KeyboardInterrupt):
        triton_device.record(lambda: events.append("launch"), pool=None)
    assert events == ["end"]
    assert not triton_device._capturing.locked()


def test_the_first_error_of_a_capture_is_the_one_that_is_told(monkeypatch):
    class Graph:
        def capture_begin(self, **options: object) -> None:
            pass

        def capture_end(self) -> None:
            raise RuntimeError("the capture was invalidated")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(triton_device, "_failed", [])
    with pytest.raises(ValueError, match="why"):
        triton_device.record(_failing(ValueError("why")), pool=None)
    with pytest.raises(RuntimeError, match="invalidated"):
        triton_device.record(lambda: None, pool=None)
    assert len(triton_device._failed) == 2


def test_without_memory_for_a_graph_its_batches_are_launched(executor, monkeypatch, caplog):
    batches = [packed([5, 9]), packed([20, 3, 7]), packed([31, 4])]
    wanted = run(executor, *batches)
    tried: list[object] = []

    def refuse(launch: object) -> None:
        tried.append(launch)
        raise RuntimeError("CUDA error: out of memory")

    executor._rounds, executor._record = True, refuse
    with caplog.at_level(logging.WARNING, logger="segue"):
        assert run(executor, *batches).tobytes() == wanted.tobytes()
    (record,) = caplog.records
    assert "no memory for a graph of 64 tokens: such batches are launched kernel by kernel" in record.message
    assert len(tried) == 1
    assert not executor._graphs
    executor._record = _failing(RuntimeError("CUDA error: unspecified launch failure"))
    with pytest.raises(SegueError, match="cannot be used any more"):
        list(executor.warm_up())


def test_a_stream_that_is_held_is_given_to_nobody_else(monkeypatch):
    """PyTorch gives out the same 32 in turn."""
    numbers = itertools.cycle(range(32))

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.cuda_stream = next(numbers)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    device = torch.device("cuda:5")
    held = [triton_device.own_stream(device) for _ in range(31)]
    last = triton_device.own_stream(device)
    assert sorted(stream.cuda_stream for stream in (*held, last)) == list(range(32))
    triton_device.own_stream(torch.device("cuda:6"))
    with pytest.raises(ExecutorUnavailable, match="in use by other engines"):
        triton_device.own_stream(device)
    free = held.pop(7).cuda_stream
    assert triton_device.own_stream(device).cuda_stream == free


def test_results_pass_through_memory_that_is_kept(executor):
    batches = [packed([length]) for length in (5, 9, 20, 31, 3, 7, 8)]
    wanted = [run(executor, batch).tobytes() for batch in batches]
    free = executor._results._free
    (place,) = free
    results = executor.run(batches)
    first = next(results)
    assert len(free) == 1, "four are on their way, and the first is there"
    assert [first.tobytes(), *(logits.tobytes() for logits in results)] == wanted
    assert len(free) == 5
    assert any(each is place for each in free)
    assert not any(np.shares_memory(first, each.numpy()) for each in free)
    abandoned = executor.run(batches)
    next(abandoned)
    abandoned.close()
    assert len(free) == 5

    def broken() -> Iterator[Any]:
        yield from batches[:3]
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(executor.run(broken()))
    assert len(free) == 5
    executor.close()
    assert not free


def test_loaded_under_inference_mode_it_runs_without(bundle):
    batch = packed([5, 3])
    with torch.inference_mode():
        executor = open_triton(bundle)
        inside = run(executor, batch)
    list(executor.warm_up())
    assert run(executor, batch).tobytes() == inside.tobytes()


def test_every_batch_that_is_planned_has_a_bucket(executor):
    for lengths in ([LONGEST], [3] * 21, [LONGEST, 24], [61 // 2, 33], [4] * 16):
        sizes = sum(lengths), len(lengths), max(lengths)
        assert bucket_of(executor._buckets, *sizes) is not None


# Compiles


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hook that was installed before; the names that it was called with."""
    seen: list[str] = []
    triton_compiles._install.cache_clear()
    monkeypatch.setattr(knobs.runtime, "jit_post_compile_hook", lambda **what: seen.append(what["fn"].name))
    yield seen
    triton_compiles._install.cache_clear()


def _compile(name: str) -> None:
    """Call the hook as Triton does once it has compiled a kernel."""
    knobs.runtime.jit_post_compile_hook(
        **{"key": "k", "repr": f"{name}[num_warps=4](rows: i32)", "fn": JitFunctionInfo("m", name, None)},
        **{"compile": {}, "is_manual_warmup": False, "already_compiled": False},
    )


def test_a_kernel_that_is_compiled_after_the_warm_up_is_told(executor, hook, caplog, monkeypatch):
    monkeypatch.setattr(executor._launches, "launch", lambda sizes: _compile("linear_kernel"))
    with caplog.at_level(logging.WARNING, logger="segue"):
        run(executor, packed([5]))
        for _ in executor.warm_up():
            pass
        _compile("_of_somebody_else")
        assert not caplog.records
        run(executor, packed([5]))
        for _ in executor.warm_up():  # a second one installs nothing again
            pass
        run(executor, packed([5]))
    message = (
        "linear_kernel was compiled, or loaded, after the warm-up: linear_kernel[num_warps=4](rows: i32)"
    )
    assert [record.getMessage() for record in caplog.records] == [message, message]
    assert hook == [*["linear_kernel"] * 2, "_of_somebody_else", *["linear_kernel"] * 3]


def test_another_engine_s_compiles_are_not_blamed_on_the_one_that_is_warm(bundle, hook, caplog, monkeypatch):
    one, other = open_triton(bundle), open_triton(bundle)
    for executor in (one, other):
        monkeypatch.setattr(executor._launches, "launch", lambda sizes: _compile("_softmax_kernel"))
    list(one.warm_up())
    with caplog.at_level(logging.WARNING, logger="segue"):
        run(other, packed([5]))
        list(other.warm_up())
        assert not caplog.records
        run(other, packed([5]))
    assert len(caplog.records) == 1


def test_after_a_launch_that_fails_nothing_counts_as_warm():
    with pytest.raises(KeyError), triton_compiles.warm():
        raise KeyError
    assert not triton_compiles._thread.warm


# Errors


def _failing(error: Exception) -> Callable[..., None]:
    def launch(*_: object, **__: object) -> None:
        raise error

    return launch


def test_a_device_that_fails_breaks_the_engine_and_says_so(bundle, monkeypatch):
    engine = Engine.load(bundle, executor="triton", precision="float32")
    with monkeypatch.context() as patch:
        patch.setattr(launching, "run", _failing(RuntimeError("CUDA error: unspecified launch failure")))
        with pytest.raises(SegueError, match=r"cannot be used any more.*unspecified launch failure"):
            engine.score([("a", "b")])
    with pytest.raises(SegueError, match=r"cannot be used any more.*unspecified launch failure"):
        engine.score([("a", "b")])
    engine.close()


class FakeStream:
    """A stream, and the event that it gives, without a GPU; `error` is what waiting raises."""

    def __init__(self) -> None:
        self.waits, self.error = 0, None

    def record_event(self) -> FakeStream:
        return self

    def synchronize(self) -> None:
        self.waits += 1
        if self.error:
            raise self.error


def test_a_device_that_is_lost_shows_where_its_results_are_awaited(executor, monkeypatch):
    batch, stream = packed([5, 3]), FakeStream()
    wanted = run(executor, batch)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    executor._stream = executor._results._stream = stream
    assert run(executor, batch).tobytes() == wanted.tobytes()
    assert stream.waits == 1
    stream.error = RuntimeError("CUDA error: GPU is lost")
    results = executor.run([batch])
    with pytest.raises(SegueError, match=r"cannot be used any more.*GPU is lost"):
        next(results)
    stream.error = None
    with pytest.raises(SegueError, match=r"cannot be used any more.*GPU is lost"):
        run(executor, batch)
    stream.error = RuntimeError("CUDA error: GPU is lost")
    executor.close()
    assert not executor._launches.weights


def test_what_the_batches_themselves_raise_is_told_though_the_device_is_lost(executor, monkeypatch):
    stream = FakeStream()
    run(executor, packed([5]))  # leaves a place for results: there is no pinned memory here
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    executor._stream = executor._results._stream = stream

    def broken() -> Iterator[Any]:
        yield packed([5])
        stream.error = RuntimeError("CUDA error: GPU is lost")
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(executor.run(broken()))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("tried to allocate 2 GiB"), "out of memory; the engine can be used again"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "out of memory; the engine can be used again"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "out of memory; the engine can be used again",
        ),
        (OutOfResources(300_000, 232_448, "shared memory"), "a kernel could not be launched"),
    ],
)
def test_what_leaves_the_device_whole_leaves_the_engine_usable(executor, monkeypatch, error, words):
    batch = packed([5, 3])
    before = run(executor, batch)
    with monkeypatch.context() as patch:
        patch.setattr(launching, "run", _failing(error))
        with pytest.raises(SegueError, match=words):
            run(executor, batch)
    assert run(executor, batch).tobytes() == before.tobytes()


def test_scores_that_are_not_finite_name_the_pair(bundle):
    engine = Engine.load(bundle, executor="triton", precision="float32")
    table = engine._executor._launches.weights["embeddings.word.weight"]
    ids = engine._encoder.encode([("q", "")], truncation="longest_first", max_tokens=None).ids
    table[int(ids[0])] = torch.nan
    with pytest.raises(SegueError, match=r"pairs\[1\]: the model's logits are not finite"):
        engine.score([("a", "b"), ("q", "b"), ("a", "c")])
    assert np.isfinite(engine.score([("a", "b")])).all()


def test_a_weight_that_the_precision_cannot_hold_is_refused_by_name(bundle, monkeypatch):
    read = triton_executor.read_plan

    def enlarged(path: Path) -> Any:
        plan = read(path)
        plan.weights["head.pooler.bias"] = np.full_like(plan.weights["head.pooler.bias"], 70_000)
        return plan

    monkeypatch.setattr(triton_executor, "read_plan", enlarged)
    with pytest.raises(BundleError, match=r"head\.pooler\.bias holds values that float16 cannot"):
        open_triton(bundle, "float16")
    open_triton(bundle, "bfloat16").close()


def test_what_cannot_be_had_is_said_once(bundle, monkeypatch):
    monkeypatch.setattr(
        triton_executor, "read_plan", _failing(ExecutorUnavailable("executor='triton': no stream"))
    )
    with pytest.raises(ExecutorUnavailable, match=r"^executor='triton': no stream$"):
        open_triton(bundle)


def test_what_does_not_fit_on_the_device_cannot_be_had(bundle, monkeypatch):
    monkeypatch.setattr(torch, "empty", _failing(torch.OutOfMemoryError("tried to allocate 2 GiB")))
    with pytest.raises(ExecutorUnavailable, match="has not the memory for this model and max_batch_tokens"):
        open_triton(bundle)


def test_a_launch_allocates_nothing(executor, monkeypatch):
    monkeypatch.setattr(launching, "run", lambda *_: None)
    monkeypatch.setattr(torch, "empty", _failing(torch.OutOfMemoryError("tried to allocate 2 GiB")))
    executor._launches.launch(executor._buckets[-1])


def test_a_batch_beyond_the_budget_is_refused(executor):
    with pytest.raises(InputError, match=r"batch: 80 tokens, 2 pairs; .* up to 64 and 21"):
        run(executor, packed([LONGEST, LONGEST]))


def test_a_closed_executor_gives_its_memory_back_and_says_so(executor):
    results = executor.run([packed([5]), packed([3])])
    assert len(next(results)) == 1
    executor.close()
    executor.close()
    assert not executor._launches.weights
    held = executor._launches
    buffers = held.arena, held.pooled, held.logits, held.feed.numbers
    assert [buffer.numel() for buffer in buffers] == [0] * 4
    with pytest.raises(SegueError, match="closed"):
        list(results)
    with pytest.raises(SegueError, match="closed"):
        run(executor, packed([5]))
    with pytest.raises(SegueError, match="closed"):
        list(executor.warm_up())


def test_a_closed_executor_lets_go_of_its_stream(executor, monkeypatch):
    """And, once all is computed, of its graphs and the memory, with no capture under way."""
    events: list[Any] = []

    def empty() -> None:
        events.append(triton_device._capturing.locked())

    monkeypatch.setattr(torch.cuda, "empty_cache", empty)
    executor._graphs = SimpleNamespace(clear=empty)
    stream = SimpleNamespace(synchronize=lambda: events.append("computed"))
    executor._stream = executor._results._stream = stream
    executor.close()
    assert executor._stream is executor._results._stream is None
    assert events == ["computed", True, True]


# The engine on it


def test_many_threads_share_an_executor(executor):
    batches = [packed(lengths) for lengths in ([5, 9], [30], [3, 3, 3])]
    wanted = [run(executor, batch).tobytes() for batch in batches]

    def work(first: int) -> None:
        turned = [batches[first], batches[first - 1]]
        found = [logits.tobytes() for logits in executor.run(turned)]
        assert found == [wanted[first], wanted[first - 1]]

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, range(3)))


def test_several_engines_on_one_device_keep_apart(bundle):
    executors = [open_triton(bundle, precision) for precision in ("float32", "bfloat16")]
    batches = [packed([5, 9]), packed([3])]
    wanted = [run(executor, *batches).tobytes() for executor in executors]
    turns = zip(*(executor.run(batches) for executor in executors), strict=True)
    found = [np.concatenate(parts).tobytes() for parts in zip(*turns, strict=True)]
    assert found == wanted


def test_an_engine_scores_ranks_streams_and_warms_up_on_it(engine, cpu):
    assert np.abs(engine.score(PAIRS) - cpu.score(PAIRS)).max() <= 1e-5
    assert np.abs(list(engine.score_iter(PAIRS[:2])) - cpu.score(PAIRS[:2])).max() <= 1e-5
    documents = ["a b", "c", "x y z"]
    ranks = [[entry["corpus_id"] for entry in e.rank("the man", documents)] for e in (engine, cpu)]
    assert ranks[0] == ranks[1]
    assert engine.score([]).shape == (0,)


def test_the_budget_of_tokens_is_honoured(bundle, cpu, monkeypatch):
    engine = Engine.load(bundle, executor="triton", precision="float32", max_batch_tokens=30)
    tokens: list[int] = []
    start = engine._executor._start
    monkeypatch.setattr(
        engine._executor, "_start", lambda batch: tokens.append(len(batch.input_ids)) or start(batch)
    )
    pairs = [("q " * 50, "r"), *((f"a {letter}", "c d e") for letter in "hijklm")]
    assert np.abs(engine.score(pairs) - cpu.score(pairs)).max() <= 1e-5
    assert tokens == [LONGEST, 24, 24]  # a longer pair alone; then three of eight


def test_info_says_how_it_runs(engine, bundle):
    info = engine.info
    assert (info.executor, info.device, info.precision, info.max_batch_tokens) == (
        *("triton", "cpu", "float32", 64),
    )
    summary, *steps = info.plan
    assert summary.startswith("triton on cpu, interpreted, float32, weights 0.0 MB, arena 0.0 MB")
    assert "for 64 tokens, 10 launches, up to 7 GPU graphs" in summary
    assert len(steps) == 10
    assert steps[0] == "embeddings/Embed: embed -> [tokens, 32]"
    assert steps[-1] == "head/PoolClassify: pool_classify -> [pairs, 1]"
    assert Engine.load(bundle, executor="triton").info.precision == "float16"


def test_the_command_line_takes_it(bundle, cpu, tmp_path):
    source, scores = tmp_path / "pairs.tsv", tmp_path / "scores.tsv"
    source.write_text("the man\ta b c\nx y\tz w\n")
    options = ["--executor", "triton", "--precision", "float32", "--model", str(bundle)]
    assert main(["score", str(source), "-o", str(scores), *options]) == 0
    found = [float(line.split("\t")[-1]) for line in scores.read_text().splitlines()]
    assert np.abs(np.array(found) - cpu.score([("the man", "a b c"), ("x y", "z w")])).max() <= 1e-5


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_real_weights_give_what_onnx_runtime_gives(precision):
    """All layers of the model in the package, on pairs of several lengths."""
    pairs = [("He left.", "She stayed."), ("It rained all day, and nobody came.", "")]
    with Engine.load(executor="triton", precision=precision, max_batch_tokens=64) as engine:
        found = engine.predict(pairs, output="logit")
        encoded = engine._encode(pairs, "longest_first", None).all()
        batch = pack(encoded, np.arange(len(pairs)))
        plan, dtype = engine._executor._launches.plan, getattr(torch, precision)
    assert encoded.lengths.tolist() == [9, 12]
    if precision == "float32":
        wanted = Engine.load(executor="onnxruntime", device="cpu").predict(pairs, output="logit")
        assert np.abs(found - wanted).max() <= 1e-4
    else:
        eager = run_eagerly(plan, batch, dtype, arithmetic=dtype)
        exact = run_eagerly(plan, batch, dtype, arithmetic=torch.float64)
        assert_as_exact(torch.from_numpy(found).to(dtype), eager, exact)


# Where it cannot be had


def test_without_a_gpu_it_fails_by_name(bundle):
    """On a machine with a GPU, by the number of one that it lacks."""
    out = run_python(
        f"""
from segue import Engine, ExecutorUnavailable
for device in ("auto", "cuda:63", "cpu"):
    try:
        Engine.load({str(bundle)!r}, executor="triton", device=device)
        print("loaded")
    except ExecutorUnavailable as error:
        print(error)
import torch
print(torch.cuda.is_available())
""",
        interpreted=False,
    )
    first, numbered, cpu, available = out.splitlines()
    assert first == "loaded" if available == "True" else "device='cuda:0': PyTorch" in first
    assert "device='cuda:63': PyTorch" in numbered
    assert "device='cpu': kernels run on a GPU; on a CPU only with TRITON_INTERPRET=1" in cpu


@pytest.mark.parametrize("package", ["torch", "triton", "onnx"])
def test_without_a_package_it_names_it_and_the_extra(bundle, monkeypatch, package):
    for name in [n for n in sys.modules if n.startswith("segue.executors.triton")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ExecutorUnavailable, match=rf"needs the package {package}: pip install 'segue\[gpu\]'"
    ):
        Engine.load(bundle, executor="triton")


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_an_interpreted_kernel_has_no_gpu(bundle, device):
    with pytest.raises(ExecutorUnavailable, match=f"device='{device}': with TRITON_INTERPRET=1"):
        Engine.load(bundle, executor="triton", device=device)


def test_auto_looks_for_a_driver_then_for_packages_then_at_the_gpu(bundle, monkeypatch):
    """And imports PyTorch only when it has to; test_layout checks that it does not do so here."""

    def chosen() -> str:
        with Engine.load(bundle, threads=1) as engine:
            return engine.info.executor

    asked: list[str] = []
    monkeypatch.setattr(triton_device, "works", lambda device: asked.append(device) or False)
    monkeypatch.setattr(segue.executors, "driver_loads", lambda: False)
    assert (chosen(), asked) == ("onnxruntime", [])
    monkeypatch.setattr(segue.executors, "driver_loads", lambda: True)
    with monkeypatch.context() as patch:
        find = importlib.util.find_spec
        patch.setattr(segue.executors, "find_spec", lambda name: None if name == "onnx" else find(name))
        assert (chosen(), asked) == ("onnxruntime", [])
    assert (chosen(), asked) == ("onnxruntime", ["auto"])
    monkeypatch.setattr(triton_device, "works", lambda device: True)
    assert chosen() == "triton"


def test_auto_leaves_a_graph_that_kernels_do_not_run_to_onnx_runtime_and_says_so(
    bundle, tmp_path, monkeypatch, caplog
):
    model = onnx.inliner.inline_local_functions(onnx.load(str(bundle / "model.onnx")))
    onnx.save(model, str(tmp_path / "model.onnx"))
    monkeypatch.setattr(segue.executors, "_triton_works", lambda device: True)

    def opened(executor: str) -> str:
        options = {"device": "auto", "precision": None, "threads": 1, "batch_tokens": 64, "longest": LONGEST}
        return open_executor(tmp_path / "model.onnx", executor=executor, **options).name

    with caplog.at_level(logging.WARNING, logger="segue"):
        assert opened("auto") == "onnxruntime"
    assert "does not run node" in caplog.text
    with pytest.raises(BundleError, match="does not run node"):
        opened("triton")


@pytest.mark.parametrize(
    ("interpreted", "gpus", "capable", "device", "wanted"),
    [
        (True, 1, True, "auto", False),  # never chosen unasked
        (False, 0, True, "auto", False),
        (False, 1, False, "auto", False),  # too old
        (False, 1, True, "auto", True),
        (False, 1, True, "cuda:0", True),
        (False, 1, True, "cuda:1", True),  # to be missed by name
    ],
)
def test_a_gpu_works_if_kernels_run_on_it(monkeypatch, interpreted, gpus, capable, device, wanted):
    def target(_: torch.device) -> str:
        if not capable:
            raise ValueError("kernels need 8.0 or newer")
        return "sm_90"

    monkeypatch.setattr(triton_device, "INTERPRETED", interpreted)
    monkeypatch.setattr(triton_device, "target", target)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert triton_device.works(device) is wanted
