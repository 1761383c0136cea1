"""Runtimes of engines on an NVIDIA GPU: each runs a proven engine and builds none; and TensorRT as one of them."""

from __future__ import annotations

import hashlib
import importlib
import logging
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vitdeploy.bundle import MODEL, REFERENCE, Bundle
from vitdeploy.errors import BackendError, GateError, UsageError, shell
from vitdeploy.machine.gpus import Gpu, read_gpus
from vitdeploy.machine.hardware import read_jetson
from vitdeploy.proof.prove import prove
from vitdeploy.runtime.backends.base import Array, Backend
from vitdeploy.runtime.options import Options
from vitdeploy.tensorrt.build import Built, build, is_strongly_typed
from vitdeploy.tensorrt.cache import EngineCache, EngineKey
from vitdeploy.tensorrt.cuda import opened_gpu
from vitdeploy.tensorrt.engine import Engine, EngineError
from vitdeploy.tensorrt.library import Library, TensorRtLibrary
from vitdeploy.tensorrt.options import BuildOptions

log = logging.getLogger(__name__)

OLD_POLYGRAPHY = "0.49.9"

_STAND_ALONE = """\
from polygraphy.backend.trt import CreateConfig, Profile, TrtRunner, engine_from_network, network_from_onnx_path


def run(model, inputs):
    profile = Profile()
    for name, array in inputs.items():
        profile.add(name, array.shape, array.shape, array.shape)
    network = network_from_onnx_path(model{strong})
    names = [network[1].get_output(index).name for index in range(network[1].num_outputs)]
    with TrtRunner(engine_from_network(network, CreateConfig(profiles=[profile]))) as runner:
        results = runner.infer(inputs)
        return [np.array(results[name]) for name in names]
"""


class EngineBackend(Backend):
    """A runtime of engines that `vitdeploy build` makes: all that TensorRT and its kin have in common.

    A subclass names its library, and says how an engine is built and what it is called in the cache:

    library_type    what loads and runs an engine
    build_command   what to type for an engine, up to the bundle
    build_refuses   build options that it cannot follow, each with the reason
    """

    library_type: ClassVar[type[Library]]
    build_command: ClassVar[str] = "vitdeploy build {bundle}"
    build_refuses: ClassVar[Mapping[str, str]] = {}
    proves_exports = False
    refuses: ClassVar[Mapping[str, str]] = {
        **{option: why for option, why in Backend.refuses.items() if option != "build"},
        "threads": "the GPU computes",
        "compute_precision": "it computes in the types of the graph; export the bundle in another precision",
        "device": "it uses the first GPU; CUDA_VISIBLE_DEVICES chooses",
    }

    @classmethod
    @abstractmethod
    def key(cls, model: bytes, asked: BuildOptions) -> EngineKey:
        """What the engine of `model` is called in the cache."""

    @classmethod
    @abstractmethod
    def target(cls) -> str:
        """The target of the bundles that its builder here takes."""

    @classmethod
    @abstractmethod
    def build_engine(cls, model: bytes, asked: BuildOptions, timing: Path) -> Built:
        """An engine of `model`; BuildError, with what was said, where there is none."""

    @classmethod
    def require_builder(cls) -> None:
        """BackendError where engines cannot be built here."""
        cls.require()

    @classmethod
    def admit_build(cls, asked: BuildOptions) -> BuildOptions:
        """The options with what they leave open; UsageError for one that this builder cannot follow."""
        plain = BuildOptions()
        for option, why in cls.build_refuses.items():
            if getattr(asked, option) != getattr(plain, option):
                raise UsageError(
                    f"{cls.library_type.product} does not build with the option {option}",
                    why=why,
                    fix=f"leave --{option.replace('_', '-')} out",
                )
        return asked

    @classmethod
    def gpu(cls) -> Gpu | None:
        """The GPU that engines run on, as CUDA opened it; None without one."""
        try:
            return opened_gpu()
        except BackendError as error:
            log.debug("no GPU: %s", error)
            return None

    @classmethod
    def device(cls, gpu: Gpu | None) -> str | None:
        """What proofs are noted under where the key of an engine names no GPU; None where it names one."""
        return None

    @classmethod
    def fits(cls, options: Mapping[str, Any], asked: BuildOptions | None, gpu: Gpu | None) -> bool:
        """Whether an engine of these options runs on `gpu` and is what was asked for; None asks for any."""
        return asked is None or options == asked.identity()

    @classmethod
    def open(cls, bundle: Bundle, options: Options | None = None) -> EngineBackend:
        """The proven engine of the bundle on this device.

        Without `options.build` the engine that was built last for this bundle here, whatever its options. An engine
        that was built ahead is proven now, against the reference of the bundle. Raises BackendError where there is
        none, which `vitdeploy build` makes, and GateError for one that was built ahead and gives other numbers here.
        """
        options = cls.admit(options)
        asked = None if options.build is None else BuildOptions.of(options.build)
        cache, model, gpu = EngineCache(options.cache), bundle.read(MODEL), cls.gpu()
        device = cls.device(gpu)
        reference = bundle.manifest.files[REFERENCE].sha256
        given = asked or BuildOptions()
        latest = cache.latest_options(cls.key(model, given), lambda found: cls.fits(found, asked, gpu))
        chosen = BuildOptions.of(latest) if latest else given
        key = cls.key(model, chosen)
        engine = cache.find(key, reference=reference, device=device)
        proven = engine is not None
        if engine is None and device is not None:
            engine = cache.find(key)
        command = cls.build_command.format(bundle=shell(bundle.path))
        if engine is None:
            raise BackendError(
                f"there is no proven {cls.library_type.product} engine for {bundle.path} on {device or key.gpu}",
                why="loading builds none, since that takes minutes",
                fix=command,
            )
        try:
            backend = cls(engine, options, chosen, cache.workaround(key), cls.kernels(cache, key, device))
        except EngineError as error:
            raise BackendError(
                f"the {cls.library_type.product} engine of {bundle.path} does not load any more",
                why=error.why,
                fix=f"{command} --rebuild",
            ) from error
        if not proven:
            backend.prove_ahead(bundle)
            cache.add_reference(key, engine, reference, device=device)
        return backend

    def prove_ahead(self, bundle: Bundle) -> None:
        """Hold an engine that was built ahead against the reference; GateError, and closed, where it does not hold."""
        try:
            report = prove(bundle, self)
        except BaseException:
            self.close()
            raise
        if not report.passed:
            self.close()
            raise GateError(
                f"the {self.library_type.product} engine of {bundle.path} gives other numbers on this GPU",
                why=f"it was built ahead and proven now: {'; '.join(report.failures)}",
                fix=f"`{self.build_command.format(bundle=shell(bundle.path))} --rebuild` on this machine, which looks "
                "for the block and tries workarounds, or another runtime, such as onnxruntime",
            )

    @classmethod
    def kernels(cls, cache: EngineCache, key: EngineKey, device: str | None) -> Path | None:
        """File of what the device compiles of the engine; None where engines are complete."""
        return None

    @classmethod
    def _load(cls, model: bytes, weights: bytes, options: Options) -> Backend:
        raise BackendError(
            f"{cls.name} does not load an ONNX file",
            why="it runs engines, and loading builds none",
            fix=cls.build_command.format(bundle="BUNDLE"),
        )

    def __init__(
        self, engine: bytes, options: Options, asked: BuildOptions, note: str = "", kernels: Path | None = None
    ) -> None:
        contexts = options.num_requests or 1
        self._library = self.library_type(kernels)
        native = Engine(engine, self._library, contexts)
        super().__init__(
            native, tuple(port.spec for port in native.inputs), tuple(port.spec for port in native.outputs)
        )
        self.num_requests = contexts
        self._asked, self._note = asked, note
        gpu = self.gpu()
        self._gpu = gpu.name if gpu else "unknown"

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
        strong = is_strongly_typed(self._library.rules, self._asked)
        held = "strongly typed" if strong else "FP32 layers held to it"
        native = self._native
        return {
            "version": self._library.version,
            "device": self._gpu,
            "compute_precision": f"types of the graph, {held}",
            "threads": "not on the CPU",
            **(native.describe() if native is not None else {}),
            "build_options": self._asked.identity(),
            **({"workaround": self._note} if self._note else {}),
        }


