"""Print a script with which the shell completes commands, options, names and paths.

  bash:  vitdeploy completion bash > ~/.local/share/bash-completion/completions/vitdeploy
  zsh:   vitdeploy completion zsh > ~/.zfunc/_vitdeploy        (a folder in $fpath)
  fish:  vitdeploy completion fish > ~/.config/fish/completions/vitdeploy.fish

The script knows the models, targets, boards and runtimes of this installation: write it again after an update. It needs
pip install 'vitdeploy[completion]', for shtab; the shells themselves need nothing.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vitdeploy.cli.parser import command_parsers

HELP = "a script with which the shell completes commands and options"
PRINTS_JSON = False

# tcsh and PowerShell complete commands and options alone.
SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy completion`."""
    parser.add_argument("shell", choices=SHELLS, help=" or ".join(SHELLS))


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from vitdeploy.errors import MissingDependencyError

    try:
        shtab = importlib.import_module("shtab")
    except ImportError:
        raise MissingDependencyError("shtab", needed_for="vitdeploy completion", extra="completion") from None
    commands = command_parsers(args.parser)
    words = {f"_vitdeploy_{kind}": names for kind, names in {**_names(), "commands": tuple(commands)}.items()}
    for command in commands.values():
        for action in command._actions:
            _mark(action, shtab)
    print(shtab.complete(args.parser, args.shell, preamble=_functions(args.shell, words)), end="")
    return 0


def _names() -> dict[str, tuple[str, ...]]:
    """What is completed by name; files follow where a file may be meant too."""
    from vitdeploy.models.registry import list_models
    from vitdeploy.platforms.boards import BOARDS, PLATFORMS
    from vitdeploy.runtime.backends import backend_names
    from vitdeploy.targets import list_targets

    return {
        "models": tuple(list_models()),
        "targets": tuple(dict.fromkeys((*list_targets(), *PLATFORMS, *BOARDS))),
        "runtimes": ("auto", *backend_names()),
        "precisions": ("fp32", "fp16", "int8"),
    }


_KINDS = {
    "source": "models",
    "pattern": "models",
    "target": "targets",
    "runtime": "runtimes",
    "precision": "precisions",
    "topic": "commands",
}


def _mark(action: argparse.Action, shtab: Any) -> None:
    """Says how the value of an option or argument is completed."""
    kind = _KINDS.get(action.dest)
    if kind is not None and action.nargs != 0:
        function = f"_vitdeploy_{kind}"
        action.complete = {"bash": function, "zsh": function, "fish": f"({function})"}  # type: ignore[attr-defined]
    elif action.type is Path:
        action.complete = shtab.FILE  # type: ignore[attr-defined]


def _functions(shell: str, words: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """The functions of the script that complete names, in the language of the shell."""
    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}.get(shell)
    return {} if write is None else {shell: "\n".join(write(name, names) for name, names in words.items())}


def _bash(name: str, names: Iterable[str]) -> str:
    files = '\n  compgen -f -- "$1"' if name == "_vitdeploy_models" else ""
    return f'{name}() {{\n  compgen -W {shlex.quote(" ".join(names))} -- "$1"{files}\n}}'


def _zsh(name: str, names: Iterable[str]) -> str:
    files = "\n  _files" if name == "_vitdeploy_models" else ""
    return f"{name}() {{\n  compadd -- {shlex.join(names)}{files}\n}}"


def _fish(name: str, names: Iterable[str]) -> str:
    files = "\n  __fish_complete_path (commandline -ct)" if name == "_vitdeploy_models" else ""
    return f"function {name}\n  printf '%s\\n' {shlex.join(names)}{files}\nend"
