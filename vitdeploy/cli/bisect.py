"""Find the first tensor and block that a runtime computes otherwise than the file says, and a model that shows it.

  vitdeploy bisect lemevit-int8 --runtime openvino
  vitdeploy bisect model.onnx --runtime openvino --compute-precision bf16 -o report
  vitdeploy bisect model.onnx --runtime openvino --against onnxruntime --inputs images.npz

The reference is what the ONNX standard says that the file computes: ONNX Runtime runs it node by node, without any
optimization. What crosses a cut of the graph is compared with that, and the cuts are halved. -o DIR writes the smallest
part that is wrong on its own, with its inputs and expected outputs, and a reproduce.py that needs numpy and the runtime
alone; it is run before it is called a reproducer. The inputs are the bundle's reference, or random ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vitdeploy.cli.arguments import add_key, add_load_options, load_options

HELP = "the first tensor and block that a runtime computes wrongly, with a reproducer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy bisect`."""
    parser.add_argument("model", type=Path, metavar="BUNDLE|MODEL.onnx", help="a bundle, or any .onnx file")
    parser.add_argument(
        "--runtime",
        required=True,
        metavar="R",
        help="a runtime that `vitdeploy doctor` lists, short: ort, ov or trt",
    )
    parser.add_argument(
        "--against", default="reference", metavar="R", help="what is trusted: reference (default), or another runtime"
    )
    parser.add_argument("--inputs", type=Path, metavar="FILE.npz", help="an array for each input, by its name")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random inputs (default 0)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="write the smallest part that is wrong, and a program that shows it",
    )
    add_key(parser)
    add_load_options(parser)


def run(args: argparse.Namespace) -> int:
    """Exit 0 where the runtime gives what is trusted, 1 where it differs."""
    from vitdeploy.divergence.bisect import bisect

    report = bisect(
        args.model,
        runtime=args.runtime,
        against=args.against,
        inputs=args.inputs,
        seed=args.seed,
        output=args.output,
        key=args.key,
        **load_options(args),
    )
    print(json.dumps(report.to_dict()) if args.json else report)
    return 0 if report.passed else 1
