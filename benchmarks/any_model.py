"""Can every network be exported, and is every bundle right? Networks of timm and transformers, in every form.

    python benchmarks/any_model.py eurosat_val.zip eurosat_train.zip [--only NAME …] [--forms FORM …] [--save]
    python benchmarks/any_model.py --table

`any_model_networks.py` is the list. Each network is made with random weights that behave like trained ones, in a
process of its own, and exported in FP32, in FP16 for `portable` and for `tensorrt10`, with a dynamic batch, and in
INT8, calibrated on 32 images of the second DATA. The bundles run in ONNX Runtime and OpenVINO on 8 images of the first
DATA and on the difficult ones of `unseen.py`, against PyTorch in float64. Right is what holds the bounds of `unseen.py`
and, in FP32, errs by at most 1e-4 of the largest output, or 10 times as much as PyTorch in FP32 itself. The FP32 graph
is also compared with that of `torch.onnx.export` and onnxsim.

A form that takes more than 10 minutes is given up. `--save` writes benchmarks/results/any_model.json after each
network, and goes on there; `--table` prints what docs/benchmarks.md shows of it.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from failure import without_paths

HERE = Path(__file__).parent
RESULT = HERE / "results/any_model.json"
PACKAGES = ("vitdeploy", "torch", "timm", "transformers", "onnx", "onnxsim", "onnxruntime", "openvino")
FORMS = ("fp32", "naive", "fp16", "fp16 tensorrt10", "fp32 dynamic", "int8")
EXPORTS = tuple(form for form in FORMS if form != "naive")
RUNTIMES = ("onnxruntime", "openvino")
HEADER = (
    *("network", "pixels", "FP32, error", "FP16, dB", "tensorrt10", "dynamic", "INT8, dB"),
    *("nodes", "ONNX Runtime", "OpenVINO"),
)
SECONDS = 600  # a form
SLOWER = 1.02  # what two equal graphs differ by on this machine
FP32_ERROR = 1e-4
LIKE_PYTORCH = 10  # times the error of PyTorch in FP32, whose rounding is of the same size as that of a right graph


def run(name: str, forms: Sequence[str], images: Path, calibration: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a network is, and the row of each form, which a process computes until it takes too long or ends."""
    facts: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "rows.jsonl")
        left = list(forms)
        while left:
            out.write_text("")
            log = Path(folder, "log")
            command = [sys.executable, str(HERE / "any_model_one.py"), name, folder, out, images, calibration, *left]
            with log.open("w") as said:
                process = subprocess.Popen(list(map(str, command)), stdout=said, stderr=said)
                over = _wait(process, out)
            done = [json.loads(line) for line in out.read_text().splitlines()]
            facts |= next((entry["row"] for entry in done if not entry["form"]), {})
            rows |= {entry["form"]: entry["row"] for entry in done if entry["form"]}
            left = [form for form in left if form not in rows]
            if left and (over or process.returncode):
                ended = (
                    f"not done after {SECONDS} s"
                    if over
                    else f"exit {process.returncode}: {without_paths(log.read_text())[-2000:]}"
                )
                rows[left.pop(0)] = {"crashed": ended}
            elif left:  # there is nothing to compare with
                left = []
    return facts, rows


def _wait(process: subprocess.Popen[bytes], out: Path) -> bool:
    """Wait for the end of the process; whether it was ended because one form took too long."""
    known, since = 0, time.monotonic()
    while process.poll() is None:
        time.sleep(0.2)
        if (size := out.stat().st_size) != known:
            known, since = size, time.monotonic()
        if time.monotonic() - since > SECONDS:
            process.kill()
            process.wait()
            return True
    return False


def verdict(form: str, row: Mapping[str, Any]) -> str:
    """`right`, `refused`, `crashed`, or in which runtime it is wrong."""
    from unseen import within

    for kind in ("refused", "crashed"):
        if kind in row:
            return kind
    precision = form.split()[0]
    allowed = (
        max(FP32_ERROR, LIKE_PYTORCH * row.get("pytorch_fp32_error", 0.0)) if precision == "fp32" else float("inf")
    )
    for runtime in RUNTIMES:
        found = row.get(runtime)
        if found is None:  # the target is not for it
            continue
        if "error" in found and isinstance(found["error"], str):
            return f"WRONG in {runtime}"
        if found["verify"] != "passed" or not within(precision, found) or not found["error"] <= allowed:
            return f"WRONG in {runtime}"
    return "right"


def tables(result: Mapping[str, Any]) -> list[str]:
    """The lines that docs/benchmarks.md shows."""
    networks = result["networks"]
    lines = ["| form | exported and right | refused | crashed or wrong |", "| --- | --- | --- | --- |"]
    for form in EXPORTS:
        count = Counter(verdict(form, one["forms"][form]) for one in networks.values() if form in one["forms"])
        wrong = sum(count.values()) - count["right"] - count["refused"]
        lines.append(f"| {form} | {count['right']} of {sum(count.values())} | {count['refused']} | {wrong} |")
    lines += [
        "",
        f"| {' | '.join(HEADER)} |",
        f"|{' --- |' * len(HEADER)}",
    ]
    lines += [_line(name, one) for name, one in networks.items()]
    lines += ["", *_bullet(_comparison(networks))]
    said: dict[tuple[str, str], list[str]] = {}
    for name, one in networks.items():
        for form, row in one["forms"].items():
            if form != "naive" and verdict(form, row) != "right":
                said.setdefault((_short(name), _reason(form, row)), []).append(form)
    for (name, reason), forms in said.items():
        lines += _bullet(f"{name} ({', '.join(forms)}): {reason}")
    return lines


