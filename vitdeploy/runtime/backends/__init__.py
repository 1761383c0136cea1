"""The runtimes that can run a bundle, by name; one file each, and none imports its package before it is asked to."""

from __future__ import annotations

from difflib import get_close_matches

from vitdeploy.errors import UsageError
from vitdeploy.runtime.backends.base import Backend, Options
from vitdeploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from vitdeploy.runtime.backends.openvino import OpenVinoBackend
from vitdeploy.runtime.backends.torch import TorchBackend
from vitdeploy.tensorrt.backend import TensorRtBackend

__all__ = ["Backend", "Options", "backend_names", "find_backend"]

_BACKENDS: dict[str, type[Backend]] = {
    backend.name: backend
    for backend in (
        OnnxRuntimeBackend,
        OpenVinoBackend,
        TensorRtBackend,
        TorchBackend,
    )
}


def backend_names() -> tuple[str, ...]:
    """The names that `find_backend` knows, installed or not."""
    return tuple(_BACKENDS)


def find_backend(name: str) -> type[Backend]:
    """The backend class called `name`; a UsageError offers the names there are."""
    if name not in _BACKENDS:
        close = get_close_matches(name, _BACKENDS, n=1) or list(_BACKENDS)
        raise UsageError(f"there is no runtime called {name!r}", fix=f"--runtime {' or '.join(close)}")
    return _BACKENDS[name]
