"""ONNX Runtime, on the CPU or through another execution provider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from vitdeploy.bundle import Bundle, TensorSpec
from vitdeploy.errors import BackendError
from vitdeploy.machine.settings import default_threads, exact_entries
from vitdeploy.runtime.backends.base import Array, Backend
from vitdeploy.runtime.executed import ExecutedGraph
from vitdeploy.runtime.options import Options

_C_NAMES = {"float": "float32", "double": "float64"}

CPU = "CPUExecutionProvider"
# The providers that each kind of device has, preferred ones first: onnxruntime.ai/docs/execution-providers.
PROVIDERS = {
    "CPU": (CPU,),
    "GPU": ("CUDAExecutionProvider", "MIGraphXExecutionProvider", "DmlExecutionProvider"),
    "NPU": ("QNNExecutionProvider", "VitisAIExecutionProvider"),
}
# Sends what it is asked to a server, and has no kernels here.
REMOTE = ("AzureExecutionProvider",)

_STAND_ALONE = """\
import onnxruntime


def run(model, inputs):
    options = onnxruntime.SessionOptions()
{entries}{threads}    session = onnxruntime.InferenceSession(model, options, providers=[{providers}])
    return session.run(None, inputs)
"""


class OnnxRuntimeBackend(Backend):
    """Computes in the precision of the graph's types; FP16 nodes without a half-precision kernel run in FP32."""

    name = "onnxruntime"
    package = "onnxruntime"
    extra = "onnxruntime"
    tells_graph = True
    times_layers = True
    tries_devices = True
    auto_rank = 30
    auto_reason = "it is the fastest measured"
    refuses: ClassVar[Mapping[str, str]] = {
        **Backend.refuses,
        "compute_precision": "it computes in the precision of the graph's types",
        "cache": "it compiles nothing that would be worth keeping",
    }

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        """The execution providers of the installed package that compute on this machine."""
        import onnxruntime

        return tuple(name for name in onnxruntime.get_available_providers() if name not in REMOTE)

    @classmethod
    def try_device(cls, name: str) -> None:
        """Run a small model in the execution provider `name` and nowhere else."""
        from vitdeploy.runtime.backends.onnxruntime_trial import try_provider

        try_provider(name)

    @classmethod
    def throughput_options(cls, cores: int) -> dict[str, Any]:
        """One thread for each of `cores` calls: it counts the threads of a call."""
        return {"threads": 1, "num_requests": cores}

    @classmethod
    def stand_alone(cls, options: Options) -> str:
        """With a session of the same settings."""
        import onnxruntime

        provider = _provider(options.device or "CPU", onnxruntime.get_available_providers())
        threads = options.threads or default_threads()
        return _STAND_ALONE.format(
            entries="".join(f"    options.add_session_config_entry{entry}\n" for entry in exact_entries()),
            threads="" if threads is None else f"    options.intra_op_num_threads = {threads}\n",
            providers=", ".join(f'"{name}"' for name in dict.fromkeys((provider, CPU))),
        )

    @classmethod
    def executed(cls, bundle: Bundle) -> ExecutedGraph:
        """The graph that the CPU provider writes after its optimizations."""
        from vitdeploy.runtime.backends.onnxruntime_graph import read_graph

        return read_graph(bundle)

    @classmethod
    def _load(cls, model: bytes, weights: bytes, options: Options) -> Backend:
        import onnxruntime

        provider = _provider(options.device or "CPU", onnxruntime.get_available_providers())
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        for entry in exact_entries():
            settings.add_session_config_entry(*entry)
        threads = options.threads or default_threads()
        if threads is not None:
            settings.intra_op_num_threads = threads
        # The CPU takes the nodes that a provider lacks.
        session = onnxruntime.InferenceSession(model, settings, providers=list(dict.fromkeys((provider, CPU))))
        if provider not in session.get_providers():
            raise BackendError(
                f"onnxruntime cannot start {provider}",
                why="its libraries or its device are missing, and it fell back to the CPU",
                fix="vitdeploy doctor, or device CPU",
            )
        return cls(session, threads)

    def __init__(self, session: Any, threads: int | None) -> None:
        super().__init__(session, _specs(session.get_inputs()), _specs(session.get_outputs()))
        self._names = [spec.name for spec in self.outputs]
        self._threads = threads
        first = session.get_providers()[0]
        self._device = "CPU" if first == CPU else first

    def _run(self, native: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(self._names, native.run(self._names, inputs), strict=True))

    def _facts(self) -> dict[str, Any]:
        import onnxruntime

        return {
            "version": onnxruntime.__version__,
            "device": self._device,
            "compute_precision": f"types of the graph (FP16 in FP32 where the {self._device} has no kernel)",
            "threads": self._threads or "automatic",
        }


def _provider(device: str, available: list[str]) -> str:
    """The execution provider for a kind of device, or the one of that name."""
    for name in PROVIDERS.get(device.upper(), (device,)):
        if name in available:
            return name
    raise BackendError(
        f"this onnxruntime has no device {device}",
        why=f"its execution providers are {', '.join(available)}",
        fix="one of these as the device, or pip install the onnxruntime made for the device",
    )


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
