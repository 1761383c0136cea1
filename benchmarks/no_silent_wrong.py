"""Is what `vitdeploy export` proves also right on images that the bundle never saw? Over the zoo and timm.

    python benchmarks/no_silent_wrong.py eurosat_val.zip eurosat_train.zip [--weights FOLDER] [--only NAME …] [--save]

Every network is exported in FP32, FP16 and INT8 by the command line, a process each, INT8 calibrated on images of the
second DATA. Then it runs in ONNX Runtime and OpenVINO on images of the first DATA and on difficult ones, none of which
is in the bundle: other flat colours, noise, a gradient, stripes, a bright spot. PyTorch FP32 is what they are held
against. An export that is refused, with its reason, counts as well: what must not be is a bundle that is wrong, or one
that `verify` refuses without a fault.
`--save` writes benchmarks/results/no_silent_wrong.json after each network, and goes on there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from timing import environment, finished
from unseen import difficult, figures, natural, within

from vitdeploy import load, verify
from vitdeploy.bundle import Bundle
from vitdeploy.errors import VitDeployError
from vitdeploy.table import render

HERE = Path(__file__).parent
RESULT = HERE / "results/no_silent_wrong.json"
RUNTIMES = ("onnxruntime", "openvino")
PRECISIONS = ("fp32", "fp16", "int8")
PACKAGES = ("vitdeploy", "torch", "timm", "onnx", "onnxruntime", "openvino")
SECONDS = 900
IMAGES = 16

ZOO = ("lemevit_tiny", "dualvit_s", "cagevit_tiny", "qnavit_tiny", "saevit_xs", "lemevit_tiny.eurosat")
TIMM = (
    "deit_tiny_patch16_224",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_ns_224",
    "efficientvit_b0",
    "efficientvit_m0",
    "efficientformerv2_s0",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "fastvit_t8",
    "repvit_m0_9",
    "tiny_vit_5m_224",
    "levit_128s",
    "xcit_nano_12_p16_224",
    "cait_xxs24_224",
    "davit_tiny",
    "pvt_v2_b0",
    "poolformer_s12",
    "convnextv2_atto",
    "convnext_atto",
    "mobilenetv4_conv_small",
    "starnet_s1",
    "shvit_s1",
    "crossvit_9_240",
    "gcvit_xxtiny",
    "mambaout_femto",
)


def source(name: str, weights: Path | None) -> tuple[list[str], dict[str, str]]:
    if name.startswith("timm:"):
        from timm_network import input_size

        size = str(input_size(name[5:]))
        given = [str(HERE / "timm_network.py:build"), "--image-size", size, "--preprocessing", "mode=stretch"]
        return given, {"TIMM_MODEL": name[5:]}
    if name == "dualvit_s (trained)":
        assert weights is not None
        return ["dualvit_s", "--checkpoint", str(weights / "dualvit_s_eurosat.safetensors")], {}
    return [name], {}


def torch_outputs(name: str, bundle: Path, images: np.ndarray, weights: Path | None) -> np.ndarray:
    """What PyTorch FP32 gives, of the very network that was exported."""
    import torch

    if name.startswith("timm:"):
        os.environ["TIMM_MODEL"] = name[5:]
        from timm_network import build

        network = build()
        with torch.inference_mode():
            parts = [network(torch.from_numpy(images[i : i + 1])).numpy() for i in range(len(images))]
        return np.concatenate(parts)
    given = source(name, weights)[0]
    checkpoint = given[2] if len(given) > 2 else None
    with load(bundle, runtime="torch", checkpoint=checkpoint) as session:
        return np.concatenate([session(images[i : i + 1]) for i in range(len(images))])


def measure(name: str, precision: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One export and its outputs on the images that it never saw."""
    bundle = folder / precision
    given, variables = source(name, arguments.weights)
    command = [sys.executable, "-m", "vitdeploy", "export", *given, "--precision", precision, "-o", str(bundle)]
    if precision == "int8":
        command += ["--calibration", str(arguments.calibration), "--samples", "64"]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, env={**os.environ, **variables}, check=False
        )
    except subprocess.TimeoutExpired:
        return {"refused": f"not done after {SECONDS} s"}
    row: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 1)}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith(("error", "  why"))]
        return {**row, "refused": " ".join(lines)[:400] or done.stderr[-300:], "exit": done.returncode}
    manifest = Bundle.open(bundle).manifest
    recipe = manifest.preprocessing
    images = np.concatenate([natural(arguments.images, recipe, IMAGES), difficult(recipe)])
    expected = torch_outputs(name, bundle, images, arguments.weights)
    row["kept_fp32"] = len(manifest.precision_report.get("kept_fp32", []))
    row["more_bytes"] = manifest.precision_report.get("more_bytes")
    row["nodes"] = manifest.graph["nodes"]
    row["repairs"] = len(manifest.precision_report.get("repairs", [])) if precision == "fp16" else None
    for runtime in RUNTIMES:
        try:
            report = verify(bundle, runtime=runtime)
            with load(bundle, runtime=runtime) as session:
                found = np.concatenate([session(images[i : i + 1]) for i in range(len(images))])
        except VitDeployError as error:
            row[runtime] = {"error": str(error)}
            continue
        row[runtime] = {
            "verify": "passed" if report.passed else report.failures[0],
            **figures(expected, found, IMAGES),
            "top1": int((expected.argmax(1) == found.argmax(1))[:IMAGES].sum()),
            "images": IMAGES,
        }
    return row


