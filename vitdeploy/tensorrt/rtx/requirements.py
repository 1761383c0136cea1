"""Where TensorRT for RTX runs, and the compute capabilities that it compiles for."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from importlib import metadata

from vitdeploy.errors import BackendError, MissingDependencyError, UsageError

NAME = "TensorRT for RTX"
EXTRA = "nvidia"
# Distribution by the module that it brings. pyproject.toml pins both to one version.
PACKAGES = {
    "tensorrt_rtx_libs": "tensorrt-rtx-cu12-libs",
    "tensorrt_rtx_bindings": "tensorrt-rtx-cu12-bindings",
}
# `ComputeCapability` of the bindings, ten times the version that NVIDIA writes.
COMPUTE_CAPABILITIES = (75, 80, 86, 89, 120, 121)
DEFAULT_SM = 86
_JETSON_ORIN = 87


def require() -> None:
    """BackendError or MissingDependencyError where the compiler cannot run here, with what brings it."""
    missing = unavailable()
    if missing is not None:
        raise missing


def unavailable() -> BackendError | None:
    """Why the compiler cannot run here, as an error to raise; None where it can."""
    system, machine = sys.platform, platform.machine()
    if system != "linux" or machine.lower() not in ("x86_64", "amd64"):
        here = {"darwin": "macOS", "win32": "Windows", "linux": "Linux"}.get(system, system)
        board = "on the Jetson `vitdeploy build BUNDLE` asks the board's own TensorRT; "
        return BackendError(
            f"{NAME} compiles on x86-64 Linux only",
            why=f"this is {here} on {machine}, for which NVIDIA publishes no wheels that compile without a GPU",
            fix=f"{board if system == 'linux' else ''}copy the bundle to an x86-64 Linux machine (a container will do) "
            "and run the command there; `vitdeploy check BUNDLE --target T` needs no compiler",
        )
    for module, package in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            return MissingDependencyError(package, needed_for="vitdeploy check --compile", extra=EXTRA)
    for module, package in (("onnx", "onnx"), ("onnx_ir", "onnx-ir")):
        if importlib.util.find_spec(module) is None:
            return MissingDependencyError(package, needed_for="vitdeploy check --compile", extra=EXTRA)
    return None


def version() -> str:
    """The installed version, such as 1.7.1.116; `unknown` where its record is missing."""
    try:
        return metadata.version(PACKAGES["tensorrt_rtx_bindings"])
    except metadata.PackageNotFoundError:
        return "unknown"


def read_sm(text: str | int) -> int:
    """86 for `86`, `8.6` or `sm_86`; a UsageError lists what there is."""
    digits = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", str(text).strip().lower())
    asked = int(digits[1] + digits[2]) if digits else None
    if asked in COMPUTE_CAPABILITIES:
        return asked
    nearest = min(COMPUTE_CAPABILITIES, key=lambda sm: abs(sm - (DEFAULT_SM if asked is None else asked)))
    orin = "; Jetson Orin is 87, and the nearest here is 86" if asked in (None, _JETSON_ORIN) else ""
    raise UsageError(
        f"{NAME} does not compile for compute capability {text}",
        why=f"it compiles for {', '.join(map(str, COMPUTE_CAPABILITIES))}{orin}",
        fix=f"--sm {nearest}",
    )
