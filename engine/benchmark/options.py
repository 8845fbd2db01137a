"""What `segue bench` can be asked for: its arguments, checked before a model is loaded."""

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
  Offline       all pairs in one call: pairs and tokens a second, and where the time goes
  Server        queries of one pair arrive at random: the highest rate that keeps the 99th
                percentile of latency, waiting included, within --p99
  Grid          pairs/s for each number of pairs a call, of each length in tokens
  ColdStart     fresh processes: import, load, first score
  Memory        a fresh process that scores all pairs in one call: its peak

The first four are those of MLPerf inference. Warm-up comes first and counts in none of them.
Without --pairs, pairs are made up of words of the model's own vocabulary, with a mean of 60
tokens; the same --seed makes the same pairs.

exit codes: 0 all done, 1 failed, or a figure is below --fail-below, 2 bad usage or input"""


@dataclass(frozen=True)
class Options:
    """What to measure. Times are seconds; `lengths` is None where none were asked for."""

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
        """Check what was parsed.

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
    """Add the command's arguments but the options that choose and load a model."""
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("folder", metavar="MODEL", nargs="?", help="a bundle or checkpoint folder, as --model is")
    add("--scenarios", metavar="NAMES", help=f"default: {','.join(SCENARIOS)}")
    add(
        "--seconds",
        default=str(_SECONDS),
        help=f"for each scenario; Server takes twice as long; default: {_SECONDS:g}",
    )
    add("--p99", metavar="MS", default=f"{_P99:g}", help=f"Server's bound; default: {_P99:g} ms")
    add("--batches", metavar="N,N", default=_BATCHES, help=f"Grid's pairs a call; default: {_BATCHES}")
    add("--lengths", metavar="N,N", help=f"Grid's tokens a pair; default: {','.join(map(str, LENGTHS))}")
    add(
        "-o",
        "--json",
        dest="out",
        metavar="FILE",
        help="write every figure and every measured time as JSON; -: to stdout, and no table",
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
    group.add_argument("--seed", default="0", help="of pairs and arrivals; default: 0")
    group.add_argument("--format", choices=FORMATS, help="of FILE")
    group.add_argument("--columns", metavar="A,B", help="to read: names, or numbers from 1")
    group.add_argument("--header", action="store_true", help="a TSV begins with the names of its columns")
    group = parser.add_argument_group("comparison")
    group.add_argument("--compare", metavar="OLD.json", help="what --json wrote before: show new over old")
    group.add_argument("--fail-below", metavar="RATIO", help="exit with 1 where a figure is below, as 0.95")


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
