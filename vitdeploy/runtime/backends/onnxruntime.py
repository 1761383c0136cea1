"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitdeploy.bundle import TensorSpec
from vitdeploy.errors import UsageError
from vitdeploy.runtime.backends.base import Array, Backend, Options

_C_NAMES = {"float": "float32", "double": "float64"}


class OnnxRuntimeBackend(Backend):
    """Computes in the precision of the graph's types; FP16 nodes without a half-precision kernel run in FP32."""

    name = "onnxruntime"
    package = "onnxruntime"
    extra = "onnxruntime"

    @classmethod
    def _load(cls, model: bytes, weights: bytes, options: Options) -> Backend:
        import onnxruntime

        if options.precision is not None:
            raise UsageError(
                "onnxruntime computes in the precision of the graph's types",
                fix="leave the precision out, or export the bundle in another one",
            )
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
        return cls(onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"]), options)

    def __init__(self, session: Any, options: Options) -> None:
        super().__init__(session, _specs(session.get_inputs()), _specs(session.get_outputs()))
        self._names = [spec.name for spec in self.outputs]
        self._threads = options.threads

    def _run(self, native: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(self._names, native.run(self._names, inputs), strict=True))

    def _facts(self) -> dict[str, Any]:
        import onnxruntime

        return {
            "version": onnxruntime.__version__,
            "device": "CPU",
            "precision": "types of the graph (FP16 in FP32 where the CPU has no kernel)",
            "threads": self._threads or "automatic",
        }


def _specs(ports: list[Any]) -> tuple[TensorSpec, ...]:
    """The signature; an axis without a length has a name or, where the model gives none, a question mark."""
    return tuple(
        TensorSpec(
            port.name,
            _dtype(port.type),
            tuple(axis if isinstance(axis, int) else axis or "?" for axis in port.shape),
        )
        for port in ports
    )


def _dtype(port_type: str) -> str:
    element = port_type.removeprefix("tensor(").removesuffix(")")
    return _C_NAMES.get(element, element)
