"""The runtimes that can run a bundle, by name; one file each, and none imports its package before it is asked to."""

from __future__ import annotations

from collections.abc import Iterator

from vitdeploy.registry import Registry
from vitdeploy.runtime.backends.base import Backend

__all__ = ["Backend", "auto_order", "backend_names", "backends", "find_backend", "full_name"]

_BACKENDS: Registry[type[Backend]] = Registry(
    "vitdeploy.backends",
    kind="runtime",
    option="--runtime",
    kept={
        "onnxruntime": "vitdeploy.runtime.backends.onnxruntime:OnnxRuntimeBackend",
        "openvino": "vitdeploy.runtime.backends.openvino:OpenVinoBackend",
        "tensorrt": "vitdeploy.tensorrt.backend:TensorRtBackend",
        "tensorrt_rtx": "vitdeploy.tensorrt.rtx.backend:TensorRtRtxBackend",
        "torch": "vitdeploy.runtime.backends.torch:TorchBackend",
    },
    aliases={"ort": "onnxruntime", "ov": "openvino", "trt": "tensorrt", "trt_rtx": "tensorrt_rtx"},
)


def backend_names() -> tuple[str, ...]:
    """The names that `find_backend` knows, installed or not."""
    return _BACKENDS.names()


def find_backend(name: str) -> type[Backend]:
    """The backend class called `name`; a UsageError offers the names there are."""
    return _BACKENDS.find(name)


def full_name(name: str) -> str:
    """`onnxruntime` for `ort`, `openvino` for `ov`, `tensorrt` for `trt`; any other name as it is."""
    return _BACKENDS.full(name)


def backends() -> Iterator[type[Backend]]:
    """All backend classes, ours first."""
    return map(find_backend, backend_names())


def auto_order() -> list[type[Backend]]:
    """The backends that `auto` tries, fastest first."""
    ranked = [(backend.auto_rank, backend.name, backend) for backend in backends() if backend.auto_rank is not None]
    return [backend for *_, backend in sorted(ranked, key=lambda row: row[:2])]
