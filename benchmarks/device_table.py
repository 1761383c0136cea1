"""Prints benchmarks/devices/ as a table of Markdown: python benchmarks/device_table.py [FOLDER]"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "devices"


def rows(entry: dict[str, Any]) -> list[list[str]]:
    """A row for each runtime and batch of an entry."""
    network = f"{entry['model']} {entry['precision']}"
    shapes = ", ".join("x".join(map(str, one["shape"][1:])) for one in entry["inputs"])
    return [
        [
            entry["device"],
            network,
            shapes,
            f"{run['runtime']} {run['version']}",
            str(run["batch"]),
            f"{run['p50_ms']:.3g}",
            f"{run['p99_ms']:.3g}",
            f"{run['images_per_second']:.0f}",
        ]
        for run in entry["runs"]
    ]


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    header = ["device", "bundle", "an input", "runtime", "batch", "p50, ms", "p99, ms", "images/s"]
    found = [row for path in sorted(folder.glob("*.json")) for row in rows(json.loads(path.read_text()))]
    for row in [header, ["---"] * len(header), *found]:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
