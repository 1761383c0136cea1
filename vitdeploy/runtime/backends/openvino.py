"""OpenVINO on the CPU, GPU or NPU."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdeploy.bundle import MODEL, Bundle, TensorSpec
from vitdeploy.caches import Cache
from vitdeploy.errors import BackendError, ExportError
from vitdeploy.machine.hardware import read_cpu
from vitdeploy.machine.settings import OPENVINO_EXACT, default_threads
from vitdeploy.runtime.backends.base import Array, Backend, one_line
from vitdeploy.runtime.backends.openvino_file import check_files
from vitdeploy.runtime.executed import ExecutedGraph
from vitdeploy.runtime.options import Options

IR_MODEL, IR_WEIGHTS = "model.xml", "model.bin"

_ELEMENT_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}

# Devices that spread the work over others: docs.openvino.ai, "Inference Devices and Modes".
_MODES = ("AUTO", "HETERO")

_STAND_ALONE = """\
import openvino


def run(model, inputs):
    core = openvino.Core()
    network = core.read_model(model)
{folding}    compiled = core.compile_model(network, "{device}", {settings})
    results = compiled(inputs)
    return [results[index] for index in range(len(compiled.outputs))]
"""
_FOLDING = """\
    from openvino.passes import ConstantFolding, Manager

    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(network)
