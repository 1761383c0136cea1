"""TensorRT and polygraphy without a GPU: engines that ONNX Runtime computes, behind the names of the real bindings.

Every class admits only the members, and every method only as many arguments, as tensorrt_api.json records of the
bindings of the version that is played: code that asks for anything else fails here as it would there.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import json
import logging
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.tensorrt.fake_cuda import ORIN, FakeDriver
from vitdeploy.machine.gpus import Gpu
from vitdeploy.tensorrt import backend as backend_module
from vitdeploy.tensorrt import cuda as cuda_module
from vitdeploy.tensorrt import engine as engine_run

PREFIX = b"ENGINE"
API: dict[str, Any] = json.loads(Path(__file__).with_name("tensorrt_api.json").read_text())
EIGHT, TEN, ELEVEN = "8.6.1", "10.3.0", "11.4.0.106"


class Recorded:
    """An object of the bindings; what its class does not have in this version, it does not have either."""

    real = ""
    own: frozenset[str] = frozenset()  # of the stand-in itself, for the tests
    world: World

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_") or name in ("real", "own", "world") or name in object.__getattribute__(self, "own"):
            return object.__getattribute__(self, name)
        members = self.world.api["classes"][self.real]
        if name not in members:
            raise AttributeError(f"TensorRT {self.world.version} has no {self.real}.{name}")
        found = object.__getattribute__(self, name)
        signatures = members[name]
        if signatures is None:
            return found

        def checked(*arguments: Any) -> Any:
            assert any(len(arguments) <= len(names) for names in signatures), f"{self.real}.{name}{signatures}"
            return found(*arguments)

        return checked

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in self.own and name != "world":
            assert name in self.world.api["classes"][self.real], f"TensorRT has no {self.real}.{name}"
        object.__setattr__(self, name, value)


class Tensor(Recorded):
    real = "ITensor"

    def __init__(self, world: World, name: str, dtype: Any = None, shape: Any = None) -> None:
        self.world, self.name, self.dtype, self.shape = world, name, dtype, shape


class Layer(Recorded):
    """`kinds` are the types of its outputs, `reads` the tensor that it reads, `asked` what it was told to give."""

    real = "ILayer"
    own = frozenset({"kinds", "reads", "asked", "told"})

    def __init__(self, world: World, kind: str, *kinds: str, name: str = "x", reads: str = "") -> None:
        self.world, self.kinds, self.reads, self.asked, self.told = world, kinds, reads, [], None
        self.type, self.name, self.num_outputs, self.num_inputs = world.enum("LayerType")[kind], name, len(kinds), 1

    @property
    def precision(self) -> Any:
        return self.told

    @precision.setter
    def precision(self, value: Any) -> None:
        self.told = value

    def get_output(self, index: int) -> Tensor:
        return Tensor(self.world, f"{self.name}.{index}", self.kinds[index])

    def get_input(self, index: int) -> Tensor | None:
        return Tensor(self.world, self.reads) if self.reads else None

    def set_output_type(self, index: int, kind: object) -> None:
        self.asked.append(kind)


class Network(Recorded):
    real = "INetworkDefinition"
    own = frozenset({"model", "ports"})

    def __init__(self, world: World) -> None:
        self.world, self.model, self.ports = world, b"", []
        self.num_inputs = 0

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.world.layers)

    def get_input(self, index: int) -> Tensor:
        port = self.ports[index]
        return Tensor(self.world, port.name, shape=[n if isinstance(n, int) else -1 for n in port.shape])


class Builder(Recorded):
    """Says what it does to its own logger, and to nobody else's."""

    real = "Builder"

    def __init__(self, world: World, logger: Any) -> None:
        self.world, self._logger, self.num_DLA_cores = world, logger, world.dla_cores

    def create_network(self, flags: int) -> Network:
        kinds = self.world.enum("NetworkDefinitionCreationFlag")
        asked = {kind.name for kind in kinds if flags & 1 << int(kind)}
        assert "EXPLICIT_BATCH" in asked or self.world.version.split(".")[0] != "8", "8 insists on it"
        self.world.parsed.append({"strongly_typed": True} if "STRONGLY_TYPED" in asked else {})
        return Network(self.world)

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        world = self.world
        self._logger.log("Severity.VERBOSE", f"choosing kernels for model {zlib.crc32(network.model)}")
        world.while_building(network.model)
        world.tell(config)
        if world.complaint:
            self._logger.log("Severity.ERROR", world.complaint)
            return None
        computed = world.miscompile(network.model)
        world.profiles[computed] = next(iter(config.settings.get("profiles", ())), Profile())
        config.timed |= {world.timing}
        return PREFIX + computed


