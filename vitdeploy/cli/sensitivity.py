"""Measure what every layer or block costs when it alone is in INT8 or FP16, and say why. Writes no bundle.

SOURCE is what `vitdeploy export` takes, or the folder of an FP32 bundle.

  vitdeploy sensitivity lemevit_tiny.eurosat --data eurosat.zip
  vitdeploy sensitivity lemevit_tiny.eurosat --data eurosat.zip --by block --precision fp16
  vitdeploy sensitivity my_model.py:build --data photos/ --top 20 --csv layers.csv
  vitdeploy sensitivity lemevit-fp32 --data labelled/ --runtime openvino --sort ms

A part is measured in a graph whose other parts are in FP32: the signal-to-noise ratio of the worst output, on images
that did not calibrate; the points of top-1 that it loses on labelled ones, paired, with a 95 % interval; and the
milliseconds that it saves on this machine. `noise` is its share of what all parts make, since powers of noise add up.
Ctrl-C prints what was measured so far.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from pathlib import Path

from vitdeploy.cli.arguments import positive, runtime_name
from vitdeploy.cli.benchmark import INTERRUPTED
from vitdeploy.cli.export import add_network_arguments, network_arguments
from vitdeploy.cli.output_file import check_writable, write

HELP = "what each layer or block costs in INT8 or FP16, and why"

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy sensitivity`."""
    parser.add_argument("source", metavar="SOURCE", help="what export takes, or the folder of an FP32 bundle")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DATA", help="images like those in use: a folder, a zip or an .npz"
    )
    parser.add_argument("--precision", default="int8", metavar="P", help="int8 (default) or fp16")
    parser.add_argument("--target", metavar="T", help="a target of `vitdeploy targets` (default: portable)")
    parser.add_argument("--by", default="layer", metavar="U", help="layer (default) or block")
    parser.add_argument(
        "--sort", default="snr", metavar="K", help="snr (default), points, ms, or order, that of the graph"
    )
    parser.add_argument("--top", type=positive, metavar="N", help="print so many of them; --json and --csv have all")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a line for each")
    group = parser.add_argument_group("what is measured")
    group.add_argument("--samples", type=int, default=300, metavar="N", help="images to calibrate on (default 300)")
    group.add_argument("--images", type=int, default=200, metavar="N", help="other images to judge on (default 200)")
    group.add_argument("--method", default="auto", metavar="M", help="how ranges are chosen, see export")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of images (default 0)")
    group.add_argument(
        "--runtime",
        type=runtime_name,
        metavar="R",
        help="measure milliseconds on it: onnxruntime or openvino (default: the first one of the target that is here)",
    )
    group.add_argument("--threads", type=positive, metavar="N", help="threads of the runtime (default: its own)")
    group.add_argument("--no-latency", dest="latency", action="store_false", help="measure no milliseconds")
    add_network_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print; 130 where Ctrl-C stopped it."""
    from vitdeploy.costs.sensitivity import sensitivity
    from vitdeploy.errors import VitDeployError

    if args.csv:
        check_writable(args.csv, "--csv")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what the user's own module prints is not the result
            report = sensitivity(
                args.source,
                args.data,
                precision=args.precision,
                target=args.target,
                by=args.by,
                sort=args.sort,
                runtime=args.runtime,
                latency=args.latency,
                threads=args.threads,
                samples=args.samples,
                images=args.images,
                method=args.method,
                seed=args.seed,
                on_interrupt="report",
                **network_arguments(args),
            )
    except KeyboardInterrupt:
        log.error("interrupted before anything was measured")
        raise
    print(json.dumps(report.to_dict()) if args.json else report.table(args.top))
    try:
        if args.csv:
            write(args.csv, report.to_csv(), "--csv")
    except VitDeployError as error:  # the result is printed already, and one JSON object is enough
        log.error("%s", error)
        return error.exit_code
    return INTERRUPTED if report.interrupted else 0
