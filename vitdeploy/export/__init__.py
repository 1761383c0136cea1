"""From a PyTorch module to a verified bundle."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

from vitdeploy.errors import MissingDependencyError

# Import name and package of everything that the stations of the pipeline import when they are loaded.
REQUIRED = {
    "torch": "torch",
    "onnx": "onnx",
    "onnx_ir": "onnx-ir",
    "onnxscript": "onnxscript",
    "onnxsim": "onnxsim",
    "onnxruntime": "onnxruntime",
}


def need(module: str, package: str, *, extra: str = "export") -> None:
    """Raise MissingDependencyError, which names the pip line, unless `module` can be imported."""
    if importlib.util.find_spec(module) is None:
        raise MissingDependencyError(package, needed_for="vitdeploy export", extra=extra)


class _CallablePackage(ModuleType):
    """`vitdeploy.export(...)` is the public function although this package carries the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for module, package in REQUIRED.items():
            need(module, package)
        from vitdeploy.export.pipeline import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
