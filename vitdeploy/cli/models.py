"""List the models of the zoo: parameters, multiply-adds, published top-1, image size, and what each is.

  vitdeploy models
  vitdeploy models 'lemevit_*'
  vitdeploy models saevit_xs           (of one model also the whole source, and what a reconstruction rests on)

A star marks a reconstruction: the code of that network was never published.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from typing import Any

WIDTH = 100  # columns

HELP = "list the models of the zoo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy models`."""
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern, e.g. 'lemevit_*' (default: all)")


def run(args: argparse.Namespace) -> int:
    """Print the cards that match."""
    from vitdeploy.errors import UsageError
    from vitdeploy.models.registry import cards, list_models

    names = list_models(args.pattern)
    if not names:
        raise UsageError(f"no model matches {args.pattern!r}", fix="vitdeploy models")
    rows = [_row(cards()[name]) for name in names]
    if args.json:
        print(json.dumps({"models": rows}, indent=1))
        return 0
    from vitdeploy.table import render

    header = ("model", "params", "GMACs", "top-1", "size", "weights", "source")
    print(render([cells for row in rows for cells in _lines(row)], header=header))
    if len(rows) == 1:
        print(f"\n{_filled('source', rows[0]['source'])}")
        if rows[0]["reconstruction"]:
            print(f"\n{_filled('reconstruction', rows[0]['reconstruction'])}")
    elif any(row["reconstruction"] for row in rows):
        print("\n* RECONSTRUCTION: its code was never published; `vitdeploy models NAME` says what was chosen here")
    return 0


def _filled(label: str, text: str) -> str:
    return textwrap.fill(f"{label}: {text}", WIDTH, break_on_hyphens=False)


def _row(card: Any) -> dict[str, Any]:
    return {
        "name": card.name,
        "family": card.family,
        "parameters": card.parameters,
        "gmacs": card.macs,
        "top1": card.top1,
        "image_size": list(card.image_size),
        "num_classes": card.num_classes,
        "other_sizes": [
            {"image_size": list(size), "gmacs": macs, "top1": top1} for size, macs, top1 in card.other_sizes
        ],
        "weights": card.checkpoint or "none published here; export with --checkpoint",
        "source": card.source,
        "reconstruction": card.reconstruction,
    }


def _lines(row: dict[str, Any]) -> list[list[str]]:
    """One line for the default size and one for each other size with published results."""
    return [
        [
            row["name"] + (" *" if row["reconstruction"] else ""),
            f"{row['parameters'] / 1e6:.2f}M",
            "-" if sized["gmacs"] is None else f"{sized['gmacs']:.2f}",
            "-" if sized["top1"] is None else f"{sized['top1']:.2f}",
            "x".join(str(side) for side in dict.fromkeys(sized["image_size"])),
            "included" if row["weights"].endswith(".safetensors") else "-",
            _paper(row["source"]),
        ]
        for sized in (row, *row["other_sizes"])
    ]


def _paper(source: str) -> str:
    """Authors and number of the paper, as far as they fit a line: `Jiang et al., arXiv 2405.09789`."""
    number = re.search(r"arXiv \d{4}\.\d{5}", source)
    if number is None:
        return _shortened(source, 38)
    return f"{_shortened(source.partition(',')[0], 20)}, {number[0]}"


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1].rpartition(' ')[0]} …"
