"""Tell from the graph, without a GPU, whether a bundle builds on a TensorRT version or Jetson, and what fuses there."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "tell without a GPU what TensorRT or a Jetson will make of a bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy check`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--target",
        required=True,
        metavar="T",
        help="tensorrt8, tensorrt10, tensorrt11, one version (tensorrt10.7), or a board: jetson-orin-nano-jp6, …",
    )


def run(args: argparse.Namespace) -> int:
    """Exit 0 when nothing blocks, 1 when the engine would not build."""
    from vitdeploy.platforms.check import check

    report = check(args.bundle, args.target)
    print(json.dumps(report.to_dict()) if args.json else report)
    return 0 if report.passed else 1
