"""Show what this machine can run, what is missing, how to install it, and which versions have known defects.

Needs neither torch nor onnx and changes nothing. Exit 0 when at least one runtime can run a bundle, else 1.
"""

from __future__ import annotations

import argparse
import json

HELP = "what this machine can run, and what is missing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`vitdeploy doctor` takes no arguments of its own."""


def run(args: argparse.Namespace) -> int:
    """Examine and print."""
    from vitdeploy.inspection.doctor import doctor

    report = doctor()
    print(json.dumps(report.to_dict()) if args.json else report)
    return 0 if report.usable else 1
