"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path
from typing import Any

# A comma stands between the numbers of a value too; the next field begins where a name and `=` follow it.
_NEXT_FIELD = re.compile(r",(?=\s*[A-Za-z_]+=)")

_LOAD_OPTIONS = ("threads", "num_requests", "compute_precision", "device", "cache", "checkpoint", "untrusted")


def add_runtime(parser: argparse.ArgumentParser) -> None:
    """`--runtime`, one name, and the options of `vitdeploy.load`."""
    parser.add_argument(
        "--runtime",
        default="auto",
        metavar="R",
        help="a runtime that `vitdeploy doctor` lists, short: ort, ov or trt; or auto (default)",
    )
    add_load_options(parser)


def add_load_options(parser: argparse.ArgumentParser) -> None:
    """The options of `vitdeploy.load`; a runtime raises an error for one that it does not have."""
    group = parser.add_argument_group("how the runtime computes")
    group.add_argument("--threads", type=int, metavar="N", help="threads of computation (default: the runtime's)")
    group.add_argument("--num-requests", "--streams", type=int, metavar="N", help="calls that are computed at once")
    group.add_argument("--device", metavar="D", help="CPU, GPU, NPU, or the runtime's own name for one")
    group.add_argument(
        "--compute-precision",
        metavar="P",
        help="fp32, bf16 or fp16, where the runtime lets one choose (default: the most exact one)",
    )
    group.add_argument("--cache", type=Path, metavar="DIR", help="keep compiled models here; trust it like a program")
    group.add_argument(
        "--untrusted",
        action="store_true",
        default=None,
        help="the bundle is a stranger's: run it in a process with a limit of time and memory",
    )
    group.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights of the bundle, for the runtime torch")


def add_key(parser: argparse.ArgumentParser) -> None:
    """`--key`, the public key that a bundle has to be signed with."""
    parser.add_argument(
        "--key", type=Path, metavar="PUBLIC.pem", help="first check that the bundle is signed by the owner of this key"
    )


def load_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_load_options`, as keywords of `vitdeploy.load`."""
    return {name: getattr(args, name) for name in _LOAD_OPTIONS}


def positive(text: str) -> int:
    """A whole number of at least 1; ValueError for any other text."""
    number = int(text)
    if number < 1:
        raise ValueError(f"{number} is not positive")
    return number


def runtime_name(text: str) -> str:
    """`onnxruntime` for `ort`; any other name as it is."""
    from vitdeploy.runtime.backends import full_name

    return full_name(text)


def add_preprocessing(parser: argparse.ArgumentParser) -> None:
    """`--preprocessing`, which may be given several times: a list of names and values."""
    parser.add_argument(
        "--preprocessing",
        type=preprocessing,
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="how images become inputs, where the checkpoint does not say it: mode, crop_ratio, interpolation, mean, "
        "std, channels (RGB, BGR, L for grey, or bands for data of any channels), scale (the pixel value that becomes "
        "1.0); several as channels=bands,scale=10000,mean=…,std=…",
    )


def preprocessing(text: str) -> list[tuple[str, Any]]:
    """`mode=stretch`, `mean=0.5,0.5,0.5` or several such joined by commas, as names and values.

    A value is text where it is not a number or numbers. Raises ArgumentTypeError for a field without a name or value.
    """
    found = []
    for field in _NEXT_FIELD.split(text):
        key, _, value = field.strip().partition("=")
        if not key or not value:
            raise argparse.ArgumentTypeError(
                f"invalid preprocessing {text!r}: expected KEY=VALUE, e.g. mode=stretch or mean=0.5,0.5,0.5"
            )
        try:
            found.append((key, ast.literal_eval(value)))
        except (ValueError, SyntaxError):
            found.append((key, value))
    return found
