"""The TensorRT backend with stand-ins for TensorRT and polygraphy that run the model on the CPU, and its real names."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import re
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.bundles import tiny_images, tiny_logits, tiny_model, write_tiny_bundle
from vitdeploy.errors import BackendError, UsageError
from vitdeploy.runtime import engine_build
from vitdeploy.runtime.backends import Options, find_backend
from vitdeploy.runtime.backends import tensorrt as backend_module
from vitdeploy.runtime.machine import Gpu
from vitdeploy.validation.verify import verify

PREFIX = b"ENGINE"
_COMMON_SETTINGS = ("profiles", "load_timing_cache", "precision_constraints")


class Layer(SimpleNamespace):
    """One layer of a network; remembers what was asked of it."""

    def get_output(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(dtype=self.kinds[index], name=f"{self.name}.{index}")

    def get_input(self, index: int) -> SimpleNamespace | None:
        return SimpleNamespace(name=self.reads) if self.reads else None

    def set_output_type(self, index: int, kind: object) -> None:
        self.asked.append(kind)


def layer(kind: str, *kinds: str, name: str = "x", reads: str = "") -> Layer:
    return Layer(
        type=kind, kinds=kinds, num_outputs=len(kinds), precision=None, asked=[], name=name, reads=reads, num_inputs=1
    )


class Network(list[Layer]):
    """A parsed network: its layers, and the inputs of the model it was parsed from."""

    inputs: list[Any]

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> Any:
        port = self.inputs[index]
        return SimpleNamespace(name=port.name, shape=[n if isinstance(n, int) else -1 for n in port.shape])


class World:
    """What the stand-ins share: versions, layers, what was asked for, what goes wrong."""

    def __init__(self) -> None:
        self.version = "10.3.0"
        self.layers: list[Layer] = []
        self.builds: list[dict[str, Any]] = []
        self.parsed: list[dict[str, Any]] = []
        self.runners: list[Any] = []
        self.complaint: str | None = None
        self.refuses_engines = False

    def modules(self) -> dict[str, ModuleType]:
        """`tensorrt` and the parts of polygraphy that the backend imports."""
        import onnxruntime

        world, logger = self, logging.getLogger("Polygraphy")
        G = SimpleNamespace(
            VERBOSE=10,
            python_logger=logger,
            use_python_logging_system=False,
            verbosity=lambda severity: contextlib.nullcontext(),
        )

        def session(model: bytes) -> Any:
            return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

        def network_from_onnx_bytes(model: bytes, **settings: Any) -> tuple[bytes, Network, None]:
            world.parsed.append(settings)
            network = Network(world.layers)
            network.inputs = session(model).get_inputs()
            return model, network, None

        def engine_bytes_from_network(network: Any, config: Any, save_timing_cache: str) -> bytes:
            world.builds.append(config)
            logger.info("[V] choosing kernels")
            if world.complaint:
                logger.error("[E] " + world.complaint)
                raise RuntimeError("Invalid Engine. Please ensure the engine was built correctly")
            Path(save_timing_cache).write_bytes(b"timings")
            return PREFIX + network[0]

        class Engine:
            def __init__(self, data: bytes) -> None:
                if world.refuses_engines or not data.startswith(PREFIX):
                    world.refuses_engines = False
                    logger.error("[E] magic tag does not match")
                    raise RuntimeError("Could not deserialize engine")
                self.session = session(data[len(PREFIX) :])
                self.ports = [*self.session.get_inputs(), *self.session.get_outputs()]
                self.num_io_tensors = len(self.ports)

            def get_tensor_name(self, index: int) -> str:
                return str(self.ports[index].name)

            def _port(self, name: str) -> Any:
                return next(port for port in self.ports if port.name == name)

            def get_tensor_mode(self, name: str) -> str:
                return "in" if self._port(name) in self.ports[: len(self.session.get_inputs())] else "out"

            def get_tensor_dtype(self, name: str) -> str:
                return "float32"

            def get_tensor_shape(self, name: str) -> list[int]:
                return [n if isinstance(n, int) else -1 for n in self._port(name).shape]

        class TrtRunner:
            def __init__(self, engine: Engine) -> None:
                self.engine, self.state, self.buffers = engine, "new", {}
                self.busy = threading.Lock()
                world.runners.append(self)

            def activate(self) -> None:
                self.state = "active"

            def deactivate(self) -> None:
                self.state = "freed"

            def infer(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
                assert self.busy.acquire(blocking=False), "a context serves one call at a time"
                names = [port.name for port in self.engine.session.get_outputs()]
                found = dict(zip(names, self.engine.session.run(names, feeds), strict=True))
                for name, array in found.items():  # one buffer for all calls, as polygraphy does
                    if self.buffers.get(name, np.empty(0)).shape == array.shape:
                        self.buffers[name][...] = array
                    else:
                        self.buffers[name] = array
                self.busy.release()
                return dict(self.buffers)

        class Profile(dict[str, Any]):
            def add(self, name: str, low: list[int], opt: list[int], high: list[int]) -> None:
                self[name] = (low, opt, high)

        kinds = ("CONSTANT", "SHAPE", "IDENTITY", "QUANTIZE", "DEQUANTIZE", "MATRIX_MULTIPLY")
        contents: dict[str, dict[str, Any]] = {
            "tensorrt": {
                "__version__": world.version,
                "TensorIOMode": SimpleNamespace(INPUT="in", OUTPUT="out"),
                "LayerType": SimpleNamespace(**{kind: kind for kind in kinds}),
                "float16": "float16",
                "float32": "float32",
                "nptype": np.dtype,
            },
            "polygraphy": {},
            "polygraphy.backend": {},
            "polygraphy.backend.trt": {
                "network_from_onnx_bytes": network_from_onnx_bytes,
                "engine_bytes_from_network": engine_bytes_from_network,
                "engine_from_bytes": Engine,
                "CreateConfig": dict,
                "TrtRunner": TrtRunner,
                "Profile": Profile,
            },
            "polygraphy.logger": {"G_LOGGER": G},
        }
        made = {name: ModuleType(name) for name in contents}
        for name, values in contents.items():
            made[name].__dict__.update(values)
            parent, _, leaf = name.rpartition(".")
            if parent:
                setattr(made[parent], leaf, made[name])
        return made


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    pytest.importorskip("onnxruntime")
    world = World()
    install(world, monkeypatch)
    monkeypatch.setattr(backend_module, "read_gpus", lambda: (Gpu("Orin", 87),))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return world


def install(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in world.modules().items():
        monkeypatch.setitem(sys.modules, name, module)


def engines(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "vitdeploy" / "engines"


def test_a_bundle_verifies_and_its_engine_is_built_once(world: World, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    for _ in range(2):
        report = verify(bundle, runtime="tensorrt")
        assert report.passed, report.failures
        assert report.runtime["version"] == "10.3.0"
        assert report.runtime["device"] == "Orin"
    assert len(world.builds) == 1
    assert all(runner.state == "freed" for runner in world.runners)


def test_ten_is_strongly_typed_and_a_free_batch_gets_a_profile(world: World, tmp_path: Path) -> None:
    find_backend("tensorrt").load(tiny_model())
    assert world.parsed == [{"strongly_typed": True}]
    (config,) = world.builds
    assert config == {"profiles": [{"images": ([1, 3, 8, 8], [8, 3, 8, 8], [32, 3, 8, 8])}]}
    find_backend("tensorrt").load(tiny_model(2))
    assert "profiles" not in world.builds[1]
    assert world.builds[1]["load_timing_cache"].endswith(".cache")


def test_eight_may_not_round_what_the_graph_keeps_in_single_precision(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.version = "8.6.1"
    world.layers = [
        layer("MATRIX_MULTIPLY", "float16"),
        layer("MATRIX_MULTIPLY", "float32"),
        layer("CONSTANT", "float32"),
        layer("MATRIX_MULTIPLY", "int32"),
    ]
    install(world, monkeypatch)
    told = find_backend("tensorrt").load(tiny_model(2)).describe()
    assert world.parsed == [{}]
    assert world.builds == [{"fp16": True, "precision_constraints": "obey"}]
    assert [found.precision for found in world.layers] == [None, "float32", None, None]
    assert [found.asked for found in world.layers] == [[], ["float32"], [], []]
    assert "FP32 layers held to it" in told["precision"]


def test_eight_needs_no_constraint_in_a_graph_of_one_type(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.version = "8.5.2"
    world.layers = [layer("MATRIX_MULTIPLY", "float32")]
    install(world, monkeypatch)
    find_backend("tensorrt").load(tiny_model(2))
    assert world.builds == [{}]
    assert world.layers[0].precision is None


def test_eight_leaves_quantized_layers_free(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.version = "8.6.1"
    world.layers = [
        layer("QUANTIZE", "int8"),
        layer("DEQUANTIZE", "float32", name="dq"),
        layer("MATRIX_MULTIPLY", "float32", reads="dq.0"),
        layer("SOFTMAX", "float32", reads="other"),
    ]
    install(world, monkeypatch)
    find_backend("tensorrt").load(tiny_model(2))
    assert world.builds == [{"int8": True, "precision_constraints": "obey"}]
    assert [found.precision for found in world.layers] == [None, None, None, "float32"]


def test_eight_has_one_profile_for_one_stream(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.version = "8.6.1"
    install(world, monkeypatch)
    with pytest.raises(UsageError, match="one call at a time"):
        find_backend("tensorrt").load(tiny_model(), options=Options(streams=2))
    assert find_backend("tensorrt").load(tiny_model(2), options=Options(streams=2)).streams == 2


def test_a_batch_beyond_the_profile_is_cut_up(world: World) -> None:
    backend = find_backend("tensorrt").load(tiny_model())
    images = tiny_images(70)
    np.testing.assert_allclose(backend.run({"images": images})["logits"], tiny_logits(images), rtol=0, atol=1e-6)


def test_results_are_the_callers_own(world: World) -> None:
    backend = find_backend("tensorrt").load(tiny_model())
    first, second = tiny_images(2), tiny_images(4)[2:]
    kept = backend.run({"images": first})["logits"]
    backend.run({"images": second})
    np.testing.assert_allclose(kept, tiny_logits(first), rtol=0, atol=1e-6)


@pytest.mark.parametrize("streams", [None, 3])
def test_threads_never_share_a_context(world: World, streams: int | None) -> None:
    backend = find_backend("tensorrt").load(tiny_model(), options=Options(streams=streams))
    assert len(world.runners) == (streams or 1)
    images, wrong = tiny_images(), []

    def call() -> None:
        for _ in range(20):
            if not np.allclose(backend.run({"images": images})["logits"], tiny_logits(images), atol=1e-6):
                wrong.append(1)

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    backend.close()
    assert [runner.state for runner in world.runners] == ["freed"] * (streams or 1)


@pytest.mark.parametrize(
    ("complaint", "fix"),
    [
        ("UNSUPPORTED_NODE: No importer registered for op: Foo", "vitdeploy check BUNDLE --target tensorrt10.3"),
        ("Cuda failure: out of memory", "--batch 1"),
        ("CUDA initialization failure with error: 35", "JetPack"),
        ("something new", "vitdeploy check BUNDLE --target tensorrt10.3"),
    ],
)
def test_what_the_builder_says_is_translated_and_kept(world: World, tmp_path: Path, complaint: str, fix: str) -> None:
    world.complaint = complaint
    with pytest.raises(BackendError, match="does not build this model") as caught:
        find_backend("tensorrt").load(tiny_model())
    assert caught.value.why == f"[E] {complaint}"
    assert fix in str(caught.value.fix)
    (kept,) = engines(tmp_path).glob("*.log")
    assert complaint in kept.read_text()
    assert "choosing kernels" in kept.read_text()
    assert not list(engines(tmp_path).glob("*.engine"))


def test_an_engine_that_no_longer_loads_is_built_again(world: World) -> None:
    find_backend("tensorrt").load(tiny_model())
    world.refuses_engines = True
    find_backend("tensorrt").load(tiny_model())
    assert len(world.builds) == 2


def test_an_altered_engine_is_never_loaded(world: World, tmp_path: Path) -> None:
    find_backend("tensorrt").load(tiny_model())
    (engine,) = engines(tmp_path).glob("*.engine")
    assert engine.read_bytes() == PREFIX + tiny_model(), "nothing is put before what TensorRT wrote"
    engine.write_bytes(PREFIX + tiny_model(2))
    assert isinstance(find_backend("tensorrt").load(tiny_model()).inputs[0].shape[0], str)
    assert len(world.builds) == 2


def test_options_it_cannot_follow_are_refused(world: World) -> None:
    with pytest.raises(UsageError, match="threads"):
        find_backend("tensorrt").load(tiny_model(), options=Options(threads=2))
    with pytest.raises(UsageError, match="precision"):
        find_backend("tensorrt").load(tiny_model(), options=Options(precision="fp16"))


def test_what_is_missing_is_said_with_the_command_that_brings_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = find_backend("tensorrt")
    assert backend.available() is None
    monkeypatch.delattr(sys.modules["polygraphy.logger"].G_LOGGER, "use_python_logging_system")
    assert "pip install 'polygraphy>" in str(backend.available())
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    assert "vitdeploy[tensorrt]" in str(backend.available())
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "python3-libnvinfer" in str(backend.available())
    monkeypatch.setattr(backend_module, "read_gpus", lambda: ())
    assert "no NVIDIA GPU" in str(backend.available())


def installed(*names: str) -> Path:
    """The folder of the first of these packages that is installed, without importing it."""
    specs = (importlib.util.find_spec(name) for name in names)
    origins = [Path(spec.origin).parent for spec in specs if spec is not None and spec.origin]
    if not origins:
        pytest.skip(f"needs {' or '.join(names)}")
    return origins[0]


def test_every_tensorrt_name_is_in_the_real_bindings() -> None:
    folder = installed("tensorrt_bindings", "tensorrt")
    library = b"".join(path.read_bytes() for path in folder.glob("*.so"))
    library += (folder / "__init__.py").read_bytes()
    source = inspect.getsource(engine_build) + inspect.getsource(backend_module)
    names = set(re.findall(r"\btrt\.([A-Za-z]\w+)(?:\.([A-Z]\w+))?", source))
    used = {part for pair in names for part in pair if part}
    used |= set(re.findall(r"_engine\.(\w+)", source)) | set(re.findall(r"(?:layer|network|tensor)\.(\w+)", source))
    used |= {"CONSTANT", "SHAPE", "IDENTITY", "QUANTIZE"}
    assert len(used) > 12
    weakly_typed = {"set_output_type", "precision"}  # gone with 11, and only called before 10
    assert {name for name in used - weakly_typed if name.encode() not in library} == set()


def test_every_polygraphy_call_fits_the_real_signatures(capsys: pytest.CaptureFixture[str]) -> None:
    installed("polygraphy")
    from polygraphy.backend import trt as poly
    from polygraphy.logger import G_LOGGER

    inspect.signature(poly.NetworkFromOnnxBytes).bind(b"", strongly_typed=True)
    inspect.signature(poly.EngineBytesFromNetwork).bind((), config=None, save_timing_cache="")
    inspect.signature(poly.EngineFromBytes).bind(b"")
    settings = inspect.signature(poly.CreateConfig).parameters.keys()
    assert {"fp16", "int8", *(() if "kwargs" in settings else _COMMON_SETTINGS)} <= settings
    assert list(poly.Profile().add("images", [1], [1], [1])) == ["images"]
    poly.TrtRunner(object())
    for name in ("network_from_onnx_bytes", "engine_bytes_from_network", "engine_from_bytes"):
        assert callable(getattr(poly, name))
    with engine_build.builder_log() as lines:
        poly.CreateConfig(fp16=True, int8=True, **dict.fromkeys(_COMMON_SETTINGS))
        G_LOGGER.warning("kept here")
    assert any("kept here" in line for line in lines)
    G_LOGGER.warning("and this not on standard output either")
    assert capsys.readouterr().out == ""
