"""`vitdeploy optimize --runtime tensorrt` as one would type it; TensorRT and what its engines take are played."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from tests.costs.networks import write_data, write_network
from tests.tensorrt.fake_tensorrt import EIGHT, World
from tests.tensorrt.rtx.fake_runtime import RtxWorld
from vitdeploy import Bundle, load
from vitdeploy.cli import main
from vitdeploy.graph.onnx_file import read_graph
from vitdeploy.latency.measurement import Turn
from vitdeploy.machine.gpus import Gpu
from vitdeploy.quantize import placement
from vitdeploy.search import final
from vitdeploy.search.engines import EngineSearch
from vitdeploy.search.plan import Plan
from vitdeploy.tensorrt.int8_regions import CONVOLUTIONS, LINEAR, find_regions

pytest.importorskip("optuna")
pytest.importorskip("onnxruntime")

FEW = ("--samples", "20", "--images", "20", "--minutes", "5")
FASTER = {"fp16": 0.6, "int8": 0.4, "tf32": 0.8, "5": 0.9}

Run = Callable[..., tuple[int, dict[str, Any]]]


class Local:
    """A worker of a benchmark in this process, where the stand-ins are."""

    def __init__(self, bundle: Path, runtime: str, batch: int, options: Mapping[str, Any]) -> None:
        self._session = load(bundle, runtime=runtime, **options)
        self._inputs = {name: array[:batch] for name, array in Bundle.open(bundle).reference().inputs.items()}

    def turn(self, calls: int) -> Turn:
        begin = time.perf_counter()
        for _ in range(calls):
            self._session.run(self._inputs)
        seconds = time.perf_counter() - begin
        return Turn([seconds / calls] * calls, seconds, None)

    def close(self) -> None:
        self._session.close()


@pytest.fixture
def factors(world: World, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What an engine takes, as parts of a second: by its types, and by how it was built."""
    found = dict(FASTER)

    def built(model: bytes) -> bytes:
        """The model, with the settings of its builder noted in it."""
        proto = onnx.load_from_string(model)
        settings = world.builds[-1]
        proto.producer_name = f"{settings['tf32']} {settings.get('builder_optimization_level')}"
        return proto.SerializeToString()

    def cost(model: bytes) -> float:
        proto = onnx.load_from_string(model)
        kinds = len(find_regions(read_graph(model).graph))  # of two
        types = {one.data_type for one in proto.graph.initializer}
        halves = found["fp16"]
        time = halves - (halves - found["int8"]) * kinds / 2 if kinds else halves if TensorProto.FLOAT16 in types else 1
        tf32, level = proto.producer_name.split()
        return time * (found["tf32"] if tf32 == "True" else 1.0) * found.get(level, 1.0)

    world.miscompile, world.cost = built, cost
    monkeypatch.setattr(time, "perf_counter", lambda: world.clock)
    monkeypatch.setattr(final, "Worker", Local)
    return found


