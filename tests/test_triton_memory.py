"""One arena for all values: those alive together lie apart, the others share places."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_tools import NSP

from segue.executors.triton_memory import ALIGNMENT, arrange, arrange_numbers, scratch_of
from segue.executors.triton_plan import PAIRS, TOKENS, Plan, Step, read_plan


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Steps that read some of what was made before them, weights and graph inputs."""
    steps: list[Step] = []
    for number in range(draw(st.integers(1, 14))):
        made = [step.output for step in steps]
        inputs = draw(st.lists(st.sampled_from(["input_ids", "weight", *made]), min_size=1, max_size=3))
        rows, columns = draw(st.sampled_from([TOKENS, PAIRS])), draw(st.integers(1, 700))
        scratch = draw(st.just(0) | st.integers(1, 700))
        steps.append(Step(f"n{number}", "op", tuple(inputs), {}, f"v{number}", rows, columns, scratch))
    return Plan(tuple(steps), {})


def _spans(plan: Plan, rows: dict[str, int], places: dict[str, int]) -> dict[str, tuple[int, int]]:
    counts = {
        name: rows[step.rows] * count
        for step in plan.steps[:-1]
        for name, count in ((step.output, step.columns), (scratch_of(step), step.scratch))
        if count
    }
    return {name: (places[name], places[name] + count) for name, count in counts.items()}


def _alive(plan: Plan, at: int) -> set[str]:
    """What lies in memory while step `at` runs: its result, scratch and inputs, and what later steps read."""
    made = {step.output for step in plan.steps[: at + 1]}
    read = {name for step in plan.steps[at:] for name in step.inputs}
    return (made & read) | {plan.steps[at].output, scratch_of(plan.steps[at])}


@given(plans(), st.integers(1, 300), st.integers(1, 300))
@settings(derandomize=True, max_examples=150)
def test_what_is_alive_together_lies_apart_and_inside(plan, tokens, pairs):
    rows = {TOKENS: tokens, PAIRS: pairs}
    places, size = arrange(plan, rows)
    spans = _spans(plan, rows, places)
    assert set(places) == set(spans)
    for at in range(len(plan.steps)):
        together = sorted(spans[name] for name in _alive(plan, at) if name in spans)
        for (_, end), (start, _) in pairwise(together):
            assert end <= start
    for start, end in spans.values():
        assert start % ALIGNMENT == 0
        assert 0 <= start <= end <= size
    assert size <= sum(-(-(end - start) // ALIGNMENT) * ALIGNMENT for start, end in spans.values())


@pytest.fixture(scope="module")
def plan(make_bundle: Callable[..., Path]) -> Plan:
    return read_plan(make_bundle(**NSP) / "model.onnx")


def test_a_bert_takes_what_its_widest_step_does(plan):
    """The widest are the feed-forward part, from what it adds to its own result (E + F + E columns), and the
    attention, from what is added to its output on (E + 3E + E)."""
    hidden, inner, tokens = NSP["hidden_size"], NSP["intermediate_size"], 1024
    _, size = arrange(plan, {TOKENS: tokens, PAIRS: tokens // 3})
    assert size <= tokens * max(2 * hidden + inner, 5 * hidden)
    assert size == 5 * hidden * tokens == 240 * tokens
    everything = sum(step.columns for step in plan.steps if step.rows == TOKENS)
    assert everything == 520


def test_more_layers_take_no_more(plan):
    """Layer 0 repeated: each copy reads what the one before gives."""
    layer = [step for step in plan.steps if step.name.startswith("layers/0/")]
    repeated, renamed = [plan.steps[0]], {layer[0].inputs[0]: plan.steps[0].output}
    for number in range(5):
        for step in layer:
            inputs = tuple(renamed.get(name, name) for name in step.inputs)
            renamed_output = f"{step.output}#{number}"
            repeated.append(Step(step.name, step.op, inputs, {}, renamed_output, step.rows, step.columns))
            renamed[step.output] = renamed_output
        renamed[layer[0].inputs[0]] = renamed[layer[-1].output]
    rows = {TOKENS: 512, PAIRS: 64}
    once = arrange(Plan(tuple(repeated[: 1 + len(layer)]), {}), rows)[1]
    assert arrange(Plan(tuple(repeated), {}), rows)[1] <= max(once, arrange(plan, rows)[1])


@given(st.integers(1, 5000), st.integers(0, 5000))
@settings(derandomize=True, max_examples=100)
def test_numbers_lie_apart_at_addresses_that_16_bytes_divide(tokens, pairs):
    """Triton compiles a kernel again for a pointer that is not so aligned."""
    parts, size = arrange_numbers(tokens, pairs)
    wanted = {TOKENS: 1, PAIRS: 1, "input_ids": tokens, "token_type_ids": tokens, "position_ids": tokens}
    assert {name: part.stop - part.start for name, part in parts.items()} == wanted | {
        "cu_seqlens": pairs + 1
    }
    ends = [0]
    for part in sorted(parts.values(), key=lambda part: part.start):
        assert part.start * 4 % 16 == 0
        assert part.start >= ends[-1]
        ends.append(part.stop)
    assert ends[-1] <= size
