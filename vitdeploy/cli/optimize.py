"""Find the bundles of a network that no other beats in both speed and accuracy on this machine.

SOURCE is what `vitdeploy export` takes.

  vitdeploy optimize lemevit_tiny.eurosat --data eurosat.zip --runtime onnxruntime -o front
  vitdeploy optimize lemevit_tiny.eurosat --data eurosat.zip --runtime openvino --max-drop 0.5 --minutes 5 -o front
  vitdeploy optimize my_model.py:build --data labelled/ --runtime openvino --latency 20 --size 10 -o front

FP32, FP16 and INT8 are timed first, in turns with FP32 on the runtime, before anything is calibrated; where INT8 is
faster, layers are calibrated once, and a greedy search and Optuna try which groups of them to leave in float. The best
take turns and become verified bundles in DIR, which are measured once more, in turns and on all images of DATA: only
that counts. On a GPU each plan is an engine that is built and proven here, so few are tried: FP32, TF32, FP16, INT8
where it is measured to be faster, and the fastest once more with the builder's highest optimization level. The command
fails where no bundle keeps what was asked. After Ctrl-C the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

from vitdeploy.cli.arguments import positive, runtime_name
from vitdeploy.cli.export import add_network_arguments, network_arguments

HELP = "find the bundles that nothing beats in both speed and accuracy here"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy optimize`."""
    parser.add_argument("source", metavar="SOURCE", help="what export takes")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DATA", help="labelled images like those in use: a folder or a zip"
    )
    parser.add_argument(
        "--runtime",
        type=runtime_name,
        required=True,
        metavar="R",
        help="what it runs on: onnxruntime or openvino, or on a GPU tensorrt or tensorrt_rtx",
    )
    wish = parser.add_argument_group("what is asked of the bundle")
    wish.add_argument("--max-drop", type=float, metavar="P", help="points of top-1 that it may lose against FP32")
    wish.add_argument("--latency", type=float, metavar="MS", help="milliseconds that a call may take, in the median")
    wish.add_argument("--size", type=float, metavar="MB", help="megabytes that the model may have")
    group = parser.add_argument_group("how it is looked for")
    group.add_argument("--search", default="optuna", metavar="S", help="optuna (default), or greedy alone")
    group.add_argument(
        "--minutes", type=float, default=15.0, metavar="M", help="about so long for all of it (default 15)"
    )
    group.add_argument("--trials", type=positive, metavar="N", help="try so many plans in INT8 at most")
    group.add_argument("--keep", type=positive, default=4, metavar="N", help="bundles in INT8 to write (default 4)")
    group.add_argument(
        "--method", action="append", dest="methods", metavar="M", help="how ranges are chosen, see export; repeatable"
    )
    group.add_argument("--samples", type=positive, default=300, metavar="N", help="that calibrate (default 300)")
    group.add_argument(
        "--images", type=positive, default=256, metavar="N", help="images that judge a plan (default 256)"
    )
    group.add_argument(
        "--final-images",
        type=positive,
        metavar="N",
        help="images that judge the bundles at the end (default: all of DATA)",
    )
    group.add_argument("--threads", type=positive, metavar="N", help="threads of the runtime (default: its own)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the images and the search (default 0)")
    add_network_arguments(parser)
    parser.add_argument("--force", action="store_true", help="begin anew where DIR has a search already")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder of the bundles")


def run(args: argparse.Namespace) -> int:
    """Search and print; 1 where nothing keeps what was asked."""
    from vitdeploy.search.optimize import optimize

    with contextlib.redirect_stdout(sys.stderr):  # what the user's own module prints is not the result
        report = optimize(
            args.source,
            args.data,
            args.output,
            runtime=args.runtime,
            max_drop=args.max_drop,
            latency=args.latency,
            megabytes=args.size,
            search=args.search,
            minutes=args.minutes,
            trials=args.trials,
            keep=args.keep,
            methods=args.methods or ("auto",),
            threads=args.threads,
            samples=args.samples,
            images=args.images,
            final_images=args.final_images,
            seed=args.seed,
            force=args.force,
            **network_arguments(args),
        )
    print(json.dumps(report.to_dict()) if args.json else report)
    return 0 if report.passed else 1
