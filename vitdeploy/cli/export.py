"""Export a network to a verified bundle.

SOURCE is a model of the zoo (see `vitdeploy models`), `timm:NAME`, `hf:FOLDER_OR_ID`, `model.pt2`, or
`file.py:function`, where the function returns a torch module or `(module, example_inputs)`.

  vitdeploy export lemevit_tiny.eurosat --fp16
  vitdeploy export lemevit_small --checkpoint weights.pth --num-classes 51 --target tensorrt10 --batch dynamic
  vitdeploy export lemevit_tiny.eurosat --fp16 --target jetson-orin-nano-jp6
  vitdeploy export lemevit_tiny.eurosat --int8 --calibration labelled/ --max-drop 0.1
  vitdeploy export my_model.py:build --image-size 256x192 -o build/mine

The bundle exists only if its files reproduce the PyTorch outputs; otherwise the command fails and leaves nothing. INT8
has to keep 20 dB against FP32, and --min-snr and --max-drop where they are given; with --accept-loss it need not.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.cli.arguments import add_preprocessing, positive, runtime_name

if TYPE_CHECKING:
    from vitdeploy.quantize.options import Int8Options

HELP = "export a network to a verified bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy export`."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="model name, timm:NAME, hf:FOLDER_OR_ID, file.py:function, model.pt2 or model.onnx",
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        "--fp16", action="store_const", const="fp16", dest="precision", default="fp32", help="half precision"
    )
    precision.add_argument(
        "--int8", action="store_const", const="int8", dest="precision", help="8-bit integers, see --calibration"
    )
    precision.add_argument("--precision", default="fp32", metavar="P", help="fp32 (default), fp16 or int8")
    parser.add_argument(
        "--target",
        default="portable",
        metavar="T",
        help="a target or a board of `vitdeploy targets` (default: portable)",
    )
    add_network_arguments(parser)
    parser.add_argument(
        "--bake-preprocessing",
        action="store_true",
        help="scale, mean, deviation and channel order in the graph: the input becomes uint8 [N, H, W, 3]",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        nargs="+",
        metavar="IMAGE",
        help="images to prove the bundle on, or an .npz with an array for each input (default: photographs)",
    )
    add_int8_arguments(parser.add_argument_group("INT8"))
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: ./MODEL-TARGET-PRECISION")


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """What decides the network, of a SOURCE."""
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help=".safetensors, or .pth read without running code"
    )
    parser.add_argument("--num-classes", type=int, metavar="N", help="classes of the checkpoint's classifier")
    parser.add_argument("--image-size", type=image_size, metavar="N", help="pixels: N, or HEIGHTxWIDTH")
    parser.add_argument(
        "--input",
        action="append",
        dest="inputs",
        metavar="NAME=SHAPE[:DTYPE]",
        help="an input of a network of your own, the batch first, e.g. images=1x13x64x64 or ids=1x77:int64; a word in "
        "the place of a number leaves that axis free",
    )
    parser.add_argument("--batch", type=batch, metavar="N", help="samples a call: N (default 1) or 'dynamic'")
    parser.add_argument(
        "--set",
        type=hyperparameter,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="hyperparameter of the network, e.g. windows=8,8,16,8, or argument of the function",
    )
    add_preprocessing(parser)
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names, one a line")
    parser.add_argument("--features", action="store_true", help="the feature pyramid instead of the logits")


def network_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `add_network_arguments`, as keywords of `vitdeploy.export`."""
    return {
        "checkpoint": args.checkpoint,
        "num_classes": args.num_classes,
        "image_size": args.image_size,
        "inputs": args.inputs,
        "batch": args.batch,
        "hyperparameters": dict(args.set),
        "preprocessing": dict(args.preprocessing),
        "labels": _labels(args.labels) if args.labels else None,
        "features": args.features,
    }


def add_int8_arguments(group: argparse._ArgumentGroup) -> None:
    """Arguments that only INT8 takes; None where the user did not give them."""
    group.add_argument(
        "--calibration",
        type=Path,
        metavar="DATA",
        help="images like those in use: a folder, a zip or an .npz, which for several inputs has an array for each",
    )
    group.add_argument("--samples", type=int, metavar="N", help="images to calibrate on (default 300)")
    group.add_argument(
        "--method",
        metavar="M",
        help="how ranges of activations are chosen: auto (default), minmax, percentile, mse, or an installed method",
    )
    group.add_argument(
        "--ignored-scope",
        "--ignore",
        action="append",
        metavar="PATTERN",
        help="nodes that stay in float, e.g. 'stages.3.*'; may be given several times",
    )
    group.add_argument(
        "--min-snr",
        type=float,
        metavar="DB",
        help="gate: revert layers to float until the outputs keep this, 20 or more, against FP32",
    )
    group.add_argument(
        "--goal",
        type=goal,
        action="append",
        dest="goals",
        metavar="OUTPUT=DB",
        help="the same gate for one output by its name, e.g. masks=25; may be given several times",
    )
    group.add_argument(
        "--max-drop",
        type=float,
        metavar="P",
        help="gate: revert layers until the 95 %% interval of the drop of top-1 ends at P points or below; needs "
        "labelled DATA, 3,838 images for 0.1 points and 765 for 0.5, besides --samples",
    )
    group.add_argument(
        "--accept-loss",
        action="store_true",
        default=None,
        help="write the bundle where a gate is missed or DATA has too few images for --max-drop, with a warning",
    )
    group.add_argument(
        "--tune-latency",
        dest="tune_latency",
        type=runtime_name,
        metavar="RUNTIME",
        help="leave layers in float that are not faster in INT8 on this runtime, measured on this machine",
    )
    group.add_argument("--seed", type=int, metavar="N", help="of the choice of images (default 0)")


