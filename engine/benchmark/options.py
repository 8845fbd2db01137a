"""The arguments of `segue bench`, checked before a model is loaded."""

from __future__ import annotations

import math
import os
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

from segue.errors import InputError
from segue.tables import FORMATS

__all__ = ["LENGTHS", "PLOTS", "SCENARIOS", "Options", "add_arguments"]

SCENARIOS = ("SingleStream", "MultiStream", "Offline", "Server", "Grid", "ColdStart", "Memory")
LENGTHS = (16, 64, 128, 512)  # tokens; those that the model reads
PLOTS = ("png", "svg", "pdf")
_BATCHES = "1,8,32"
_SECONDS, _COUNT, _P99 = 5.0, 256, 130.0

_EPILOG = """\
scenarios:
  SingleStream  one pair at a time: how long a caller waits
  MultiStream   eight pairs at a time
  Offline       all pairs in one call: pairs and tokens per second, and where the time goes
  Server        queries of one pair arrive at random: the highest rate at which the 99th
                percentile of latency, waiting included, stays within --p99
  Grid          pairs/s for each number of pairs per call and each length in tokens
  ColdStart     import, load and first score in fresh processes
  Memory        peak memory of a fresh process that scores all pairs in one call

The first four are those of MLPerf inference. Warm-up comes first and is never counted.
Without --pairs, pairs are made of words from the model's own vocabulary, with a mean of 60
tokens; the same --seed gives the same pairs.

exit codes: 0 success, 1 failure or a figure below --fail-below, 2 bad usage or input"""


@dataclass(frozen=True)
class Options:
    """What to measure. Times are in seconds; `lengths` is None if none were asked for."""

    scenarios: tuple[str, ...]
    seconds: float
    count: int
    seed: int
    p99: float
    batches: tuple[int, ...]
    lengths: tuple[int, ...] | None
    compare: str | None
    fail_below: float | None
    plot: str | None

    @classmethod
    def of(cls, arguments: Namespace) -> Options:
        """Check the parsed arguments.

        Raises:
            InputError: names the option and what is wrong with it.
        """
        options = cls(
            scenarios=_names(arguments.scenarios),
            seconds=_positive("seconds", arguments.seconds),
            count=_whole("count", arguments.count, 1),
            seed=_whole("seed", arguments.seed, 0),
            p99=_positive("p99", arguments.p99.lower().removesuffix("ms")) / 1000,
            batches=_wholes("batches", arguments.batches),
            lengths=None if arguments.lengths is None else _wholes("lengths", arguments.lengths),
            compare=arguments.compare,
            fail_below=(
                None if arguments.fail_below is None else _positive("fail-below", arguments.fail_below)
            ),
            plot=arguments.plot,
        )
        if options.fail_below is not None and options.compare is None:
            raise InputError("fail-below: there is nothing to compare with: give --compare OLD.json")
        if options.plot is not None and Path(options.plot).suffix.lower().removeprefix(".") not in PLOTS:
            raise InputError(f"plot: expected a file ending in .{', .'.join(PLOTS)}, got {options.plot!r}")
        paths = [os.path.realpath(path) for path in (options.plot, arguments.out) if path is not None]
        if len(set(paths)) < len(paths):
            raise InputError(f"plot: {options.plot!r} is where the JSON goes")
        return options


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments, except those that choose and load a model."""
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("folder", metavar="MODEL", nargs="?", help="a bundle or checkpoint folder, as with --model")
    add("--scenarios", metavar="NAMES", help=f"default: {','.join(SCENARIOS)}")
    add(
        "--seconds",
        default=str(_SECONDS),
        help=f"time per scenario; Server takes twice as long; default: {_SECONDS:g}",
    )
    add("--p99", metavar="MS", default=f"{_P99:g}", help=f"Server's latency bound; default: {_P99:g} ms")
    add("--batches", metavar="N,N", default=_BATCHES, help=f"Grid's pairs per call; default: {_BATCHES}")
    add("--lengths", metavar="N,N", help=f"Grid's tokens per pair; default: {','.join(map(str, LENGTHS))}")
    add(
        "-o",
        "--json",
        dest="out",
        metavar="FILE",
        help="write every figure and every measured time as JSON; -: to stdout, without the table",
    )
    add("--plot", metavar="FILE", help="draw the figures, as PNG, SVG or PDF")
    group = parser.add_argument_group("pairs")
    group.add_argument("--pairs", metavar="FILE", help="a table of pairs, read as segue score reads it")
    group.add_argument(
        "--count",
        metavar="N",
        default=str(_COUNT),
        help=f"pairs to make up, or to take from the start of FILE; default: {_COUNT}",
    )
    group.add_argument("--seed", default="0", help="for pairs and arrivals; default: 0")
    group.add_argument("--format", choices=FORMATS, help="format of FILE; default: by its ending")
    group.add_argument("--columns", metavar="A,B", help="columns to read, by name or number (from 1)")
    group.add_argument("--header", action="store_true", help="the first line of a TSV names its columns")
    group = parser.add_argument_group("comparison")
    group.add_argument("--compare", metavar="OLD.json", help="an earlier --json file: show new over old")
    group.add_argument("--fail-below", metavar="RATIO", help="exit with 1 if a ratio is below, such as 0.95")


def _names(text: str | None) -> tuple[str, ...]:
    if text is None:
        return SCENARIOS
    known = {name.lower(): name for name in SCENARIOS}
    wanted = [part.strip() for part in text.split(",")]
    for part in wanted:
        if part.lower() not in known:
            raise InputError(f"scenarios: expected some of {', '.join(SCENARIOS)}, got {part!r}")
    chosen = {known[part.lower()] for part in wanted}
    return tuple(name for name in SCENARIOS if name in chosen)


def _positive(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(f"{name}: expected a number above 0, got {text!r}")
    return value


def _whole(name: str, text: str, least: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19) or int(text) < least:
        raise InputError(f"{name}: expected a whole number from {least}, got {text[:40]!r}")
    return int(text)


def _wholes(name: str, text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_whole(name, part.strip(), 1) for part in text.split(",")))
