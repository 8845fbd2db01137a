"""The command line: arguments, messages, exit codes. What a command does is in `segue.commands`.

Nothing heavy is imported until a command runs. Errors are one line on stderr. Exit codes: 0 success,
1 failure, 2 bad usage or input; where a signal ends the process, what a shell expects: 130 for Ctrl-C, 141
where the reader of stdout has gone, 129 and 143 for SIGHUP and SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

from segue import __version__
from segue.errors import BundleError, ExecutorUnavailable, InputError, SegueError, install
from segue.files import discard_output
from segue.options import add_limits, add_model, add_table, count
from segue.terminal import printable

__all__ = ["main"]

_TABLES = """\
tables (UTF-8):
  The file's ending sets the format: .tsv, .tab, .txt or none; .csv; .jsonl or .ndjson.
  TSV    columns separated by tabs, without quoting: no text can hold a tab or line break
  CSV    with a header; quoted fields may hold commas, quotes and line breaks
  JSONL  one object or array per line
  {columns}
  Each row is written as it was read, followed by its score; a JSONL line keeps every
  character. {blank}
"""
_PAIR_COLUMNS = """\
Without --columns, the texts are read from columns a and b, text_a and text_b, sentence1
  and sentence2, sentence_a and sentence_b, premise and hypothesis, question and answer,
  query and passage, or query and document; or from a TSV, CSV or array of two columns."""
_PAIR_BLANK = "Blank lines at the end are ignored."
_DOCUMENT_COLUMNS = """\
Without --columns, the documents are read from the column text, document or passage, or
  from a TSV, CSV or array of one column; so a plain text file has one document per line."""
_DOCUMENT_BLANK = """\
A blank line in a TSV of one column is an empty document;
  in other tables blank lines at the end are ignored."""
_CODES = "exit codes: 0 success, 1 failure, 2 bad usage or input"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv`, by default the process's own arguments, and return its exit code."""
    if sys.stderr is None:  # closed: what is written there goes nowhere
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        with _stoppable():
            arguments = _parse(list(sys.argv[1:] if argv is None else argv))
            logging.basicConfig(format="segue: %(message)s")
            logging.getLogger("segue").setLevel(logging.INFO)
            with _needs(arguments.extra):
                return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        discard_output()
        return 141  # 128 + SIGPIPE, which Windows does not name
    except (InputError, BundleError) as error:
        return _complain(error, 2)
    except SegueError as error:
        return _complain(error, 1)
    except OSError as error:  # a full disk, a folder that went away
        discard_output()
        return _complain(error, 1)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "segue",
        description="Score sentence pairs with BERT.",
        epilog="For a command's options: segue COMMAND --help",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"segue {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = next((word for word in argv if not word.startswith("-")), None)
    for name, (summary, add_arguments) in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name == wanted:  # the others are only listed: their arguments may cost an import
            command.set_defaults(extra=None, fail=command.error)
            add_arguments(command)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:  # parse_args would show how to use segue, not the command
        arguments.fail(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=lambda arguments: _commands().score(arguments))
    parser.epilog = f"{_TABLES.format(columns=_PAIR_COLUMNS, blank=_PAIR_BLANK)}\n{_CODES}"
    add_table(parser, "A,B")
    parser.add_argument("--all-labels", action="store_true", help="write a column for each label")
    parser.add_argument(
        "--output",
        choices=("probability", "logit"),
        default="probability",
        help="what to write; default: probability",
    )
    add_limits(parser)
    add_model(parser)


def _add_rank(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=lambda arguments: _commands().rank(arguments))
    parser.epilog = f"{_TABLES.format(columns=_DOCUMENT_COLUMNS, blank=_DOCUMENT_BLANK)}\n{_CODES}"
    parser.add_argument("query", metavar="QUERY")
    add_table(parser, "COLUMN")
    parser.add_argument("--top-k", type=count, metavar="K", help="write only the K best")
    add_limits(parser)
    add_model(parser)


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=lambda arguments: _commands().explain(arguments))
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--json", action="store_true", help="write JSON, with all digits")
    add_limits(parser)
    add_model(parser)


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=lambda arguments: _commands().info(arguments))
    parser.add_argument("--json", action="store_true", help="write JSON")
    add_model(parser)


def _add_export(parser: argparse.ArgumentParser) -> None:
    with _needs("export"):
        from segue.export import command

        parser.set_defaults(run=command.run, extra="export")
        command.add_arguments(parser)


def _add_pretrain(parser: argparse.ArgumentParser) -> None:
    with _needs("train"):
        from segue.export import pretrain

        parser.set_defaults(run=pretrain.run, extra="train")
        pretrain.add_arguments(parser)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    with _needs("train"):
        from segue.export import evaluate

        parser.set_defaults(run=evaluate.run, extra="train")
        evaluate.add_arguments(parser)
        add_model(parser)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    from segue.benchmark import options

    def run(arguments: argparse.Namespace) -> int:
        from segue.benchmark import command

        return command.run(arguments)

    parser.set_defaults(run=run, extra="plot")
    options.add_arguments(parser)
    add_model(parser)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    with _needs("serve"):
        from segue.serving import command

        parser.set_defaults(run=command.run, extra="serve")
        command.add_arguments(parser)
        add_model(parser)


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "score": ("score the pairs of a file", _add_score),
    "rank": ("rank documents by how well they fit a query", _add_rank),
    "explain": ("show one pair as the model sees it, and its scores", _add_explain),
    "info": ("describe a model and how it runs here", _add_info),
    "export": ("export a PyTorch checkpoint as a bundle that segue runs", _add_export),
    "pretrain": ("train a BERT on your own text", _add_pretrain),
    "evaluate": ("measure a next sentence model on text it has not seen", _add_evaluate),
    "bench": ("measure latency and throughput on this machine", _add_bench),
    "serve": ("serve scores over HTTP, in the formats that clients already use", _add_serve),
}


def _commands() -> ModuleType:
    from segue import commands

    return commands


@contextmanager
def _needs(extra: str | None) -> Iterator[None]:
    """Say which extra installs a missing package."""
    try:
        yield
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "segue").partition(".")[0] == "segue":
            raise
        raise ExecutorUnavailable(
            f"{error.name} is not installed, which this command needs: {install(error.name, extra)}"
        ) from error


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM, and SIGHUP unless ignored (as under nohup), end the process as Ctrl-C does, so that no
    half-written file stays behind."""

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _complain(error: Exception, code: int) -> int:
    print(f"segue: {printable(' '.join(str(error).splitlines()))}", file=sys.stderr)
    return code
