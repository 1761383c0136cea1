"""Measure on your images the accuracy that a bundle loses against PyTorch FP32, with its confidence interval.

  vitdeploy validate lemevit-fp16 lemevit-int8 --data photos --runtime all --max-drop 0.5
  vitdeploy validate lemevit-int8 --data photos.zip --baseline lemevit-fp32 --report drop
  vitdeploy validate fpn-int8 fpn-fp32 --data scenes --max-drop 1
  vitdeploy validate depth-int8 depth-fp32 --data rooms.npz --metric figures.py:delta1 --max-drop 0.01

The task follows from the bundle's outputs and DATA, or is stated by --task:

  classification  DATA is a folder with one folder of images for each class (class/file.jpg), a zip of one, or an .npz
                  with images (uint8 [N, H, W, 3], or [N, H, W, C] of other channels) and labels. Judged is top-1.
                  Classes are found among the bundle's by name; where it has no names, they are in the order of DATA's
                  sorted folders or of its labels.txt.
  segmentation    DATA is a folder or zip with images/ and masks/ (masks/NAME.png, pixels are class numbers, 255 is not
                  judged), or an .npz with images and masks [N, H, W]. Judged is the mean intersection over union.
  features        DATA are images, no labels needed. Judged is the cosine similarity of the worst output.
  any of them     DATA may be tars or Parquet files too: a path, a pattern such as 'val-{0000..0009}.tar', or a URL.
  --metric        FILE.py:FUNCTION is called as function(outputs, targets), two mappings from names to arrays with all
                  samples along the first axis: the outputs, and DATA's labels, masks or other arrays. It returns a
                  number, or numbers by name, of which the first is judged; more is better.

The baseline is PyTorch, where it is installed and has the weights, or an FP32 bundle of the same network. A drop is
given with its 95 % interval: of top-1 Tango's score interval of paired proportions, with McNemar's exact p-value and
whether 99 % and 99.9 % of the baseline's accuracy are kept, the levels of MLPerf's edge suite; of other figures a
bootstrap over images. A baseline at chance, or whose labels look shifted, fails the check. After Ctrl-C the same
command continues where it stopped.

Many processes, on one machine or several, each take a part, and a last one makes the report of all:

  vitdeploy validate lemevit-int8 lemevit-fp32 --data photos --logits rows --shard 0/8     (to 7/8, or --shard auto)
  vitdeploy validate lemevit-int8 lemevit-fp32 --data photos --merge rows --max-drop 0.5
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vitdeploy.cli.arguments import add_load_options, load_options, positive
from vitdeploy.cli.benchmark import names
from vitdeploy.cli.junit import JunitFile, add_junit

if TYPE_CHECKING:
    from vitdeploy.accuracy.report import AccuracyReport
    from vitdeploy.accuracy.sharded import ShardReport

Result = TypeVar("Result")

HELP = "accuracy of bundles and their baseline on your images"

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy validate`."""
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DATA", help="images with labels or masks, see above"
    )
    parser.add_argument("--task", metavar="T", help="classification, segmentation or features (default: what fits)")
    parser.add_argument("--metric", metavar="FILE.py:FUNCTION", help="a figure of your own, see above")
    parser.add_argument("--output", metavar="NAME", help="the output that is judged, where several may be")
    parser.add_argument(
        "--ignore-index", type=int, metavar="N", help="number in masks of pixels that are not judged (default 255)"
    )
    parser.add_argument(
        "--runtime", type=names, default=["auto"], metavar="R", help="names with commas, all, or auto (default)"
    )
    parser.add_argument(
        "--baseline", type=Path, metavar="BUNDLE", help="FP32 bundle to compare with (default: PyTorch)"
    )
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="P",
        help="exit 1 where more is lost: points of top-1 or mIoU, percent of cosine similarity, or units of --metric",
    )
    parser.add_argument("--samples", type=positive, metavar="N", help="so many images, every class with its share")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of samples (default 0)")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write tables, plots, flipped images and logits")
    add_junit(parser)
    parser.add_argument("--logits", type=Path, metavar="DIR", help="keep computed logits here (default: user's cache)")
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="compute this part alone into --logits; auto: RANK, SLURM_ARRAY_TASK_ID or, as auto/N, "
        "JOB_COMPLETION_INDEX",
    )
    parser.add_argument("--merge", type=Path, metavar="DIR", help="make the report of the shards that are in DIR")
    parser.add_argument("--engine", metavar="E", help="ray: compute on a cluster of Ray, whose workers share --logits")
    parser.add_argument("--workers", type=positive, metavar="N", help="of the engine (default: one for each processor)")
    parser.add_argument("--no-record", dest="record", action="store_false", help="leave the manifests as they are")
    add_load_options(parser)


