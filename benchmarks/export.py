"""Export against plain torch.onnx.export + onnxsim, and what a session and a start of ours cost.

    python benchmarks/export.py [--model lemevit_tiny] [--rounds 5] [--save]

Export: wall time and peak memory of whole processes (interpreter start and imports on both sides), interleaved.
Session: CPU time of one thread against ONNX Runtime alone, interleaved, as ratios within a round.
`--save` writes benchmarks/results/export.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from timing import environment, finished, interleave, process, ratio

from vitdeploy import load

HERE = Path(__file__).parent


def export_cost(model: str, folder: Path, rounds: int) -> dict[str, Any]:
    ours = [sys.executable, "-m", "vitdeploy", "export", model, "--force", "-o"]
    commands = {
        "vitdeploy fp32": [*ours, str(folder / "fp32")],
        "vitdeploy fp16": [*ours, str(folder / "fp16"), "--fp16"],
        "torch.onnx + onnxsim": [sys.executable, str(HERE / "naive_export.py"), model, str(folder / "naive.onnx")],
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            result = process(command)
            if number:  # the first round fills the disk cache
                runs[name].append(result)
    base = runs["torch.onnx + onnxsim"]
    return {
        name: {
            **{key: round(statistics.median(run[key] for run in found), 2) for key in found[0]},
            "wall_ratio": ratio([run["seconds"] for run in found], [run["seconds"] for run in base]),
            "memory_ratio": ratio([run["peak_mb"] for run in found], [run["peak_mb"] for run in base]),
        }
        for name, found in runs.items()
    }


def session_cost(folder: Path, rounds: int) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    raw = onnxruntime.InferenceSession(str(folder / "fp32/model.onnx"), options)
    with load(folder / "fp32", runtime="onnxruntime", threads=1) as session:
        shape = session.bundle.manifest.inputs[0].shape
        images = np.random.default_rng(0).standard_normal([int(d) for d in shape], dtype=np.float32)
        candidates = {"session": lambda: session(images), "raw": lambda: raw.run(None, {"images": images})}
        seconds = interleave(candidates, rounds=rounds, clock=time.thread_time)
    overhead = [a - b for a, b in zip(seconds["session"], seconds["raw"], strict=True)]
    return {
        "raw_cpu_ms": round(1e3 * statistics.median(seconds["raw"]), 3),
        "ratio": ratio(seconds["session"], seconds["raw"]),
        "overhead_us": round(1e6 * statistics.median(overhead), 1),
    }


def start_cost(rounds: int) -> dict[str, Any]:
    commands = {
        "vitdeploy --help": [sys.executable, "-m", "vitdeploy", "--help"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    return {
        name: round(statistics.median(process(command)["seconds"] for _ in range(rounds)), 3)
        for name, command in commands.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="lemevit_tiny")
    parser.add_argument("--rounds", type=int, default=5, help="exports of each kind; a session runs 40 times as many")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = {
            "environment": environment(["torch", "onnx", "onnxsim", "onnxruntime", "openvino", "numpy"]),
            "model": args.model,
            "start_seconds": start_cost(args.rounds * 2),
            "export": export_cost(args.model, folder, args.rounds),
            "session": session_cost(folder, 40 * args.rounds),
        }
    text = json.dumps(finished(report), indent=1)
    print(text)
    if args.save:
        (HERE / "results/export.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
