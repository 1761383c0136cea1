"""What an export takes: CPU seconds of whole processes, in each precision, and those of other INT8 quantizers.

    python benchmarks/export_time.py [--rounds 3] [--only NAME] [--against CHECKOUT] [--peers-python PYTHON] [--save]

All processes have `OMP_NUM_THREADS=1` and take turns; a ratio is taken round by round against the FP32 export of the
same network and size. CPU seconds, user and system, are what holds on a busy machine; wall time is given besides.
INT8 is calibrated on 300 images of `eurosat_train.zip`. `--against` runs another checkout of vitdeploy in the same
rounds. The peers start from the FP32 file of LeMeViT-Tiny at 64 pixels and the same images, ready in memory; what is
not installed for `--peers-python` is left out. `--save` writes benchmarks/results/export_time.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from timing import environment, finished, process, ratio

from vitdeploy.data import open_data
from vitdeploy.preprocess import Preprocessing

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
LEMEVIT = ["lemevit_tiny.eurosat"]
DUALVIT = ["dualvit_s", "--num-classes", "10", "--image-size", "64", "--checkpoint"]
NETWORKS = {
    "LeMeViT-Tiny, 64": LEMEVIT,
    "LeMeViT-Tiny, 224": [*LEMEVIT, "--image-size", "224"],
    "Dual-ViT-S, 64": [*DUALVIT, str(SHARED / "weights/dualvit_s_eurosat.safetensors")],
}
PEERS = {"ONNX Runtime static": ("ort-static", "onnxruntime"), "NNCF": ("nncf", "nncf")}
SAMPLES = 300


def commands(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Network, what is measured, and the command: FP32 first, from whose file the peers start."""
    train = str(args.data / "eurosat_train.zip")
    precisions = {"FP32": [], "FP16": ["--fp16"], "INT8": ["--int8", "--calibration", train]}
    for network, source in NETWORKS.items():
        for precision, options in precisions.items():
            target = folder / f"{network}-{precision}".replace(" ", "")
            command = ["-m", "vitdeploy", "export", *source, *options, "--force", "-o", str(target)]
            yield network, precision, ["", *command]
            if args.against is not None:
                yield network, f"{precision} before", [str(args.against), *command]
    network = next(iter(NETWORKS))
    model = str(folder / f"{network}-FP32".replace(" ", "") / "model.onnx")
    for name, (method, package) in PEERS.items():
        if subprocess.run([args.peers_python, "-c", f"import {package}"], capture_output=True).returncode == 0:
            output = str(folder / f"{method}.onnx")
            script = [str(HERE / "int8_peers.py"), method, model, str(folder / "images.npy"), output]
            yield network, name, ["", *script]


def calibration(data: Path) -> Any:
    """The images as the peers take them: float32 [batches, 1, 3, 64, 64]."""
    images = open_data(data)
    recipe = Preprocessing(size=(64, 64), crop_ratio=1.0)
    chosen = images.sample(SAMPLES, 0)
    return np.stack([images.tensor(index, recipe) for index in chosen])[:, None]


def measured(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    np.save(folder / "images.npy", calibration(args.data / "eurosat_train.zip"))
    rows = [row for row in commands(args, folder) if args.only is None or args.only in row[0]]
    runs: dict[tuple[str, str], list[dict[str, float]]] = {row[:2]: [] for row in rows}
    for _ in range(args.rounds):
        for network, what, (checkout, *command) in rows:
            python = args.peers_python if what in PEERS else sys.executable
            os.environ["PYTHONPATH"] = checkout or str(HERE.parent)
            runs[network, what].append(process([python, *command]))
            print(network, what, runs[network, what][-1], file=sys.stderr)
    return [
        {
            "network": network,
            "what": what,
            **{key: round(statistics.median(run[key] for run in found), 1) for key in found[0]},
            "cpu_over_fp32": ratio(
                [run["cpu_seconds"] for run in found], [run["cpu_seconds"] for run in runs[network, "FP32"]]
            ),
        }
        for (network, what), found in runs.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="part of a network's name")
    parser.add_argument("--against", type=Path, help="folder of another checkout of vitdeploy")
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--data", type=Path, default=SHARED / "data/eurosat")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    args.data = args.data.absolute()
    args.against = None if args.against is None else args.against.resolve()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)  # `python -m` would take the package of the working directory
        report = {
            "environment": environment(["torch", "onnx", "onnxruntime", "openvino", "numpy"]),
            "rows": measured(args, Path(name)),
        }
    text = json.dumps(finished(report), indent=1)
    print(text)
    if args.save:
        (HERE / "results/export_time.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
