"""Sign a bundle with a private key of your own, so that a device can refuse every bundle that is not yours.

  openssl ecparam -genkey -name prime256v1 -noout -out private.pem      (stays where bundles are signed)
  openssl pkey -in private.pem -pubout -out public.pem                  (goes to the devices)
  vitdeploy sign BUNDLE --key private.pem
  vitdeploy verify BUNDLE --key public.pem

Every file in the folder is signed, in the format of OpenSSF model signing, into BUNDLE/model.sig. Sign last: nothing
writes into a signed bundle any more. The password of an encrypted key is read from the environment variable
VITDEPLOY_KEY_PASSWORD, or asked for in a terminal. Needs pip install 'vitdeploy[sign]', and no network.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from pathlib import Path

HELP = "sign a bundle with your private key"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy sign`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--key", type=Path, required=True, metavar="PRIVATE.pem", help="private key of the curve P-256, P-384 or P-521"
    )
    parser.add_argument("--force", action="store_true", help="replace the signature that is there")


def run(args: argparse.Namespace) -> int:
    """Sign, and say what was signed and by which key."""
    from vitdeploy.signing.keys import PASSWORD_VARIABLE, is_encrypted
    from vitdeploy.signing.sign import sign

    password = os.environ.get(PASSWORD_VARIABLE)
    if password is None and sys.stdin.isatty() and is_encrypted(args.key):
        password = getpass.getpass(f"password of {args.key}: ")
    report = sign(args.bundle, key=args.key, password=password, force=args.force)
    print(json.dumps(report.to_dict()) if args.json else report)
    return 0
