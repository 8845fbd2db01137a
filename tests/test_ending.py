"""A process that ends while other threads compute."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import pytest

LOAD = "Engine.load({bundle!r}, device='cpu', threads=2, max_batch_tokens=2048)"


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle()


def _run(code: str, bundle: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            code.replace("LOAD", LOAD.format(bundle=str(bundle))),
        ],
        capture_output=True,
        text=True,
        cwd="/",
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("act", ["engine.score(pairs)", "engine.score(pairs[:1])", "LOAD", "LOAD.warmup()"])
def test_daemon_threads_may_compute_and_load_as_the_process_ends(bundle: Path, act: str) -> None:
    """One batch at a time, or many side by side. Python alone would abort the process, most of the time."""
    code = f"""
import threading, time
from segue import Engine
engine = LOAD
pairs = [("a " * 400, "b " * number) for number in range(40)]
engine.score(pairs)
def work():
    while True:
        {act}
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
"""
    assert _run(code, bundle) == (0, "", "")


def test_a_step_under_way_ends_and_no_other_thread_begins_one(bundle: Path) -> None:
    """Nor does it keep the process waiting; the main thread may go on. So may a fork of the process end."""
    code = """
import atexit, os, sys, threading, time
def late():
    begin.set()
    thread.join()
    print("scored", len(engine.score([("a", "b")])), flush=True)
atexit.register(late)  # so after what segue has registered
from segue import Engine, SegueError
from segue.executors.ending import whole
engine, inside, begin = LOAD, threading.Event(), threading.Event()
def work():
    with whole():
        inside.set()
        time.sleep(0.2)
        with whole():
            print("ended", flush=True)
    begin.wait()
    try:
        engine.score([("a", "b")])
    except SegueError as error:
        print(error, flush=True)
thread = threading.Thread(target=work, daemon=True)
thread.start()
inside.wait()
if not os.fork():
    atexit.unregister(late)
    sys.exit(0)
assert os.wait()[1] == 0
"""
    ended = "ended\nthe process is ending: no other thread computes any more\nscored 1\n"
    assert _run(code, bundle) == (0, ended, "")


def test_a_step_that_never_ends_does_not_keep_the_process(bundle: Path) -> None:
    code = """
import threading, time
from segue.executors import ending
ending._PATIENCE = 0.2
inside = threading.Event()
def work():
    with ending.whole():
        inside.set()
        time.sleep(50)
threading.Thread(target=work, daemon=True).start()
inside.wait()
print("waits", flush=True)
"""
    began = monotonic()
    assert _run(code, bundle) == (0, "waits\n", "")
    assert monotonic() - began < 30
