"""Check on this machine that a bundle is unaltered and reproduces the PyTorch outputs it carries. Needs no torch.

  vitdeploy verify BUNDLE
  vitdeploy verify BUNDLE --key PUBLIC.pem      (first: whoever has the private key signed exactly these files)

The hashes of a bundle show damage. Only a signature shows who made it: see `vitdeploy sign`. It is checked before
anything of the bundle is parsed, without a network, and needs pip install 'vitdeploy[sign]'.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from vitdeploy.cli.arguments import add_key, add_runtime, load_options
from vitdeploy.cli.junit import JunitFile, add_junit

HELP = "check a bundle's hashes, inputs and outputs on this machine, and with --key its signature"

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy verify`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    add_key(parser)
    add_junit(parser)
    add_runtime(parser)


def run(args: argparse.Namespace) -> int:
    """Exit 0 when everything holds, 1 when the numbers or the signature do not."""
    from vitdeploy.errors import VitDeployError
    from vitdeploy.runtime.verify import verify

    with JunitFile(args.junit, "verify") as junit:
        report = verify(args.bundle, key=args.key, runtime=args.runtime, **load_options(args))
    print(json.dumps(report.to_dict()) if args.json else report)
    try:
        junit.write(report.cases())
    except VitDeployError as error:  # the result is printed already, and one JSON object is enough
        log.error("%s", error)
        return error.exit_code
    return 0 if report.passed else 1
