"""Check on this machine that a bundle is unaltered and reproduces the PyTorch outputs it carries. Needs no torch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vitdeploy.cli.arguments import add_runtime, load_options

HELP = "check a bundle's hashes, signature and outputs on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy verify`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    add_runtime(parser)


def run(args: argparse.Namespace) -> int:
    """Exit 0 when everything holds, 1 when the numbers do not."""
    from vitdeploy.runtime.verify import verify

    report = verify(args.bundle, runtime=args.runtime, **load_options(args))
    print(json.dumps(report.to_dict()) if args.json else report)
    return 0 if report.passed else 1
