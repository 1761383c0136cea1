"""Classify images with a bundle: its recorded preprocessing, its runtime, its labels."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vitdeploy.cli.arguments import add_key, add_runtime, load_options

HELP = "classify images with a bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy predict`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="classes to print (default 5)")
    add_key(parser)
    add_runtime(parser)


def run(args: argparse.Namespace) -> int:
    """Print the most probable classes of each image."""
    from vitdeploy.runtime.session import load

    with load(args.bundle, key=args.key, runtime=args.runtime, **load_options(args)) as session:
        found = session.predict(args.images, top_k=args.top_k)
    if args.json:
        images = [
            {
                "image": str(path),
                "predictions": [{"label": p.label, "index": p.index, "probability": p.probability} for p in best],
            }
            for path, best in zip(args.images, found, strict=True)
        ]
        print(json.dumps({"images": images}))
        return 0
    for path, best in zip(args.images, found, strict=True):
        print(path)
        for prediction in best:
            print(f"  {prediction.probability:7.2%}  {prediction.label}")
    return 0