class Parser(Recorded):
    real = "OnnxParser"

    def __init__(self, world: World, network: Network, logger: Any) -> None:
        self.world, self._network, self._errors = world, network, []
        self.num_errors = 0

    def parse(self, model: bytes) -> bool:
        self.world.models.append(model)
        if self.world.refused_operator:
            self._errors = [f"In node 3 (importModel): No importer registered for op: {self.world.refused_operator}"]
            self.num_errors = len(self._errors)
            return False
        self._network.model, self._network.ports = model, self.world.session(model).get_inputs()
        self._network.num_inputs = len(self._network.ports)
        return True

    def get_error(self, index: int) -> str:
        return str(self._errors[index])


class TimingCache(Recorded):
    """A set of lines; `begins` tells of which version of TensorRT they are."""

    real = "ITimingCache"
    own = frozenset({"lines"})

    def __init__(self, world: World, lines: set[bytes]) -> None:
        self.world, self.lines = world, lines

    def combine(self, other: TimingCache, ignore_mismatch: bool) -> bool:
        self.lines |= other.lines
        return True

    def serialize(self) -> bytes:
        return b"\n".join(sorted(self.lines))


class Config(Recorded):
    """`settings` are what polygraphy was told, `flags_set` what was set besides, `timed` the kernels it timed."""

    real = "IBuilderConfig"
    own = frozenset({"settings", "flags_set", "timed"})

    def __init__(self, world: World, settings: dict[str, Any]) -> None:
        self.world, self.settings, self.flags_set = world, settings, []
        self.default_device_type, self.DLA_core = None, -1
        if "progress_monitor" in world.api["classes"][self.real]:
            self.progress_monitor = None
        known = settings.get("load_timing_cache")
        self.timed = set() if known is None else self.create_timing_cache(known.getvalue()).lines

    def set_flag(self, flag: Any) -> None:
        self.flags_set.append(flag.name)

    def can_run_on_DLA(self, layer: Layer) -> bool:  # noqa: N802
        return layer.type.name in self.world.dla_layers

    def create_timing_cache(self, serialized: bytes) -> TimingCache:
        if serialized.startswith(b"of another version"):
            raise RuntimeError("Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed")
        return TimingCache(self.world, set(serialized.splitlines()))

    def get_timing_cache(self) -> TimingCache:
        return TimingCache(self.world, set(self.timed))


class Runtime(Recorded):
    real = "Runtime"

    def __init__(self, world: World, logger: Any) -> None:
        self.world, self._logger = world, logger

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        """As the real one: no exception, but words for the logger and nothing returned."""
        if self.world.refuses_engines or not data.startswith(PREFIX):
            self.world.refuses_engines = False
            self._logger.log("Severity.ERROR", "magic tag does not match")
            return None
        return Engine(self.world, data)


class Engine(Recorded):
    real = "ICudaEngine"

    def __init__(self, world: World, data: bytes) -> None:
        self.world = world
        self._model = data[len(PREFIX) :]
        self._session = world.session(self._model)
        self._inputs = self._session.get_inputs()
        self._ports = [*self._inputs, *self._session.get_outputs()]
        self.num_io_tensors = len(self._ports)
        key = "device_memory_size_v2" if "device_memory_size_v2" in world.api["classes"][self.real] else None
        setattr(self, key or "device_memory_size", 4096)

    def get_tensor_name(self, index: int) -> str:
        return str(self._ports[index].name)

    def get_tensor_mode(self, name: str) -> Any:
        mode = self.world.enum("TensorIOMode")
        return mode.INPUT if name in [port.name for port in self._inputs] else mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> str:
        return str(_dtype(self._port(name)))

    def get_tensor_shape(self, name: str) -> list[int]:
        return [n if isinstance(n, int) else -1 for n in self._port(name).shape]

    def get_tensor_profile_shape(self, name: str, index: int) -> list[Any]:
        assert index == 0
        return list(self.world.profiles[self._model][name])

    def create_execution_context(self) -> Context:
        context = Context(self.world, self)
        self.world.contexts.append(context)
        return context

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self.world, self._model)

    def _port(self, name: str) -> Any:
        return next(port for port in self._ports if port.name == name)


