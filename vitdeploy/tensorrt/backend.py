"""TensorRT on an NVIDIA GPU: runs a proven engine, and builds none."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from vitdeploy.bundle import MODEL, REFERENCE, Bundle
from vitdeploy.errors import BackendError
from vitdeploy.machine.hardware import Gpu, read_gpus
from vitdeploy.runtime.backends.base import Array, Backend
from vitdeploy.runtime.options import Options
from vitdeploy.tensorrt.build import is_strongly_typed, version_of
from vitdeploy.tensorrt.cache import EngineCache, EngineKey
from vitdeploy.tensorrt.engine import Engine, EngineError
from vitdeploy.tensorrt.options import BuildOptions

OLD_POLYGRAPHY = "0.49.9"


class TensorRtBackend(Backend):
    """Computes in the types of the graph, by an engine that `vitdeploy build` made and proved on this device."""

    name = "tensorrt"
    package = "tensorrt"
    extra = "tensorrt"
    proves_exports = False
    auto_rank = 10
    auto_reason = "there is a GPU, and it is the one made for it"
    refuses: ClassVar[Mapping[str, str]] = {
        **{option: why for option, why in Backend.refuses.items() if option != "build"},
        "threads": "the GPU computes",
        "compute_precision": "it computes in the types of the graph; export the bundle in another precision",
        "device": "it uses the first GPU; CUDA_VISIBLE_DEVICES chooses",
    }

    @classmethod
    def require(cls) -> None:
        """Looks for a GPU, TensorRT and polygraphy; a BackendError says what is missing and what brings it."""
        # First of all: without a GPU the runtime object of TensorRT 8.6 ends the process in a segmentation fault.
        if not read_gpus():
            raise BackendError(
                "there is no NVIDIA GPU that a driver serves here",
                why="engines are built and run on the GPU",
                fix="--runtime onnxruntime, or a machine with an NVIDIA driver or JetPack",
            )
        for package, fix in (
            (
                "tensorrt",
                "pip install tensorrt; on a Jetson sudo apt-get install python3-libnvinfer, in a virtual environment "
                "made with --system-site-packages",
            ),
            ("polygraphy", "pip install 'vitdeploy[tensorrt]'"),
        ):
            try:
                importlib.import_module(package)
            except Exception as error:
                missing = isinstance(error, ModuleNotFoundError) and error.name == package
                what = f"{package} is not installed" if missing else f"{package} cannot be imported"
                raise BackendError(what, why=None if missing else str(error) or None, fix=fix) from error
        from polygraphy.logger import G_LOGGER

        if not hasattr(G_LOGGER, "use_python_logging_system"):
            raise BackendError(
                "this polygraphy is too old",
                why=f"it writes to standard output, which newer ones than {OLD_POLYGRAPHY} can be kept from",
                fix=f"pip install 'polygraphy>{OLD_POLYGRAPHY}'",
            )

    @classmethod
    def open(cls, bundle: Bundle, options: Options | None = None) -> TensorRtBackend:
        """The proven engine of the bundle on this device.

        Without `options.build` the engine that was built last for this bundle here, whatever its options. Raises
        BackendError where there is none, which `vitdeploy build` makes.
        """
        options = cls._admit(options)
        asked, cache, model = BuildOptions.of(options.build), EngineCache(options.cache), bundle.read(MODEL)
        if options.build is None:
            latest = cache.latest_options(engine_key(model, asked))
            asked = BuildOptions.of(latest) if latest else asked
        key = engine_key(model, asked)
        engine = cache.find(key, reference=bundle.manifest.files[REFERENCE].sha256)
        if engine is None:
            raise BackendError(
                f"there is no proven TensorRT engine for {bundle.path} on {key.gpu}",
                why="loading builds none, since that takes minutes",
                fix=f"vitdeploy build {bundle.path}",
            )
        try:
            return cls(engine, options, asked, cache.workaround(key))
        except EngineError as error:
            raise BackendError(
                f"the TensorRT engine of {bundle.path} does not load any more",
                why=error.why,
                fix=f"vitdeploy build {bundle.path} --rebuild",
            ) from error

    @classmethod
    def _load(cls, model: bytes, weights: bytes, options: Options) -> Backend:
        raise BackendError(
            "tensorrt does not load an ONNX file",
            why="it runs engines, and loading builds none",
            fix="vitdeploy build BUNDLE",
        )

    def __init__(self, engine: bytes, options: Options, asked: BuildOptions, note: str = "") -> None:
        contexts = options.num_requests or 1
        native = Engine(engine, contexts)
        super().__init__(
            native, tuple(port.spec for port in native.inputs), tuple(port.spec for port in native.outputs)
        )
        self.num_requests = contexts
        self._asked, self._note, self._gpu = asked, note, read_gpus()[0]

    def inspect(self) -> str:
        """What the engine consists of: the inspector's JSON."""
        if self._native is None:
            raise BackendError("the session is closed", fix="load the bundle again")
        return str(self._native.inspect())

    def _run(self, native: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if native.batch is None:
            return native.infer(inputs)  # type: ignore[no-any-return]
        minimum, maximum = native.batch
        images = len(next(iter(inputs.values())))
        parts = []
        for start in range(0, images, maximum):
            part = {name: array[start : start + maximum] for name, array in inputs.items()}
            count = min(maximum, images - start)
            if count < minimum:
                part = {name: _filled(array, minimum) for name, array in part.items()}
            parts.append({name: array[:count] for name, array in native.infer(part).items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _facts(self) -> dict[str, Any]:
        import tensorrt as trt

        strong = is_strongly_typed(version_of(trt.__version__), self._asked)
        held = "strongly typed" if strong else "FP32 layers held to it"
        native = self._native
        return {
            "version": trt.__version__,
            "device": self._gpu.name,
            "compute_precision": f"types of the graph, {held}",
            "threads": "not on the CPU",
            **(native.describe() if native is not None else {}),
            "build_options": self._asked.identity(),
            **({"workaround": self._note} if self._note else {}),
        }


def engine_key(model: bytes, asked: BuildOptions) -> EngineKey:
    """What the engine of `model` is called on this device."""
    import tensorrt as trt

    gpu: Gpu = read_gpus()[0]
    return EngineKey(hashlib.sha256(model).hexdigest(), trt.__version__, gpu.name, gpu.sm, asked.identity())


def _filled(array: Array, count: int) -> Array:
    """The array with its last row repeated, so that it has `count` of them."""
    return np.concatenate([array, np.repeat(array[-1:], count - len(array), axis=0)])
