"""Export against plain torch.onnx.export + onnxsim, and what comes out of both.

    python benchmarks/export.py [--model lemevit_tiny] [--rounds 5] [--save]

Export: wall time and peak memory of whole processes (interpreter start and imports on both sides), interleaved.
Inference: CPU time of one thread, interleaved, as ratios within a round.
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
import onnx
import onnxruntime
import openvino
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


def graph_cost(folder: Path, rounds: int) -> dict[str, Any]:
    files = {"vitdeploy": folder / "fp32/model.onnx", "naive": folder / "naive.onnx"}
    nodes = {name: len(onnx.load(path).graph.node) for name, path in files.items()}
    inputs = {name: onnx.load(path).graph.input[0] for name, path in files.items()}
    shape = [dim.dim_value for dim in inputs["vitdeploy"].type.tensor_type.shape.dim]
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    fed = {name: {entry.name: images} for name, entry in inputs.items()}
    results: dict[str, Any] = {"nodes": nodes}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # everything runs on the calling thread, whose CPU time is what is measured
    single = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    sessions = {name: onnxruntime.InferenceSession(str(path), options) for name, path in files.items()}
    compiled = {name: openvino.Core().compile_model(str(path), "CPU", single) for name, path in files.items()}
    by_runtime: dict[str, tuple[dict[str, Any], Any]] = {
        "onnxruntime": (
            {name: lambda n=name, s=s: s.run(None, fed[n]) for name, s in sessions.items()},
            time.thread_time,
        ),
        "openvino": ({name: lambda c=c: c([images]) for name, c in compiled.items()}, time.process_time),
    }
    for runtime, (candidates, clock) in by_runtime.items():
        seconds = interleave(candidates, rounds=rounds, clock=clock)
        ours, naive = seconds["vitdeploy"], seconds["naive"]
        results[runtime] = {
            "vitdeploy_cpu_ms": round(1e3 * statistics.median(ours), 3),
            "naive_cpu_ms": round(1e3 * statistics.median(naive), 3),
            "ratio": ratio(ours, naive),
        }
    return results


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
    parser.add_argument("--rounds", type=int, default=5, help="exports of each kind; inference runs 40 times as many")
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
            "graph": graph_cost(folder, 40 * args.rounds),
        }
    text = json.dumps(finished(report), indent=1)
    print(text)
    if args.save:
        (HERE / "results/export.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
