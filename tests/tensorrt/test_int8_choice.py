"""INT8 stays where the device is measured to be faster with it. TensorRT and time are played by stand-ins."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from onnx import load_from_string

from tests.bundles import tiny_images
from tests.tensorrt.fake_tensorrt import World
from tests.tensorrt.int8 import int8_transformer, write_int8_bundle
from tests.transformer import compute, damaged_weight, transformer, write_bundle
from vitdeploy import build, load
from vitdeploy.cli import main
from vitdeploy.errors import UsageError
from vitdeploy.graph.onnx_file import read_graph
from vitdeploy.statistics import Ratio
from vitdeploy.tensorrt.int8_choice import worth
from vitdeploy.tensorrt.int8_regions import CONVOLUTIONS, LINEAR, PROJECTIONS, find_regions

REGIONS = (PROJECTIONS, LINEAR, CONVOLUTIONS)
PRODUCTS = ("Conv", "MatMul", "Gemm")


@functools.cache
def quantized_kinds(model: bytes) -> frozenset[str]:
    """The kinds of layers that still read dequantized values."""
    return frozenset(region.name for region in find_regions(read_graph(model).graph))


def seconds(gains: Mapping[str, float], *, conversion: float = 0.0) -> Callable[[bytes], float]:
    """A device on which a call takes a second, less what INT8 of each kind of layer gains, and more for conversions."""

    def cost(model: bytes) -> float:
        kinds = quantized_kinds(model)
        return 1.0 - sum(gain for kind, gain in gains.items() if kind in kinds) + conversion * bool(kinds)

    return cost


@pytest.fixture
def clock(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(time, "perf_counter", lambda: world.clock)
    return world


def decided(report: object) -> dict[str, bool]:
    return {row["name"]: row["kept"] for row in report.to_dict()["int8"]["regions"]}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("gains", "kept"),
    [
        ({PROJECTIONS: 0.3, LINEAR: 0.2, CONVOLUTIONS: 0.1}, set(REGIONS)),
        ({PROJECTIONS: 0.3, LINEAR: -0.2, CONVOLUTIONS: 0.1}, {PROJECTIONS, CONVOLUTIONS}),
        ({PROJECTIONS: -0.3, LINEAR: 0.2, CONVOLUTIONS: 0.0}, {LINEAR}),
        ({PROJECTIONS: 0.1, LINEAR: 0.005, CONVOLUTIONS: 0.005}, {PROJECTIONS}),
        ({PROJECTIONS: -0.1, LINEAR: -0.1, CONVOLUTIONS: -0.1}, set()),
        ({PROJECTIONS: 0.0, LINEAR: 0.0, CONVOLUTIONS: 0.0}, set()),
    ],
)
def test_what_is_not_worth_it_computes_in_floats(
    clock: World, tmp_path: Path, gains: dict[str, float], kept: set[str]
) -> None:
    clock.cost = seconds(gains)
    report = build(write_int8_bundle(tmp_path / "b"), int8_if_faster=True)
    assert report.passed
    found = report.to_dict()["int8"]
    assert decided(report) == {name: name in kept for name in REGIONS}
    assert (set(found["kept"]), set(found["dropped"])) == (kept, set(REGIONS) - kept)
    assert quantized_kinds(Path(str(report.engine)).read_bytes()[len(b"ENGINE") :]) == kept
    assert (found["device"], found["batch"], found["tensorrt"]) == ("Orin", 2, "10.3.0")
    assert json.loads(Path(report.report).read_text())["int8"] == found
    assert clock.driver.leaks == 0
    for name in REGIONS:
        assert name in str(report)


def test_the_engine_that_load_opens_is_the_chosen_one(clock: World, tmp_path: Path) -> None:
    clock.cost = seconds({PROJECTIONS: 0.3, LINEAR: -0.2, CONVOLUTIONS: -0.2})
    bundle = write_int8_bundle(tmp_path / "b")
    build(bundle)
    chosen = build(bundle, int8_if_faster=True)
    builds = len(clock.builds)
    again = build(bundle, int8_if_faster=True)
    assert (again.cached, len(clock.builds)) == (True, builds)
    assert again.to_dict()["int8"] == chosen.to_dict()["int8"]
    images = tiny_images(2)
    with load(bundle, runtime="tensorrt") as session:
        assert session.describe()["build_options"]["int8_if_faster"] is True
        np.testing.assert_allclose(session(images), compute(transformer(), images)["logits"], rtol=0, atol=0.1)
    assert build(bundle).engine != chosen.engine, "without the option all of INT8 is built"


def test_kinds_that_gain_only_together_are_kept_together(clock: World, tmp_path: Path) -> None:
    """Each alone is worth less than 1.02, all of them more: dropping one after another would add up."""
    clock.cost = seconds(dict.fromkeys(REGIONS, 0.015))
    report = build(write_int8_bundle(tmp_path / "b"), int8_if_faster=True)
    assert set(report.to_dict()["int8"]["kept"]) == set(REGIONS)


def test_gains_that_conversions_eat_up_are_none(clock: World, tmp_path: Path) -> None:
    clock.cost = seconds({PROJECTIONS: 0.1, LINEAR: 0.0, CONVOLUTIONS: 0.0}, conversion=0.09)
    report = build(write_int8_bundle(tmp_path / "b"), int8_if_faster=True)
    assert report.to_dict()["int8"]["kept"] == []


def test_no_more_engines_are_built_than_allowed(clock: World, tmp_path: Path) -> None:
    clock.cost = seconds({PROJECTIONS: -0.1, LINEAR: 0.3, CONVOLUTIONS: -0.1})
    for most in (2, 3, 4):
        start = len(clock.builds)
        report = build(write_int8_bundle(tmp_path / str(most)), int8_if_faster=True, max_builds=most, rebuild=True)
        found = report.to_dict()["int8"]
        assert len(clock.builds) - start == found["builds"] <= most
        reasons = {row["name"]: row["why"] for row in found["regions"]}
        unmeasured = {name for name, why in reasons.items() if "no builds were left" in why}
        assert unmeasured == set(REGIONS[most - 2 :])
        assert (PROJECTIONS in found["dropped"]) is (most > 2)


def test_a_form_that_does_not_reproduce_the_reference_is_never_chosen(clock: World, tmp_path: Path) -> None:
    """The fastest form is wrong: without INT8 in the linear layers this device multiplies by another weight."""
    damage = damaged_weight("head.")
    clock.cost = seconds({PROJECTIONS: -0.3, LINEAR: 0.3, CONVOLUTIONS: 0.0})
    clock.miscompile = lambda model: model if PROJECTIONS in quantized_kinds(model) else damage(model)
    report = build(write_int8_bundle(tmp_path / "b"), int8_if_faster=True)
    assert report.passed
    found = report.to_dict()["int8"]
    assert PROJECTIONS in found["kept"]
    assert [one["passed"] for one in report.to_dict()["attempts"]] == [True, False]


def test_int8_that_does_not_hold_leaves_the_network_without(clock: World, tmp_path: Path) -> None:
    damage = damaged_weight("head.")
    clock.cost = seconds(dict.fromkeys(REGIONS, 0.2))
    clock.miscompile = lambda model: damage(model) if quantized_kinds(model) else model
    report = build(write_int8_bundle(tmp_path / "b"), int8_if_faster=True)
    assert report.passed
    assert report.to_dict()["int8"]["kept"] == []
    assert "all of INT8 does not hold" in str(report)


def test_where_nothing_holds_the_workarounds_are_tried_as_ever(clock: World, tmp_path: Path) -> None:
    clock.cost = seconds(dict.fromkeys(REGIONS, 0.2))
    clock.miscompile = damaged_weight("head.")
    report = build(write_int8_bundle(tmp_path / "b"), int8_if_faster=True)
    assert report.failed
    assert report.engine is None
    assert {one["workaround"] for one in report.to_dict()["attempts"]} == {"as it is", "defuse", "fp32", "bf16"}


def test_a_form_that_does_not_build_keeps_its_int8(
    clock: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdeploy.tensorrt import int8_choice, trial

    def try_model(job: trial.Job, model: bytes, workaround: str, what: str = "") -> trial.Trial:
        clock.complaint = "no implementation" if quantized_kinds(model) == {LINEAR, CONVOLUTIONS} else None
        return trial.try_model(job, model, workaround, what)

    monkeypatch.setattr(int8_choice, "try_model", try_model)
    clock.cost = seconds({PROJECTIONS: -0.3, LINEAR: 0.3, CONVOLUTIONS: 0.4})
    report = build(write_int8_bundle(tmp_path / "b"), int8_if_faster=True)
    assert report.passed
    assert decided(report)[PROJECTIONS] is True
    assert "without INT8 here the engine does not hold" in str(report)


@pytest.mark.parametrize(
    ("ratio", "kept"),
    [
        (Ratio(1.02, 1.01, 1.03, True), True),
        (Ratio(1.0199, 1.01, 1.03, True), False),
        (Ratio(1.5, 0.99, 2.0, True), False),
        (Ratio(1.5, None, None, True), False),
        (Ratio(float("nan"), 1.1, 1.2, True), False),
    ],
)
def test_what_is_worth_it(ratio: Ratio, kept: bool) -> None:
    assert worth(ratio) is kept


def test_wrong_requests_are_refused_before_anything_is_built(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = write_bundle(tmp_path / "half", half=True, batch=2)
    portable = write_int8_bundle(tmp_path / "portable", target="portable")
    ready = write_int8_bundle(tmp_path / "ready")
    for bundle in (half, portable):
        with pytest.raises(UsageError, match="has no INT8 for TensorRT to choose from") as refused:
            build(bundle, int8_if_faster=True)
        assert "--int8-if-faster" in str(refused.value.fix)
    with pytest.raises(UsageError, match="int8_if_faster"):
        build(ready, runtime="tensorrt_rtx", int8_if_faster=True)
    with pytest.raises(UsageError, match="1 builds decide nothing"):
        build(ready, int8_if_faster=True, max_builds=1)
    assert main(["build", str(ready.path), "--max-builds", "4"]) == 2
    assert "--int8-if-faster" in capsys.readouterr().err
    assert world.builds == []


def test_without_a_gpu_nothing_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_int8_bundle(tmp_path / "b")
    assert main(["build", str(bundle.path), "--int8-if-faster"]) == main(["build", str(bundle.path)]) != 0
    said = capsys.readouterr().err
    assert "GPU" in said
    assert "Traceback" not in said


def test_the_command_prints_what_was_dropped(clock: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock.cost = seconds({PROJECTIONS: 0.3, LINEAR: -0.2, CONVOLUTIONS: -0.2})
    bundle = write_int8_bundle(tmp_path / "b")
    assert main(["build", str(bundle.path), "--int8-if-faster", "--max-builds", "8"]) == 0
    said = capsys.readouterr().out
    assert f"INT8 kept in {PROJECTIONS}; dropped in {LINEAR}, {CONVOLUTIONS}" in said
    assert "times as fast" in said


def test_the_network_of_these_tests_has_three_kinds_of_layers() -> None:
    model = int8_transformer()
    assert [region.name for region in find_regions(read_graph(model).graph)] == list(REGIONS)
    assert sum(node.op_type in PRODUCTS for node in load_from_string(model).graph.node) == 20
