"""List what --target takes: targets, and boards, each of which stands for a target and the rules of its TensorRT.

  vitdeploy targets
  vitdeploy targets --json               (with every field, and where the facts are from)

Targets of installed packages come last. A board without its JetPack, such as jetson-orin-nano, has the newest one; one
version of TensorRT, such as tensorrt10.7, is taken too.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitdeploy.platforms.boards import Platform
    from vitdeploy.targets import Target

HELP = "list the targets and boards that --target takes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`vitdeploy targets` takes no arguments of its own."""


def run(args: argparse.Namespace) -> int:
    """Print every target, those of installed packages last."""
    from vitdeploy.platforms.boards import PLATFORMS
    from vitdeploy.table import render
    from vitdeploy.targets import targets

    rows, boards = list(targets()), [row for row in PLATFORMS.values() if row.jetpack]
    if args.json:
        told = [{**_board(board), "source": board.source} for board in boards]
        print(json.dumps({"targets": [asdict(target) for target in rows], "boards": told}))
        return 0
    cells = [[target.name, str(target.opset), _int8(target), target.description] for target in rows]
    print(render(cells, header=("target", "opset", "INT8", "for")))
    print()
    print(render([list(_board(board).values()) for board in boards], header=tuple(_board(boards[0])), align="<" * 6))
    return 0


def _board(board: Platform) -> dict[str, str]:
    from vitdeploy.platforms.boards import export_target
    from vitdeploy.platforms.versions import dotted

    return {
        "board": board.name,
        "target": export_target(board.name)[0].name,
        "jetpack": board.jetpack,
        "tensorrt": dotted(board.newest),
        "cuda": board.cuda,
        "python": board.python,
    }


def _int8(target: Target) -> str:
    if target.int8 is None:
        return "none"
    return "int8" if target.int8.activation.signed else "uint8"
