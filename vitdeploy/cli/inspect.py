"""Show the contents of a bundle and what the installed runtimes execute; with two bundles, what differs.

  vitdeploy inspect BUNDLE
  vitdeploy inspect BUNDLE OTHER

Needs no torch. Statistics of the graph need `pip install onnx onnx-ir`; without them the rest is shown.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitdeploy.inspection.report import InspectionReport

HELP = "what is inside a bundle, or what differs between two"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy inspect`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("other", type=Path, nargs="?", metavar="BUNDLE2", help="show only the differences")


def run(args: argparse.Namespace) -> int:
    """Inspect one bundle, or compare two."""
    from vitdeploy.inspection.inspect import inspect
    from vitdeploy.inspection.report import compare

    found = [inspect(path) for path in (args.bundle, args.other) if path is not None]
    if args.json:
        print(json.dumps(_document(found)))
    elif len(found) == 1:
        print(found[0])
    else:
        print(compare(found[0], found[1]))
    return 0


def _document(found: list[InspectionReport]) -> dict[str, Any]:
    from vitdeploy.inspection.report import differences, sections

    if len(found) == 1:
        return found[0].to_dict()
    pairs = {
        section: {label: list(values) for label, values in rows.items()}
        for section, rows in differences(sections(found[0]), sections(found[1])).items()
    }
    return {"bundles": [inspection.to_dict() for inspection in found], "differences": pairs}
