"""TensorRT on an NVIDIA GPU; the engine is built on first use, proven against the bundle's reference, and kept."""

from __future__ import annotations

import hashlib
import importlib
import logging
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from vitdeploy.bundle import Bundle
from vitdeploy.errors import BackendError
from vitdeploy.machine.hardware import Gpu, read_gpus, read_jetson
from vitdeploy.runtime.backends.base import Array, Backend, Options
from vitdeploy.tensorrt.build import BuildError, build, is_strongly_typed, version_of
from vitdeploy.tensorrt.cache import EngineCache, EngineKey
from vitdeploy.tensorrt.engine import Engine, EngineError
from vitdeploy.tensorrt.options import BuildOptions

log = logging.getLogger(__name__)

OLD_POLYGRAPHY = "0.49.9"


class TensorRtBackend(Backend):
    """Computes in the types of the graph. The first load on a device takes minutes, later ones read the engine."""

    name = "tensorrt"
    package = "tensorrt"
    extra = "tensorrt"
    proves_exports = False
    refuses: ClassVar[Mapping[str, str]] = {
        **{option: why for option, why in Backend.refuses.items() if option != "build"},
        "threads": "the GPU computes",
        "precision": "it computes in the types of the graph; export the bundle in another precision",
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
    def open(cls, bundle: Bundle, options: Options | None = None) -> Backend:
        """The engine of the bundle, built and proven first where there is none yet; see `vitdeploy.build`.

        Without `options.build` the engine that was built last for this bundle here, whatever its options. Raises
        GateError where no engine reproduces the reference.
        """
        from vitdeploy.tensorrt.prove import obtain

        options = cls._admit(options)
        return obtain(bundle, options)

    @classmethod
    def _load(cls, model: bytes, weights: bytes, options: Options) -> Backend:
        """An engine for a model without a bundle: nothing proves its outputs."""
        asked = BuildOptions.of(options.build)
        cache, key = EngineCache(options.cache), engine_key(model, asked)
        found = cache.find(key)
        if found is not None:
            try:
                return cls(found, options, asked)
            except EngineError:
                # A driver or library that changed under the same version: the engine is of no use, the model still is.
                log.warning("the engine kept in %s does not load any more", cache.folder)
                cache.forget(key)
        return cls(build_and_keep(model, key, cache, asked)[0], options, asked)

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
        least, most = native.batch
        images = len(next(iter(inputs.values())))
        parts = []
        for start in range(0, images, most):
            part = {name: array[start : start + most] for name, array in inputs.items()}
            count = min(most, images - start)
            if count < least:
                part = {name: _filled(array, least) for name, array in part.items()}
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
            "precision": f"types of the graph, {held}",
            "threads": "not on the CPU",
            **(native.describe() if native is not None else {}),
            "build_options": self._asked.identity(),
            **({"remedy": self._note} if self._note else {}),
        }


def engine_key(model: bytes, asked: BuildOptions) -> EngineKey:
    """What the engine of `model` is called on this device."""
    import tensorrt as trt

    gpu: Gpu = read_gpus()[0]
    return EngineKey(hashlib.sha256(model).hexdigest(), trt.__version__, gpu.name, gpu.sm, asked.identity())


def build_and_keep(
    model: bytes, key: EngineKey, cache: EngineCache, asked: BuildOptions
) -> tuple[bytes, Mapping[str, Mapping[str, int]]]:
    """Builds and stores an engine, not verified yet, with the builder's log; and what the DLA computes of it."""
    log.info("building the engine for %s with TensorRT %s, which takes minutes …", key.gpu, key.tensorrt)
    start, jetson = time.perf_counter(), read_jetson()
    timing = asked.timing_cache or cache.timing_file(key)
    try:
        built = build(model, asked, timing=timing, board=jetson.model if jetson else None)
    except BuildError as error:
        log.error("the builder's log is in %s", cache.write_log(key, error.log))
        raise
    cache.write_log(key, built.log)
    cache.store(key, built.engine, seconds=time.perf_counter() - start)
    return built.engine, {"on_dla": built.on_dla, "off_dla": built.off_dla}


def _filled(array: Array, count: int) -> Array:
    """The array with its last row repeated, so that it has `count` of them."""
    return np.concatenate([array, np.repeat(array[-1:], count - len(array), axis=0)])
