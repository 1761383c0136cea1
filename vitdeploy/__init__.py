"""Takes an efficient vision transformer from PyTorch to an edge device and proves that nothing was lost.

Everything public is here and imported when it is first used, so that `import vitdeploy` costs nothing.
"""

from __future__ import annotations

import importlib
import os
import sys
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
    from vitdeploy.accuracy.report import AccuracyReport
    from vitdeploy.accuracy.sharded import ShardReport, validate_shard
    from vitdeploy.accuracy.validate import validate
    from vitdeploy.bundle import Bundle, Manifest
    from vitdeploy.costs.report import SensitivityReport
    from vitdeploy.costs.sensitivity import sensitivity
    from vitdeploy.data import Dataset, open_data
    from vitdeploy.divergence.bisect import bisect
    from vitdeploy.divergence.report import BisectReport
    from vitdeploy.exporter.api import export
    from vitdeploy.hosts.fleet import fleet
    from vitdeploy.hosts.report import FleetReport
    from vitdeploy.inspection.doctor import doctor
    from vitdeploy.inspection.doctor_report import DoctorReport
    from vitdeploy.inspection.inspect import inspect
    from vitdeploy.inspection.report import InspectionReport
    from vitdeploy.latency.benchmark import benchmark
    from vitdeploy.latency.report import BenchmarkReport
    from vitdeploy.models.create import create_model
    from vitdeploy.models.registry import list_models
    from vitdeploy.platforms.check import check
    from vitdeploy.platforms.report import CheckReport
    from vitdeploy.preprocess import Preprocessing
    from vitdeploy.proof.prove import VerifyReport
    from vitdeploy.quantize.options import Int8Options
    from vitdeploy.reporting.report import HtmlReport, report
    from vitdeploy.runtime.backends import Backend
    from vitdeploy.runtime.prediction import Prediction
    from vitdeploy.runtime.session import Session, load
    from vitdeploy.runtime.verify import verify
    from vitdeploy.search.optimize import optimize
    from vitdeploy.search.report import OptimizeReport
    from vitdeploy.serving.handoff import HandoffReport, handoff
    from vitdeploy.signing.sign import SignReport, sign
    from vitdeploy.targets import Int8Rules, Target, list_targets
    from vitdeploy.tensorrt.options import BuildOptions
    from vitdeploy.tensorrt.prove import build
    from vitdeploy.tensorrt.report import BuildReport

__version__ = "0.1.0"

# No runtime reports to its maker from here. ONNX Runtime, since 1.29, reads this variable when it is imported, and our
# processes inherit it; a value of the user's own stays. OpenVINO has no such switch, and does without the package.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

__all__ = [
    "AccuracyReport",
    "Backend",
    "BackendError",
    "BenchmarkReport",
    "BisectReport",
    "BuildOptions",
    "BuildReport",
    "Bundle",
    "BundleError",
    "CheckReport",
    "CheckpointError",
    "Dataset",
    "DoctorReport",
    "ExportError",
    "FleetReport",
    "GateError",
    "HandoffReport",
    "HtmlReport",
    "InputError",
    "InspectionReport",
    "Int8Options",
    "Int8Rules",
    "Manifest",
    "MissingDependencyError",
    "ModelError",
    "OptimizeReport",
    "PluginError",
    "Prediction",
    "Preprocessing",
    "SensitivityReport",
    "Session",
    "ShardReport",
    "SignReport",
    "Target",
    "UsageError",
    "VerifyReport",
    "VitDeployError",
    "benchmark",
    "bisect",
    "build",
    "check",
    "create_model",
    "doctor",
    "export",
    "fleet",
    "handoff",
    "inspect",
    "list_models",
    "list_targets",
    "load",
    "open_data",
    "optimize",
    "report",
    "sensitivity",
    "sign",
    "validate",
    "validate_shard",
    "verify",
]

_HOME = {
    "AccuracyReport": "vitdeploy.accuracy.report",
    "Backend": "vitdeploy.runtime.backends",
    "BenchmarkReport": "vitdeploy.latency.report",
    "BisectReport": "vitdeploy.divergence.report",
    "BuildOptions": "vitdeploy.tensorrt.options",
    "BuildReport": "vitdeploy.tensorrt.report",
    "Bundle": "vitdeploy.bundle",
    "CheckReport": "vitdeploy.platforms.report",
    "Dataset": "vitdeploy.data",
    "DoctorReport": "vitdeploy.inspection.doctor_report",
    "FleetReport": "vitdeploy.hosts.report",
    "HandoffReport": "vitdeploy.serving.handoff",
    "HtmlReport": "vitdeploy.reporting.report",
    "InspectionReport": "vitdeploy.inspection.report",
    "Int8Options": "vitdeploy.quantize.options",
    "Int8Rules": "vitdeploy.targets",
    "Manifest": "vitdeploy.bundle",
    "OptimizeReport": "vitdeploy.search.report",
    "Prediction": "vitdeploy.runtime.prediction",
    "Preprocessing": "vitdeploy.preprocess",
    "SensitivityReport": "vitdeploy.costs.report",
    "Session": "vitdeploy.runtime.session",
    "ShardReport": "vitdeploy.accuracy.sharded",
    "SignReport": "vitdeploy.signing.sign",
    "Target": "vitdeploy.targets",
    "VerifyReport": "vitdeploy.proof.prove",
    "benchmark": "vitdeploy.latency.benchmark",
    "bisect": "vitdeploy.divergence.bisect",
    "build": "vitdeploy.tensorrt.prove",
    "check": "vitdeploy.platforms.check",
    "create_model": "vitdeploy.models.create",
    "doctor": "vitdeploy.inspection.doctor",
    "export": "vitdeploy.exporter.api",
    "fleet": "vitdeploy.hosts.fleet",
    "handoff": "vitdeploy.serving.handoff",
    "inspect": "vitdeploy.inspection.inspect",
    "list_models": "vitdeploy.models.registry",
    "list_targets": "vitdeploy.targets",
    "load": "vitdeploy.runtime.session",
    "open_data": "vitdeploy.data",
    "optimize": "vitdeploy.search.optimize",
    "report": "vitdeploy.reporting.report",
    "sensitivity": "vitdeploy.costs.sensitivity",
    "sign": "vitdeploy.signing.sign",
    "validate": "vitdeploy.accuracy.validate",
    "validate_shard": "vitdeploy.accuracy.sharded",
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
