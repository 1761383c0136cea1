"""Measure latency, throughput, load time, memory and energy of bundles on this machine. Needs no torch.

  vitdeploy benchmark lemevit-fp32 lemevit-fp16 --runtime all
  vitdeploy benchmark lemevit-fp16 --runtime openvino --batch 1,8 --threads 4 --seconds 30 --csv latency.csv
  vitdeploy benchmark lemevit-fp16 --json > before.json
  vitdeploy benchmark lemevit-fp16 --baseline before.json --max-slowdown 1.1
  vitdeploy benchmark lemevit-fp16 --seconds 30 --device-table devices

Candidates (bundle x runtime x batch) take turns in random order, round by round, each in a process of its own, so that
a disturbance of the machine affects all of them. A ratio is the time per image over that of the baseline, as the median
of the rounds with a 95 % interval; an interval that contains 1 shows no difference. Load time includes the import of
the runtime. Peak memory is the largest resident set of the process (VmHWM), with Python and numpy and without the
memory of a GPU. Energy is told where the machine has a sensor: RAPL, the power monitors of a Jetson, or NVML. It is all
that the machine draws meanwhile, idle power and other processes included. A run is compared with an earlier one only if
machine, versions, threads, precision, governor and power mode are the same, unless --allow-different. --max-slowdown R
fails where a whole interval is above R: where a candidate is certainly slower. --device-table DIR adds a file for each
bundle, with the name of the board or the processor, to a folder of measurements of many devices. Ctrl-C prints what was
measured so far.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.cli.arguments import add_load_options, load_options, positive
from vitdeploy.cli.junit import JunitFile, add_junit
from vitdeploy.cli.output_file import check_folder, check_writable, write

if TYPE_CHECKING:
    from vitdeploy.latency.report import BenchmarkReport

HELP = "measure latency, throughput, memory and energy of bundles"

INTERRUPTED = 130

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy benchmark`."""
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument(
        "--runtime", type=names, default=["auto"], metavar="R", help="names with commas, all, or auto (default)"
    )
    parser.add_argument(
        "--batch", type=numbers, metavar="N", help="images a call, e.g. 1,8 (default: the bundle's, 1 if dynamic)"
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="measure for about so long (default 10)")
    parser.add_argument("--rounds", type=int, metavar="N", help="at most so many rounds")
    parser.add_argument("--warmup", type=float, default=1.0, metavar="S", help="warm each candidate up (default 1)")
    parser.add_argument(
        "--baseline", metavar="B", help="a runtime, one of the bundles, or the JSON file of an earlier run"
    )
    parser.add_argument(
        "--allow-different", action="store_true", help="compare with a run that was made under different settings"
    )
    parser.add_argument(
        "--max-slowdown",
        type=float,
        metavar="R",
        help="exit 1 where one takes certainly more than R times its baseline",
    )
    add_junit(parser)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a line for each candidate")
    parser.add_argument(
        "--device-table", type=Path, metavar="DIR", help="add a file for each bundle on this device to this table"
    )
    add_load_options(parser)


def names(text: str) -> list[str]:
    """`onnxruntime,openvino`."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str) -> list[int]:
    """`1,8`."""
    try:
        found = [positive(part) for part in names(text)]
    except ValueError:
        found = []
    if not found:
        raise argparse.ArgumentTypeError(f"invalid batches {text!r}: expected positive numbers, e.g. 1,8")
    return found


def run(args: argparse.Namespace) -> int:
    """Exit 0 when nothing is slower than the gate allows, else 1; 130 where Ctrl-C stopped it."""
    from vitdeploy.errors import VitDeployError

    if args.csv:
        check_writable(args.csv, "--csv")
    if args.device_table:
        check_folder(args.device_table, "--device-table")
    with JunitFile(args.junit, "benchmark") as junit:
        report = _benchmark(args)
    print(json.dumps(report.to_dict()) if args.json else report)
    try:
        junit.write(report.cases())
        if args.csv:
            write(args.csv, report.to_csv(), "--csv")
        if args.device_table:
            _add_to_table(args.device_table, report)
    except VitDeployError as error:  # the result is printed already, and one JSON object is enough
        log.error("%s", error)
        return error.exit_code
    if report.interrupted:
        return INTERRUPTED
    return 0 if report.passed else 1


def _add_to_table(folder: Path, report: BenchmarkReport) -> None:
    if report.interrupted:
        log.warning("nothing is added to %s: the run was interrupted", folder)
        return
    from vitdeploy.latency.device_table import add_to_table

    for path in add_to_table(folder, report):
        log.info("wrote %s", path)


def _benchmark(args: argparse.Namespace) -> BenchmarkReport:
    from vitdeploy.latency.benchmark import benchmark

    try:
        return benchmark(
            args.bundles,
            runtime=args.runtime,
            batch=args.batch,
            seconds=args.seconds,
            rounds=args.rounds,
            warmup=args.warmup,
            baseline=args.baseline,
            allow_different=args.allow_different,
            max_slowdown=args.max_slowdown,
            on_interrupt="report",
            **load_options(args),
        )
    except KeyboardInterrupt:
        log.error("interrupted before the first round was complete: nothing was measured")
        raise
