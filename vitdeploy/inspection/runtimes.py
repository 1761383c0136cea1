"""Which runtimes are here, and which of the devices that they name run a small model."""

from __future__ import annotations

import re
from typing import Any

from vitdeploy.inspection.doctor_report import Finding, Machine, Package
from vitdeploy.inspection.probe_python import probe_python

TRIAL_SECONDS = 60.0  # TensorRT's provider builds an engine

BACKENDS = "import json, vitdeploy.runtime.backends as b; print(json.dumps({'names': b.backend_names()}))"
BACKEND = """
import json, sys
from vitdeploy.errors import BackendError
from vitdeploy.runtime.backends import find_backend
backend = find_backend(sys.argv[1])
try:
    backend.require()
    found = {"version": backend.version(), "devices": list(backend.devices()), "tried": backend.tries_devices}
except BackendError as error:
    found = {"problem": error.what, "why": error.why, "fix": error.fix}
print(json.dumps(found))
"""
TRIAL = """
import json, sys
from vitdeploy.errors import BackendError
from vitdeploy.runtime.backends import find_backend
found = {}
try:
    find_backend(sys.argv[1]).try_device(sys.argv[2])
except BackendError as error:
    found = {"problem": error.what, "why": error.why}
print(json.dumps(found))
"""
_NO_KERNEL = re.compile("no kernel image", re.IGNORECASE)
_LIBRARY = re.compile(r"(lib[\w.+-]+): cannot open shared object file")


def find_runtimes() -> tuple[Package, ...]:
    """Every runtime that is known, with the devices that work and those that do not."""
    names = probe_python("vitdeploy", BACKENDS).get("names", [])
    return tuple(_package(name, probe_python(name, BACKEND, name)) for name in names)


def _package(name: str, about: dict[str, Any]) -> Package:
    devices, tried = tuple(about.pop("devices", ())), about.pop("tried", False)
    if about.get("problem") or not tried:
        return Package(name, devices=devices, **about)
    trials = {device: _trial(name, device) for device in devices}
    failing = {device: why for device, why in trials.items() if why is not None}
    working = tuple(device for device in devices if device not in failing)
    if failing and not working:
        device, why = next(iter(failing.items()))
        return Package(
            name,
            problem=f"{name} runs no model on any of its devices",
            why=f"{device}: {why}",
            fix=f"pip install --force-reinstall {name}",
        )
    return Package(name, about.get("version"), working, failing=failing)


def _trial(name: str, device: str) -> str | None:
    """Why a small model does not run on the device; None where it does."""
    found = probe_python(name, TRIAL, name, device, seconds=TRIAL_SECONDS, doing="trial of a small model")
    return str(found.get("why") or found["problem"]) if "problem" in found else None


def lacks_kernels(runtimes: tuple[Package, ...], device: str) -> bool:
    """Whether a runtime names the device and was compiled for other GPUs than the one that is here."""
    return any(_NO_KERNEL.search(package.failing.get(device, "")) is not None for package in runtimes)


def failing_devices(machine: Machine, runtimes: tuple[Package, ...]) -> list[Finding]:
    """A finding for each device that a usable runtime names and that runs nothing."""
    return [
        Finding("optional", f"{package.name} {package.version} runs no model on {device}", _fix(machine, why), why)
        for package in runtimes
        for device, why in package.failing.items()
    ]


def _fix(machine: Machine, why: str) -> str:
    if _NO_KERNEL.search(why):
        known = [gpu.sm for gpu in machine.gpus] + [machine.jetson.sm if machine.jetson else None]
        sm = next((sm for sm in known if sm), None)
        wanted = f"compute capability {sm // 10}.{sm % 10}" if sm else "this GPU"
        return f"a package that is compiled for {wanted}; until then the device CPU"
    library = _LIBRARY.search(why)
    if library:
        return f"install {library[1]}, or the package that is made for the CUDA of this machine; else the device CPU"
    return "the device CPU, or another runtime"
