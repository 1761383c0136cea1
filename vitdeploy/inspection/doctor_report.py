"""The report of `doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vitdeploy.machine.gpus import Gpu
from vitdeploy.machine.hardware import Cpu, Jetson
from vitdeploy.table import render

NOTHING_RUNS = "NO RUNTIME IS USABLE: no bundle can run here\n  try: pip install 'vitdeploy[onnxruntime]'"


@dataclass(frozen=True)
class Package:
    """A package or runtime: its version, or the problem with it and the command that helps.

    devices  those on which a small model ran or, where the runtime tries none, those that it names
    failing  those that it names and on which the model did not run, with the reason
    """

    name: str
    version: str | None = None
    devices: tuple[str, ...] = ()
    problem: str | None = None
    why: str | None = None
    fix: str | None = None
    failing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorRt:
    """TensorRT as it is installed on this machine.

    binding         the Python package, as this interpreter sees it
    library         version of libnvinfer, from its file name or the package database
    system_pythons  versions of Python for which the system has the binding
    """

    binding: Package
    library: str | None
    system_pythons: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """A problem, and what to type or do about it.

    kind  `missing`, `optional` (missing, but bundles run without it) or `known bad`
    """

    kind: str
    what: str
    fix: str
    why: str | None = None
    issue: str | None = None
    source: str | None = None

    def __str__(self) -> str:
        reference = f"  see: {self.issue or self.source}" if self.issue or self.source else ""
        parts = [f"{self.kind}: {self.what}", self.why and f"  why: {self.why}", f"  try: {self.fix}", reference]
        return "\n".join(part for part in parts if part)


@dataclass(frozen=True)
class Machine:
    """The hardware and the system; `energy` names the sensors of energy that can be read, with what they cover."""

    cpu: Cpu
    gpus: tuple[Gpu, ...]
    driver: str | None
    cudart: str | None
    jetson: Jetson | None
    python: Mapping[str, Any]
    energy: tuple[str, ...] = ()


@dataclass(frozen=True)
class DoctorReport:
    """What `vitdeploy.doctor` found; `str()` is a table, the findings and the verdict.

    Attributes:
        machine: Processor, GPU, board and Python.
        base: The packages that every device needs.
        runtimes: The packages of the runtimes, each usable or not, with the reason.
        tensorrt: What there is of TensorRT and CUDA.
        compiler: NVIDIA's parser and compiler, which need no GPU.
        export: The packages that an export needs.
        findings: Versions with known defects, and what else to mend.
    """

    machine: Machine
    base: tuple[Package, ...]
    runtimes: tuple[Package, ...]
    tensorrt: TensorRt
    compiler: Package
    export: tuple[Package, ...]
    findings: tuple[Finding, ...]

    @property
    def usable(self) -> tuple[str, ...]:
        """The runtimes that can run a bundle here."""
        return tuple(runtime.name for runtime in self.runtimes if runtime.problem is None)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"usable_runtimes": list(self.usable), **asdict(self)}

    def __str__(self) -> str:
        rows = _machine_rows(self.machine)
        rows += [[package.name, _state(package)] for package in (*self.base, *self.runtimes)]
        if self.tensorrt.library or self.tensorrt.binding.version:
            library = self.tensorrt.library or "not found"
            rows.append(["TensorRT", f"libnvinfer {library}, Python binding {_state(self.tensorrt.binding)}"])
        rows.append(["check --compile", f"{self.compiler.name} {_state(self.compiler)}"])
        lacking = [package.name for package in self.export if package.problem]
        rows.append(["export", f"not available: no {', '.join(lacking)}" if lacking else "every tool is installed"])
        usable = ", ".join(self.usable)
        verdict = f"a bundle can run here with: {usable}" if usable else NOTHING_RUNS
        return "\n".join([render(rows), *[f"\n{finding}" for finding in self.findings], f"\n{verdict}"])


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
        rows.append(["GPU", "the driver does not respond" if jetson else "no NVIDIA GPU"])
    if machine.driver or machine.cudart:
        rows.append(["CUDA", f"driver {machine.driver or 'not found'}, libcudart {machine.cudart or 'not found'}"])
    rows += [["energy", sensor] for sensor in machine.energy]
    hides = ", a virtual environment without the system's packages" if machine.python["hides_system_packages"] else ""
    rows.append(["Python", f"{machine.python['version']}{hides}"])
    return rows


def _state(package: Package) -> str:
    if package.problem:
        return package.problem.removeprefix(f"{package.name} ")
    devices = ", ".join([*package.devices, *(f"not {device}" for device in package.failing)])
    return f"{package.version} ({devices})" if devices else str(package.version)