def run(args: argparse.Namespace) -> int:
    """Exit 0 when the baseline is sound and no drop is beyond the gate, else 1; 0 for a shard that is complete."""
    from vitdeploy.accuracy.files import check_folder, write_report
    from vitdeploy.errors import VitDeployError

    if args.shard is not None:
        _check_shard(args)
        part = _computed(args, _shard)
        print(json.dumps(part.to_dict()) if args.json else part)
        return 0
    if args.report:
        check_folder(args.report)
    with JunitFile(args.junit, "validate") as junit:
        report = _computed(args, _whole)
    print(json.dumps(report.to_dict()) if args.json else report)
    try:
        junit.write(report.cases())
        if args.report:
            write_report(report, args.report)
    except VitDeployError as error:  # the result is printed already, and one JSON object is enough
        log.error("%s", error)
        return error.exit_code
    return 0 if report.passed else 1


def _check_shard(args: argparse.Namespace) -> None:
    from vitdeploy.errors import UsageError

    if args.merge is not None:
        raise UsageError(
            "--shard and --merge exclude each other",
            why="a process computes a part, or makes the report when all have ended",
            fix="--merge alone, once every shard is there",
        )
    if args.logits is None:
        raise UsageError(
            "a shard needs a folder to write to", fix="--logits DIR, the same for all shards, such as a shared disk"
        )
    if args.engine is not None:
        raise UsageError(
            "--shard and --engine exclude each other", why="an engine cuts shards itself", fix="one of them"
        )
    if args.report or args.junit:
        raise UsageError(
            "a shard has no report",
            why="nothing is judged before all parts are there",
            fix="give --report and --junit with --merge",
        )


def _computed(args: argparse.Namespace, compute: Callable[[argparse.Namespace], Result]) -> Result:
    try:
        # What the user's own --metric prints is not the result.
        with contextlib.redirect_stdout(sys.stderr):
            return compute(args)
    except KeyboardInterrupt:
        anew = args.metric and args.shard is None
        kept = "begins anew, since nothing is kept for --metric" if anew else "continues where it stopped"
        raise KeyboardInterrupt(f"interrupted; the same command {kept}") from None


def _whole(args: argparse.Namespace) -> AccuracyReport:
    from vitdeploy.accuracy.validate import validate

    return validate(
        args.bundles,
        args.data,
        max_drop=args.max_drop,
        logits=args.logits,
        merge=args.merge,
        engine=args.engine,
        workers=args.workers,
        record=args.record,
        **_what(args),
    )


def _shard(args: argparse.Namespace) -> ShardReport:
    from vitdeploy.accuracy.sharded import validate_shard

    return validate_shard(args.bundles, args.data, args.shard, args.logits, **_what(args))


def _what(args: argparse.Namespace) -> dict[str, Any]:
    """What is compared, in the words of both functions."""
    names = ("runtime", "baseline", "task", "metric", "output", "ignore_index", "samples", "seed")
    return {**{name: getattr(args, name) for name in names}, **load_options(args)}
