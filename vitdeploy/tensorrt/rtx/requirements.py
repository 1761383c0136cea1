"""Where TensorRT for RTX runs, what it is imported as, and the compute capabilities that it compiles for."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
import sys
from importlib import metadata
from typing import Any

from vitdeploy.errors import BackendError, MissingDependencyError, UsageError

NAME = "TensorRT for RTX"
EXTRA = "nvidia"
# Distribution by the module that it brings. pyproject.toml pins both to one version.
PACKAGES = {
    "tensorrt_rtx_libs": "tensorrt-rtx-cu12-libs",
    "tensorrt_rtx_bindings": "tensorrt-rtx-cu12-bindings",
}
# What NVIDIA's archives install has both in one.
WHOLE = ("tensorrt_rtx", "tensorrt-rtx")
# `ComputeCapability` of the bindings, ten times the version that NVIDIA writes.
COMPUTE_CAPABILITIES = (75, 80, 86, 89, 120, 121)
DEFAULT_SM = 86
# What an engine is built for if nothing is asked: a kind more takes 10 bytes, but Turing (75) multiplies no FP32.
DEFAULT_KINDS = tuple(sm for sm in COMPUTE_CAPABILITIES if sm >= 80)
_JETSON_ORIN = 87


def require(command: str = "vitdeploy check BUNDLE --compile") -> None:
    """BackendError or MissingDependencyError where the compiler cannot run here, with what brings it."""
    missing = unavailable(command)
    if missing is not None:
        raise missing


def has_wheels() -> bool:
    """Whether NVIDIA publishes wheels for a machine like this."""
    return sys.platform == "linux" and platform.machine().lower() in ("x86_64", "amd64")


def bindings() -> str | None:
    """The module of the bindings, installed as wheels or from NVIDIA's archive; None where there is none."""
    if all(importlib.util.find_spec(module) for module in PACKAGES):
        return "tensorrt_rtx_bindings"
    return WHOLE[0] if importlib.util.find_spec(WHOLE[0]) else None


def import_bindings() -> Any:
    """The bindings; ImportError where they are missing or do not load."""
    module = bindings()
    if module == "tensorrt_rtx_bindings":
        importlib.import_module("tensorrt_rtx_libs")  # loads the libraries that the bindings look for
    return importlib.import_module(module or WHOLE[0])


def unavailable(command: str = "vitdeploy check BUNDLE --compile") -> BackendError | None:
    """Why the compiler cannot run here, as an error to raise; None where it can."""
    if not has_wheels():
        system, machine = sys.platform, platform.machine()
        here = {"darwin": "macOS", "win32": "Windows", "linux": "Linux"}.get(system, system)
        board = "on the Jetson `vitdeploy build BUNDLE` asks the board's own TensorRT; "
        return BackendError(
            f"{NAME} compiles on x86-64 Linux only",
            why=f"this is {here} on {machine}, for which NVIDIA publishes no wheels that compile without a GPU",
            fix=f"{board if system == 'linux' else ''}copy the bundle to an x86-64 Linux machine (a container will do) "
            "and run the command there; `vitdeploy check BUNDLE --target T` needs no compiler",
        )
    needed = {"onnx": "onnx", "onnx_ir": "onnx-ir", **({} if bindings() else PACKAGES)}
    for module, package in needed.items():
        if importlib.util.find_spec(module) is None:
            return MissingDependencyError(package, needed_for=command, extra=EXTRA)
    return None


def version() -> str:
    """The installed version, such as 1.7.1.116; `unknown` where its record is missing."""
    for package in (PACKAGES["tensorrt_rtx_bindings"], WHOLE[1]):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
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
