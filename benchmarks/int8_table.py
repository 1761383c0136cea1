"""The INT8 comparison as Markdown, from benchmarks/results/int8.json or another file that int8.py saved.

    python benchmarks/int8_table.py [NAME]

Times are processor times of one thread. In brackets: how many times as long as ours the file takes, and which part of
the machine's ceiling it reaches: its multiplications in a second over those of one large product, in INT8 or, for the
FP32 file, in floats.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
WIDE = 3  # shapes beside the accuracy
NAMES = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO (bf16 beside INT8)",
    "openvino f32": "OpenVINO (FP32)",
    "pytorch": "fake quantization in PyTorch, which has no time",
}


def table(network: str, found: dict[str, Any]) -> Iterator[str]:
    """The rows of one network, a table for each runtime, and one more for what would make them too wide."""
    shapes = list(found["latency"])
    accuracy = found.get("accuracy", {})
    for runtime, title in NAMES.items():
        timed = {name: row for shape in shapes for name, row in found["latency"][shape].get(runtime, {}).items()}
        rows = accuracy.get(runtime, {}) or dict.fromkeys(timed)
        if not rows:
            continue
        for some in (shapes[:WIDE], shapes[WIDE:]):
            if not some:
                continue
            first = some == shapes[:WIDE]
            yield f"**{network}, {title}**\n" if first else f"**{network}, {title}, {', '.join(some)}**\n"
            columns = ["file", *(["top-1", "agreement", "SNR"] if first else []), *some]
            yield f"| {' | '.join(columns)} |"
            yield "| --- " * len(columns) + "|"
            for name, row in rows.items():
                times = (found["latency"][shape].get(runtime, {}).get(name) for shape in some)
                judged = ["-"] * 3 if row is None else _accuracy(row)
                cells = [name, *(judged if first else []), *("-" if time is None else _time(time) for time in times)]
                yield f"| {' | '.join(cells)} |"
            yield ""


def _accuracy(row: dict[str, float]) -> list[str]:
    return [f"{row['top1']:.2f}", f"{row['agreement']:.2f} %", f"{row['snr_db']:.1f} dB"]


def _time(time: dict[str, Any]) -> str:
    ratio, share = time.get("cpu_ratio"), time.get("cpu_share")
    marks = [*([f"{ratio['median']:.2f}"] if ratio else []), *([f"{share:.0%}"] if share else [])]
    return f"{time['cpu_ms']:.1f}" + (f" ({', '.join(marks)})" if marks else "")


def conditions(report: dict[str, Any]) -> str:
    """The machine and the versions, in one sentence."""
    machine, versions = report["environment"], report["environment"]["versions"]
    load = (
        ""
        if "load_after" not in machine
        else f", load {machine['load_before']} before and {machine['load_after']} after"
    )
    return (
        f"{machine['date']}, {machine['processor']} ({machine.get('instructions', 'instructions not recorded')}), "
        f"{machine['cores']} cores, governor {machine.get('governor', 'not shown')}{load}; "
        + ", ".join(f"{name} {version}" for name, version in (versions | report.get("peers", {})).items())
    )


def ceilings(found: dict[str, Any]) -> Iterator[str]:
    """What one thread of the machine can at most, by shape and runtime."""
    for shape, rows in found["latency"].items():
        for runtime, most in rows.get("ceiling", {}).items():
            rates = ", ".join(f"{kind} {rate} GMAC/s" for kind, rate in most.items())
            yield f"{shape}, {NAMES[runtime]}: one large product reaches {rates}"


if __name__ == "__main__":
    report = json.loads((RESULTS / f"{(*sys.argv[1:], 'int8')[0]}.json").read_text())
    print("\n".join(textwrap.wrap(conditions(report), 118)), end="\n\n")
    for name, found in report["networks"].items():
        print("\n".join([*table(name, found), *ceilings(found), ""]))
