"""The command line: parse, call the public functions, print. One module a command."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence

from vitdeploy.cli import (
    benchmark,
    build,
    check,
    doctor,
    export,
    inspect,
    models,
    predict,
    sign,
    targets,
    validate,
    verify,
)
from vitdeploy.errors import VitDeployError

COMMANDS = (models, targets, export, check, build, sign, verify, validate, predict, inspect, benchmark, doctor)
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 a gate failed, 2 wrong usage or bad input."""
    args = _parser().parse_args(argv)
    with contextlib.suppress(ValueError):  # not the main thread, where signals cannot be set
        signal.signal(signal.SIGTERM, _terminate)
    _log_to_stderr(args.verbose)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except VitDeployError as error:
        return _fail(error.lines(), error.exit_code, as_json=args.json)
    except KeyboardInterrupt as stop:
        return _fail([str(stop) or "interrupted; nothing was left behind"], INTERRUPTED, as_json=args.json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        return _fail(["out of memory", "  try: --batch 1, or a smaller --image-size"], 2, as_json=args.json)
    except Exception as error:
        if args.verbose:
            raise
        lines = [
            f"unexpected {type(error).__name__}: {error}",
            "  why: this is a defect of vitdeploy, not of your input",
            "  try: run the same command with --verbose, and report what it prints",
        ]
        return _fail(lines, 2, as_json=args.json)
    return code


def _terminate(number: int, frame: object) -> None:
    raise KeyboardInterrupt  # so that a stopped export cleans up as an interrupted one does


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vitdeploy",
        description="Efficient vision transformers from PyTorch to an edge device, with proof that nothing was lost.",
    )
    from vitdeploy import __version__

    parser.add_argument("--version", action="version", version=f"vitdeploy {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        command = commands.add_parser(
            module.__name__.rpartition(".")[2],
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


def _fail(lines: Sequence[str], code: int, *, as_json: bool) -> int:
    print("error: " + "\n".join(lines), file=sys.stderr)
    if as_json:
        print(json.dumps({"error": "\n".join(lines), "exit_code": code}))
    return code
