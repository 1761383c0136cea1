"""Run build, verify, benchmark or validate on many devices over SSH, each with its own vitdeploy, and gather results.

  vitdeploy fleet verify lemevit --hosts fleet.toml
  vitdeploy fleet build lemevit --hosts fleet.toml --only nano-1,nano-2 -- --workspace 2G
  vitdeploy fleet benchmark lemevit --hosts fleet.toml -o latency -- --runtime onnxruntime --seconds 30
  vitdeploy fleet validate lemevit-int8 --baseline lemevit-fp32 --hosts fleet.toml -o accuracy -- --max-drop 0.5

What stands behind -- are options of the command on the devices. The file of hosts is TOML:

  [defaults]                            # all but address; each may be stated for one host too
  user = "vit"
  vitdeploy = "~/venv/bin/vitdeploy"    # the command on the device (default: vitdeploy)
  data = "~/photos"                     # on the device, for validate
  runtime = "tensorrt"                  # besides: port, key, folder, timeout (seconds, default 3600)

  [hosts.nano-1]
  address = "192.168.7.31"

The bundle is copied to a device once. Keys are those of the agent and of ~/.ssh; ~/.ssh/config is read, host keys have
to be in known_hosts, and no password is asked for. A host that is off, full, too slow or fails is a row of the table,
and the others go on. With -o DIR results are written as they come, and the same command asks only hosts that have not
passed. Needs pip install 'vitdeploy[fleet]', which brings asyncssh.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vitdeploy.cli.benchmark import names
from vitdeploy.cli.output_file import check_folder
from vitdeploy.cli.parser import Parser

HELP = "build, verify, benchmark or validate on many devices over SSH"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy fleet`."""
    parser.add_argument("verb", choices=("build", "verify", "benchmark", "validate"), help="what the devices do")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--hosts", type=Path, required=True, metavar="FILE.toml", help="the devices, see above")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="keep results here, and go on with them")
    parser.add_argument(
        "--baseline", type=Path, metavar="BUNDLE", help="of a validation: FP32 bundle to compare with, copied too"
    )
    parser.add_argument("--only", type=names, metavar="NAME,…", help="these hosts alone")
    parser.add_argument("--parallel", type=int, default=8, metavar="N", help="hosts at once (default 8)")
    parser.add_argument("--force", action="store_true", help="ask hosts again that have passed")
    parser.add_argument(
        "--device-table", type=Path, metavar="DIR", help="of a benchmark: add a file for each device to this table"
    )
    if isinstance(parser, Parser):
        parser.takes_rest("options", "options of the command on the devices")


def run(args: argparse.Namespace) -> int:
    """Exit 0 where every host passed, 1 where one did not."""
    from vitdeploy.hosts.fleet import fleet

    if args.device_table:
        check_folder(args.device_table, "--device-table")
    try:
        report = fleet(
            args.verb,
            args.bundle,
            args.hosts,
            baseline=args.baseline,
            options=args.options,
            output=args.output,
            only=args.only,
            parallel=args.parallel,
            force=args.force,
            device_table=args.device_table,
        )
    except KeyboardInterrupt:
        kept = "asks only the hosts that have not passed" if args.output else "begins anew; with -o it would go on"
        raise KeyboardInterrupt(f"interrupted; the same command {kept}") from None
    print(json.dumps(report.to_dict()) if args.json else report)
    return 0 if report.passed else 1
