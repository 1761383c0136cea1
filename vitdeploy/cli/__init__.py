"""The command line: parse, call the public functions, print. One module a command."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from vitdeploy.argument_types import check_path
from vitdeploy.cli import (
    benchmark,
    bisect,
    build,
    cache,
    check,
    colour,
    completion,
    doctor,
    export,
    fleet,
    handoff,
    help,
    inspect,
    logs,
    models,
    optimize,
    predict,
    report,
    schema,
    sensitivity,
    sign,
    streams,
    targets,
    validate,
    verify,
)
from vitdeploy.cli.config import Config
from vitdeploy.cli.failure import failure_of
from vitdeploy.cli.parser import Parser, build_parser, name_of, peek

COMMANDS = (
    models,
    targets,
    export,
    optimize,
    sensitivity,
    check,
    build,
    handoff,
    sign,
    verify,
    validate,
    bisect,
    predict,
    inspect,
    benchmark,
    report,
    fleet,
    doctor,
    cache,
    schema,
    completion,
    help,
)
# Those whose exit code is an answer.
_GATES = ("optimize", "check", "build", "verify", "validate", "bisect", "fleet")

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 a gate failed, 2 wrong usage or bad input, 130 interrupted.

    The exit code is the command's own, whatever becomes of its output: standard output may be full, closed or a pipe
    that nobody reads, which is said on standard error.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with contextlib.suppress(ValueError):  # not the main thread, where signals cannot be set
        signal.signal(signal.SIGTERM, _terminate)
    streams.fill_descriptors()
    printed, command, verbose = streams.Printed(), None, _gives(words, "--verbose", "-v")
    with contextlib.redirect_stderr(streams.Told(sys.stderr)):
        try:
            with contextlib.redirect_stdout(printed):
                args = _parse(words)
                command = str(args.command)
                code = int(args.run(args))
            text = printed.text()
        except BaseException as error:
            if command is None and isinstance(error, SystemExit):  # --help or --version
                code, text = int(error.code or 0), printed.text()
            else:
                failure = failure_of(error, verbose=verbose)
                if failure.unexpected:
                    logs.to_file(traceback.format_exc())
                    if verbose:
                        traceback.print_exc()
                logs.to_file(str(failure))
                print(colour.labels(str(failure)) if colour.wanted(sys.stderr) else failure, file=sys.stderr)
                code = failure.code
                text = f"{failure.to_json()}\n" if _gives(words, "--json") else printed.text()
        if colour.wanted(sys.stdout) and not _gives(words, "--json"):
            text = colour.verdicts(text)
        why = streams.write_out(text)
        if why is not None:
            print(f"warning: {_ended(command, code)} its output could not be written: {why}", file=sys.stderr)
        logs.stop()
    streams.settle()
    return code


def run() -> NoReturn:
    """The program: `main`, and then the end of the process, which is not taken apart object by object.

    That takes 1 to 2 seconds where torch was loaded. Threads are waited for and the other exit functions are called
    before, as at any exit.
    """
    code = 1  # of what `main` does not catch

    def leave() -> None:
        streams.settle()
        os._exit(code)

    atexit.register(leave)  # called after those of all that is loaded later
    code = main()
    sys.exit(code)


def whole_parser() -> Parser:
    """The parser of the command line, without the defaults of a file."""
    return build_parser(COMMANDS)


def _parse(words: list[str]) -> argparse.Namespace:
    """What was typed, over the defaults of a file; the log is set up on the way."""
    name, file = peek(words)
    alone = name in map(name_of, COMMANDS) and name not in ("help", "completion")
    parser = build_parser(COMMANDS, name if alone else None)
    config, taken = None, []
    if alone and not _asks(words):
        config = Config.find(file)
    if config is None:
        args = parser.parse_args(words)
    else:
        taken = config.apply(parser, name, None)
        args = parser.parse_args(words)
        if getattr(args, "precision", None) is not None:
            taken += config.apply(parser, name, args.precision)
            args = parser.parse_args(words)
    if args.command is None:
        parser.print_help()
        parser.exit()
    _check_paths(args)
    args.parser = parser  # for the commands that are about the command line itself
    logs.start(
        verbose=getattr(args, "verbose", False),
        quiet=getattr(args, "quiet", False),
        file=getattr(args, "log_file", None),
        words=words,
    )
    if config is not None and taken:
        log.info("defaults of %s: %s", config.path, ", ".join(taken))
    return args


def _asks(words: list[str]) -> bool:
    """Whether help or the version is asked for, which a broken file of defaults must not keep away."""
    return bool({"-h", "--help", "-V", "--version"} & set(words))


def _check_paths(args: argparse.Namespace) -> None:
    """UsageError for an argument that no path can be, before any command looks for it."""
    for name, value in vars(args).items():
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, Path):
                check_path(path, name.replace("_", "-"))


def _gives(words: list[str], option: str, short: str | None = None) -> bool:
    """Whether a command line has a flag, which argparse lets one shorten; it may be one that cannot be parsed."""
    options = words[: words.index("--")] if "--" in words else words
    return any(word == short or (len(word) > len("--") and option.startswith(word)) for word in options)


def _ended(command: str | None, code: int) -> str:
    """`verify passed, but`, for a command of which nothing else tells how it ended."""
    name = command or "vitdeploy"
    if code == 0:
        return f"{name} passed, but" if command in _GATES else f"{name} is done, but"
    return f"{name} failed with exit code {code}, and"


def _terminate(number: int, frame: object) -> None:
    raise KeyboardInterrupt  # so that a stopped export cleans up as an interrupted one does