class Context(Recorded):
    real = "IExecutionContext"

    def __init__(self, world: World, engine: Engine) -> None:
        self.world, self._engine = world, engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._prepared = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        fixed = self._engine.get_tensor_shape(name)
        if -1 in fixed:
            least, _, most = self._engine.get_tensor_profile_shape(name, 0)
            if not all(low <= n <= high for low, n, high in zip(least, shape, most, strict=True)):
                return False
        elif list(shape) != fixed:
            return False
        self._shapes[name], self._prepared = tuple(shape), False
        return True

    def get_tensor_shape(self, name: str) -> list[int]:
        if name in self._shapes:
            return list(self._shapes[name])
        batch = next(iter(self._shapes.values()))[0]
        return [batch if n == -1 else n for n in self._engine.get_tensor_shape(name)]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return self.world.driver.holds(address, self._size(name))

    def is_stream_capturable(self, stream: int) -> bool:
        return not self.world.refuses_recording

    def execute_async_v3(self, stream: int) -> bool:
        """Refuses what the real one refuses: to be recorded before it ran once in this shape."""
        driver = self.world.driver
        if stream in driver.recording and (not self._prepared or self.world.refuses_recording):
            return False
        self._prepared = True
        driver.enqueue(stream, self._compute)
        return True

    def _compute(self) -> None:
        self.world.clock += self.world.cost(self._engine._model)
        feeds = {port.name: self._memory(port.name).copy() for port in self._engine._inputs}
        outputs = self._engine._session.get_outputs()
        for port, value in zip(outputs, self._engine._session.run(None, feeds), strict=True):
            self._memory(port.name)[...] = value

    def _memory(self, name: str) -> np.ndarray:
        data = (ctypes.c_byte * self._size(name)).from_address(self._addresses[name])
        dtype = np.dtype(self._engine.get_tensor_dtype(name))
        return np.frombuffer(data, dtype).reshape(self.get_tensor_shape(name))

    def _size(self, name: str) -> int:
        return int(np.prod(self.get_tensor_shape(name))) * np.dtype(self._engine.get_tensor_dtype(name)).itemsize


class Inspector(Recorded):
    real = "EngineInspector"

    def __init__(self, world: World, model: bytes) -> None:
        self.world, self._model = world, model
        self.execution_context = None

    def get_engine_information(self, form: Any) -> str:
        assert form.name == "JSON"
        return self.world.inspection or json.dumps({"Layers": []})


class Profile(dict[str, Any]):
    def add(self, name: str, least: list[int], tuned: list[int], most: list[int]) -> None:
        self[name] = (least, tuned, most)


