"""Classify images with a bundle: its recorded preprocessing, its runtime, its labels.

  vitdeploy predict lemevit photo.jpg other.png --top-k 3
  vitdeploy predict lemevit photos/ --csv classes.csv            (every image in the folder and below it)
  vitdeploy predict lemevit photos/ --skip-broken --json

An image that cannot be read ends the run, unless --skip-broken leaves it out and counts it. Ctrl-C prints, and writes
with --csv, what is classified by then, and ends with exit code 130.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitdeploy.cli.arguments import add_key, add_runtime, load_options
from vitdeploy.cli.failure import INTERRUPTED
from vitdeploy.cli.output_file import check_writable, write

if TYPE_CHECKING:
    from vitdeploy.errors import InputError
    from vitdeploy.runtime.prediction import Prediction

HELP = "classify images with a bundle"

# What Ctrl-C loses at most; many batches, so that the device seldom waits for an image.
PART = 64

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy predict`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="classes of each image (default 5)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a line for each image and class")
    parser.add_argument(
        "--skip-broken", action="store_true", help="leave out images that cannot be read, and say how many"
    )
    add_key(parser)
    add_runtime(parser)


class _Found(NamedTuple):
    """The classes of each image, best first, and why the others have none."""

    classes: dict[Path, list[Prediction]]
    broken: dict[Path, InputError]


def run(args: argparse.Namespace) -> int:
    """Print the most probable classes of each image."""
    from vitdeploy.errors import VitDeployError

    if args.csv:
        check_writable(args.csv, "--csv")
    images = list(_files(args.images))
    found = _Found({}, {})
    interrupted = False
    try:
        _predict(args, images, found)
    except KeyboardInterrupt:
        if not found.classes:
            raise
        interrupted = True
    print(json.dumps(_document(found, interrupted)) if args.json else _text(found))
    for path, error in found.broken.items():
        log.warning("skipped %s: %s", path, error.what)
    if found.broken:
        count = len(found.broken)
        log.warning("%d of %d images %s skipped", count, len(images), "was" if count == 1 else "were")
    if interrupted:
        log.warning("interrupted: %d of %d images are classified", len(found.classes), len(images))
    if args.csv:
        try:
            write(args.csv, _csv(found), "--csv")
        except VitDeployError as error:  # the result is printed already, and one JSON object is enough
            log.error("%s", error)
            return error.exit_code
    return INTERRUPTED if interrupted else 0


def _files(given: list[Path]) -> Iterator[Path]:
    """The images that were named, and those in folders, each once."""
    seen: set[Path] = set()
    for path in given:
        for image in _below(path) if path.is_dir() else (path,):
            if image not in seen:
                seen.add(image)
                yield image


def _below(folder: Path) -> list[Path]:
    from vitdeploy.data.image_files import images_below

    return images_below(folder)


def _predict(args: argparse.Namespace, images: list[Path], found: _Found) -> None:
    """Adds the classes of all images; InputError for one that cannot be read, or where none of them can be."""
    from vitdeploy.errors import InputError
    from vitdeploy.progress import Progress
    from vitdeploy.runtime.session import load

    with (
        load(args.bundle, key=args.key, runtime=args.runtime, **load_options(args)) as session,
        Progress("classifying", len(images)) as progress,
    ):
        for start in range(0, len(images), PART):
            part = images[start : start + PART]
            rows = session.predict(_counted(part, progress), top_k=args.top_k, on_error="return")
            for path, row in zip(part, rows, strict=True):
                if not isinstance(row, Exception):
                    found.classes[path] = row
                elif args.skip_broken and isinstance(row, InputError):
                    found.broken[path] = row
                else:
                    raise row
    if not found.classes:
        first = next(iter(found.broken.values()))
        raise InputError(f"none of {len(images)} images can be read", why=f"the first: {first.what}", fix=first.fix)


def _counted(images: list[Path], progress: Any) -> Iterator[Path]:
    for path in images:
        yield path
        progress.advance()


def _text(found: _Found) -> str:
    lines = []
    for path, best in found.classes.items():
        lines += [str(path), *(f"  {one.probability:7.2%}  {one.label}" for one in best)]
    return "\n".join(lines)


def _document(found: _Found, interrupted: bool) -> dict[str, Any]:
    return {
        "interrupted": interrupted,
        "images": [
            {
                "image": str(path),
                "predictions": [
                    {"label": one.label, "index": one.index, "probability": one.probability} for one in best
                ],
            }
            for path, best in found.classes.items()
        ],
        "skipped": [
            {"image": str(path), "error": error.what, "why": error.why} for path, error in found.broken.items()
        ],
    }


def _csv(found: _Found) -> str:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["image", "rank", "label", "index", "probability"])
    for path, best in found.classes.items():
        for rank, one in enumerate(best, start=1):
            lines.writerow([path, rank, one.label, one.index, f"{one.probability:.6f}"])
    return text.getvalue()
