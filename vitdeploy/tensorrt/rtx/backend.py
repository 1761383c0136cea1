"""TensorRT for RTX: engines that are built ahead on a CPU, compiled to the end and run on an RTX GPU."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vitdeploy.bundle import Bundle
from vitdeploy.errors import BackendError, MissingDependencyError
from vitdeploy.machine.gpus import Gpu
from vitdeploy.machine.hardware import driver_version
from vitdeploy.runtime.backends.base import one_line
from vitdeploy.tensorrt.backend import EngineBackend
from vitdeploy.tensorrt.cache import EngineCache, EngineKey
from vitdeploy.tensorrt.library import Library
from vitdeploy.tensorrt.options import BuildOptions
from vitdeploy.tensorrt.rtx import requirements
from vitdeploy.tensorrt.sidecar import keep

if TYPE_CHECKING:
    from vitdeploy.tensorrt.build import Built

log = logging.getLogger(__name__)

COMMAND = "vitdeploy build {bundle} --runtime tensorrt_rtx"


class RtxLibrary(Library):
    """The bindings of TensorRT for RTX, whose engines are compiled to the end when a context is made.

    Kernels are compiled for every shape before it runs (EAGER): else the first calls, and so the proof, would be
    computed by other kernels than the later ones.
    """

    product = requirements.NAME
    command = COMMAND.format(bundle="BUNDLE")

    def __init__(self, kernels: Path | None = None) -> None:
        super().__init__(kernels)
        # Held as long as the engine is: the library keeps plain pointers to them.
        self._config: Any = None
        self._compiled: Any = None

    @property
    def module(self) -> Any:
        """The bindings, under the name that they are installed as."""
        return requirements.import_bindings()

    @property
    def version(self) -> str:
        """That of the installed package: asking for it loads nothing."""
        return requirements.version()

    @property
    def rules(self) -> tuple[int, ...]:
        """The newest of the line of TensorRT that its parser and compiler are of."""
        from vitdeploy.platforms.boards import PLATFORMS

        return PLATFORMS["tensorrt_rtx"].newest

    def create_context(self, engine: Any) -> Any:
        """A context that shares what the others compiled, and what this device compiled before."""
        if self._config is None:
            trt, config = self.module, engine.create_runtime_config()
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
            compiled = config.create_runtime_cache()
            if self._kernels is not None and self._kernels.exists():
                # What was compiled for another driver or GPU is refused, and compiled anew.
                compiled.deserialize(self._kernels.read_bytes())
            config.set_runtime_cache(compiled)
            self._config, self._compiled = config, compiled
        return engine.create_execution_context(self._config)

    def keep_kernels(self) -> None:
        """Keeps what this device compiled, for the next load; that it cannot be kept is no error."""
        if self._kernels is None or self._compiled is None:
            return
        data = bytes(self._compiled.serialize())
        try:
            if not self._kernels.exists() or self._kernels.read_bytes() != data:
                keep(self._kernels, data)
        except (OSError, BackendError) as error:
            log.info("the kernels that this device compiled are not kept: %s", error)


class TensorRtRtxBackend(EngineBackend):
    """Computes in the types of the graph, by an engine that was built ahead and is proven where it is first loaded."""

    name = "tensorrt_rtx"
    package = "tensorrt_rtx_bindings"
    extra = requirements.EXTRA
    library_type = RtxLibrary
    build_command = COMMAND
    auto_rank = 15
    auto_reason = "there is an RTX GPU, and an engine that was built for it"
    build_refuses: ClassVar[Mapping[str, str]] = {
        "dla": "RTX GPUs have no accelerator",
        "timing_cache": "it times no kernels; the device chooses them",
        "optimization_level": "it times no kernels; the device chooses them",
        "int8_if_faster": "it builds ahead of any device, on which INT8 could be measured",
    }

    @classmethod
    def require(cls) -> None:
        """Looks for the bindings and a GPU that they serve; a BackendError says what is missing and what brings it."""
        if requirements.bindings() is None:
            if not requirements.has_wheels():
                raise BackendError(
                    f"{requirements.NAME} is not installed, and there are no wheels of it for this machine",
                    why="NVIDIA publishes them for x86-64 Linux",
                    fix="another runtime: on a Jetson --runtime tensorrt, whose engines the board builds",
                )
            package = next(iter(requirements.PACKAGES.values()))
            raise MissingDependencyError(package, needed_for=f"the runtime {cls.name}", extra=cls.extra)
        gpu = cls.gpu()
        if gpu is None:
            raise BackendError(
                "there is no NVIDIA GPU that a driver serves here",
                why=f"engines of {requirements.NAME} are built on the CPU, but run on the GPU",
                fix="another runtime, such as onnxruntime, or a machine with an RTX GPU and its driver",
            )
        if gpu.sm is not None and gpu.sm not in requirements.COMPUTE_CAPABILITIES:
            known = ", ".join(map(str, requirements.COMPUTE_CAPABILITIES))
            raise BackendError(
                f"{requirements.NAME} does not serve {gpu.name}",
                why=f"its compute capability is {gpu.sm}, and engines are built for {known}",
                fix="--runtime tensorrt, whose engines this machine builds",
            )
        try:
            requirements.import_bindings()
        except Exception as error:
            raise BackendError(
                f"{requirements.NAME} cannot be imported",
                why=one_line(error),
                fix=f"pip install --force-reinstall 'vitdeploy[{cls.extra}]'; it takes glibc 2.28 or newer",
            ) from error

    @classmethod
    def version(cls) -> str:
        """That of the installed package, under whichever name."""
        return requirements.version()

    @classmethod
    def require_builder(cls) -> None:
        """BackendError where the compiler does not run; it needs no GPU."""
        requirements.require(COMMAND.format(bundle="BUNDLE"))

    @classmethod
    def admit_build(cls, asked: BuildOptions) -> BuildOptions:
        """The options, for every kind of GPU from compute capability 8.0 on where none is named."""
        asked = super().admit_build(asked)
        return asked if asked.sm else replace(asked, sm=requirements.DEFAULT_KINDS)

    @classmethod
    def target(cls) -> str:
        """Its own."""
        return cls.name

    @classmethod
    def key(cls, model: bytes, asked: BuildOptions) -> EngineKey:
        """What the engine is called wherever it was built: no GPU is part of it, the kinds of them are options."""
        version = f"rtx-{requirements.version()}"
        return EngineKey(hashlib.sha256(model).hexdigest(), version, "", None, asked.identity())

    @classmethod
    def device(cls, gpu: Gpu | None) -> str | None:
        """The very GPU and its driver, which have a part in compiling the engine."""
        if gpu is None:
            return None
        words = (gpu.name, f"compute capability {gpu.sm}", f"driver {driver_version() or 'unknown'}", gpu.uuid)
        return ", ".join(filter(None, words))

    @classmethod
    def fits(cls, options: Mapping[str, Any], asked: BuildOptions | None, gpu: Gpu | None) -> bool:
        """Whether an engine of these options runs on this GPU and is what was asked for."""
        kinds = options.get("sm", ())
        if gpu is not None and gpu.sm is not None and gpu.sm not in kinds:
            return False
        return asked is None or options == {**asked.identity(), "sm": list(asked.sm) or kinds}

    @classmethod
    def kernels(cls, cache: EngineCache, key: EngineKey, device: str | None) -> Path | None:
        """File of the kernels that the device compiled."""
        return cache.kernels_file(key, device) if device else None

    @classmethod
    def build_engine(cls, model: bytes, asked: BuildOptions, timing: Path) -> Built:
        """An engine of `model`, built in a process of its own that a crash or the time limit ends alone."""
        from vitdeploy.tensorrt.rtx.build import build

        return build(model, asked)

    def prove_ahead(self, bundle: Bundle) -> None:
        """Besides the proof, the kernels that it had compiled are kept."""
        super().prove_ahead(bundle)
        self._keep_kernels()

    def close(self) -> None:
        """Keeps what was compiled since it was loaded, and frees the engine."""
        self._keep_kernels()
        super().close()

    def _keep_kernels(self) -> None:
        native, library = self._native, self._library
        if native is not None and isinstance(library, RtxLibrary):
            native.cuda.enter()
            library.keep_kernels()
