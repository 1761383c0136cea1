"""The INT8 comparison as Markdown, from benchmarks/results/int8.json or another file that int8.py saved.

    python benchmarks/int8_table.py [NAME]

Times are processor times of one thread; a ratio above 1 says how many times as long as ours the file takes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO (bf16 beside INT8)",
    "openvino f32": "OpenVINO (FP32)",
    "pytorch": "fake quantization in PyTorch, which has no time",
}


def table(network: str, found: dict[str, Any]) -> Iterator[str]:
    """The rows of one network, a table for each runtime."""
    shapes = list(found["latency"])
    accuracy = found.get("accuracy", {})
    for runtime, title in NAMES.items():
        timed = {name: row for shape in shapes for name, row in found["latency"][shape].get(runtime, {}).items()}
        rows = accuracy.get(runtime, {}) or dict.fromkeys(timed)
        if not rows:
            continue
        yield f"**{network}, {title}**\n"
        yield "| file | top-1 | agreement | SNR | " + " | ".join(shapes) + " |"
        yield "| --- " * (4 + len(shapes)) + "|"
        for name, row in rows.items():
            times = (found["latency"][shape].get(runtime, {}).get(name) for shape in shapes)
            cells = [name, *(["-"] * 3 if row is None else _accuracy(row))]
            cells += ["-" if time is None else _time(time) for time in times]
            yield "| " + " | ".join(cells) + " |"
        yield ""


def _accuracy(row: dict[str, float]) -> list[str]:
    return [f"{row['top1']:.2f}", f"{row['agreement']:.2f} %", f"{row['snr_db']:.1f} dB"]


def _time(time: dict[str, Any]) -> str:
    ratio = time.get("cpu_ratio")
    return f"{time['cpu_ms']:.1f}" + (f" ({ratio['median']:.2f})" if ratio else "")


if __name__ == "__main__":
    report = json.loads((RESULTS / f"{(*sys.argv[1:], 'int8')[0]}.json").read_text())
    for name, found in report["networks"].items():
        print("\n".join(table(name, found)))
