"""Everything about this GPU in one run of a few minutes: what it is, whether all is right, how fast it is.

    python bench/gpu.py [--out DIR] [--only SECTION...] [--precision float16...] [--seconds 460]
                        [--autotune] [--sanitize] [--tests]
    python bench/gpu.py --prepare DIR        on a machine with segue[export], for one without: --prepared DIR
    python bench/gpu.py --smoke              toy sizes, interpreted: takes every path, measures nothing

Correctness comes first: what is wrong is not timed. Works in a checkout that is not installed, and downloads
nothing. Writes DIR/<gpu>-<date>.json, complete after every section, and a table of it beside; a second run of
a day has a -2 in their names.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

if "--smoke" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

from gpu_path import ROOT, reach

__all__ = ["main", "run_sections", "sections"]

PREPARED = ROOT / "build" / "gpu"  # ignored by git
RESULTS = ROOT / "bench" / "results"
PRECISIONS = ("float16", "bfloat16", "float32")


def main(given: list[str] | None = None) -> None:
    """Prepare, or run the sections and report."""
    given = sys.argv[1:] if given is None else given
    arguments = _parser().parse_args(given)
    reach()
    if arguments.prepare:
        from gpu_prepare import prepare

        prepare(arguments.prepare, smoke=arguments.smoke)
        return
    import torch

    if not arguments.smoke and not torch.cuda.is_available():
        sys.exit("gpu: no GPU here; --smoke tries the script without one")
    device = torch.device("cpu") if arguments.smoke else torch.device("cuda", torch.cuda.current_device())
    json_file, table = run_sections(arguments, given, device)
    print(f"\n{table.read_text(encoding='utf-8')}\n{json_file}\n{table}", flush=True)


def run_sections(arguments: argparse.Namespace, given: list[str], device: Any) -> tuple[Path, Path]:
    """Run what was asked for; the paths of the record and of its table."""
    from gpu_machine import clocks, slug
    from gpu_models import Work
    from gpu_prepare import WORK, prepare
    from gpu_report import markdown
    from gpu_run import Run

    started = time.monotonic()
    date = time.strftime("%Y-%m-%d")
    names = (f"{slug(device)}-{date}{again}.json" for again in chain([""], map("-{}".format, count(2))))
    path = next(arguments.out / name for name in names if not (arguments.out / name).exists())
    command = [Path(word).name if Path(word).is_absolute() else word for word in given]  # no folders of ours
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="segue-gpu-")))
        prepared = arguments.prepared or (folder / "prepared" if arguments.smoke else PREPARED)
        if not (prepared / WORK).exists():
            try:
                prepare(prepared, smoke=arguments.smoke)
            except ImportError as error:
                sys.exit(
                    f"gpu: {error}; --prepare DIR on a machine with segue[export], then --prepared DIR here"
                )
        if arguments.smoke:
            from interpreted import fixed_order  # the interpreter's own sums have other bits at other places

            stack.enter_context(fixed_order())
        run = Run(path, arguments.seconds, date=date, smoke=arguments.smoke, arguments=command)
        precisions = PRECISIONS[:1] if arguments.smoke else arguments.precision
        work = Work(prepared, folder, device, arguments.bundle, precisions)
        for section in sections(run, arguments):
            began = time.monotonic() - started
            run.take(section, work)
            status = run.record["sections"][section.name]["status"]
            print(f"{began:6.1f} s  {section.name}: {status}", flush=True)
            path.with_suffix(".md").write_text(markdown(run.record), encoding="utf-8")
        run.record |= {"seconds": time.monotonic() - started, "state after": clocks(device)}
        run.write()
    return path, path.with_suffix(".md")


def sections(run: Any, arguments: argparse.Namespace) -> list[Any]:
    """Those that were asked for and what they rely on, in order, each with the seconds it may take."""
    from gpu_compile import compile_ahead
    from gpu_kernels import time_kernels
    from gpu_latency import end_to_end, latency
    from gpu_machine import ceilings, machine
    from gpu_memory import check_memory
    from gpu_model import profile, throughput
    from gpu_parity import check_kernels
    from gpu_parity_models import check_models
    from gpu_peers import compare_compiled, compare_peers
    from gpu_run import Section
    from gpu_tests import run_tests
    from gpu_warmup import warm_ups

    kernels, models, autotune = "parity of kernels", "parity of models", {"autotune": arguments.autotune}
    every = [
        Section("machine", lambda work, found: found.update(machine(work.device)), 30),
        Section("compiling ahead", partial(compile_ahead, run), 100),
        Section("ceilings", lambda work, found: ceilings(work.device, found), 20),
        Section(kernels, partial(check_kernels, run), 45),
        Section(models, partial(check_models, run), 60),
        Section("throughput", partial(throughput, run), 80, models),
        Section("latency", partial(latency, run), 25, models),
        Section("peers", partial(compare_peers, run), 150, models),
        Section("end to end", partial(end_to_end, run), 35, models),
        Section("profile", partial(profile, run), 20, models),
        Section(
            "kernels", partial(time_kernels, run, **autotune), 600 if arguments.autotune else 70, kernels
        ),
        Section("warm-up", partial(warm_ups, run), 80),
        # behind all that runs executors, for the reason given there
        Section(
            "compiled peers",
            partial(compare_compiled, run, **autotune),
            900 if arguments.autotune else 150,
            "peers",
        ),
    ]
    if arguments.sanitize:
        every.append(Section("memory", partial(check_memory, run), 120))
    if arguments.tests:
        every.append(Section("tests", partial(run_tests, run), 400))
    names = [section.name for section in every]
    if unknown := set(arguments.only or ()) - set(names):
        sys.exit(f"gpu: --only: no section {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    wanted = set(arguments.only or names) | {"machine"}
    for section in reversed(every):  # what is relied on comes first, and may rely on others itself
        if section.name in wanted and section.needs:
            wanted.add(section.needs)
    return [section for section in every if section.name in wanted]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="default: bench/results")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="these, and what they rely on")
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="these alone; default: all"
    )
    parser.add_argument("--seconds", type=float, default=460.0, help="for everything; default: 460")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="to score from text; default: segue's own")
    parser.add_argument("--prepare", type=Path, metavar="DIR", help="write what a run needs, and end")
    parser.add_argument(
        "--prepared", type=Path, metavar="DIR", help="read that; default: build/gpu, or make it"
    )
    parser.add_argument(
        "--autotune", action="store_true", help="torch.compile's max-autotune too; raise --seconds"
    )
    parser.add_argument("--sanitize", action="store_true", help="compute-sanitizer too; raise --seconds")
    parser.add_argument("--tests", action="store_true", help="tests/test_*_kernel.py too; raise --seconds")
    parser.add_argument("--smoke", action="store_true", help="toy sizes, interpreted; measures nothing")
    return parser


if __name__ == "__main__":
    main()