def verdict(precision: str, row: dict[str, Any]) -> str:
    """`right`, `refused`, or what is wrong on images that the bundle never saw."""
    if "refused" in row:
        return "refused"
    for runtime in RUNTIMES:
        found = row[runtime]
        if "error" in found or found["verify"] != "passed" or not within(precision, found):
            return f"WRONG in {runtime}"
    return "right"


def table(networks: dict[str, Any]) -> str:
    header = ("network", "precision", "natural dB", "difficult dB", "kept FP32, more bytes", "seconds", "")
    body = []
    for name, rows in networks.items():
        for precision, row in rows.items():
            natural = difficult_db = kept = "-"
            if "refused" not in row:
                both = [row[runtime] for runtime in RUNTIMES if "error" not in row[runtime]]
                natural = " / ".join(str(one["natural_db"]) for one in both)
                difficult_db = " / ".join(str(one["difficult_db"]) for one in both)
                if precision == "fp16":
                    kept = f"{row['kept_fp32']} of {row['nodes']}, {row['more_bytes']:.1%}"
            text = verdict(precision, row) + (f": {row['refused'][:70]}" if "refused" in row else "")
            body.append((name, precision, natural, difficult_db, kept, str(row.get("seconds", "-")), text))
    return render(body, header=header, align="<<>>>><")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--precisions", nargs="*", default=list(PRECISIONS))
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    names = [*ZOO, *(["dualvit_s (trained)"] if arguments.weights else []), *(f"timm:{name}" for name in TIMM)]
    names = [name for name in names if not arguments.only or name in arguments.only]
    networks: dict[str, Any] = {}
    if arguments.save and RESULT.exists():
        networks = json.loads(RESULT.read_text())["networks"]
    for name in names:
        for precision in arguments.precisions:
            if precision in networks.get(name, {}):
                continue
            with tempfile.TemporaryDirectory() as folder:
                row = measure(name, precision, arguments, Path(folder))
            networks.setdefault(name, {})[precision] = row
            print(f"{name} {precision}: {verdict(precision, row)} {json.dumps(row)}", flush=True)
            if arguments.save:
                result = {"environment": environment(PACKAGES), "networks": networks}
                RESULT.write_text(json.dumps(finished(result), indent=1) + "\n")
    print(table(networks))


if __name__ == "__main__":
    main()