class World:
    """What the stand-ins share: versions, layers, what was asked for, what goes wrong.

    `miscompile` makes of a model the one that the engine really computes, and `cost` says how many seconds it takes;
    `clock` is what has gone by of them.
    """

    def __init__(self, version: str = TEN) -> None:
        self.version = version
        self.gpu: Gpu | None = ORIN
        self.driver = FakeDriver()
        self._cuda: cuda_module.Cuda | None = None
        self.timing = b"timings"
        self.refused_operator = ""
        self.while_building: Callable[[bytes], None] = lambda model: None
        self.phases = (("Building engine", 6), ("Timing graph nodes", 40))
        self.while_stepping: Callable[[str, int], None] = lambda phase, step: None
        self.layers: list[Layer] = []
        self.configs: list[Config] = []
        self.parsed: list[dict[str, Any]] = []
        self.models: list[bytes] = []
        self.contexts: list[Context] = []
        self.profiles: dict[bytes, Profile] = {}
        self.complaint: str | None = None
        self.inspection = ""
        self.miscompile: Callable[[bytes], bytes] = lambda model: model
        self.cost: Callable[[bytes], float] = lambda model: 0.0
        self.clock = 0.0
        self.refuses_engines = self.refuses_recording = False
        self.dla_cores, self.dla_layers = 0, frozenset[str]()
        self.logger = logging.getLogger("Polygraphy")
        self._enums: dict[tuple[str, str], Any] = {}

    @property
    def api(self) -> dict[str, Any]:
        """The record of the played version; that of 8.6 serves for 8.5."""
        recorded: dict[str, Any] = API.get(self.version) or API[EIGHT]
        return recorded

    def enum(self, name: str) -> Any:
        """An enumeration with the members of this version."""
        key = (self.version, name)
        if key not in self._enums:
            # Of flags the number counts: it is the place of a bit.
            kind = enum.IntEnum if name.endswith("Flag") else enum.Enum
            self._enums[key] = kind(name, self.api["enums"][name], start=0 if kind is enum.IntEnum else 1)
        return self._enums[key]

    def layer(self, kind: str, *kinds: str, **named: str) -> Layer:
        """A layer of the network that the parser will give."""
        return Layer(self, kind, *kinds, **named)

    def tell(self, config: Config) -> None:
        """Builds phase by phase, as TensorRT 10 tells its monitor."""
        monitor = getattr(config, "progress_monitor", None)
        if monitor is None:
            return
        parents: list[str | None] = [None]
        for name, steps in self.phases:
            monitor.phase_start(name, parents[-1], steps)
            parents.append(name)
        for name, steps in reversed(self.phases):
            for step in range(steps):
                self.while_stepping(name, step)
                assert monitor.step_complete(name, step) is True
            monitor.phase_finish(name)

    @property
    def builds(self) -> list[dict[str, Any]]:
        """What polygraphy's configuration was told, one entry a build."""
        return [config.settings for config in self.configs]

    def session(self, model: bytes) -> Any:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])

    def modules(self) -> dict[str, ModuleType]:
        """`tensorrt` and the parts of polygraphy that are imported."""
        world = self

        def create_config(builder: Builder, network: Network, **settings: Any) -> Config:
            world.configs.append(Config(world, settings))
            return world.configs[-1]

        monitored = "progress_monitor" in self.api["classes"]["IBuilderConfig"]
        logger = SimpleNamespace(
            VERBOSE=10,
            python_logger=self.logger,
            use_python_logging_system=False,
            verbosity=lambda severity: contextlib.nullcontext(),
        )
        contents: dict[str, dict[str, Any]] = {
            "tensorrt": {
                "__version__": self.version,
                **{name: self.enum(name) for name in self.api["enums"]},
                **{name: name for name in self.api["names"]},
                "nptype": np.dtype,
                "ILogger": type("ILogger", (), {"__init__": lambda self: None}),
                **({"IProgressMonitor": type("IProgressMonitor", (), {})} if monitored else {}),
                "Builder": lambda logger: Builder(world, logger),
                "OnnxParser": lambda network, logger: Parser(world, network, logger),
                "Runtime": lambda logger: Runtime(world, logger),
            },
            "polygraphy": {},
            "polygraphy.backend": {},
            "polygraphy.backend.trt": {
                "create_config": create_config,
                "Profile": Profile,
            },
            "polygraphy.logger": {"G_LOGGER": logger},
        }
        made = {name: ModuleType(name) for name in contents}
        for name, values in contents.items():
            made[name].__dict__.update(values)
            parent, _, leaf = name.rpartition(".")
            if parent:
                setattr(made[parent], leaf, made[name])
        return made

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Puts the stand-ins in the place of the packages, the driver and the GPU."""
        for name, module in self.modules().items():
            monkeypatch.setitem(__import__("sys").modules, name, module)
        self.install_gpu(monkeypatch)

    def install_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The GPU that CUDA opens and nvidia-smi lists: `gpu`, also where a test changes it later."""
        self._cuda = None
        for place in (cuda_module, engine_run):
            monkeypatch.setattr(place, "open_cuda", self.open_cuda)
        monkeypatch.setattr(backend_module, "read_gpus", lambda: (self.gpu,) if self.gpu else ())

    def open_cuda(self) -> cuda_module.Cuda:
        """The driver's only device."""
        if self.gpu is None:
            raise cuda_module.CudaError("CUDA: no device")
        if self._cuda is None or self.driver.devices != [self.gpu]:
            self.driver.devices = [self.gpu]
            self._cuda = cuda_module.Cuda(self.driver)
        return self._cuda


def _dtype(port: Any) -> np.dtype[Any]:
    names = {"float": "float32", "float16": "float16", "uint8": "uint8", "int64": "int64", "int32": "int32"}
    return np.dtype(names[port.type.removeprefix("tensor(").removesuffix(")")])
