"""The command line: the engine's numbers in every format, failures in one line, and never half a file."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pty
import resource
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segue import Engine, ExecutorUnavailable
from segue.cli import _needs, _stoppable, main
from segue.files import destination
from segue.terminal import describe, explanation_text

PAIRS = [
    ("the man went to the store", "he bought a gallon of milk"),
    ("the man went to the store", "penguins are flightless birds"),
    ("山田太郎は山へ行った", ""),
    ('a "quoted" text, with a comma', "naïve — and so on"),
]
TSV = "".join(f"{a}\t{b}\n" for a, b in PAIRS).encode()

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(layers=1)


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Iterator[Engine]:
    with Engine.load(bundle, device="cpu") as engine:
        yield engine


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsysbinary: Any) -> Run:
    """Return a function that runs a command in this process and gives exit code, stdout and stderr."""

    def run(*arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            code = exit.code
        out, err = capsysbinary.readouterr()
        return code, out.decode(), err.decode()

    return run


@pytest.fixture
def score(run: Run, bundle: Path) -> Run:
    return lambda *arguments, **options: run("score", "--model", bundle, *arguments, **options)


def start(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "segue", *map(str, arguments)], **options)


def partial_files(folder: Path) -> list[Path]:
    return list(folder.glob(".segue-*"))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from segue.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(*{'torch', 'onnx', 'onnxruntime', 'transformers', 'triton', 'tqdm'} & set(sys.modules))\n"
    )
    for arguments in (
        ["--help"],
        ["--version"],
        ["score", "--help"],
        ["rank", "-h"],
        ["info", "-h"],
        ["evaluate", "-h"],
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        *said, loaded = done.stdout.split("\n")[:-1]
        assert said
        assert loaded == ""
        if arguments == ["--help"]:
            for command in ("score", "rank", "explain", "info", "export", "pretrain", "evaluate"):
                assert f"\n    {command} " in done.stdout


def test_version(run: Run) -> None:
    from segue import __version__

    assert run("--version") == (0, f"segue {__version__}\n", "")


def test_tsv_from_stdin_to_stdout_repeats_the_pairs_with_their_scores(score: Run, engine: Engine) -> None:
    code, out, err = score(stdin=TSV)
    assert (code, err) == (0, "")
    rows = [line.split("\t") for line in out.splitlines()]
    assert [tuple(row[:2]) for row in rows] == PAIRS
    np.testing.assert_allclose([float(row[2]) for row in rows], engine.score(PAIRS), atol=2e-6)


@pytest.mark.parametrize("made", ["tsv", "csv", "jsonl"])
@pytest.mark.parametrize("given", ["tsv", "csv", "jsonl"])
def test_every_format_to_every_format(
    score: Run, engine: Engine, tmp_path: Path, given: str, made: str
) -> None:
    source, out = tmp_path / f"in.{given}", tmp_path / f"out.{made}"
    text = io.StringIO(newline="")
    if given == "csv":
        csv.writer(text).writerows([("a", "b"), *PAIRS])
    elif given == "jsonl":
        text.writelines(json.dumps({"b": b, "a": a}) + "\n" for a, b in PAIRS)
    else:
        text.writelines(f"{a}\t{b}\n" for a, b in PAIRS)
    source.write_text(text.getvalue(), encoding="utf-8", newline="")
    assert score(source, "-o", out) == (0, "", "")
    with out.open(encoding="utf-8", newline="") as file:
        if made == "csv":
            rows = [(row["a"], row["b"], float(row["score"])) for row in csv.DictReader(file)]
        elif made == "jsonl":
            rows = [(row["a"], row["b"], row["score"]) for row in map(json.loads, file)]
        else:
            names = [1, 0] if given == "jsonl" else [0, 1]
            split = [line.rstrip("\n").split("\t") for line in file]
            rows = [(row[names[0]], row[names[1]], float(row[2])) for row in split]
    assert [row[:2] for row in rows] == PAIRS
    np.testing.assert_allclose([row[2] for row in rows], engine.score(PAIRS), atol=2e-6)
    assert partial_files(tmp_path) == []


def test_all_labels_and_logits(score: Run, engine: Engine) -> None:
    code, out, _ = score("--all-labels", "--scores-only", "--header", stdin=b"first\tsecond\n" + TSV)
    lines = out.splitlines()
    assert (code, lines[0]) == (0, "score_IsNext\tscore_NotNext")
    found = [[float(value) for value in line.split("\t")] for line in lines[1:]]
    np.testing.assert_allclose(found, engine.predict(PAIRS), atol=2e-6)
    code, out, _ = score("--output", "logit", "--scores-only", stdin=TSV)
    np.testing.assert_allclose(
        [float(line) for line in out.splitlines()], engine.score(PAIRS, output="logit"), rtol=1e-4
    )


def test_long_texts(score: Run, engine: Engine) -> None:
    pairs = [PAIRS[0], ("the store " * 40, "milk")]
    data = "".join(f"{a}\t{b}\n" for a, b in pairs).encode()
    options = {"max_tokens": 12, "truncation": "only_first"}
    code, out, _ = score("--scores-only", "--max-tokens", 12, "--truncation", "only_first", stdin=data)
    assert code == 0
    found = [float(line) for line in out.splitlines()]
    np.testing.assert_allclose(found, engine.score(pairs, **options), atol=2e-6)
    code, out, err = score("--truncation", "error", "--max-tokens", 20, stdin=data)
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith("segue: stdin:2: ")
    assert out.startswith("the man")  # the lines before it are done


def test_truncation_is_told_once(bundle: Path, tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.tsv", b"the store " * 40 + b"\tmilk\n" + TSV)
    done = start(
        "score", pairs, "--model", bundle, "--max-tokens", 60, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    _, err = done.communicate()
    assert len(err.splitlines()) == 1
    assert err.startswith(b"segue: 1 of 5 pairs")


@pytest.mark.parametrize(
    ("options", "rows", "said"),
    [
        (("--columns", "2,3"), 2, "scored as texts, though they look like names of columns"),
        (("--header",), 2, ""),
    ],
)
def test_a_tsv_scored_with_its_header_is_told(
    bundle: Path, tmp_path: Path, options: tuple[str, ...], rows: int, said: str
) -> None:
    path = write(tmp_path / "pairs.tsv", b"id\tquery\tdocument\n1\tthe man\tthe store\n")
    done = start("score", path, *options, "--model", bundle, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = done.communicate()
    assert len(out.splitlines()) == rows
    assert err.decode() == (f"segue: {path}:1: {said}; --header says they are\n" if said else "")


@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl"])
def test_an_empty_file_gives_an_empty_output(score: Run, tmp_path: Path, ending: str) -> None:
    out = tmp_path / "out"
    assert score(write(tmp_path / f"none.{ending}", b""), "-o", out) == (0, "", "")
    assert out.read_bytes() == b""


@pytest.mark.parametrize(
    ("name", "data", "options", "message"),
    [
        ("missing.tsv", None, (), "missing.tsv: no such file or directory"),
        ("a\0b.tsv", None, (), "a\\x00b.tsv: embedded null byte"),
        ("pairs.parquet", b"", (), "pairs.parquet: .parquet names no format"),
        ("a.tsv", b"a\tb\nc\n", (), "a.tsv:2: 1 column, expected 2"),
        ("a.tsv", b"a\tb\nc\t\xff\n", (), "a.tsv:2: not UTF-8"),
        ("a.csv", b"x,y,z\n1,2,3\n", (), "a.csv:1: 3 columns (x, y, z): say with --columns"),
        ("a.csv", b"x,y,z\n1,2,3\n", ("--columns", "x,w"), "a.csv:1: no column 'w'"),
        ("a.jsonl", b'["a", "b"]\n{\n', (), "a.jsonl:2: not JSON"),
        ("a.jsonl", b'["a", "b"]\n["a", null]\n', (), "a.jsonl:2: item 2: expected a string, got null"),
        ("a.jsonl", b'["a", "b"]\n["a", "\\ud800"]\n', (), "a.jsonl:2: "),
        ("a.tsv", b"a\tb\n", ("--max-tokens", "2"), "max_tokens"),
        ("a.tsv", b"a\tb\n", ("--device", "toaster"), "device"),
        ("a.tsv", b"a\tb\n", ("--executor", "guess"), "executor"),
        ("a.tsv", b"a\tb\n", ("--model", "nowhere"), "nowhere: no such folder"),
        ("a.tsv", b"a\tb\n", ("-o", "no/such/folder.tsv"), "no/such/folder.tsv: no such file or directory"),
        ("a.tsv", b"a\tb\n", ("-o", "."), ".: is a directory"),
        (".", None, ("--format", "tsv"), ".: is a directory"),
    ],
)
def test_bad_input_is_one_line_that_names_it_and_exit_code_2(
    score: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    data: Any,
    options: Any,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if data is not None:
        write(tmp_path / name, data)
    before = sorted(tmp_path.iterdir())
    to_file = () if "-o" in options else ("-o", "out.tsv")
    code, out, err = score(name, *to_file, *options)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("segue: ")
    assert message in err
    assert sorted(tmp_path.iterdir()) == before  # neither an output nor a part of one


@pytest.mark.parametrize(
    "options",
    [["--truncation", "guess"], ["--threads", "0"], ["--top"], ["--forma", "tsv"], ["--output", "x"]],
)
def test_bad_usage_is_exit_code_2(score: Run, options: list[str]) -> None:
    code, out, err = score(*options)
    assert (code, out) == (2, "")
    assert "segue score: error: " in err


@pytest.mark.parametrize(
    "words", [[], ["guess"], ["--guess", "info"], ["--guess"], ["--", "score", "--guess"]]
)
def test_an_unknown_command_or_option_is_exit_code_2(run: Run, words: list[str]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("usage: segue ")


def test_a_tampered_bundle_is_exit_code_2(run: Run, bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    with (copy / "tokenizer.json").open("a") as file:
        file.write(" ")
    code, _, err = run("score", "--model", copy, stdin=TSV)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "sha256" in err


def test_what_cannot_run_here_is_exit_code_1(run: Run, bundle: Path) -> None:
    code, _, err = run("info", "--model", bundle, "--device", "cuda:63", "--executor", "onnxruntime")
    assert (code, len(err.splitlines())) == (1, 1)


def test_a_file_is_replaced_only_by_a_whole_one(score: Run, tmp_path: Path) -> None:
    out = write(tmp_path / "out.tsv", b"before")
    out.chmod(0o640)
    bad = write(tmp_path / "bad.tsv", TSV * 500 + b"one column\n")
    assert score(bad, "-o", out)[0] == 2
    assert out.read_bytes() == b"before"
    good = write(tmp_path / "good.tsv", TSV)
    assert score(good, "-o", out)[0] == 0
    assert out.read_bytes().count(b"\n") == len(PAIRS)
    assert stat.S_IMODE(out.stat().st_mode) == 0o640
    assert partial_files(tmp_path) == []


def test_what_replaces_a_private_file_is_private_while_it_is_written(tmp_path: Path) -> None:
    write(tmp_path / "scores.tsv", b"").chmod(0o600)
    with destination(str(tmp_path / "scores.tsv")):
        (growing,) = tmp_path.glob(".segue-*")
        assert stat.S_IMODE(growing.stat().st_mode) == 0o600


def test_a_new_file_has_the_usual_permissions_and_a_link_stays_one(score: Run, tmp_path: Path) -> None:
    usual = stat.S_IMODE(write(tmp_path / "usual", b"").stat().st_mode)
    link, out = tmp_path / "link.tsv", tmp_path / "out.tsv"
    link.symlink_to(out)
    assert score("-o", link, stdin=TSV)[0] == 0
    assert link.is_symlink()
    assert stat.S_IMODE(out.stat().st_mode) == usual


def test_a_file_that_may_not_be_written_is_not_replaced(
    score: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write(tmp_path / "out.tsv", b"before")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root ignores the mode of a file
    assert score("-o", out, stdin=TSV) == (2, "", f"segue: {out}: permission denied\n")
    assert out.read_bytes() == b"before"


def test_input_and_output_may_be_the_same_file(score: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", b'{"a": "A", "b": "B"}\n' * 3)
    assert score(path, "-o", path)[0] == 0
    assert [sorted(json.loads(line)) for line in path.read_text().splitlines()] == [["a", "b", "score"]] * 3
    code, _, err = score(path, "-o", path)
    assert (code, "has a column 'score' already" in err) == (2, True)
    assert score(path, "-o", path, "--score-name", "again")[0] == 0
    assert json.loads(path.read_text().splitlines()[0])["again"] > 0


def test_a_device_is_written_to_and_not_replaced(score: Run) -> None:
    assert score("-o", os.devnull, stdin=TSV)[0] == 0
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="needs /dev/fd")
def test_a_pipe_under_the_name_of_a_file_is_written_to(score: Run, bundle: Path, tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.tsv", TSV)
    process = start("score", pairs, "--model", bundle, "-o", "/dev/fd/1", stdout=subprocess.PIPE)
    out, _ = process.communicate()
    assert (process.returncode, out.decode()) == (0, score(pairs)[1])


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="needs /dev/stdout")
def test_stdout_by_its_name_adds_to_what_a_file_holds(score: Run, bundle: Path, tmp_path: Path) -> None:
    pairs, all_scores = write(tmp_path / "pairs.tsv", TSV), write(tmp_path / "scores.tsv", b"earlier\n")
    with all_scores.open("ab") as file:
        process = start("score", pairs, "--model", bundle, "-o", "/dev/stdout", stdout=file)
    assert process.wait() == 0
    assert all_scores.read_text(encoding="utf-8") == "earlier\n" + score(pairs)[1]


@pytest.mark.parametrize(("redirection", "name"), [("<&-", "stdin"), (">&-", "stdout")])
def test_a_stream_that_is_closed_is_named(bundle: Path, redirection: str, name: str) -> None:
    command = f'"{sys.executable}" -m segue score --model "{bundle}" {redirection}'
    done = subprocess.run(["sh", "-c", command], input=TSV, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (2, f"segue: {name}: is closed\n".encode())


def test_what_a_message_quotes_moves_no_cursor(score: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.csv", "a,b,c\n1,2,3\n".encode("utf-16-le"))
    code, _, err = score(path)
    assert (code, "\0" in err, "\\x00" in err) == (2, False, True)


def test_a_score_s_name_that_the_format_cannot_hold_is_refused(score: Run) -> None:
    code, _, err = score("--header", "--score-name", "x\ty", stdin=b"a\tb\n1\t2\n")
    assert (code, "the score's name 'x\\ty': a text holds a tab" in err) == (2, True)


def test_without_a_stderr_pairs_are_scored(bundle: Path) -> None:
    command = f'"{sys.executable}" -m segue score --model "{bundle}" 2>&-'
    done = subprocess.run(["sh", "-c", command], input=TSV, capture_output=True, check=False)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, len(TSV.splitlines()))


def test_what_a_row_holds_besides_its_texts_counts_against_the_memory(score: Run, monkeypatch: Any) -> None:
    """Rows of a million characters that are not scored: no more than eight million are held."""
    sizes: list[int] = []
    logits = Engine._logits
    monkeypatch.setattr(Engine, "_logits", lambda *all: sizes.append(len(all[1].inverse)) or logits(*all))
    lines = [json.dumps({"a": "the man", "b": str(number), "c": "x" * 1_000_000}) for number in range(20)]
    data = "\n".join(lines).encode()
    code, out, _ = score("--format", "jsonl", "--scores-only", stdin=data)
    assert (code, len(out.splitlines()), sizes) == (0, 20, [9, 9, 2])


def test_a_full_disk_is_exit_code_1(score: Run) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    code, _, err = score("-o", "/dev/full", stdin=TSV)
    assert (code, err) == (1, "segue: [Errno 28] No space left on device: '/dev/full'\n")


def test_a_full_disk_under_stdout_is_exit_code_1(
    run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code, _, err = run("rank", "q", "--model", bundle, stdin=b"document\n")
    assert (code, err) == (1, "segue: [Errno 28] No space left on device: 'stdout'\n")


def test_a_disk_that_fills_up_keeps_no_half_a_file(bundle: Path, tmp_path: Path) -> None:
    pairs, folder = write(tmp_path / "pairs.tsv", TSV * 20), tmp_path / "out"
    folder.mkdir()
    process = start(
        *("score", pairs, "--model", bundle, "-o", folder / "out.tsv"),
        stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),  # bytes of a file
    )
    _, err = process.communicate()
    said = f"segue: [Errno 27] File too large: '{folder / 'out.tsv'}'\n"
    assert (process.returncode, err.decode()) == (1, said)
    assert list(folder.iterdir()) == []


def test_a_reader_that_goes_away_ends_it_quietly(bundle: Path, tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.tsv", TSV * 3000)
    process = start("score", pairs, "--model", bundle, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(b"the man")
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 141)
    process.stderr.close()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_leaves_no_half_a_file(bundle: Path, tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "out.tsv"
    process = start(
        *("score", "--model", bundle, "-o", out),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        # a shell makes background jobs ignore Ctrl-C, and nohup a hang-up; both are inherited
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert process.stdin is not None
    process.stdin.write(TSV * 200)  # some windows are done, and it waits for more
    deadline = time.monotonic() + 60
    while not (parts := partial_files(tmp_path)) or not parts[0].stat().st_size:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate()
    assert (process.returncode, err) == (code, b"")
    assert list(tmp_path.iterdir()) == []


def test_a_hangup_that_is_ignored_stays_so() -> None:
    before, term = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)
    try:
        with _stoppable():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != term
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == term
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGTERM, term)


def test_a_command_may_run_in_any_thread(bundle: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(main, ["info", "--model", str(bundle / "nowhere")]).result() == 2


def test_each_window_reaches_a_pipe_as_it_is_done(bundle: Path) -> None:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = start("score", "--model", bundle, **pipes, env=buffered)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"the man\ta\n" * 64)  # a window, which fills no buffer
    process.stdin.flush()
    early, _, _ = select.select([process.stdout], [], [], 60)  # stdin is still open
    process.stdin.close()
    out = process.stdout.read()
    assert (process.wait(), out.count(b"\n"), bool(early)) == (0, 64, True)


def test_progress_is_for_terminals(bundle: Path, tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.tsv", TSV * 100)
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    try:
        process = start("score", pairs, "--model", bundle, "-o", tmp_path / "out.tsv", stderr=terminal)
        assert process.wait() == 0
        assert b"100%" in os.read(screen, 100_000)
        few = write(tmp_path / "few.tsv", TSV)
        process = start("score", few, "--model", bundle, stdout=terminal, stderr=terminal)
        assert process.wait() == 0
        assert b"%" not in os.read(screen, 100_000), "the bar would run through the scores"
    finally:
        os.close(screen)
        os.close(terminal)


def test_rank_writes_the_best_first_with_all_their_columns(
    run: Run, engine: Engine, bundle: Path, tmp_path: Path
) -> None:
    query, documents = (
        "the man went to the store",
        ["he bought milk", "penguins", "", "he bought milk", "birds"],
    )
    expected = engine.rank(query, documents)
    plain = "".join(f"{document}\n" for document in documents).encode()
    code, out, err = run("rank", query, "--model", bundle, stdin=plain)
    assert (code, err) == (0, "")
    found = [line.split("\t") for line in out.splitlines()]
    assert [row[0] for row in found] == [documents[entry["corpus_id"]] for entry in expected]
    assert [float(row[1]) for row in found] == [entry["score"] for entry in expected]
    lines = [json.dumps({"id": i, "passage": text}) + "\n" for i, text in enumerate(documents)]
    path = write(tmp_path / "documents.jsonl", "".join(lines).encode())
    code, out, _ = run("rank", query, path, "--model", bundle, "--top-k", 2)
    assert [json.loads(line)["id"] for line in out.splitlines()] == [e["corpus_id"] for e in expected[:2]]
    assert run("rank", query, "--model", bundle) == (0, "", "")
    limits = ("--truncation", "error", "--max-tokens", "10")
    code, _, err = run("rank", query, path, "--model", bundle, *limits)
    assert (code, "tokens, more than 10" in err) == (2, True)


def test_a_bad_document_is_named_by_its_line(run: Run, bundle: Path) -> None:
    code, _, err = run("rank", "q", "--model", bundle, "--format", "jsonl", stdin=b'["good"]\n["\\udc00"]\n')
    assert (code, err.startswith("segue: stdin:2: ")) == (2, True)


def test_explain_shows_tokens_segments_and_positions(run: Run, engine: Engine, bundle: Path) -> None:
    first, second = "the man went to the store " * 4, "he bought 山 milk"
    explanation = engine.explain(first, second, max_tokens=12)
    code, out, _ = run("explain", first, second, "--model", bundle, "--max-tokens", 12, "--json")
    assert (code, json.loads(out)) == (0, json.loads(json.dumps(asdict(explanation))))
    assert "山" in out, "for people, too"
    code, out, _ = run("explain", first, second, "--model", bundle, "--max-tokens", 12)
    assert (code, out) == (0, explanation_text(explanation))
    rows = [line.split() for line in out.splitlines()]
    assert rows[1:13] == [
        [str(i), token, str(explanation.token_ids[i]), str(explanation.token_type_ids[i])]
        for i, token in enumerate(explanation.tokens)
    ]
    assert (
        f"12 tokens; truncated: {explanation.truncated[0]} from A, {explanation.truncated[1]} from B" in out
    )
    assert f"score: {explanation.score:.6f}" in out


def test_info(run: Run, engine: Engine, bundle: Path) -> None:
    code, out, _ = run("info", "--json", "--model", bundle, "--device", "cpu")
    assert (code, json.loads(out)) == (0, json.loads(json.dumps(asdict(engine.info))))
    code, out, _ = run("info", "--model", bundle, "--device", "cpu")
    values = {line.split()[0]: line.split()[1:] for line in out.splitlines() if not line.startswith(" ")}
    assert values["head.labels"] == ["IsNext,", "NotNext"]
    assert values["max_tokens"] == [str(engine.info.max_tokens)]


def test_a_description_cannot_move_the_cursor() -> None:
    assert describe({"name": "a\x1b[2Jb\nc", "plan": ["one", "two"]}) == (
        "name  a\\x1b[2Jb\\nc\nplan  one\n      two\n"
    )
    assert describe({"source": {"a\x1b[2Jb\nc": "d"}}) == "source.a\\x1b[2Jb\\nc  d\n"


@pytest.mark.parametrize(
    ("extra", "arguments"),
    [
        ("export", ["export", "checkpoint", "out"]),
        ("train", ["pretrain", "--init", "x", "--out", "y", "corpus"]),
        ("export", ["evaluate", "--model", ".", "corpus"]),
    ],
)
def test_a_missing_package_is_named_with_its_extra(extra: str, arguments: list[str], tmp_path: Path) -> None:
    write(tmp_path / "config.json", b"{}")
    write(tmp_path / "corpus", b"One sentence.\nTwo.\nThree.\n\nFour.\nFive.\nSix.\n")
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = sys.modules['onnx'] = None\n"
        "from segue.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert f"pip install 'segue[{extra}]'" in done.stderr


def test_a_missing_onnxruntime_comes_with_an_extra_of_its_own() -> None:
    with pytest.raises(ExecutorUnavailable, match=r"pip install 'segue\[cpu\]'"), _needs("export"):
        raise ModuleNotFoundError(name="onnxruntime")


def check_memory(bundle: Path, folder: Path, few: int, many: int) -> None:
    """Check that `many` lines take no more memory than `few`, both being many windows, and are all scored."""
    paths = [folder / f"{count}.tsv" for count in (few, many)]
    for path, count in zip(paths, (few, many), strict=True):
        with path.open("w") as file:
            file.writelines(f"{i}\tthe birds\n" for i in range(count))
    code = (
        "import sys\n"
        "from segue.cli import main\n"
        "for path in sys.argv[2:]:\n"
        "    assert main(['score', path, '--model', sys.argv[1], '-o', path + '.out']) == 0\n"
        # Not ru_maxrss: a child begins with that of the process it was forked from.
        "    print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
    )
    command = [sys.executable, "-c", code, str(bundle), *map(str, paths)]
    said = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    peaks = [int(kibibytes) << 10 for kibibytes in said.split()]
    with Path(f"{paths[1]}.out").open() as file:
        assert sum(1 for _ in file) == many
    print(f"peak: {peaks[0] >> 20} MiB at {few:,} lines, {peaks[1] >> 20} MiB at {many:,}")
    assert peaks[1] < peaks[0] + (8 << 20)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_file(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    check_memory(make_bundle(layers=1, hidden_size=16), tmp_path, 18_000, 60_000)


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
def test_memory_is_flat_over_a_million_lines(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    check_memory(make_bundle(layers=1, hidden_size=16), tmp_path, 60_000, 1_000_000)
