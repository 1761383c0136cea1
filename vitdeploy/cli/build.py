"""Build a bundle's engine and prove it against the PyTorch outputs that the bundle carries.

  vitdeploy build lemevit
  vitdeploy build lemevit --workspace 2G --timing-cache kernels.cache
  vitdeploy build lemevit --profile 1,8,32          (a bundle of free batch: min, opt, max)
  vitdeploy build lemevit --dla 0                   (what the accelerator cannot compute runs on the GPU)
  vitdeploy build lemevit --int8-if-faster          (an INT8 bundle: INT8 stays where it is measured to be faster)
  vitdeploy build lemevit --runtime tensorrt_rtx --sm 86,89,120        (on a CPU, for RTX GPUs)

The engine is cached. vitdeploy.load, predict, verify and benchmark with the runtime tensorrt use the one that was built
last; trtexec and DeepStream can read the file. Its folder also has the builder's log and a report: the attempts, their
parity, and which attention blocks and layer norms became one kernel. An engine that does not reproduce PyTorch is not
kept: the first block that diverges is named, and --workaround auto tries unfused attention, FP32 for that block, and
bfloat16, in this order. This needs the packages onnx, onnx-ir and onnxruntime.

TensorRT builds for the GPU of this device. TensorRT for RTX builds on a CPU (x86-64 Linux, pip install
'vitdeploy[nvidia]'), in a process of its own, for GPUs of the compute capabilities of --sm. Where none of them is here,
the engine is kept as not proven; every device proves it when it first loads it, and refuses it if it gives other
numbers there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vitdeploy.cli.arguments import add_key

HELP = "build and prove a TensorRT engine on this device, or one of TensorRT for RTX on a CPU"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy build`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    add_key(parser)
    parser.add_argument(
        "--runtime", metavar="R", help="tensorrt or tensorrt_rtx (default: what the bundle is for, else tensorrt)"
    )
    parser.add_argument("--timing-cache", type=Path, metavar="F", help="kernel timings, read and brought up to date")
    parser.add_argument("--workspace", metavar="N", help="scratch memory: 512M, 2G, or a number of MiB")
    parser.add_argument(
        "--profile", metavar="MIN,OPT,MAX", help="images a call where the batch is free (default 1,8,32)"
    )
    parser.add_argument("--dla", type=int, metavar="CORE", help="core of the deep learning accelerator")
    parser.add_argument(
        "--tf32",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="FP32 products with TF32's 10 bits, if the outputs still hold (default no)",
    )
    parser.add_argument(
        "--optimization-level",
        type=int,
        metavar="N",
        help="0 to 5: a higher one looks longer for faster kernels (default: TensorRT's own, 3)",
    )
    parser.add_argument(
        "--workaround",
        "--remedy",
        dest="workaround",
        default="auto",
        metavar="R",
        help="auto (default), none, or some of defuse,fp32,bf16",
    )
    parser.add_argument(
        "--int8-if-faster",
        action="store_true",
        help="keep INT8 only where this device is measured to be at least 1.02 times as fast with it",
    )
    parser.add_argument(
        "--max-builds", type=int, metavar="N", help="engines that --int8-if-faster may build (default 8)"
    )
    group = parser.add_argument_group("TensorRT for RTX")
    group.add_argument(
        "--sm", metavar="N,…", help="compute capabilities: 75, 80, 86, 89, 120, 121 (default: from 80 on)"
    )
    group.add_argument("--time-limit", type=float, metavar="S", help="seconds that building may take (default 600)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where engines are kept")
    parser.add_argument("--log", type=Path, metavar="F", help="another copy of what the builder says")
    parser.add_argument("--rebuild", action="store_true", help="build even where there is a proven engine")


def run(args: argparse.Namespace) -> int:
    """Exit 0 where an engine reproduces the reference or is built and not proven, 1 where none reproduces it."""
    from vitdeploy.signing.check import open_bundle
    from vitdeploy.tensorrt.prove import build

    report = build(
        open_bundle(args.bundle, args.key),
        runtime=args.runtime,
        sm=args.sm,
        workspace=args.workspace,
        profile=args.profile,
        dla=args.dla,
        tf32=args.tf32,
        optimization_level=args.optimization_level,
        workarounds=args.workaround,
        timing_cache=args.timing_cache,
        time_limit=args.time_limit,
        int8_if_faster=args.int8_if_faster,
        max_builds=args.max_builds,
        cache=args.cache,
        log_file=args.log,
        rebuild=args.rebuild,
    )
    print(json.dumps(report.to_dict()) if args.json else report)
    return 1 if report.failed else 0
