"""OpenVINO on the CPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from vitdeploy.bundle import Bundle, TensorSpec
from vitdeploy.runtime.backends.base import Array, Backend, Options

IR_MODEL, IR_WEIGHTS = "model.xml", "model.bin"

_ELEMENT_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVinoBackend(Backend):
    """Computes in FP32 unless told otherwise; left to itself OpenVINO takes bf16 where the CPU has it."""

    name = "openvino"
    package = "openvino"
    extra = "openvino"

    @classmethod
    def open(cls, bundle: Bundle, options: Options | None = None) -> Backend:
        """The bundle's OpenVINO files where it has them, else its ONNX model."""
        if IR_MODEL in bundle.manifest.files:
            return cls.load(bundle.read(IR_MODEL), bundle.read(IR_WEIGHTS), options)
        return super().open(bundle, options)

    @classmethod
    def _load(cls, model: bytes, weights: bytes, options: Options) -> Backend:
        import openvino

        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _ELEMENT_TYPES[options.precision or "fp32"],
        }
        if options.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = options.threads
        core = openvino.Core()
        return cls(core.compile_model(core.read_model(model, weights), "CPU", settings))

    def __init__(self, compiled: Any) -> None:
        # An infer request serves one call at a time: idle ones wait here, as many as there ever were calls at once.
        idle: deque[Any] = deque()
        super().__init__((compiled, idle), _specs(compiled.inputs), _specs(compiled.outputs))
        self._names = [spec.name for spec in self.outputs]
        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self._settings = {
            "precision": next((name for name, element in _ELEMENT_TYPES.items() if element == used), used),
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
        }

    def _run(self, native: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        compiled, idle = native
        try:
            request = idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        results = request.infer(inputs, share_inputs=True)
        idle.append(request)
        return dict(zip(self._names, results.values(), strict=True))

    def _facts(self) -> dict[str, Any]:
        import openvino

        return {"version": openvino.get_version(), "device": "CPU", **self._settings}


def _specs(ports: list[Any]) -> tuple[TensorSpec, ...]:
    """The signature; OpenVINO does not keep the names of dynamic axes."""
    return tuple(
        TensorSpec(
            port.get_any_name(),
            port.get_element_type().to_dtype().name,
            tuple(axis.get_length() if axis.is_static else "?" for axis in port.get_partial_shape()),
        )
        for port in ports
    )
