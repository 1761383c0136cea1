"""Write one HTML file about bundles, with pictures, that opens anywhere: no network, no script, no other file.

  vitdeploy report lemevit-fp32 lemevit-fp16 lemevit-int8 --data photos --runtime onnxruntime,openvino -o report.html
  vitdeploy report lemevit-int8 --data photos.zip --baseline lemevit-fp32 --samples 500 --seconds 30 -o report.html
  vitdeploy report lemevit-fp32 lemevit-int8 --validation drop.json --benchmark latency.json -o report.html

With --data it runs `validate` and `benchmark`, and the page has the front of accuracy and latency, the drop of each
bundle with its 95 % interval, that of each class, what is taken for what, the images whose answer changed with both
answers, and the times of the calls. --validation and --benchmark take what an earlier run printed with --json instead.
--seconds alone measures the latency only. What the page has no figures for it says how to add. It always has what the
manifests tell: what was fused and rewritten, what stayed in float and why, versions, and the commands to repeat it.
The manifests stay as they are. Needs pip install 'vitdeploy[report]', which brings matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vitdeploy.cli.arguments import positive
from vitdeploy.cli.benchmark import names

HELP = "one HTML file: accuracy, latency, layers, flipped images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy report`."""
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.html", help="the file to write")
    parser.add_argument("--data", type=Path, metavar="DATA", help="measure accuracy on these images, and latency")
    parser.add_argument(
        "--runtime", type=names, default=["auto"], metavar="R", help="names with commas, all, or auto (default)"
    )
    parser.add_argument(
        "--baseline", type=Path, metavar="BUNDLE", help="FP32 bundle to compare with (default: PyTorch)"
    )
    parser.add_argument("--samples", type=positive, metavar="N", help="so many images of DATA")
    parser.add_argument("--seconds", type=float, metavar="S", help="measure latency for about so long (default 10)")
    parser.add_argument("--validation", type=Path, metavar="FILE.json", help="output of validate --json")
    parser.add_argument("--benchmark", type=Path, metavar="FILE.json", help="output of benchmark --json")
    parser.add_argument("--sensitivity", type=Path, metavar="FILE.json", help="output of sensitivity --json")
    parser.add_argument("--optimize", type=Path, metavar="FILE.json", help="output of optimize --json")
    parser.add_argument("--title", metavar="T", help="heading of the page (default: the name of the network)")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")


def run(args: argparse.Namespace) -> int:
    """Write the file, and say in a sentence for each bundle what it shows."""
    from vitdeploy.reporting.report import report

    found = report(
        args.bundles,
        args.output,
        data=args.data,
        runtime=args.runtime,
        baseline=args.baseline,
        samples=args.samples,
        seconds=args.seconds,
        validation=args.validation,
        benchmark=args.benchmark,
        sensitivity=args.sensitivity,
        optimize=args.optimize,
        title=args.title,
        force=args.force,
    )
    print(json.dumps(found.to_dict()) if args.json else found)
    return 0
