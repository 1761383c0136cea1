"""Takes an efficient vision transformer from PyTorch to an edge device and proves that nothing was lost.

Everything public is here and imported when it is first used, so that `import vitdeploy` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import (
    BackendError,
    BundleError,
    CheckpointError,
    ExportError,
    GateError,
    InputError,
    MissingDependencyError,
    ModelError,
    UsageError,
    VitDeployError,
)

if TYPE_CHECKING:
    from vitdeploy.bundle import Bundle
    from vitdeploy.export.pipeline import export
    from vitdeploy.models.create import create_model
    from vitdeploy.models.registry import list_models
    from vitdeploy.runtime.session import Session, load
    from vitdeploy.validation.accuracy import validate
    from vitdeploy.validation.benchmark import benchmark
    from vitdeploy.validation.engine import build
    from vitdeploy.validation.verify import verify

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "ExportError",
    "GateError",
    "InputError",
    "MissingDependencyError",
    "ModelError",
    "Session",
    "UsageError",
    "VitDeployError",
    "benchmark",
    "build",
    "create_model",
    "export",
    "list_models",
    "load",
    "validate",
    "verify",
]

_HOME = {
    "Bundle": "vitdeploy.bundle",
    "Session": "vitdeploy.runtime.session",
    "benchmark": "vitdeploy.validation.benchmark",
    "build": "vitdeploy.validation.engine",
    "create_model": "vitdeploy.models.create",
    "list_models": "vitdeploy.models.registry",
    "load": "vitdeploy.runtime.session",
    "validate": "vitdeploy.validation.accuracy",
    "verify": "vitdeploy.validation.verify",
}


def __getattr__(name: str) -> Any:
    if name == "export":
        # The subpackage, which is callable: Python binds it to this name anyway as soon as anything imports it.
        return importlib.import_module("vitdeploy.export")
    if name not in _HOME:
        raise AttributeError(f"module 'vitdeploy' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
