"""The TensorRT backend, with stand-ins that run the model on the CPU and know only what the real bindings know."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bundles import tiny_images, tiny_logits, tiny_manifest, tiny_model, write_tiny_bundle
from tests.tensorrt.engines import loaded
from tests.tensorrt.fake_tensorrt import EIGHT, ELEVEN, PREFIX, TEN, World
from tests.transformer import damaged_weight
from vitdeploy import build
from vitdeploy.bundle import MODEL, BundleWriter
from vitdeploy.cli import main
from vitdeploy.errors import BackendError, UsageError
from vitdeploy.runtime.backends import find_backend
from vitdeploy.runtime.options import Options
from vitdeploy.runtime.session import load
from vitdeploy.runtime.verify import verify
from vitdeploy.tensorrt import backend as backend_module
from vitdeploy.tensorrt import build as engine_build

DETAILED = {"tf32": False}


def engines(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "vitdeploy" / "engines"


def play(world: World, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world.version = version
    world.install(monkeypatch)


def told(world: World, build: int = -1) -> dict[str, Any]:
    """What the builder's configuration was told, without what every build is told."""
    settings = dict(world.builds[build])
    assert settings.pop("tf32") is False
    assert settings.pop("profiling_verbosity").name == "DETAILED"
    settings.pop("load_timing_cache", None)
    return settings


