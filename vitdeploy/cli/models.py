"""List the models of the zoo: parameters, multiply-adds, published top-1, resolution, and the source of the numbers."""

from __future__ import annotations

import argparse
import json
from typing import Any

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
    notes: dict[str, list[str]] = {}
    for row in rows:
        notes.setdefault(row["reconstruction"], []).append(row["name"])
    notes.pop("", None)
    for note, variants in notes.items():
        print(f"\n* RECONSTRUCTION: {', '.join(variants)}. {note}")
    return 0


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
    source = row["source"]
    return [
        [
            row["name"] + (" *" if row["reconstruction"] else ""),
            f"{row['parameters'] / 1e6:.2f}M",
            "-" if sized["gmacs"] is None else f"{sized['gmacs']:.2f}",
            "-" if sized["top1"] is None else f"{sized['top1']:.2f}",
            "x".join(str(side) for side in dict.fromkeys(sized["image_size"])),
            "included" if row["weights"].endswith(".safetensors") else "-",
            source if len(source) <= 60 else source[:57] + "...",
        ]
        for sized in (row, *row["other_sizes"])
    ]
