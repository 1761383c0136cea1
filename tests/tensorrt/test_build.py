"""What a build is told, what it refuses, and what TensorRT's words mean."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import tiny_model
from tests.tensorrt.fake_tensorrt import API, EIGHT, ELEVEN, TEN, World
from vitdeploy.errors import UsageError
from vitdeploy.platforms.boards import missing_dla
from vitdeploy.tensorrt import backend as backend_module
from vitdeploy.tensorrt import build as engine_build
from vitdeploy.tensorrt import engine as engine_run
from vitdeploy.tensorrt import library, logger, progress
from vitdeploy.tensorrt.build import build
from vitdeploy.tensorrt.error_patterns import ERROR_PATTERNS, explain
from vitdeploy.tensorrt.options import WORKAROUNDS, BuildOptions, read_profile, read_size, read_workarounds

AGX = "NVIDIA Jetson AGX Orin Developer Kit"


@pytest.mark.parametrize(
    ("text", "size"), [("512", 512 * 2**20), ("512M", 512 * 2**20), ("2G", 2**31), ("2gib", 2**31), (4096, 4096)]
)
def test_sizes(text: str | int, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize(
    ("text", "profile"), [("1,8,32", (1, 8, 32)), ("4", (4, 4, 4)), ((2, 3, 4), (2, 3, 4)), ([1, 1, 1], (1, 1, 1))]
)
def test_profiles(text: Any, profile: tuple[int, ...]) -> None:
    assert read_profile(text) == profile


def test_workarounds_are_tried_in_their_order_whatever_order_they_are_asked_in() -> None:
    assert read_workarounds("auto") == WORKAROUNDS == ("defuse", "fp32", "bf16")
    assert read_workarounds("none") == ()
    assert read_workarounds("bf16, defuse") == ("defuse", "bf16")


@pytest.mark.parametrize(
    "wrong",
    [
        {"workspace": "much"},
        {"workspace": 0},
        {"profile": "1,2"},
        {"profile": "3,2,1"},
        {"profile": "0,1,2"},
        {"profile": "a,b,c"},
        {"dla": -1},
        {"optimization_level": -1},
        {"optimization_level": 6},
        {"optimization_level": "high"},
        {"workarounds": "prayer"},
        {"colour": 1},
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        BuildOptions.of(wrong)


def test_an_options_identity_gives_the_same_options_again() -> None:
    asked = BuildOptions.of({"workspace": "1G", "profile": "1,2,3", "dla": 1, "tf32": True, "optimization_level": 5})
    assert BuildOptions.of(asked.identity()) == asked
    same = BuildOptions.of({**asked.identity(), "workarounds": "none", "timing_cache": "kernels"})
    assert same.identity() == asked.identity(), "what is tried, and how fast, makes no other engine"


@pytest.mark.parametrize(
    ("said", "version", "cause", "fix"),
    [
        ("[E] CUDA initialization failure with error: 100", "8.6.1", "sees no GPU", "nvidia-smi"),
        ("libnvinfer_builder_resource_win.so.10.2.0: cannot open", "10.2.0", "lacks a library", "another version"),
        ("In node 3 (importX): UNSUPPORTED_NODE: No importer registered for op: Xyz", "8.6.1", "Xyz", "tensorrt8.6"),
        ("No importer registered for op: Gelu", "8.5.2.1", "Gelu", "--target tensorrt8.5"),
        ("Unsupported ONNX opset version: 24", "10.3.0", "newer than this parser", "--target tensorrt8"),
        ("Assertion failed: K exceeds 3840 TopK", "10.3.0", "fewer than 3840", "--image-size"),
        ("QuantizeLinear: zero point must be all zeros (0)", "10.3.0", "symmetric", "--int8"),
        ("Network is strongly typed, but the types of inputs differ", "10.3.0", "different types", "Cast"),
        ("Error: no optimization profile has been defined", "10.3.0", "profile", "--profile"),
        ("DLA node X is not supported", "10.3.0", "accelerator", "leave out --dla"),
        ("Cuda failure: out of memory", "10.3.0", "not enough memory", "--workspace"),
        ("Could not find any implementation for node {ForeignNode[a...b]}.", "10.3.0", "{ForeignNode[a...b]}", "4G"),
        ("stdVersionRead == kSERIALIZATION_VERSION failed", "8.6.1", "engine is of another", "--rebuild"),
        ("an illegal memory access was encountered", "10.3.0", "crashed", "--rebuild"),
        ("Found unsupported input type of UINT8 UNSUPPORTED_NODE", "10.3.0", "element type: UINT8", "a Cast"),
        ("input has type Int32 but must have type Float, Half", "10.3.0", "element type: Int32", "a Cast"),
        ("Attention operation was not supported by a dedicated kernel", "10.15.0", "no kernel", "--fp16"),
        ('"Failed to convert ONNX dimensions to TensorRT dimensions."', "10.3.0", "more axes", "8 axes"),
        ("Plugin not found, are the plugin name", "10.3.0", "does not know an operator", "tensorrt10.3"),
        ("NonZero plugin creator version 1 was not found in plugin registry", "10.3.0", "NonZero", "tensorrt10.3"),
        ("Failed to parse ONNX model", "10.3.0", "parser does not accept", "tensorrt10.3"),
    ],
)
def test_what_tensorrt_says_is_explained(said: str, version: str, cause: str, fix: str) -> None:
    found, advice = explain(said, version)
    assert cause in str(found)
    assert fix in advice
    assert "{" not in advice


def test_what_nobody_knows_is_left_to_check() -> None:
    assert explain("the moon is in the way", "10.3.0") == (
        None,
        "vitdeploy check BUNDLE --target tensorrt10.3, which says what to change",
    )


def test_every_explanation_says_something_to_do() -> None:
    for row in ERROR_PATTERNS:
        re.compile(row.pattern)
        assert row.cause
        assert row.fix


@pytest.mark.parametrize(
    ("version", "board", "has"),
    [
        ((8, 6, 2), AGX, True),
        ((10, 3, 0), AGX, True),
        ((10, 7, 0), AGX, True),
        ((10, 8, 0), AGX, False),
        ((11, 3, 0), AGX, False),
        ((11, 4, 0), AGX, False),
        ((11, 4, 1), AGX, True),
        ((11, 4, 1), "NVIDIA Jetson AGX Thor Developer Kit", False),
        ((10, 3, 0), "NVIDIA Jetson Orin Nano Engineering Reference", False),
        ((10, 3, 0), "jetson-orin-nano-jp6", False),
        ((10, 3, 0), "jetson-orin-nx-jp6", True),
        ((10, 3, 0), None, False),
    ],
)
def test_which_machine_has_an_accelerator(version: tuple[int, ...], board: str | None, has: bool) -> None:
    assert (missing_dla(version, board) is None) is has


def dla_world(world: World) -> BuildOptions:
    world.dla_cores, world.dla_layers = 2, frozenset({"CONVOLUTION", "ACTIVATION"})
    world.layers = [
        world.layer("CONVOLUTION", "float16"),
        world.layer("CONVOLUTION", "float16"),
        world.layer("SOFTMAX", "float16"),
        world.layer("MATRIX_MULTIPLY", "float16"),
        world.layer("MATRIX_MULTIPLY", "float16"),
    ]
    return BuildOptions(dla=1, profile=(1, 1, 1))


@pytest.mark.parametrize(("version", "typed"), [(EIGHT, False), (TEN, False), ("11.4.1.5", True)])
def test_the_accelerator_takes_what_it_can_and_the_rest_is_listed(
    world: World, monkeypatch: pytest.MonkeyPatch, version: str, typed: bool
) -> None:
    world.version = version
    monkeypatch.setitem(API, "11.4.1.5", API[ELEVEN])
    world.install(monkeypatch)
    options = dla_world(world)
    built = build(tiny_model(2), options, board=AGX)
    (config,) = world.configs
    assert (config.default_device_type.name, config.DLA_core, config.flags_set) == ("DLA", 1, ["GPU_FALLBACK"])
    assert world.parsed == [{"strongly_typed": True} if typed else {}]
    assert config.settings.get("fp16") is (None if typed else True)
    assert dict(built.on_dla) == {"CONVOLUTION": 2}
    assert dict(built.off_dla) == {"MATRIX_MULTIPLY": 2, "SOFTMAX": 1}


def test_an_accelerator_that_is_not_there_is_refused_before_anything_is_built(world: World) -> None:
    options = dla_world(world)
    with pytest.raises(UsageError, match="Orin Nano has no DLA"):
        build(tiny_model(2), options, board="NVIDIA Jetson Orin Nano")
    assert not world.parsed
    world.dla_cores = 1
    with pytest.raises(UsageError, match=r"no DLA core 1\n.*this device has 1"):
        build(tiny_model(2), options, board=AGX)
    world.dla_cores = 0
    with pytest.raises(UsageError, match="this device has none"):
        build(tiny_model(2), options, board=AGX)


def test_an_accelerator_takes_neither_fp32_nor_a_free_batch(world: World) -> None:
    dla_world(world)
    with pytest.raises(UsageError, match="free batch"):
        build(tiny_model(), BuildOptions(dla=0), board=AGX)
    world.layers = [world.layer("CONVOLUTION", "float32")]
    with pytest.raises(UsageError, match="FP16 and INT8 only"):
        build(tiny_model(2), BuildOptions(dla=0), board=AGX)


def test_a_build_that_fails_leaves_the_timing_cache_as_it_was(world: World, tmp_path: Path) -> None:
    timing = tmp_path / "kernels.cache"
    timing.write_bytes(b"earlier")
    world.complaint = "out of memory"
    with pytest.raises(engine_build.BuildError):
        build(tiny_model(2), BuildOptions(), timing=timing)
    assert timing.read_bytes() == b"earlier"
    world.complaint = None
    build(tiny_model(2), BuildOptions(), timing=timing)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["kernels.cache"], "no partial file is left"
    assert timing.read_bytes() == b"earlier\ntimings"


@pytest.mark.parametrize("version", [EIGHT, TEN, ELEVEN])
def test_a_build_that_takes_long_tells_the_time_left_where_tensorrt_tells_how_far_it_is(
    world: World, version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorRT 8 has no monitor. The phase of six steps is not shown: its steps differ too much in length."""
    now = [0.0]
    monkeypatch.setattr("vitdeploy.progress.time.monotonic", lambda: now[0])
    world.version = version
    world.install(monkeypatch)

    def ten_seconds(phase: str, step: int) -> None:
        now[0] += 10

    world.while_stepping = ten_seconds
    with caplog.at_level("INFO", logger="vitdeploy"):
        build(tiny_model(2), BuildOptions())
    lines = [message for message in caplog.messages if message.startswith("building the engine")]
    assert not any("building engine" in line for line in lines)
    if version == EIGHT:
        assert lines == []
        return
    assert lines[0] == "building the engine, timing graph nodes: 1 of 40, 10 s, 6 min 30 s left"
    assert lines[-1] == "building the engine, timing graph nodes: 40 of 40, 6 min 40 s, 0 s left"


def test_every_name_asked_of_tensorrt_is_recorded_of_some_version() -> None:
    """`trt.X.Y` in the sources against the records of the real bindings; the objects are checked by the stand-ins."""
    sources = [
        Path(str(module.__file__)).read_text()
        for module in (engine_build, engine_run, backend_module, library, logger, progress)
    ]
    used = set(re.findall(r"\btrt\.([A-Za-z]\w+)(?:\.([A-Z]\w+))?", "\n".join(sources)))
    used = {(name, member) for name, member in used if name not in ("__version__",)}
    assert len(used) > 10
    for version, api in API.items():
        for name, member in used:
            if member:
                gone_or_to_come = {("BuilderFlag", "FP16"), ("BuilderFlag", "INT8")}
                assert member in api["enums"][name] or (name, member) in gone_or_to_come, f"{version}: {name}.{member}"
            elif name in api["enums"]:
                continue
            elif name == "IProgressMonitor":
                assert ("progress_monitor" in api["classes"]["IBuilderConfig"]) == (version != EIGHT)
            else:
                assert name in (*api["names"], *api["classes"]), f"{version}: {name}"