def int8_options(args: argparse.Namespace) -> Int8Options | None:
    """The options that were given; None without any."""
    from vitdeploy.errors import UsageError
    from vitdeploy.quantize.options import Int8Options

    names = (
        "samples",
        "method",
        "ignored_scope",
        "min_snr",
        "goals",
        "max_drop",
        "accept_loss",
        "tune_latency",
        "seed",
    )
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if given and args.precision != "int8":
        first = next(iter(given))
        option = "goal" if first == "goals" else first.replace("_", "-")
        raise UsageError(f"--{option} is for INT8", fix="--int8 --calibration DATA")
    if "goals" in given:
        stated = given["goals"]
        twice = next((name for name, _ in stated if [one for one, _ in stated].count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"--goal {twice} is given twice", fix=f"one --goal {twice}=DB")
        given["goals"] = dict(stated)
    if "ignored_scope" in given:
        given["ignored_scope"] = tuple(given["ignored_scope"])
    return Int8Options(**given) if given else None


def goal(text: str) -> tuple[str, float]:
    """`masks=25` as the name of an output and its decibels; a name may have `=` in it."""
    name, equals, number = text.rpartition("=")
    try:
        bound = float(number)
    except ValueError:
        equals = ""
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"invalid goal {text!r}: expected OUTPUT=DB, e.g. masks=25")
    return name, bound


def image_size(text: str) -> int | tuple[int, int]:
    """`224` or `256x192` (height x width)."""
    try:
        sides = [positive(part) for part in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise argparse.ArgumentTypeError(f"invalid size {text!r}: expected 224, or 256x192 for height x width")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def batch(text: str) -> int | str:
    """`8` or `dynamic`."""
    if text == "dynamic":
        return text
    try:
        return positive(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid batch {text!r}: expected a positive number, or dynamic") from None


def hyperparameter(text: str) -> tuple[str, Any]:
    """`windows=8,8,16,8` as a name and a Python value; what is none is text."""
    key, _, value = text.partition("=")
    if not key.isidentifier() or not value:
        raise argparse.ArgumentTypeError(f"invalid argument {text!r}: expected KEY=VALUE, e.g. windows=8,8,16,8")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, {"true": True, "false": False}.get(value.lower(), value)


def run(args: argparse.Namespace) -> int:
    """Export and print where the bundle is and how well it matches."""
    from vitdeploy import export
    from vitdeploy.cli.summary import summarize, table

    start = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):  # what the user's own module prints is not the result
        bundle = export(
            args.source,
            args.output or Path(f"{source_name(args.source)}-{_target_name(args.target)}-{args.precision}"),
            precision=args.precision,
            target=args.target,
            bake_preprocessing=args.bake_preprocessing,
            reference=_reference(args.reference),
            calibration=args.calibration,
            int8=int8_options(args),
            force=args.force,
            **network_arguments(args),
        )
    summary = summarize(bundle, seconds=time.perf_counter() - start)
    print(json.dumps(summary) if args.json else table(summary))
    return 0


def source_name(source: str) -> str:
    """What a bundle of `source` is called where no folder is given."""
    kind, colon, rest = source.partition(":")
    if not colon or kind in ("timm", "hf"):
        return Path(rest or source).name.removesuffix(".pt2")
    return Path(source.rpartition(":")[0]).stem


def _target_name(target: str) -> str:
    """The whole name of a target or board; UsageError for a name that nothing has."""
    from vitdeploy.platforms.boards import export_target

    row, platform = export_target(target)
    return row.name if platform is None else platform.name


def _reference(paths: list[Path] | None) -> Any:
    """Paths of images, or the arrays of a single .npz by the names of inputs."""
    from vitdeploy.exporter.inputs import read_arrays

    if paths is not None and len(paths) == 1 and paths[0].suffix.lower() == ".npz":
        return read_arrays(paths[0])
    return paths


def _labels(path: Path) -> list[str]:
    from vitdeploy.data.image_files import read_labels
    from vitdeploy.errors import UsageError

    try:
        text = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read {path}", why=error.strerror or str(error), fix="--labels with a file of one class name a line"
        ) from error
    return list(read_labels(text, str(path)))
