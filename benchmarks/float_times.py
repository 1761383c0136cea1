"""FP32 bundles of every target against torch.onnx.export and onnxsim: nodes, and time in every runtime.

    python benchmarks/float_times.py [--network NAME] [--shape 224x1] [--rounds 60] [--save]
    python benchmarks/float_times.py --table

Both sides start from the same network with the same weights: those trained on EuroSAT, or those that timm draws, of
which only the time means something. In each runtime the plain export, the portable bundle and the bundle for that
runtime take turns; time is the CPU time of one thread, ratios are taken round by round, the plain export in the
denominator. `--save` writes benchmarks/results/float_times.json after each part, `--table` prints that as Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from naive_export import naive
from sessions import RUNTIMES
from timing import environment, finished, interleave, ratio, size_and_batch
from torch import nn

from vitdeploy import create_model
from vitdeploy.exporter.sources.stand_in import without_torchvision

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "float_times.json"
CHECKPOINT = str(HERE.resolve().parents[1] / "shared/weights/dualvit_s_eurosat.safetensors")
NETWORKS: dict[str, list[str]] = {
    "lemevit_tiny.eurosat": [],
    "dualvit_s": ["--checkpoint", CHECKPOINT, "--num-classes", "10", "--set", "token_label=False"],
    "timm:deit_tiny_patch16_224": ["--set", "pretrained=False"],
    "timm:convnextv2_atto": ["--set", "pretrained=False"],
}
SHAPES = ((64, 1), (224, 1), (64, 8), (224, 8))
TARGETS = ("portable", "onnxruntime", "openvino")
TITLES = {"onnxruntime": "ONNX Runtime", "openvino f32": "OpenVINO", "openvino": "OpenVINO, bf16"}


def network(name: str, size: int) -> nn.Module:
    """What the plain export starts from."""
    if name.startswith("timm:"):
        with without_torchvision():
            import timm
        made: nn.Module = timm.create_model(name.removeprefix("timm:"), pretrained=False).eval()
        return made
    more: dict[str, Any] = {}
    if name == "dualvit_s":
        more = {"checkpoint": CHECKPOINT, "num_classes": 10, "hyperparameters": {"token_label": False}}
    return create_model(name, image_size=size, **more).eval()


def files(name: str, size: int, batch: int, folder: Path) -> dict[str, Path]:
    """The plain export and a bundle of each target."""
    found = {"naive": folder / "naive.onnx"}
    onnx.save(naive(network(name, size), torch.randn(batch, 3, size, size)), found["naive"])
    for target in TARGETS:
        command = [sys.executable, "-m", "vitdeploy", "export", name, *NETWORKS[name], "--target", target]
        command += ["--image-size", str(size), "--batch", str(batch), "-o", str(folder / target)]
        subprocess.run(command, check=True, capture_output=True)
        found[target] = folder / target / "model.onnx"
    return found


def times(found: dict[str, Path], shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Nodes of every file; milliseconds and ratio of every file that is meant for a runtime."""
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    results: dict[str, Any] = {"nodes": {name: len(onnx.load(path).graph.node) for name, path in found.items()}}
    for runtime, opened in RUNTIMES.items():
        meant = [name for name in found if name in ("naive", "portable", runtime.split()[0])]
        calls = {name: opened(found[name], 1) for name in meant}
        turns = {name: (lambda call=call: call(images)) for name, call in calls.items()}
        seconds = interleave(turns, rounds=rounds, clock=time.process_time)
        results[runtime] = {
            name: {"cpu_ms": round(1e3 * statistics.median(own), 3), "ratio": ratio(own, seconds["naive"])}
            for name, own in seconds.items()
        }
    return results


def table(report: dict[str, Any]) -> str:
    """Milliseconds of the plain export, and the ratios to it of the portable bundle and of that for the runtime."""
    lines = ["| network | nodes | runtime | plain, ms | portable | for the runtime |", "| --- " * 6 + "|"]
    for network, shapes in report["networks"].items():
        for shape, found in shapes.items():
            for runtime, title in TITLES.items():
                own = runtime.split()[0]
                nodes, times = found["nodes"], found[runtime]
                cells = [f"`{network}`, {shape}", f"{nodes['naive']}: {nodes['portable']}, {nodes[own]}", title]
                cells += [f"{times['naive']['cpu_ms']:.1f}", *(_ratio(times[name]) for name in ("portable", own))]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(found: dict[str, Any]) -> str:
    median, low, high = (found["ratio"][name] for name in ("median", "q1", "q3"))
    return f"{median:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--network", choices=NETWORKS, action="append", help="default: all of them")
    parser.add_argument(
        "--shape",
        type=size_and_batch,
        action="append",
        metavar="SIZExBATCH",
        help="default: 64x1, 224x1, 64x8 and 224x8",
    )
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--table", action="store_true", help="print what was saved")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(RESULTS.read_text())))
        return
    report: dict[str, Any] = {
        "environment": environment(["torch", "onnx", "onnxsim", "onnxruntime", "openvino", "numpy"]),
        "networks": {},
    }
    for name in args.network or NETWORKS:
        found = report["networks"].setdefault(name, {})
        for size, batch in args.shape or SHAPES:
            if name.startswith("timm:") and size != 224:
                continue
            print(f"{name}, {size} px, batch {batch} …", file=sys.stderr)
            with tempfile.TemporaryDirectory() as folder:
                made = files(name, size, batch, Path(folder))
                found[f"{size} px, batch {batch}"] = times(made, (batch, 3, size, size), args.rounds)
            if args.save:
                RESULTS.write_text(json.dumps(finished(report), indent=1) + "\n")
    print(json.dumps(finished(report), indent=1))


if __name__ == "__main__":
    main()
