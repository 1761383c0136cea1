"""The parser of the whole command line: one command for each module, and the options that all of them have."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from vitdeploy.errors import UsageError

_DESCRIPTION = """\
Efficient vision transformers from PyTorch to an edge device, with proof that nothing was lost.

  PyTorch to a verified bundle:    vitdeploy export lemevit_tiny.eurosat --fp16
  on the device, without torch:    vitdeploy verify lemevit_tiny.eurosat-portable-fp16
  what a command does:             vitdeploy help export
"""
_EPILOG = """\
Defaults are read from ./vitdeploy.toml, or from --config FILE. NO_COLOR switches colours off."""


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print and exit, and names what was probably meant."""

    _rest: str | None = None

    def takes_rest(self, dest: str, what: str) -> None:
        """Makes a list in `dest` of all that stands behind `--`, whatever it looks like."""
        self._rest = dest
        self.set_defaults(**{dest: []})
        self.add_argument_group("behind --", what)

    def error(self, message: str) -> NoReturn:
        """What argparse calls for every command line that it cannot take."""
        raise UsageError(message, fix=f"{self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses what is left over, where it is known whose words they are."""
        words, rest = args, None
        if self._rest is not None and "--" in args:
            words, rest = args[: args.index("--")], args[args.index("--") + 1 :]
        found, extra = super().parse_known_args(words, namespace)
        if self._rest is not None and rest is not None:
            setattr(found, self._rest, rest)
        if extra:
            raise self._unknown(extra)
        return found, extra

    def _unknown(self, extra: Sequence[str]) -> UsageError:
        word = extra[0].partition("=")[0]
        if not word.startswith("-"):
            return UsageError(f"{self.prog} does not take {extra[0]!r}", fix=f"{self.prog} --help")
        close = get_close_matches(word, self._option_string_actions, n=1)
        return UsageError(
            f"{self.prog} has no option {word}",
            fix=f"{close[0]}, or {self.prog} --help" if close else f"{self.prog} --help",
        )

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        names = list(map(str, action.choices))
        close = get_close_matches(str(value), names, n=1)
        if isinstance(action, argparse._SubParsersAction):
            fix = f"{self.prog} {close[0]}, or {self.prog} help" if close else f"{self.prog} help"
            raise UsageError(f"there is no command {value!r}", why=f"there are {', '.join(names)}", fix=fix)
        what = action.option_strings[-1] if action.option_strings else action.metavar or action.dest
        raise UsageError(f"{what} cannot be {value!r}", fix=close[0] if close else " or ".join(names))


def build_parser(commands: Sequence[ModuleType], used: str | None = None) -> Parser:
    """The parser of `vitdeploy`, with a parser of its own for each module in `commands`.

    used  the one command whose arguments are needed, which a start waits for; None for those of all
    """
    from vitdeploy import __version__

    parser = Parser(
        prog="vitdeploy",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"vitdeploy {__version__}")
    _add_common(parser)
    each = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for module in commands:
        command = each.add_parser(
            name_of(module),
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if used not in (None, name_of(module)):
            continue
        if getattr(module, "PRINTS_JSON", True):
            command.add_argument("--json", action="store_true", help="one JSON object on standard output")
        _add_common(command)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def peek(words: Sequence[str]) -> tuple[str, Path | None]:
    """The command and the value of --config in a command line that is not parsed yet; "" for no command."""
    first = _Peek(add_help=False, allow_abbrev=False)
    _add_common(first)
    first.add_argument("command", nargs="?", default="")
    first.add_argument("rest", nargs=argparse.REMAINDER)
    file = _Peek(add_help=False, allow_abbrev=False)
    file.add_argument("--config", type=Path)
    try:
        return first.parse_known_args(words)[0].command, file.parse_known_args(words)[0].config
    except UsageError:  # a value is missing, which the whole parser will say better
        return "", None


class _Peek(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, fix="vitdeploy --help")


def name_of(module: ModuleType) -> str:
    """The command that a module is."""
    return module.__name__.rpartition(".")[2]


def command_parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, by its name."""
    (each,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(each.choices)


def _add_common(parser: argparse.ArgumentParser) -> None:
    """What stands before the command or behind it; absent from the result where it was not given."""

    def add(*names: str, **options: Any) -> None:
        parser.add_argument(*names, default=argparse.SUPPRESS, **options)

    add("-v", "--verbose", action="store_true", help="every step, and the traceback of a defect")
    add("-q", "--quiet", action="store_true", help="no progress: the result, warnings and errors alone")
    add("--log-file", type=Path, metavar="FILE", help="append every step to FILE too, with the time of day")
    add("--config", type=Path, metavar="FILE", help="defaults of the options (default: vitdeploy.toml, if it is here)")
