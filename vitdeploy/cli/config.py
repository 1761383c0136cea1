"""Defaults of the options from a file, `vitdeploy.toml` in the current folder or the one of --config.

  quiet = true                      # of every command

  [export]                          # of one
  target = "jetson-orin-nano-jp6"
  precision = "fp16"

  [export.int8]                     # of an export in this precision only
  samples = 500

The names are those of the long options. What is typed goes first; of an option that may be given several times, both
count. Paths are relative to the folder of the file.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vitdeploy.argument_types import check_path
from vitdeploy.cli.parser import command_parsers
from vitdeploy.errors import UsageError
from vitdeploy.toml_reader import read_toml

FILE = "vitdeploy.toml"
# What runs code, is trusted like a program, or says whom to trust: it has to be typed, or in a file that is named. The
# folder in which one works may be a stranger's.
NEVER_FOUND = ("cache", "checkpoint", "hosts", "key", "metric", "timing-cache")

_COMMON = ("quiet", "verbose", "log-file")
_PRECISIONS = ("fp32", "fp16", "int8")


class Config:
    """The contents of one file."""

    def __init__(self, path: Path, contents: Mapping[str, Any], *, named: bool) -> None:
        self.path, self._contents, self._named = path, contents, named

    @classmethod
    def find(cls, asked: Path | None) -> Config | None:
        """The file that was asked for, else the one in the current folder; None where there is none.

        Raises UsageError for a file that is not there or is no TOML.
        """
        path = Path(FILE) if asked is None else asked
        if asked is not None:
            check_path(asked, "config")
        if not path.is_file():
            if asked is None:
                return None
            raise UsageError(f"there is no file {path}", fix="--config with another file")
        return cls(path, read_toml(path, option="--config"), named=asked is not None)

    def apply(self, parser: argparse.ArgumentParser, name: str, precision: str | None) -> list[str]:
        """Makes what the file says the defaults of the command `name`; the names of the options that it has set.

        precision  of an export, whose table is applied too; None for the general ones alone

        Raises UsageError for a name that nothing has, for a value that an option does not take, and for an option that
        has to be typed.
        """
        commands = command_parsers(parser)
        self._check_tables(name, tuple(commands))
        section = self._contents.get(name, {})
        common = {key: value for key, value in self._contents.items() if not isinstance(value, dict)}
        own = {key: value for key, value in section.items() if not isinstance(value, dict)}
        special = {} if precision is None else section.get(precision, {})
        found = []
        tables = (
            (parser, "", common),  # there, a value that is typed before the command goes first too
            (commands[name], f"[{name}] ", own),
            (commands[name], f"[{name}.{precision}] ", special),
        )
        for where, table, values in tables:
            for key, value in values.items():
                self._set(where, f"{table}{key}", key, value)
                found.append(key)
        return found

    def _check_tables(self, own: str, names: Sequence[str]) -> None:
        """UsageError for a table of no command, and for one within it that is of no precision."""
        for key, value in self._contents.items():
            if not isinstance(value, dict):
                if key not in _COMMON:
                    raise self._wrong(key, f"of every command are {', '.join(_COMMON)}", f"put it below [{own}]")
                continue
            if key not in names:
                close = get_close_matches(key, names, n=1)
                raise self._wrong(f"[{key}]", "no command is called so", f"[{close[0] if close else own}]")
            for inner, table in value.items():
                if isinstance(table, dict) and (key != "export" or inner not in _PRECISIONS):
                    why = "only [export] has tables, one for each precision"
                    raise self._wrong(f"[{key}.{inner}]", why, "[export.int8]")

    def _set(self, parser: argparse.ArgumentParser, where: str, key: str, value: Any) -> None:
        options = {name[2:]: action for name, action in parser._option_string_actions.items() if name[:2] == "--"}
        settable = {name: action for name, action in options.items() if name not in ("help", "config", "version")}
        action = settable.get(key)
        if action is None:
            close = get_close_matches(key, settable, n=1)
            raise self._wrong(where, f"{parser.prog} has no option --{key}", close[0] if close else "leave it out")
        if not self._named and key in NEVER_FOUND:
            raise self._wrong(
                where,
                "what runs code or is trusted is not taken from a file that only lies in the current folder",
                f"--config {self.path}, if you trust it, or --{key}",
            )
        parser.set_defaults(**{action.dest: self._value(action, where, value)})
        action.required = False

    def _value(self, action: argparse.Action, where: str, value: Any) -> Any:
        """`value` as argparse would make it of what is typed."""
        if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
            if not isinstance(value, bool):
                raise self._wrong(where, "it is a flag", "true, or leave it out")
            if isinstance(action, argparse.BooleanOptionalAction):
                return value
            return action.const if value else action.default
        several = isinstance(action, (argparse._AppendAction, argparse._ExtendAction)) or action.nargs in ("+", "*")
        values = value if several and isinstance(value, list) else [value]
        if any(isinstance(one, (bool, dict, list)) for one in values):
            raise self._wrong(where, "it takes texts and numbers", f'{where.rpartition(" ")[2]} = "…"')
        read = [self._one(action, where, str(one)) for one in values]
        if isinstance(action, argparse._ExtendAction):
            return [item for one in read for item in (one if isinstance(one, list) else [one])]
        return read if several else read[0]

    def _one(self, action: argparse.Action, where: str, text: str) -> Any:
        if action.type is Path:
            return self.path.parent / text
        try:
            found = action.type(text) if callable(action.type) else text
        except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
            why = str(error) if isinstance(error, argparse.ArgumentTypeError) else f"{text!r} does not fit"
            raise self._wrong(where, why, f"see {action.option_strings[-1]} in --help") from error
        if action.choices is not None and found not in action.choices:
            raise self._wrong(where, f"{text!r} does not fit", " or ".join(map(str, action.choices)))
        return found

    def _wrong(self, where: str, why: str, fix: str) -> UsageError:
        return UsageError(f"{self.path} cannot say {where.strip()}", why=why, fix=fix)