"""


class OpenVinoBackend(Backend):
    """Computes in FP32 unless told otherwise; left to itself OpenVINO takes bf16 where the CPU has it."""

    name = "openvino"
    package = "openvino"
    extra = "openvino"
    tells_graph = True
    times_layers = True
    auto_rank = 20
    auto_reason = "it is the fastest measured"

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        """The devices that OpenVINO finds."""
        import openvino

        return tuple(openvino.Core().available_devices)

    @classmethod
    def throughput_options(cls, cores: int) -> dict[str, Any]:
        """As many calls as cores: it counts the threads of all calls together."""
        return {"num_requests": cores}

    @classmethod
    def stand_alone(cls, options: Options) -> str:
        """With the same settings."""
        device = (options.device or "CPU").upper()
        settings = {name: value for name, value in _settings(options, device).items() if name != "CACHE_DIR"}
        return _STAND_ALONE.format(
            folding=_FOLDING if OPENVINO_EXACT in settings else "", device=device, settings=settings
        )

    @classmethod
    def convert(cls, model: bytes) -> dict[str, bytes]:
        """`model.xml` and `model.bin`."""
        import openvino

        with tempfile.TemporaryDirectory(prefix="vitdeploy-") as folder:
            xml = Path(folder) / IR_MODEL
            try:
                # Not convert_model: it merges the keys' two Transposes, one of which the plugin reads as transpose_b.
                openvino.save_model(openvino.Core().read_model(model, b""), str(xml), compress_to_fp16=False)
            except RuntimeError as error:
                raise ExportError(
                    "OpenVINO cannot convert or write the model",
                    why=one_line(error),
                    fix="vitdeploy doctor, which lists versions with known defects; or export --target portable",
                ) from error
            return {IR_MODEL: xml.read_bytes(), IR_WEIGHTS: (Path(folder) / IR_WEIGHTS).read_bytes()}

    @classmethod
    def executed(cls, bundle: Bundle) -> ExecutedGraph:
        """The runtime model of the CPU plugin, computing in FP32 as sessions do."""
        import openvino

        from vitdeploy.runtime.backends.openvino_graph import read_graph

        model, weights = cls._files(bundle)
        settings = {"INFERENCE_PRECISION_HINT": _ELEMENT_TYPES["fp32"], **exact_settings()}
        core = openvino.Core()
        compiled = core.compile_model(read_model(core, model, weights, settings), "CPU", settings)
        return read_graph(compiled, bundle.read(MODEL))

    @classmethod
    def open(cls, bundle: Bundle, options: Options | None = None) -> Backend:
        """The bundle's OpenVINO files where it has them, else its ONNX model."""
        return cls.load(*cls._files(bundle), options)

    @classmethod
    def _files(cls, bundle: Bundle) -> tuple[bytes, bytes]:
        """The model and, where it is apart, its weights."""
        if IR_MODEL in bundle.manifest.files:
            model, weights = bundle.read(IR_MODEL), bundle.read(IR_WEIGHTS)
            check_files(model, weights, str(bundle.path / IR_MODEL))
            return model, weights
        return bundle.read(MODEL), b""

    @classmethod
    def _load(cls, model: bytes, weights: bytes, options: Options) -> Backend:
        import openvino

        core = openvino.Core()
        device = _device(options.device or "CPU", core.available_devices)
        settings = _settings(options, device)
        kept = Cache("compiled", Path(options.cache)) if options.cache else None
        compiled = core.compile_model(read_model(core, model, weights, settings), device, settings)
        if kept is not None:
            kept.evict()
        return cls(compiled, device)

    def __init__(self, compiled: Any, device: str) -> None:
        # An infer request serves one call at a time: idle ones wait here, as many as there ever were calls at once.
        idle: deque[Any] = deque()
        super().__init__((compiled, idle), _specs(compiled.inputs), _specs(compiled.outputs))
        self._names = [spec.name for spec in self.outputs]
        self.num_requests = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        known = set(compiled.get_property("SUPPORTED_PROPERTIES"))
        used, threads = "INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS"
        element = compiled.get_property(used).to_string() if used in known else "the device's own"
        self._settings = {
            "device": device,
            "compute_precision": next((name for name, kind in _ELEMENT_TYPES.items() if kind == element), element),
            "threads": int(compiled.get_property(threads)) if threads in known else "automatic",
        }

    def _run(self, native: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        compiled, idle = native
        try:
            request = idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        # Not `infer`: it computes in the calling thread and leaves state there; a thread that ends while the model is
        # freed then crashes the process (seen with 2026.4; openvinotoolkit/openvino#24509 is of the same kind).
        request.start_async(inputs, share_inputs=True)
        request.wait()
        results = dict(zip(self._names, request.results.values(), strict=True))
        idle.append(request)
        return results

    def _facts(self) -> dict[str, Any]:
        import openvino

        return {"version": openvino.get_version(), **self._settings}


def _settings(options: Options, device: str) -> dict[str, Any]:
    """What OpenVINO is told for these options, on a device as it calls it."""
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY" if options.num_requests is None else "THROUGHPUT"}
    settings |= exact_settings() if device == "CPU" else {}
    # An NPU has no FP32 to ask for.
    precision = options.compute_precision or ("fp32" if "NPU" not in device else None)
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = _ELEMENT_TYPES[precision]
    for name, value in (
        ("INFERENCE_NUM_THREADS", options.threads or (default_threads() if device == "CPU" else None)),
        ("NUM_STREAMS", options.num_requests),
        ("CACHE_DIR", options.cache and str(options.cache)),
    ):
        if value is not None:
            settings[name] = value
    return settings


def exact_settings() -> dict[str, Any]:
    """On a CPU whose INT8 products overflow, the setting by which OpenVINO computes what the graph says, in FP32."""
    return {OPENVINO_EXACT: False} if read_cpu().saturates else {}


def read_model(core: Any, model: bytes, weights: bytes, settings: Mapping[str, Any]) -> Any:
    """The model as OpenVINO holds it, for `settings`.

    Where it is to compute in FP32, integer weights become floats: with integers, OpenVINO 2026.4 makes a MatMul of a
    1x1 convolution between two Transposes, and forgets its stride.
    """
    found = core.read_model(model, weights)
    if OPENVINO_EXACT in settings:
        from openvino.passes import ConstantFolding, Manager

        manager = Manager()
        manager.register_pass(ConstantFolding())
        manager.run_passes(found)
    return found


def _device(device: str, available: list[str]) -> str:
    """The device string as OpenVINO writes it; BackendError where the machine has no such device."""
    device = device.upper()
    present = {*available, *(name.partition(".")[0] for name in available)}
    if device not in present and device.partition(":")[0] not in _MODES:
        raise BackendError(
            f"openvino finds no device {device} here",
            why=f"it finds {', '.join(available)}",
            fix="one of these as the device, or install the driver of the other",
        )
    return device


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
