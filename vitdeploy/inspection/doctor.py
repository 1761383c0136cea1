"""Examining this machine: what it can run, what is missing, and which installed versions have known defects.

Needs only the standard library: each package is imported in a process of its own, so that one that hangs or crashes
becomes a finding and does not end the examination.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from vitdeploy.argument_types import checked_arguments
from vitdeploy.inspection.doctor_report import DoctorReport, Finding, Machine, Package, TensorRt
from vitdeploy.inspection.probe_python import probe_python
from vitdeploy.inspection.runtimes import failing_devices, find_runtimes, lacks_kernels
from vitdeploy.machine.energy.meter import Meter, find_sensors
from vitdeploy.machine.gpus import read_gpus
from vitdeploy.machine.hardware import (
    cudart_version,
    debian_version,
    describe_python,
    driver_version,
    find_libraries,
    library_version,
    read_cpu,
    read_jetson,
    system_binding_pythons,
)
from vitdeploy.machine.probe import ROOT
from vitdeploy.platforms.known_bad import Circumstances, matching_rows
from vitdeploy.tensorrt.rtx import requirements as rtx

BASE_PACKAGES = (("numpy", "numpy"), ("PIL", "pillow"))
EXPORT_PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxruntime", "safetensors")
QUANTIZERS = ("nvidia-modelopt",)  # whose files people bring along

_IMPORT = "import json, {0}; print(json.dumps({{'version': str(getattr({0}, '__version__', 'unknown'))}}))"


@checked_arguments
def doctor(root: Path = ROOT, *, architecture: str | None = None) -> DoctorReport:
    """Examine this machine without changing anything.

    Args:
        root: Root of the system's files; a folder other than `/` describes another machine by copies of its files.
        architecture: Architecture of the processor; by default that of this machine.

    Returns:
        What the machine is, what it can run, what is missing, and which versions have known defects. Problems are
        findings of the report; nothing is raised for them.
    """
    jetson = read_jetson(root)
    energy = find_sensors(root)
    with Meter(energy.sensors):  # which closes them
        sensors = tuple(f"{one.facts.name} ({one.facts.covers})" for one in energy.sensors)
    gpus = read_gpus(root)
    machine = Machine(
        cpu=read_cpu(root, architecture),
        gpus=gpus,
        driver=driver_version(root),
        cudart=cudart_version(root),
        jetson=jetson,
        python=describe_python(),
        energy=sensors,
    )
    base = tuple(_imported(module, package) for module, package in BASE_PACKAGES)
    runtimes = () if any(package.problem for package in base) else find_runtimes()
    tensorrt, compiler = _tensorrt(root), _compiler()
    export = tuple(_installed(package) for package in EXPORT_PACKAGES)
    findings = _missing(machine, base, runtimes, tensorrt, compiler, export)
    findings += failing_devices(machine, runtimes)
    findings += [Finding("optional", one.what, one.fix, one.why) for one in energy.unreadable]
    findings += _known_bad(machine, base, runtimes, tensorrt)
    return DoctorReport(machine, base, runtimes, tensorrt, compiler, export, tuple(findings))


def _imported(module: str, package: str) -> Package:
    found = probe_python(module, _IMPORT.format(module))
    for key in ("problem", "fix"):
        if key in found:
            found[key] = found[key].replace(module, package)
    return Package(package, **found)


def _installed(package: str) -> Package:
    """By its metadata only: importing the exporter's tools takes long and proves little."""
    try:
        return Package(package, metadata.version(package))
    except metadata.PackageNotFoundError:
        return Package(package, problem=f"{package} is not installed", fix="pip install 'vitdeploy[export]'")


def _tensorrt(root: Path) -> TensorRt:
    packaged = next((v for name in ("libnvinfer10", "libnvinfer8") if (v := debian_version(name, root))), None)
    wheels = [folder for entry in sys.path if (folder := Path(entry) / "tensorrt_libs").is_dir()]
    libraries = find_libraries("libnvinfer", root, wheels if root == ROOT else ())
    library = library_version(libraries) or (packaged.partition("-")[0] if packaged else None)
    return TensorRt(_imported("tensorrt", "tensorrt"), library, tuple(system_binding_pythons(root)))


def _compiler() -> Package:
    """NVIDIA's parser and compiler for `check --compile` and `build --runtime tensorrt_rtx`, by their metadata only."""
    missing = rtx.unavailable()
    if missing is None:
        return Package(rtx.NAME, rtx.version())
    return Package(rtx.NAME, problem=missing.what, why=missing.why, fix=missing.fix)


