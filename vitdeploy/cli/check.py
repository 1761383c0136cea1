"""Tell without a GPU whether a bundle builds in TensorRT or on a Jetson, and what fuses there.

  vitdeploy check lemevit-tensorrt10
  vitdeploy check lemevit --target jetson-orin-nano-jp6
  vitdeploy check lemevit --compile

The rules are tables about TensorRT versions and boards. --compile asks NVIDIA's own ONNX parser and graph compiler,
those of TensorRT for RTX, which run on a CPU (x86-64 Linux, pip install 'vitdeploy[nvidia]').
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vitdeploy.errors import UsageError, shell

HELP = "tell without a GPU what TensorRT or a Jetson will make of a bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy check`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle; with --compile also an .onnx file")
    parser.add_argument(
        "--target",
        metavar="T",
        help="tensorrt8, tensorrt10, tensorrt11, tensorrt_rtx, one version (tensorrt10.7), or a board: "
        "jetson-orin-nano (its newest JetPack), jetson-orin-nano-jp6, …",
    )
    group = parser.add_argument_group("NVIDIA's own parser and compiler")
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile the graph with TensorRT for RTX, on the CPU; also estimates the time on Jetsons",
    )
    group.add_argument(
        "--sm", metavar="N", help="compute capability: 75, 80, 86 (default, nearest to Orin's 87), 89, 120 or 121"
    )
    group.add_argument("--time-limit", type=float, metavar="S", help="seconds the compiler may take (default 600)")
    group.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="where the smallest part that still fails is written if the compiler fails (default: NAME-fails.onnx)",
    )


def run(args: argparse.Namespace) -> int:
    """Exit 0 when nothing blocks, 1 when the engine would not build or NVIDIA's compiler does not take the graph."""
    given = {name: getattr(args, name) for name in ("sm", "time_limit", "keep") if getattr(args, name) is not None}
    if not args.compile and given:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{options} without --compile", why="the rules compile nothing", fix="--compile")
    is_file = args.bundle.is_file()
    if is_file and (args.target is not None or not args.compile):
        raise UsageError(
            f"{args.bundle} is a file, and the rules judge a bundle",
            why="its manifest says what the network is and how it was exported",
            fix=f"--compile alone, or vitdeploy export {shell(args.bundle)} --target tensorrt10",
        )
    rules = compiled = None
    if args.target is not None or not args.compile:
        from vitdeploy.platforms.check import check

        rules = check(args.bundle, args.target)
    if args.compile:
        from vitdeploy.tensorrt.rtx.compile import compile_check

        compiled = compile_check(args.bundle, **given)
    reports = [report for report in (rules, compiled) if report is not None]
    passed = all(report.passed for report in reports)
    if args.json:
        told = {} if rules is None else rules.to_dict()
        told |= {} if compiled is None else {"compiled": compiled.to_dict()}
        print(json.dumps({**told, "passed": passed}))
    else:
        print("\n\n".join(map(str, reports)))
    return 0 if passed else 1