class TensorRtBackend(EngineBackend):
    """Computes in the types of the graph, by an engine that `vitdeploy build` made and proved on this device."""

    name = "tensorrt"
    package = "tensorrt"
    extra = "tensorrt"
    library_type = TensorRtLibrary
    auto_rank = 10
    auto_reason = "there is a GPU, and it is the one made for it"
    build_refuses: ClassVar[Mapping[str, str]] = {
        "sm": "it builds for the GPU of this device; the runtime tensorrt_rtx builds ahead for others",
        "time_limit": "it builds in this process; the runtime tensorrt_rtx builds in one that can be stopped",
    }

    @classmethod
    def require(cls) -> None:
        """Looks for a GPU, TensorRT and polygraphy; a BackendError says what is missing and what brings it."""
        # First of all: without a GPU the runtime object of TensorRT 8.6 ends the process in a segmentation fault. CUDA
        # is opened last, and only where TensorRT is: a process that has opened it may not fork and use it.
        if not read_gpus():
            raise BackendError(
                "there is no NVIDIA GPU that a driver serves here",
                why="engines are built and run on the GPU",
                fix="another runtime, such as onnxruntime, or a machine with an NVIDIA driver or JetPack",
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
        opened_gpu()

    @classmethod
    def stand_alone(cls, options: Options) -> str:
        """With an engine that polygraphy builds for the shapes of the inputs."""
        typed = is_strongly_typed(cls.library_type().rules, BuildOptions.of(options.build))
        return _STAND_ALONE.format(strong=", strongly_typed=True" if typed else "")

    @classmethod
    def require_builder(cls) -> None:
        """As `require`; what to do without a GPU is another matter where an engine is to be built."""
        if not read_gpus():
            raise BackendError(
                "there is no NVIDIA GPU that a driver serves here",
                why="TensorRT builds an engine on the GPU that runs it",
                fix="`vitdeploy build BUNDLE` on the device; without a GPU, `vitdeploy check BUNDLE --compile` asks "
                "NVIDIA's compiler",
            )
        cls.require()

    @classmethod
    def target(cls) -> str:
        """That of the version that is installed."""
        return f"tensorrt{cls.library_type().rules[0]}"

    @classmethod
    def key(cls, model: bytes, asked: BuildOptions) -> EngineKey:
        """What the engine of `model` is called on this device."""
        gpu, version = opened_gpu(), cls.library_type().version
        return EngineKey(hashlib.sha256(model).hexdigest(), version, gpu.name, gpu.sm, asked.identity(), gpu.uuid)

    @classmethod
    def build_engine(cls, model: bytes, asked: BuildOptions, timing: Path) -> Built:
        """An engine of `model`, built here; `timing` is read where it exists, and what was measured is added."""
        jetson = read_jetson()
        return build(model, asked, timing=timing, board=jetson.model if jetson else None)


def _filled(array: Array, count: int) -> Array:
    """The array with its last row repeated, so that it has `count` of them."""
    return np.concatenate([array, np.repeat(array[-1:], count - len(array), axis=0)])