def _missing(
    machine: Machine,
    base: tuple[Package, ...],
    runtimes: tuple[Package, ...],
    tensorrt: TensorRt,
    compiler: Package,
    export: tuple[Package, ...],
) -> list[Finding]:
    kind = "optional" if any(package.problem is None for package in runtimes) else "missing"
    findings = [
        Finding(kind, str(package.problem), str(package.fix), package.why)
        for package in (*base, *runtimes)
        if package.problem and package.name not in ("tensorrt", "tensorrt_rtx")
    ]
    if tensorrt.binding.problem and (machine.gpus or machine.jetson):
        findings.append(_missing_tensorrt(machine, tensorrt))
    elif tensorrt.binding.version:
        unusable = next((package for package in runtimes if package.name == "tensorrt" and package.problem), None)
        if unusable:
            findings.append(Finding("missing", str(unusable.problem), str(unusable.fix), unusable.why))
    if compiler.problem and rtx.has_wheels():
        what = f"{compiler.problem}, which `vitdeploy check BUNDLE --compile` and the runtime tensorrt_rtx need"
        findings.append(Finding("optional", what, str(compiler.fix)))
    elif machine.gpus and not compiler.problem:
        findings += [
            Finding("optional", str(package.problem), str(package.fix), package.why)
            for package in runtimes
            if package.name == "tensorrt_rtx" and package.problem
        ]
    lacking = [package.name for package in export if package.problem]
    if lacking:
        what = f"{', '.join(lacking)}, which vitdeploy export needs; running a bundle does not"
        findings.append(Finding("optional", what, "pip install 'vitdeploy[export]'"))
    return findings


def _missing_tensorrt(machine: Machine, tensorrt: TensorRt) -> Finding:
    """Why this interpreter cannot use TensorRT, on a machine that has a GPU for it."""
    python = ".".join(str(machine.python["version"]).split(".")[:2])
    system = tensorrt.system_pythons
    if system and python not in system:
        return Finding(
            "missing",
            f"TensorRT's Python binding is for the system's Python {' and '.join(system)}, this is Python {python}",
            f"python{system[-1]} -m venv --system-site-packages .venv && .venv/bin/pip install 'vitdeploy[tensorrt]'",
        )
    if system and machine.python["hides_system_packages"]:
        return Finding(
            "missing",
            "this virtual environment hides the system's TensorRT binding",
            f"python{python} -m venv --system-site-packages .venv && .venv/bin/pip install 'vitdeploy[tensorrt]'",
            "it was created without --system-site-packages",
        )
    if machine.jetson:
        packages = "python3-libnvinfer" if tensorrt.library else "nvidia-jetpack"
        return Finding("missing", _tensorrt_problem(tensorrt), f"sudo apt-get install {packages}", tensorrt.binding.why)
    return Finding("missing", _tensorrt_problem(tensorrt), "pip install tensorrt 'vitdeploy[tensorrt]'")


def _tensorrt_problem(tensorrt: TensorRt) -> str:
    if tensorrt.library:
        return f"TensorRT {tensorrt.library} is installed without its Python binding ({tensorrt.binding.problem})"
    return str(tensorrt.binding.problem)


def _known_bad(
    machine: Machine, base: tuple[Package, ...], runtimes: tuple[Package, ...], tensorrt: TensorRt
) -> list[Finding]:
    versions = {package.name: package.version for package in (*base, *runtimes)}
    versions["tensorrt"] = tensorrt.binding.version or tensorrt.library
    versions |= {name: _installed(name).version for name in QUANTIZERS}
    jetson = machine.jetson
    here = Circumstances(
        versions={name: version for name, version in versions.items() if version},
        sm=tuple(sm for sm in (*(gpu.sm for gpu in machine.gpus), jetson.sm if jetson else None) if sm),
        jetson=jetson is not None,
        jetpack=jetson.jetpack if jetson else None,
        architecture=machine.cpu.architecture,
        properties={
            "vnni": machine.cpu.vnni,
            "bf16": machine.cpu.bf16,
            "gpu": bool(machine.gpus or jetson),
            "cuda kernels": not lacks_kernels(runtimes, "CUDAExecutionProvider"),
        },
    )
    return [
        Finding(
            "known bad",
            f"{row.package} {version.partition('-')[0]}: {row.effect}: {row.affects}",
            row.advice,
            row.symptom,
            row.issue or None,
            row.source,
        )
        for row, version in matching_rows(here)
    ]
