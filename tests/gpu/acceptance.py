"""The acceptance run on a machine with an NVIDIA GPU and nothing else; run by hand, from the root of the repository.

    python -m tests.gpu.acceptance pack PARTS [--calibration DATA]    where models are exported: writes bundles_00 …
    python3 -m tests.gpu.acceptance run --kit PARTS --work DIR        on the GPU machine
    python3 -m tests.gpu.acceptance table benchmarks/results/tensorrt.json

PARTS also holds what `../shared/gpu/pack_tensorrt.sh PARTS` wrote: TensorRT 8.6 with a Python 3.11 of its own. `run`
unpacks both, prints its plan, and writes the results after every step: stopped and started again it goes on where it
was. PyTorch is measured beside it where the machine's own python3 has it. Carry the results home, check them in, and
make the table of docs/benchmarks.md from them: `python benchmarks/tensorrt_table.py --write`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tests.gpu.plan import FAMILIES, PRECISIONS, Step, bundle_folder, fits, plan, remaining

ROOT = Path(__file__).resolve().parent.parent.parent
SIZES = {"lemevit_tiny.eurosat": 64}
DEFAULT_SIZE = 224
STEP_SECONDS = 420.0
PART_BYTES = 40 * 2**20

Runner = Callable[[Step], dict[str, Any]]


def pack(parts: Path, calibration: Path | None) -> None:
    """Exports a bundle for every family and precision, and cuts them into parts that can be carried one at a time."""
    folder = parts / "bundles"
    folder.mkdir(parents=True, exist_ok=True)
    for model in FAMILIES:
        for precision in PRECISIONS:
            target = folder / f"{model}-{precision}"
            if target.exists() or (precision == "int8" and calibration is None):
                continue
            command = [sys.executable, "-m", "vitdeploy", "export", model, "--precision", precision]
            command += ["--target", "tensorrt8", "--batch", "dynamic", "-o", str(target)]
            # Random weights may quantize badly; what is accepted here is what TensorRT makes of the file.
            command += ["--calibration", str(calibration), "--accept-loss"] if precision == "int8" else []
            if subprocess.run(command, cwd=ROOT, check=False).returncode:
                print(f"{target.name} could not be exported and is left out", file=sys.stderr)
    for old in parts.glob("bundles_??"):
        old.unlink()
    command = f"tar -C '{folder}' -cf - . | split -b {PART_BYTES} -d - '{parts}/bundles_'"
    subprocess.run(["bash", "-c", command], check=True)


def unpack(parts: Path, work: Path) -> dict[str, str]:
    """The environment of TensorRT's Python; kit and bundles lie in `work` afterwards."""
    kit, bundles = work / "kit", work / "bundles"
    if not (kit / "env.sh").exists():
        subprocess.run(["bash", str(parts / "setup.sh"), str(parts), str(kit)], check=True)
    if not bundles.exists():
        joined = work / "bundles.tar"
        with joined.open("wb") as target:
            for part in sorted(parts.glob("bundles_??")):
                target.write(part.read_bytes())
        with tarfile.open(joined) as archive:
            archive.extractall(bundles)
        joined.unlink()
    return kit_environment(kit)


def kit_environment(kit: Path) -> dict[str, str]:
    """The variables that the kit's env.sh sets, and this repository on the path."""
    said = subprocess.run(["bash", "-c", f". '{kit}/env.sh' && env -0"], capture_output=True, text=True, check=True)
    found = dict(entry.split("=", 1) for entry in said.stdout.split("\0") if "=" in entry)
    return {**found, "PYTHONPATH": f"{found['PYTHONPATH']}:{ROOT}"}


def has_torch() -> bool:
    """Whether the machine's own Python has a torch that sees the GPU."""
    code = "import torch; raise SystemExit(not torch.cuda.is_available())"
    return subprocess.run(["python3", "-c", code], capture_output=True, check=False).returncode == 0


def step_runner(environment: Mapping[str, str], work: Path) -> Runner:
    """Runs steps in processes of their own; one that crashes or hangs is an error in the results."""

    def run(step: Step) -> dict[str, Any]:
        batches = ",".join(map(str, step.batches))
        if step.kind == "tensorrt":
            words = ["python3.11", "-m", "tests.gpu.measure", "tensorrt", str(bundle_folder(work / "bundles", step))]
            words, variables = [*words, str(work), batches], dict(environment)
        else:
            size = str(SIZES.get(step.model, DEFAULT_SIZE))
            words = ["python3", "-m", "tests.gpu.measure", step.kind, step.model, size, batches]
            variables = {**os.environ, "PYTHONPATH": str(ROOT)}
        return result_of(words, variables)

    return run


