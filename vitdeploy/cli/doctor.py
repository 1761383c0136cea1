"""Say what this machine can run, what is missing, the command that brings it, and which versions are known to be bad.

Needs neither torch nor onnx and changes nothing. Exit 0 when at least one runtime can run a bundle, else 1.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitdeploy.inspection.doctor import DoctorReport, Machine, Package

HELP = "what this machine can run, and what is missing"
NOTHING_RUNS = "NO RUNTIME IS USABLE: no bundle can run here\n  try: pip install 'vitdeploy[onnxruntime]'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`vitdeploy doctor` takes no arguments of its own."""


def run(args: argparse.Namespace) -> int:
    """Examine and print."""
    from vitdeploy.inspection.doctor import examine

    report = examine()
    print(json.dumps(report.to_dict()) if args.json else format_report(report))
    return 0 if report.usable else 1


def format_report(report: DoctorReport) -> str:
    """A table of what there is, the findings, and the verdict."""
    from vitdeploy.table import render

    rows = _machine_rows(report.machine)
    rows += [[package.name, _state(package)] for package in (*report.base, *report.runtimes)]
    tensorrt = report.tensorrt
    if tensorrt.library or tensorrt.binding.version:
        library = tensorrt.library or "not found"
        rows.append(["TensorRT", f"libnvinfer {library}, Python binding {_state(tensorrt.binding)}"])
    lacking = [package.name for package in report.export if package.problem]
    rows.append(["export", f"not here: no {', '.join(lacking)}" if lacking else "every tool is installed"])
    usable = ", ".join(report.usable)
    verdict = f"a bundle can run here with: {usable}" if usable else NOTHING_RUNS
    return "\n".join([render(rows), *[f"\n{finding}" for finding in report.findings], f"\n{verdict}"])


def _machine_rows(machine: Machine) -> list[list[str]]:
    cpu, jetson = machine.cpu, machine.jetson
    rows = [["processor", f"{cpu.name}, {cpu.architecture}, {cpu.cores} cores"]]
    for precision, features in cpu.features.items():
        states = [name if has else f"no {name}" for name, has in features.items()]
        rows.append([f"  for {precision}", ", ".join(states)])
    if jetson:
        versions = f"JetPack {jetson.jetpack or 'unknown'}, L4T {jetson.l4t or 'unknown'}"
        rows.append(["Jetson", f"{jetson.model}, {versions}"])
    for gpu in machine.gpus:
        capability = f", compute capability {gpu.sm // 10}.{gpu.sm % 10}" if gpu.sm else ""
        memory = f", {gpu.memory_mib} MiB" if gpu.memory_mib else ""
        rows.append(["GPU", f"{gpu.name}{capability}{memory}"])
    if not machine.gpus:
        rows.append(["GPU", "its driver does not answer" if jetson else "no NVIDIA GPU"])
    if machine.driver or machine.cudart:
        rows.append(["CUDA", f"driver {machine.driver or 'not found'}, libcudart {machine.cudart or 'not found'}"])
    hides = ", a virtual environment without the system's packages" if machine.python["hides_system_packages"] else ""
    rows.append(["Python", f"{machine.python['version']}{hides}"])
    return rows


def _state(package: Package) -> str:
    if package.problem:
        return package.problem.removeprefix(f"{package.name} ")
    devices = f" ({', '.join(package.devices)})" if package.devices else ""
    return f"{package.version}{devices}"
