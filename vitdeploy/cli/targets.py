"""List the targets: the forms that each gets, the runtimes that it is for, and where the facts are from.

  vitdeploy targets
  vitdeploy targets --json

Targets of installed packages come last.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitdeploy.targets import Target

HELP = "list the targets of vitdeploy export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`vitdeploy targets` takes no arguments of its own."""


def run(args: argparse.Namespace) -> int:
    """Print every target, those of installed packages last."""
    from vitdeploy.table import render
    from vitdeploy.targets import targets

    rows = list(targets())
    if args.json:
        print(json.dumps({"targets": [asdict(target) for target in rows]}))
        return 0
    cells = [[target.name, str(target.opset), _int8(target), target.description] for target in rows]
    print(render(cells, header=("target", "opset", "INT8", "for")))
    return 0


def _int8(target: Target) -> str:
    if target.int8 is None:
        return "none"
    return "int8" if target.int8.activation.signed else "uint8"