def result_of(words: list[str], variables: Mapping[str, str], seconds: float = STEP_SECONDS) -> dict[str, Any]:
    """What the process printed last, as JSON."""
    try:
        done = subprocess.run(
            words, cwd=ROOT, env=dict(variables), stdout=subprocess.PIPE, text=True, timeout=seconds, check=False
        )
        lines = done.stdout.strip().splitlines()
        found: dict[str, Any] = json.loads(lines[-1]) if lines else {"error": f"exit code {done.returncode}"}
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds:.0f} s"}
    except ValueError:
        return {"error": f"exit code {done.returncode}, and no JSON"}
    return found


def carry_out(
    steps: list[Step], run: Runner, results: Path, budget: float, machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Runs what has no result yet, as long as it fits into `budget` seconds; the file is whole after every step."""
    document = read_results(results)
    document.update({"schema_version": 1, "machine": dict(machine), "date": datetime.now(timezone.utc).isoformat()})
    start, expected, took = time.monotonic(), 0.0, 0.0
    for step in remaining(steps, document["steps"]):
        elapsed = time.monotonic() - start
        if not fits(step, elapsed, budget, took / expected if expected else 1.0):
            print(f"[{elapsed:5.0f} s] no time for {step.name}", flush=True)
            continue
        print(f"[{elapsed:5.0f} s] {step.name}", flush=True)
        began = time.monotonic()
        outcome = run(step)
        seconds = time.monotonic() - began
        if "error" in outcome:
            print(f"          {outcome['error']}", flush=True)
        else:
            expected, took = expected + step.seconds, took + seconds
        document["steps"][step.name] = {**outcome, "step_seconds": round(seconds, 1)}
        temporary = results.with_suffix(".partial")
        temporary.write_text(json.dumps(document, indent=1) + "\n")
        temporary.replace(results)
    return document


def read_results(path: Path) -> dict[str, Any]:
    """What an earlier run left, or an empty document."""
    document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    document.setdefault("steps", {})
    return document


def describe_machine(environment: Mapping[str, str]) -> dict[str, Any]:
    """GPU, driver, versions."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader"]
    gpu = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    versions = result_of(["python3.11", "-m", "tests.gpu.measure", "probe"], environment, 120)
    return {"gpu": gpu, "versions": versions, "system": platform.platform()}


def main(argv: list[str] | None = None) -> int:
    """One of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("parts", type=Path)
    packing.add_argument("--calibration", type=Path)
    running = commands.add_parser("run")
    running.add_argument("--kit", type=Path, required=True, metavar="PARTS")
    running.add_argument("--work", type=Path, required=True)
    running.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "tensorrt.json")
    running.add_argument("--minutes", type=float, default=25.0)
    running.add_argument("--plan", action="store_true", help="print the plan and end")
    printing = commands.add_parser("table")
    printing.add_argument("results", type=Path)
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from tensorrt_table import table

    if args.command == "pack":
        pack(args.parts, args.calibration)
        return 0
    if args.command == "table":
        print(table(read_results(args.results)))
        return 0
    args.work.mkdir(parents=True, exist_ok=True)
    environment = unpack(args.kit, args.work)
    steps = plan([path.name for path in (args.work / "bundles").iterdir()], torch=has_torch())
    left = remaining(steps, read_results(args.results)["steps"])
    print(f"{len(left)} of {len(steps)} steps, about {sum(step.seconds for step in left) / 60:.0f} min:")
    print("\n".join(f"  {step.name:40} {step.seconds:4.0f} s" for step in left), flush=True)
    if args.plan:
        return 0
    machine = describe_machine(environment)
    document = carry_out(left, step_runner(environment, args.work), args.results, 60 * args.minutes, machine)
    print(table(document))
    return 0 if all(_holds(found) for found in document["steps"].values()) else 1


def _holds(found: Mapping[str, Any]) -> bool:
    return "error" not in found and bool(found.get("build", {"passed": True})["passed"])


if __name__ == "__main__":
    raise SystemExit(main())