def _bullet(text: str) -> list[str]:
    return textwrap.wrap(f"- {text}", 120, subsequent_indent="  ", break_on_hyphens=False)


def _comparison(networks: Mapping[str, Any]) -> str:
    """Nodes and time against `torch.onnx.export` and onnxsim, in words."""
    both = {
        _short(name): one["forms"]["naive"]
        for name, one in networks.items()
        if "onnxruntime" in one["forms"].get("naive", {})
    }
    fails = [_short(name) for name, one in networks.items() if "crashed" in one["forms"].get("naive", {})]
    more = [name for name, one in both.items() if one["nodes"]["vitdeploy"] > one["nodes"]["naive"]]
    parts = [
        f"`torch.onnx.export` and onnxsim make a graph of {len(both)} networks and fail on {len(fails)}",
        f"of {len(both)} graphs {len(both) - len(more)} have as many nodes as theirs or fewer",
    ]
    for runtime, shown in zip(RUNTIMES, ("ONNX Runtime", "OpenVINO"), strict=True):
        ratios = {name: one[runtime]["ratio"] for name, one in both.items()}
        if not ratios:
            continue
        slower = [f"{name} {ratio['median']:.2f}" for name, ratio in ratios.items() if _is_slower(ratio)]
        parts.append(
            f"the median of the ratios of time in {shown} is "
            f"{statistics.median(ratio['median'] for ratio in ratios.values()):.2f}; above {SLOWER:.2f} in more than "
            f"three of four rounds are {', '.join(slower) or 'none'}"
        )
    return "; ".join(parts)


def _is_slower(ratio: Mapping[str, float]) -> bool:
    return ratio["q1"] > SLOWER


def _line(name: str, one: Mapping[str, Any]) -> str:
    forms = one["forms"]
    naive = forms.get("naive", {})
    cells = [_short(name), str(one.get("size", ""))]
    for form, key in (("fp32", "error"), ("fp16", "natural_db"), ("fp16 tensorrt10", ""), ("fp32 dynamic", "")):
        cells.append(_cell(form, forms.get(form), key))
    cells.append(_cell("int8", forms.get("int8"), "natural_db"))
    if "onnxruntime" in naive:
        cells.append("{vitdeploy} of {naive}".format(**naive["nodes"]))
        cells += [f"{naive[runtime]['ratio']['median']:.2f}" for runtime in RUNTIMES]
    else:
        nodes = forms.get("fp32", {}).get("nodes", "")
        cells += [f"{nodes}, the other fails" if "crashed" in naive and nodes else str(nodes), "", ""]
    return f"| {' | '.join(cells)} |"


def _cell(form: str, row: Mapping[str, Any] | None, key: str) -> str:
    if row is None:
        return ""
    said = verdict(form, row)
    if said in ("refused", "crashed") or not key:
        return said
    figures = [row[runtime].get(key) for runtime in RUNTIMES if runtime in row]
    text = " / ".join(f"{one:.0e}" if key == "error" else f"{one:.0f}" for one in figures if isinstance(one, float))
    return text if said == "right" else f"{said}: {text}"


def _short(name: str) -> str:
    """Of a class of transformers the part before `For`; of a file without the sizes that are in a name of timm."""
    short = name.partition("For")[0] if name.startswith("hf:") else name.removeprefix("timm:")
    return re.sub(r"_patch\d+(_window\d+)?_\d+", "", short) if short.startswith("onnx:") else short


def _reason(form: str, row: Mapping[str, Any]) -> str:
    """What a form that is not right says of itself, without what to type next."""
    text = row.get("refused") or row.get("crashed") or f"{verdict(form, row)}, {json.dumps(row)}"
    said = " ".join(str(text).partition("\n  try: ")[0].replace("\n  why:", ":").split())[:400]
    if "pytorch_fp16_natural_db" in row:
        natural, worst = row["pytorch_fp16_natural_db"], row["pytorch_fp16_difficult_db"]
        said += (
            f"; PyTorch in FP16 keeps {natural:.0f} dB of natural images and {worst:.0f} dB of the worst difficult one"
        )
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("calibration", type=Path, nargs="?")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=FORMS)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    networks: dict[str, Any] = {}
    if (arguments.save or arguments.table) and RESULT.exists():
        networks = json.loads(RESULT.read_text())["networks"]
    if arguments.table:
        print("\n".join(tables({"networks": networks})))
        return
    if arguments.images is None or arguments.calibration is None:
        parser.error("DATA for images and for calibration")
    from any_model_networks import NETWORKS, find_network
    from timing import environment, finished

    for network in [find_network(name) for name in arguments.only] if arguments.only else NETWORKS:
        known = networks.setdefault(network.name, {"forms": {}})
        left = [form for form in arguments.forms if form not in known["forms"]]
        if not left:
            continue
        if "naive" in left and "fp32" not in left:
            left.insert(0, "fp32")  # whose file it is compared with
        facts, rows = run(network.name, left, arguments.images.resolve(), arguments.calibration.resolve())
        known.update(facts)
        known["forms"].update(rows)
        for form, row in rows.items():
            said = "" if form == "naive" else verdict(form, row)
            print(f"{network.name} {form}: {said} {json.dumps(row)}", flush=True)
        if arguments.save:
            networks = {row.name: networks[row.name] for row in NETWORKS if row.name in networks}
            result = {"environment": environment(PACKAGES), "networks": networks}
            RESULT.write_text(json.dumps(finished(result), indent=1) + "\n")
    print("\n".join(tables({"networks": networks})))


if __name__ == "__main__":
    main()
