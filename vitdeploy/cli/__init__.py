"""The command line: parse, call the public functions, print. One module a command."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from vitdeploy.argument_types import check_path
from vitdeploy.cli import (
    benchmark,
    build,
    cache,
    check,
    doctor,
    export,
    inspect,
    models,
    predict,
    sign,
    streams,
    targets,
    validate,
    verify,
)
from vitdeploy.cli.failure import Parser, failure_of

COMMANDS = (models, targets, export, check, build, sign, verify, validate, predict, inspect, benchmark, doctor, cache)
_NAMES = tuple(module.__name__.rpartition(".")[2] for module in COMMANDS)
# Those whose exit code is an answer.
_GATES = ("check", "build", "verify", "validate")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 a gate failed, 2 wrong usage or bad input, 130 interrupted.

    The exit code is the command's own, whatever becomes of its output: standard output may be full, closed or a pipe
    that nobody reads, which is said on standard error.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with contextlib.suppress(ValueError):  # not the main thread, where signals cannot be set
        signal.signal(signal.SIGTERM, _terminate)
    streams.fill_descriptors()
    printed, command, verbose = streams.Printed(), None, _gives(words, "--verbose")
    with contextlib.redirect_stderr(streams.Told(sys.stderr)):
        try:
            with contextlib.redirect_stdout(printed):
                args = _parser().parse_args(words)
                command = str(args.command)
                _check_paths(args)
                _log_to_stderr(verbose)
                code = int(args.run(args))
            text = printed.text()
        except BaseException as error:
            if command is None and isinstance(error, SystemExit):  # --help or --version
                code, text = int(error.code or 0), printed.text()
            else:
                failure = failure_of(error, verbose=verbose)
                if failure.unexpected and verbose:
                    traceback.print_exc()
                print(failure, file=sys.stderr)
                code = failure.code
                text = f"{failure.to_json()}\n" if _gives(words, "--json") else printed.text()
        why = streams.write_out(text)
        if why is not None:
            print(f"warning: {_ended(command, code)} its output could not be written: {why}", file=sys.stderr)
    streams.settle()
    return code


def _check_paths(args: argparse.Namespace) -> None:
    """UsageError for an argument that no path can be, before any command looks for it."""
    for name, value in vars(args).items():
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, Path):
                check_path(path, name.replace("_", "-"))


def _gives(words: list[str], option: str) -> bool:
    """Whether a command line has a flag, which argparse lets one shorten; it may be one that cannot be parsed."""
    options = words[: words.index("--")] if "--" in words else words
    return any(len(word) > len("--") and option.startswith(word) for word in options)


def _ended(command: str | None, code: int) -> str:
    """`verify passed, but`, for a command of which nothing else tells how it ended."""
    name = command or "vitdeploy"
    if code == 0:
        return f"{name} passed, but" if command in _GATES else f"{name} is done, but"
    return f"{name} failed with exit code {code}, and"


def _terminate(number: int, frame: object) -> None:
    raise KeyboardInterrupt  # so that a stopped export cleans up as an interrupted one does


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="vitdeploy",
        description="Efficient vision transformers from PyTorch to an edge device, with proof that nothing was lost.",
    )
    from vitdeploy import __version__

    parser.add_argument("--version", action="version", version=f"vitdeploy {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in zip(_NAMES, COMMANDS, strict=True):
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--json", action="store_true", help="one JSON object on standard output")
        command.add_argument("--verbose", action="store_true", help="every step, and the traceback of a defect")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


class _Formatter(logging.Formatter):
    """The message, with the name of its level from WARNING on."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


def _log_to_stderr(verbose: bool) -> None:
    logger = logging.getLogger("vitdeploy")
    logger.handlers[:] = [logging.StreamHandler(sys.stderr)]
    logger.handlers[0].setFormatter(_Formatter())
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
