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
    PluginError,
    UsageError,
    VitDeployError,
)

if TYPE_CHECKING:
    from vitdeploy.accuracy.validate import validate
    from vitdeploy.bundle import Bundle
    from vitdeploy.exporter.api import export
    from vitdeploy.latency.benchmark import benchmark
    from vitdeploy.models.create import create_model
    from vitdeploy.models.registry import list_models
    from vitdeploy.runtime.session import Session, load
    from vitdeploy.runtime.verify import verify
    from vitdeploy.tensorrt.prove import build

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
    "PluginError",
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
    "benchmark": "vitdeploy.latency.benchmark",
    "build": "vitdeploy.tensorrt.prove",
    "create_model": "vitdeploy.models.create",
    "export": "vitdeploy.exporter.api",
    "list_models": "vitdeploy.models.registry",
    "load": "vitdeploy.runtime.session",
    "validate": "vitdeploy.accuracy.validate",
    "verify": "vitdeploy.runtime.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vitdeploy' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
