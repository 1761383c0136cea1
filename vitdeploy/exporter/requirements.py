"""What the export needs installed, asked before anything heavy is imported."""

from __future__ import annotations

import importlib.util

from vitdeploy.errors import MissingDependencyError

# Import name and package of everything that the stations of the pipeline import when they are loaded.
REQUIRED = {
    "torch": "torch",
    "onnx": "onnx",
    "onnx_ir": "onnx-ir",
    "onnxscript": "onnxscript",
    "onnxsim": "onnxsim",
    "onnxruntime": "onnxruntime",
    "threadpoolctl": "threadpoolctl",
}


def need(module: str, package: str, *, extra: str = "export", needed_for: str = "the export") -> None:
    """Raise MissingDependencyError, which names the pip line, unless `module` can be imported."""
    if importlib.util.find_spec(module) is None:
        raise MissingDependencyError(package, needed_for=needed_for, extra=extra)


def need_all() -> None:
    """Raise MissingDependencyError for the first package of REQUIRED that is not installed."""
    for module, package in REQUIRED.items():
        need(module, package)