@pytest.mark.parametrize("version", [EIGHT, TEN, ELEVEN])
def test_a_bundle_verifies_with_the_engine_that_was_built(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    play(world, version, monkeypatch)
    bundle = write_tiny_bundle(tmp_path / "b")
    assert build(bundle).passed
    for _ in range(2):
        report = verify(bundle, runtime="tensorrt")
        assert report.passed, report.failures
        assert report.runtime["version"] == version
        assert report.runtime["device"] == "Orin"
    assert len(world.builds) == 1
    assert world.driver.leaks == 0


def test_ten_is_strongly_typed_and_a_free_batch_gets_a_profile(world: World) -> None:
    loaded(tiny_model())
    assert world.parsed == [{"strongly_typed": True}]
    assert told(world) == {"profiles": [{"images": ([1, 3, 8, 8], [8, 3, 8, 8], [32, 3, 8, 8])}]}
    loaded(tiny_model(2))
    assert told(world) == {}
    assert world.builds[1]["load_timing_cache"].getvalue() == b"timings"


def test_eight_may_not_round_what_the_graph_keeps_in_single_precision(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(world, EIGHT, monkeypatch)
    world.layers = [
        world.layer("MATRIX_MULTIPLY", "float16"),
        world.layer("MATRIX_MULTIPLY", "float32"),
        world.layer("CONSTANT", "float32"),
        world.layer("MATRIX_MULTIPLY", "int32"),
    ]
    described = loaded(tiny_model(2)).describe()
    assert world.parsed == [{}]
    settings = told(world)
    assert [source.name for source in settings.pop("tactic_sources")] == ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]
    assert settings == {"fp16": True, "precision_constraints": "obey"}
    assert [found.precision for found in world.layers] == [None, "float32", None, None]
    assert [found.asked for found in world.layers] == [[], ["float32"], [], []]
    assert "FP32 layers held to it" in described["compute_precision"]


def test_eight_needs_no_constraint_in_a_graph_of_one_type(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    play(world, "8.5.2", monkeypatch)
    world.layers = [world.layer("MATRIX_MULTIPLY", "float32")]
    loaded(tiny_model(2))
    assert told(world) == {}
    assert world.layers[0].precision is None


def test_eight_computes_int8_and_fp16_where_the_graph_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    play(world, EIGHT, monkeypatch)
    world.layers = [
        world.layer("QUANTIZE", "int8"),
        world.layer("DEQUANTIZE", "float32", name="dq"),
        world.layer("MATRIX_MULTIPLY", "float32", reads="dq.0"),
        world.layer("CAST", "float16"),
        world.layer("SOFTMAX", "float16"),
        world.layer("NORMALIZATION", "float32", reads="other"),
    ]
    loaded(tiny_model(2))
    settings = told(world)
    del settings["tactic_sources"]
    assert settings == {"int8": True, "fp16": True, "precision_constraints": "obey"}
    assert [found.precision for found in world.layers] == [None, None, None, None, None, "float32"]


def test_eight_needs_no_constraint_for_int8_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constraints would only keep a bias or an activation from joining the INT8 kernel before it."""
    play(world, EIGHT, monkeypatch)
    world.layers = [
        world.layer("DEQUANTIZE", "float32", name="dq"),
        world.layer("MATRIX_MULTIPLY", "float32", name="product", reads="dq.0"),
        world.layer("ELEMENTWISE", "float32", reads="product.0"),
    ]
    loaded(tiny_model(2))
    settings = told(world)
    del settings["tactic_sources"]
    assert settings == {"int8": True}
    assert [found.precision for found in world.layers] == [None, None, None]


def test_eleven_is_never_told_a_precision(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    play(world, ELEVEN, monkeypatch)
    world.layers = [world.layer("MATRIX_MULTIPLY", "float16"), world.layer("DEQUANTIZE", "float32")]
    loaded(tiny_model(2))
    assert world.parsed == [{"strongly_typed": True}]
    assert told(world) == {}


def test_eight_has_one_profile_for_one_stream(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    play(world, EIGHT, monkeypatch)
    with pytest.raises(UsageError, match="one call at a time"):
        loaded(tiny_model(), num_requests=2)
    assert loaded(tiny_model(2), num_requests=2).num_requests == 2


def test_what_is_asked_of_the_build_reaches_the_builder_and_names_another_engine(world: World, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    timing = tmp_path / "kernels.cache"
    timing.write_bytes(b"earlier")
    asked = {"workspace": "1G", "profile": "2,4,8", "tf32": True, "timing_cache": str(timing)}
    asked |= {"optimization_level": 5}
    assert build(bundle, **asked).passed  # type: ignore[arg-type]
    with load(bundle, runtime="tensorrt", build=asked) as session:
        described = session.describe()
    (settings,) = world.builds
    assert settings["memory_pool_limits"] == {world.enum("MemoryPoolType").WORKSPACE: 2**30}
    assert settings["profiles"] == [{"images": ([2, 3, 8, 8], [4, 3, 8, 8], [8, 3, 8, 8])}]
    assert settings["tf32"] is True
    assert settings["builder_optimization_level"] == 5
    assert settings["load_timing_cache"].getvalue() == b"earlier"
    assert timing.read_bytes() == b"earlier\ntimings"
    assert described["build_options"]["workspace"] == 2**30
    assert described["build_options"]["optimization_level"] == 5
    with pytest.raises(BackendError, match="no proven TensorRT engine"):
        load(bundle, runtime="tensorrt", build={})
    assert build(bundle).passed
    assert len(world.builds) == 2
    assert len(list(engines(tmp_path).glob("*.engine"))) == 2


def test_optimization_levels_came_with_8_6(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    command = ["build", str(bundle.path), "--optimization-level"]
    play(world, "8.5.2", monkeypatch)
    assert main([*command, "4"]) == 2
    assert "TensorRT 8.5.2 has no optimization levels" in capsys.readouterr().err
    play(world, EIGHT, monkeypatch)
    assert main([*command, "4"]) == 0
    assert "builder_optimization_level" in world.api["classes"]["IBuilderConfig"]
    assert [settings["builder_optimization_level"] for settings in world.builds] == [4]
    assert main([*command, "6"]) == 2
    assert "there is no optimization level 6" in capsys.readouterr().err


def test_a_load_that_asks_for_nothing_takes_the_engine_that_was_built_last(world: World, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    assert build(bundle).passed
    assert build(bundle, profile="1,2,4").passed
    with load(bundle, runtime="tensorrt") as session:
        assert session.describe()["build_options"]["profile"] == [1, 2, 4]
    assert len(world.builds) == 2


@pytest.mark.parametrize("profile", [(1, 8, 32), (4, 4, 8), (64, 64, 64)])
def test_any_number_of_images_is_cut_and_filled_to_the_profile(world: World, profile: tuple[int, int, int]) -> None:
    backend = loaded(tiny_model(), build={"profile": profile})
    images = tiny_images(70)
    np.testing.assert_allclose(backend.run({"images": images})["logits"], tiny_logits(images), rtol=0, atol=1e-6)


def test_results_are_the_callers_own(world: World) -> None:
    backend = loaded(tiny_model())
    first, second = tiny_images(2), tiny_images(4)[2:]
    kept = backend.run({"images": first})["logits"]
    backend.run({"images": second})
    np.testing.assert_allclose(kept, tiny_logits(first), rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_requests", [None, 3])
def test_threads_never_share_a_context(world: World, num_requests: int | None) -> None:
    backend = loaded(tiny_model(), num_requests=num_requests)
    assert len(world.contexts) == (num_requests or 1)
    wrong = []

    def call(count: int) -> None:
        images = tiny_images()[:count]
        for _ in range(20):
            if not np.allclose(backend.run({"images": images})["logits"], tiny_logits(images), atol=1e-6):
                wrong.append(1)

    threads = [threading.Thread(target=call, args=(1 + index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    backend.close()
    assert world.driver.leaks == 0


@pytest.mark.parametrize(
    ("complaint", "cause", "fix"),
    [
        ("No importer registered for op: Foo", "an operator of the graph: Foo", "check BUNDLE --target tensorrt10.3"),
        ("Cuda failure: out of memory", "not enough memory", "--workspace 512M"),
        ("CUDA initialization failure with error: 35", "older than the CUDA", "JetPack"),
        ("Error Code 10: Could not find any implementation for node {a}.", "no kernel computes this part", "4G"),
    ],
)
def test_what_the_builder_says_is_translated_and_kept(
    world: World, tmp_path: Path, complaint: str, cause: str, fix: str
) -> None:
    world.complaint = complaint
    with pytest.raises(BackendError, match="does not build this model") as caught:
        build(write_tiny_bundle(tmp_path / "b"))
    assert cause in str(caught.value.why)
    assert complaint in str(caught.value.why)
    assert fix in str(caught.value.fix)
    (kept,) = engines(tmp_path).glob("*.log")
    assert complaint in kept.read_text()
    assert "choosing kernels" in kept.read_text()
    assert not list(engines(tmp_path).glob("*.engine"))


def test_loading_builds_nothing_and_says_what_does(world: World, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    for call in (load, verify):
        with pytest.raises(BackendError, match=r"no proven TensorRT engine(.|\n)*vitdeploy build") as caught:
            call(bundle, runtime="tensorrt")
        assert str(bundle.path) in str(caught.value.fix)
    with load(bundle) as session:
        assert session.backend.name != "tensorrt"
        assert "tensorrt (there is no proven TensorRT engine" in session.reason
    with pytest.raises(BackendError, match="does not load an ONNX file"):
        find_backend("tensorrt").load(tiny_model())
    assert not world.builds
    assert build(bundle).passed
    with load(bundle) as session:
        assert session.backend.name == "tensorrt"
    assert len(world.builds) == 1


def test_an_engine_that_no_longer_loads_is_built_again_by_build_alone(world: World, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    assert build(bundle).passed
    world.refuses_engines = True
    with pytest.raises(BackendError, match=r"does not load any more(.|\n)*--rebuild"):
        load(bundle, runtime="tensorrt")
    world.refuses_engines = True
    assert build(bundle).passed
    assert len(world.builds) == 2
    load(bundle, runtime="tensorrt").close()


def test_an_altered_engine_is_never_loaded(world: World, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    assert build(bundle).passed
    (engine,) = engines(tmp_path).glob("*.engine")
    assert engine.read_bytes() == PREFIX + tiny_model(), "nothing is put before what TensorRT wrote"
    engine.write_bytes(PREFIX + tiny_model(2))
    with pytest.raises(BackendError, match="no proven TensorRT engine"):
        load(bundle, runtime="tensorrt")
    assert build(bundle).passed
    with load(bundle, runtime="tensorrt") as session:
        assert isinstance(session.backend.inputs[0].shape[0], str)
    assert len(world.builds) == 2


def test_an_engine_counts_for_the_reference_that_it_was_proven_on(world: World, tmp_path: Path) -> None:
    """The same model file with other reference images: the kept engine is held against them, and not built again."""
    first = write_tiny_bundle(tmp_path / "first")
    with BundleWriter(tmp_path / "second") as writer:
        images = tiny_images(3)
        writer.write_bytes(MODEL, first.read(MODEL))
        writer.write_reference(inputs={"images": images}, outputs={"logits": tiny_logits(images)})
        writer.seal(tiny_manifest())
        second = writer.commit()
    assert build(first).passed
    with pytest.raises(BackendError, match="no proven TensorRT engine"):
        load(second, runtime="tensorrt")
    again = build(second)
    assert (again.passed, again.cached, again.to_dict()["bundle"]) == (True, True, str(second.path))
    for bundle in (first, second):
        load(bundle, runtime="tensorrt").close()
    assert len(world.builds) == 1


def test_a_bundle_that_no_engine_reproduces_keeps_none(world: World, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", error=0.5)
    report = build(bundle)
    assert not report.passed
    assert "relative error" in report.failures[0]
    with pytest.raises(BackendError, match=r"no proven TensorRT engine(.|\n)*vitdeploy build"):
        load(bundle, runtime="tensorrt")
    assert not list(engines(tmp_path).glob("*.engine"))
    assert world.driver.leaks == 0


def spoil(world: World, how: str) -> None:
    """Lets the next build end as `how` says."""

    def stop(model: bytes) -> None:
        raise KeyboardInterrupt if how == "Ctrl-C" else MemoryError

    if how in ("Ctrl-C", "no memory"):
        world.while_building = stop
    elif how == "a builder that fails":
        world.complaint = "out of memory"
    elif how == "a driver that fails":
        world.driver.fails["cuMemcpyHtoDAsync_v2"] = 719
    elif how == "no memory on the GPU":
        world.driver.room = 100
    else:
        world.miscompile = damaged_weight("weight")


@pytest.mark.parametrize(
    "how",
    ["Ctrl-C", "no memory", "a builder that fails", "a driver that fails", "no memory on the GPU", "other numbers"],
)
def test_a_rebuild_that_fails_leaves_the_engine_that_was_proven(world: World, tmp_path: Path, how: str) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    first = build(bundle)
    spoil(world, how)
    if how == "other numbers":
        failed = build(bundle, rebuild=True, workarounds="none")
        assert failed.failed
        assert failed.engine is None
    else:
        with pytest.raises(KeyboardInterrupt if how == "Ctrl-C" else BackendError):
            build(bundle, rebuild=True)
    world.while_building, world.complaint, world.miscompile = lambda model: None, None, lambda model: model
    world.driver.fails.clear()
    world.driver.room = None
    with load(bundle, runtime="tensorrt") as session:
        np.testing.assert_allclose(session(tiny_images(2)), tiny_logits(tiny_images(2)), rtol=0, atol=1e-6)
    again = build(bundle)
    assert (again.passed, again.cached, again.engine) == (True, True, first.engine)
    assert json.loads(Path(again.report).read_text())["passed"] is True
    assert "choosing kernels" in Path(again.to_dict()["log"]).read_text()
    assert len(list(engines(tmp_path).glob("*.engine"))) == 1
    assert world.driver.leaks == 0


def test_the_sidecar_names_the_reference_that_the_engine_was_proven_with(world: World, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    assert build(bundle).passed
    (path,) = (one for one in engines(tmp_path).glob("*.json") if not one.name.endswith(".report.json"))
    sha256 = hashlib.sha256((bundle.path / "reference.npz").read_bytes()).hexdigest()
    assert json.loads(path.read_text())["references_sha256"] == [sha256]


def test_options_it_cannot_follow_are_refused(world: World, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    for option in ({"threads": 2}, {"compute_precision": "fp16"}, {"device": "GPU"}):
        with pytest.raises(UsageError, match=f"does not support the option {next(iter(option))}"):
            load(bundle, runtime="tensorrt", **option)  # type: ignore[arg-type]
    for wrong in ({"speed": 3}, {"profile": "8,1,2"}):
        with pytest.raises(UsageError, match=r"invalid profile|build option"):
            load(bundle, runtime="tensorrt", build=wrong)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch"])
def test_other_runtimes_run_no_engines(name: str) -> None:
    with pytest.raises(UsageError, match="it runs no engines"):
        find_backend(name).load(tiny_model(), options=Options(build={"workspace": "1G"}))


def test_what_is_missing_is_said_with_the_command_that_brings_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = find_backend("tensorrt")
    assert backend.available() is None
    monkeypatch.delattr(sys.modules["polygraphy.logger"].G_LOGGER, "use_python_logging_system")
    assert "pip install 'polygraphy>" in str(backend.available())
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    assert "vitdeploy[tensorrt]" in str(backend.available())
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "python3-libnvinfer" in str(backend.available())
    world.gpu = None
    assert "no NVIDIA GPU" in str(backend.available())


def test_without_a_gpu_building_and_loading_have_other_ways_out(world: World) -> None:
    backend = find_backend("tensorrt")
    assert issubclass(backend, backend_module.EngineBackend)
    backend.require_builder()
    world.gpu = None
    with pytest.raises(BackendError) as building:
        backend.require_builder()
    with pytest.raises(BackendError) as loading:
        backend.require()
    assert "check BUNDLE --compile" in str(building.value.fix)
    assert "such as onnxruntime" in str(loading.value.fix)


def test_every_polygraphy_call_fits_the_real_signatures(capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("polygraphy") is None:
        pytest.skip("needs polygraphy")
    from polygraphy.backend import trt as poly
    from polygraphy.logger import G_LOGGER

    common = ("profiles", "load_timing_cache", "precision_constraints", "memory_pool_limits", "profiling_verbosity")
    every = dict.fromkeys(("tf32", "fp16", "int8", "tactic_sources", "builder_optimization_level", *common))
    inspect.signature(poly.create_config).bind("builder", "network", **every)
    assert list(poly.Profile().add("images", [1], [1], [1])) == ["images"]
    engine_build._keep_off_standard_output()
    poly.CreateConfig(**every)  # what its signature swallows, it refuses here if it does not know it
    G_LOGGER.warning("this is not for standard output")
    G_LOGGER.error("nor this for standard error")
    assert capsys.readouterr() == ("", "")
