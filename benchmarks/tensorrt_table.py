"""The table of docs/benchmarks.md from what the acceptance run on a GPU measured (tests/gpu/acceptance.py).

    python benchmarks/tensorrt_table.py [--write]

Prints the table of benchmarks/results/tensorrt.json; `--write` puts it between its two marks in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "tensorrt.json"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- tensorrt: made by benchmarks/tensorrt_table.py -->", "<!-- end of tensorrt -->"

HEADER = (
    *("", "batch", "p50, ms", "p99, ms", "images/s", "on the device, ms", "against eager FP16"),
    *("SNR, dB", "attention fused", "memory, MB"),
)
TITLES = {"tensorrt": "TensorRT {}", "eager": "torch eager {}", "compile": "torch.compile {}"}


def table(document: Mapping[str, Any]) -> str:
    """Heading, conditions and one row for each measured step and batch, as Markdown."""
    steps = document["steps"]
    machine = document.get("machine", {})
    versions = machine.get("versions", {})
    torch = next((found["torch"] for found in steps.values() if "torch" in found), None)
    conditions = [machine.get("gpu", ""), f"TensorRT {versions.get('tensorrt', '?')}", torch and f"torch {torch}"]
    day, where = document.get("date", "")[:10], ", ".join(filter(None, conditions))
    lines = [
        f"{day}; {where}. Times are from host memory to host memory, but for those on the device.",
        "",
        f"| {' | '.join(HEADER)} |",
        f"|{' --- |' * len(HEADER)}",
    ]
    eager = {
        (name.split("-")[1], run["batch"]): run["p50_ms"]
        for name, found in steps.items()
        if name.startswith("eager-")
        for run in found.get("runs", ())
    }
    for name, found in steps.items():
        lines += [_row(name, found, run, eager) for run in found.get("runs", ())] or [_failure(name, found)]
    return "\n".join(lines)


def with_table(page: str, text: str) -> str:
    """The page with the table between its marks; a section is added where it has none."""
    block = f"{BEGIN}\n{text}\n{END}"
    if BEGIN in page:
        return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: block, page, flags=re.DOTALL)
    return f"{page.rstrip()}\n\n## TensorRT\n\n{block}\n"


def _row(name: str, found: Mapping[str, Any], run: Mapping[str, Any], eager: Mapping[tuple[str, int], float]) -> str:
    kind, model, precision = name.split("-")[:3]
    base = eager.get((model, run["batch"]))
    device = run.get("device_p50_ms")
    title = f"{model}, {TITLES[kind].format(precision.upper())}"
    cells = [title, str(run["batch"]), f"{run['p50_ms']:.2f}", f"{run['p99_ms']:.2f}"]
    cells += [f"{run['images_per_second']:.0f}", f"{device:.2f}" if device else "-"]
    cells += [f"{run['p50_ms'] / base:.2f}" if base else "-", *_proof(found)]
    memory = found.get("memory_bytes")
    return f"| {' | '.join([*cells, f'{memory / 1e6:.0f}' if memory else '-'])} |"


def _proof(found: Mapping[str, Any]) -> list[str]:
    build = found.get("build")
    if not build:
        return ["-", "-"]
    noise = [output["snr_db"] for output in build["parity"]["outputs"] if output["snr_db"] is not None]
    fusion = build.get("fusion") or {"attention": [], "attention_fused": 0}
    blocks = fusion["attention"]
    known = [block for block in blocks if block["fused"] is not None]
    fused = f"{fusion['attention_fused']} of {len(blocks)}" if known else "not told" if blocks else "-"
    workaround = f", {build['workaround']}" if build.get("workaround") else ""
    return [f"{min(noise):.0f}{workaround}" if noise else "exact", fused]


def _failure(name: str, found: Mapping[str, Any]) -> str:
    build = found.get("build", {})
    where = build.get("diverges") or {}
    why = found.get("error") or "; ".join(build.get("failures", ())) or "nothing was measured"
    text = f"FAILED: {why}" + (f" (first at {where['block']})" if where else "")
    return f"| {name} | {text} |{' |' * (len(HEADER) - 2)}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    made = table(json.loads(RESULTS.read_text()))
    print(made)
    if arguments.write:
        PAGE.write_text(with_table(PAGE.read_text(), made))