@pytest.fixture
def run(
    factors: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    problems = pytest.importorskip("tests.schemas.forms").problems
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_network(tmp_path / "net.onnx", "channel")
    write_data(tmp_path / "data.npz", 60)

    def go(*words: str) -> tuple[int, dict[str, Any]]:
        command = ["optimize", "net.onnx", "--data", "data.npz", "--runtime", "trt", "-o", "front", *FEW, *words]
        code = main([*command, "--json"])
        found = json.loads(capsys.readouterr().out)
        assert code < 2, found
        assert problems("optimize", found) == []
        return code, found

    return go


def plans(found: Mapping[str, Any], of: str) -> dict[str, float]:
    """What was tried, or what was measured at the end, with its time over that of FP32."""
    return {Plan.from_dict(one["plan"]).label: round(one["ratio"], 3) for one in found[of]}


def test_every_form_is_tried_and_the_fastest_are_built_again(
    run: Run,
    world: World,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, found = run()
    assert code == 0
    assert plans(found, "trials") == {
        "fp32 tensorrt10": 1.0,
        "fp32 tensorrt10 built with --tf32": 0.8,
        "fp16 tensorrt10": 0.6,
        "int8 tensorrt10": 0.4,
        "int8 tensorrt10 built with --optimization-level 5": 0.36,
        "fp16 tensorrt10 built with --optimization-level 5": 0.54,
    }
    assert found["chosen"] == "front/int8"
    assert "front/int8 built with --optimization-level 5: x2.78 as fast" in found["verdict"]
    assert plans(found, "points")["fp32 tensorrt10"] == 1.0
    assert {point["runtime"] for point in found["points"]} == {"tensorrt"}
    for path in ("front/fp32", "front/fp16", "front/int8"):
        assert main(["verify", path, "--runtime", "tensorrt"]) == 0
    built = len(world.builds)
    with load("front/int8", runtime="tensorrt") as session:
        assert session.describe()["build_options"]["optimization_level"] == 5
    capsys.readouterr()
    _, again = run()
    assert len(world.builds) == built, "every engine is there"
    assert again["trials"] == found["trials"]
    assert world.driver.leaks == 0


def test_where_int8_is_not_faster_nothing_is_calibrated(run: Run, factors: dict[str, float]) -> None:
    factors["int8"] = 0.6
    code, found = run()
    assert code == 0
    assert not any("int8" in label for label in plans(found, "trials"))
    note = next(note for note in found["notes"] if "calibrated" in note)
    assert note.startswith("INT8 is not at least 1.02 times as fast as fp16 tensorrt10 on tensorrt here (x1.00")
    assert not Path("front/int8").exists()
    assert found["chosen"] == "front/fp16"


def test_a_kind_of_layers_that_is_faster_alone_is_worth_a_calibration(
    run: Run, world: World, factors: dict[str, float]
) -> None:
    plain = world.cost

    def cost(model: bytes) -> float:
        kinds = {region.name for region in find_regions(read_graph(model).graph)}
        return 0.6 + 0.5 * (CONVOLUTIONS in kinds) - 0.2 * (LINEAR in kinds) if kinds else plain(model)

    world.cost = cost
    _, found = run()
    assert plans(found, "trials")["int8 tensorrt10"] == 0.4
    (floats,) = {tuple(trial["plan"]["floats"]) for trial in found["trials"] if trial["plan"]["precision"] == "int8"}
    assert floats == (CONVOLUTIONS,)
    shipped = read_graph(Bundle.open(found["chosen"]).read("model.onnx"))
    assert {region.name for region in find_regions(shipped.graph)} == {LINEAR}


def test_where_there_is_nothing_to_quantize_int8_is_left_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_KINDS", {})
    _, found = run()
    assert not any("int8" in label for label in plans(found, "trials"))
    assert any("the network has no layer for it" in note for note in found["notes"])


def test_where_nothing_is_faster_that_is_the_answer(run: Run, factors: dict[str, float]) -> None:
    factors.update(dict.fromkeys(factors, 1.0))
    code, found = run()
    assert code == 0
    assert found["verdict"] == "front/fp32 in FP32: nothing is faster on tensorrt here"


@pytest.mark.parametrize("version", [EIGHT, "8.5.2"])
def test_what_a_gpu_or_a_version_does_not_have_is_left_out(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    world.gpu = Gpu("Xavier", 72, "GPU-72")
    world.version = version
    for name, module in world.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    code, found = run()
    assert code == 0
    labels = plans(found, "trials")
    assert "fp32 tensorrt8" in labels
    assert not any("--tf32" in label for label in labels)
    assert any("--optimization-level" in label for label in labels) == (version == EIGHT)
    assert any("has no optimization levels" in note for note in found["notes"]) == (version != EIGHT)


def test_an_engine_that_is_wrong_is_no_plan(run: Run, world: World, factors: dict[str, float]) -> None:
    as_built = world.miscompile

    def wrong(model: bytes) -> bytes:
        proto = onnx.load_from_string(as_built(model))
        if model != Path("front/fp32/model.onnx").read_bytes():  # what a workaround makes of it is wrong, too
            for one in proto.graph.initializer:
                one.raw_data = bytes(len(one.raw_data)) if len(one.raw_data) > 200 else one.raw_data
        return proto.SerializeToString()

    world.miscompile = wrong
    _, found = run()
    assert "fp16 tensorrt10" not in plans(found, "trials")
    assert any("fp16 tensorrt10 does not reproduce the reference" in note for note in found["notes"])


def test_what_was_asked_decides_which_engine_a_load_takes(run: Run, factors: dict[str, float]) -> None:
    factors.update({"tf32": 0.5, "fp16": 0.7, "int8": 1.2})
    code, found = run("--latency", "2000")
    assert code == 0
    assert found["chosen"] == "front/fp32"
    with load("front/fp32", runtime="tensorrt") as session:
        assert session.describe()["build_options"]["tf32"] is True
    code, found = run("--latency", "1")
    assert code == 1
    assert found["verdict"].startswith("nothing that was tried keeps what was asked")


def test_engines_of_rtx_are_tried_without_what_its_builder_cannot_do(
    rtx_world: RtxWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(final, "Worker", Local)
    monkeypatch.setattr(EngineSearch, "_left_in_float", lambda *arguments: {})
    write_network(tmp_path / "net.onnx", "channel")
    write_data(tmp_path / "data.npz", 60)
    command = ["optimize", "net.onnx", "--data", "data.npz", "--runtime", "tensorrt_rtx", "-o", "front", *FEW]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    forms = ["fp32 tensorrt_rtx", "fp32 tensorrt_rtx built with --tf32", "fp16 tensorrt_rtx", "int8 tensorrt_rtx"]
    assert list(plans(found, "trials")) == forms
    assert main(["verify", "front/fp32", "--runtime", "tensorrt_rtx"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--threads", "2"), "the tensorrt runtime does not support the option threads"),
        (("--runtime", "torch"), "plans are not tried on torch"),
    ],
)
@pytest.mark.usefixtures("run")
def test_what_does_not_fit_is_refused_before_anything_is_done(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["optimize", "net.onnx", "--data", "data.npz", "--runtime", "trt", "-o", "front", *words]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not Path("front").exists()


def test_without_a_gpu_it_is_said_what_to_type(
    run: Run,
    world: World,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world.gpu = None
    assert main(["optimize", "net.onnx", "--data", "data.npz", "--runtime", "trt", "-o", "front"]) == 2
    assert "there is no NVIDIA GPU" in capsys.readouterr().err
    assert not Path("front").exists()
