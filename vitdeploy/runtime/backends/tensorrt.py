"""TensorRT on an NVIDIA GPU, through polygraphy; the engine is built on first use and kept."""

from __future__ import annotations

import hashlib
import importlib
import logging
import time
from collections.abc import Mapping
from queue import LifoQueue
from typing import Any, ClassVar

import numpy as np

from vitdeploy.bundle import TensorSpec
from vitdeploy.errors import BackendError, UsageError, VitDeployError
from vitdeploy.runtime.backends.base import Array, Backend, Options
from vitdeploy.runtime.engine_build import (
    BATCH_PROFILE,
    STRONGLY_TYPED_SINCE,
    BuildError,
    build,
    builder_log,
    version_of,
)
from vitdeploy.runtime.engine_cache import EngineCache, EngineKey
from vitdeploy.runtime.machine import Gpu, read_gpus

log = logging.getLogger(__name__)

OLD_POLYGRAPHY = "0.49.9"
PROFILES_SHARED_SINCE = (10, 0)


class EngineError(BackendError):
    """An engine that TensorRT refuses to load."""


class TensorRtBackend(Backend):
    """Computes in the types of the graph. The first load on a device takes minutes, later ones read the engine."""

    name = "tensorrt"
    package = "tensorrt"
    extra = "tensorrt"
    refuses: ClassVar[Mapping[str, str]] = {
        **Backend.refuses,
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
    def _load(cls, model: bytes, weights: bytes, options: Options) -> Backend:
        import tensorrt as trt

        gpu = read_gpus()[0]
        cache = EngineCache(options.cache)
        key = EngineKey(
            hashlib.sha256(model).hexdigest(), trt.__version__, gpu.name, gpu.sm, {"batch": list(BATCH_PROFILE)}
        )
        found = cache.find(key)
        if found is not None:
            try:
                return cls(found, options, gpu)
            except EngineError:
                # A driver or library that changed under the same version: the engine is of no use, the model still is.
                log.warning("the engine kept in %s does not load any more", cache.folder)
                cache.forget(key)
        return cls(_build(model, key, cache), options, gpu)

    def __init__(self, engine: bytes, options: Options, gpu: Gpu) -> None:
        contexts = _Contexts(engine, options.streams or 1)
        super().__init__(contexts, *contexts.signature())
        self.streams = options.streams or 1
        self._gpu = gpu

    def _run(self, native: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        images = len(next(iter(inputs.values())))
        most = BATCH_PROFILE[-1] if isinstance(self.inputs[0].shape[0], str) else images
        if images <= most:
            return native.infer(inputs)  # type: ignore[no-any-return]
        parts = [
            native.infer({name: array[start : start + most] for name, array in inputs.items()})
            for start in range(0, images, most)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _facts(self) -> dict[str, Any]:
        import tensorrt as trt

        strong = version_of(trt.__version__) >= STRONGLY_TYPED_SINCE
        held = "strongly typed" if strong else "FP32 layers held to it"
        return {
            "version": trt.__version__,
            "device": self._gpu.name,
            "precision": f"types of the graph, {held}",
            "threads": "not on the CPU",
        }


class _Contexts:
    """An engine and the execution contexts that serve one call each at a time; freed when nobody holds it."""

    def __init__(self, serialized: bytes, count: int) -> None:
        from polygraphy.backend import trt as poly

        self._idle: LifoQueue[Any] = LifoQueue()
        with builder_log() as lines:
            try:
                self._engine = poly.engine_from_bytes(serialized)
                self._check_streams(count)
                for _ in range(count):
                    runner = poly.TrtRunner(self._engine)
                    runner.activate()
                    self._idle.put(runner)
            except VitDeployError:
                raise
            except Exception as error:
                why = next((line for line in lines if line.startswith("[E]")), str(error))
                raise EngineError("the engine cannot be loaded", why=why.strip() or None) from error

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name; waits for a context that is free."""
        runner = self._idle.get()
        try:
            # polygraphy hands out the same buffers at every call.
            return {name: np.array(array) for name, array in runner.infer(dict(inputs)).items()}
        finally:
            self._idle.put(runner)

    def signature(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs as the engine reports them."""
        import tensorrt as trt

        sides: dict[Any, list[TensorSpec]] = {trt.TensorIOMode.INPUT: [], trt.TensorIOMode.OUTPUT: []}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))).name
            shape = tuple("?" if axis < 0 else int(axis) for axis in self._engine.get_tensor_shape(name))
            sides[self._engine.get_tensor_mode(name)].append(TensorSpec(name, dtype, shape))
        return tuple(sides[trt.TensorIOMode.INPUT]), tuple(sides[trt.TensorIOMode.OUTPUT])

    def _check_streams(self, count: int) -> None:
        import tensorrt as trt

        free = any(isinstance(axis, str) for spec in self.signature()[0] for axis in spec.shape)
        if count > 1 and free and version_of(trt.__version__) < PROFILES_SHARED_SINCE:
            raise UsageError(
                f"TensorRT {trt.__version__} computes one call at a time where the batch is free",
                why="its contexts cannot share an optimization profile",
                fix="leave streams out, or export with --batch and a number",
            )

    def __del__(self) -> None:
        while not self._idle.empty():
            self._idle.get().deactivate()


def _build(model: bytes, key: EngineKey, cache: EngineCache) -> bytes:
    log.info("building the engine for %s with TensorRT %s, which takes minutes …", key.gpu, key.tensorrt)
    start = time.perf_counter()
    try:
        built = build(model, timing=cache.timing_file(key))
    except BuildError as error:
        log.error("the builder's log is in %s", cache.write_log(key, error.log))
        raise
    cache.write_log(key, built.log)
    cache.store(key, built.engine, seconds=time.perf_counter() - start)
    return built.engine
