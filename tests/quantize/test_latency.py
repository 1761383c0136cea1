"""Which layers are quantized for speed. Time is simulated: a runtime here costs what a table says of its kernels."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.quantize.blocks import network
from tests.rows import RULES
from vitdeploy.errors import UsageError
from vitdeploy.graph.qdq import S8
from vitdeploy.machine.contention import Contention
from vitdeploy.quantize import latency
from vitdeploy.quantize.insert import insert
from vitdeploy.quantize.latency import LatencyReport, Race, Saving, alike, time_layers
from vitdeploy.quantize.placement import place, restrict, tensors
from vitdeploy.runtime import race
from vitdeploy.runtime.options import Options

RULE = RULES["portable"]
CONVOLUTIONS = {"stem_Conv", "down_Conv"}
LINEAR = {"q_MatMul", "k_MatMul", "v_MatMul", "fc_MatMul", "head_Gemm"}


class Kernels:
    """A runtime in which a call takes the sum over the nodes of what their kernel takes."""

    FLOAT = 100
    int8: ClassVar[dict[str, int]] = {}
    loaded: ClassVar[int] = 0
    now: ClassVar[float] = 0.0

    def __init__(self, model: onnx.ModelProto, threads: int | None) -> None:
        made = {name: node.op_type for node in model.graph.node for name in node.output}
        self.cost, self.threads = 0, threads
        for node in model.graph.node:
            if node.op_type in ("Conv", "MatMul", "Gemm"):
                integers = made.get(node.input[1]) == "DequantizeLinear"
                self.cost += self.int8[node.op_type] if integers else self.FLOAT

    @classmethod
    def load(cls, model: bytes, *, options: Any) -> Kernels:
        Kernels.loaded += 1
        return cls(onnx.load_from_string(model), options.threads)

    def run(self, inputs: dict[str, np.ndarray]) -> None:
        assert inputs["images"].shape == (1, 3, 16, 16)
        Kernels.now += self.cost

    def close(self) -> None:
        self.cost = 0  # a closed graph that goes on taking turns would win each of them

    def describe(self) -> dict[str, Any]:
        return {"backend": "kernels", "version": "1", "threads": self.threads}


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> type[Kernels]:
    monkeypatch.setattr(latency, "find_backend", lambda name: Kernels)
    monkeypatch.setattr(time, "perf_counter", lambda: Kernels.now)
    monkeypatch.setattr(Kernels, "int8", {"Conv": 250, "MatMul": 40, "Gemm": 40})
    monkeypatch.setattr(Kernels, "loaded", 0)
    monkeypatch.setattr(Contention, "cores", lambda self: None)  # whatever else runs beside these tests
    return Kernels


def tuned(folder: Path, model: ir.Model | None = None, **options: Any) -> LatencyReport:
    model = model or network(batch=1)
    return time_layers(model, place(model.graph, RULE), RULE, runtime="kernels", cache=folder, **options)


def in_float(found: LatencyReport) -> set[str]:
    plan = place(network(batch=1).graph, RULE)
    return {layer.node for layer in plan if layer.quantized and found.obstacle(layer)}


def test_layers_whose_integer_kernel_is_slower_stay_in_float_and_the_others_do_not(
    kernels: type[Kernels], tmp_path: Path
) -> None:
    assert in_float(tuned(tmp_path)) == CONVOLUTIONS


def test_every_quantized_layer_is_timed_once(kernels: type[Kernels], tmp_path: Path) -> None:
    timed = [node for group in tuned(tmp_path).groups for node in group.nodes]
    assert sorted(timed) == sorted(CONVOLUTIONS | LINEAR)


def test_layers_of_equal_shapes_share_a_group(kernels: type[Kernels], tmp_path: Path) -> None:
    assert {"q_MatMul", "k_MatMul", "v_MatMul"} in [set(group.nodes) for group in tuned(tmp_path).groups]


def test_layers_with_little_arithmetic_are_timed_together(
    kernels: type[Kernels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "SMALL", 2.0)
    assert {frozenset(group.nodes) for group in tuned(tmp_path).groups} == {frozenset(CONVOLUTIONS), frozenset(LINEAR)}


def test_measurements_that_nobody_asked_for_again_make_room(
    kernels: type[Kernels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE_LIMIT", "0")
    tuned(tmp_path, threads=1)
    (first,) = tmp_path.iterdir()
    tuned(tmp_path, threads=2)
    assert first.exists(), "it was used a moment ago"
    os.utime(first, (0, 0))
    tuned(tmp_path, threads=3)
    assert not first.exists()
    left = sorted(tmp_path.iterdir())
    assert len(left) == 2
    for path in left:
        os.utime(path, (0, 0))
    tuned(tmp_path, threads=2)  # is read, which counts as use
    tuned(tmp_path, threads=4)
    assert len([path for path in left if path.exists()]) == 1


def test_the_ratios_are_those_of_whole_networks(kernels: type[Kernels], tmp_path: Path) -> None:
    """Ten products at 100, but five of them, the linear layers, at 40."""
    found = tuned(tmp_path)
    assert found.whole.value == pytest.approx((5 * 100 + 5 * 40) / (10 * 100))
    (q,) = [group for group in found.groups if "q_MatMul" in group.nodes]
    assert q.ratio.value < 1


def test_what_is_saved_is_the_difference_of_two_graphs_in_milliseconds(kernels: type[Kernels]) -> None:
    model = network(batch=1)
    plan = restrict(place(model.graph, RULE), lambda layer: None if layer.node == "q_MatMul" else "left out")
    ranges = {name: S8.params(-4, 4) for name in tensors(model.graph, plan)}
    made = Race(kernels, Options(threads=1), model)  # type: ignore[arg-type]
    first, second = made.load(model), made.load(insert(model, plan, ranges, {}, RULE))
    saved = made.saved(first, second)
    assert saved == Saving(60_000.0, 60_000.0, 60_000.0)
    assert saved.part(0.25) == Saving(15_000.0, 15_000.0, 15_000.0)
    assert Saving(4.0, None, None).part(0.5) == Saving(2.0, None, None)
    assert sorted(name for group in alike(model.graph, plan) for name in group) == ["q_MatMul"]


@pytest.mark.parametrize("int8", [{"Conv": 1, "MatMul": 1, "Gemm": 1}, {"Conv": 100, "MatMul": 100, "Gemm": 100}])
def test_the_number_of_rounds_does_not_depend_on_what_is_seen(
    int8: dict[str, int], kernels: type[Kernels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks after every round and stops when it is clear is wrong more often than 5 times in 100."""
    monkeypatch.setattr(Kernels, "int8", int8)
    pairs: list[int] = []
    original = race.paired_ratio
    monkeypatch.setattr(race, "paired_ratio", lambda a, b: pairs.append(len(a)) or original(a, b))
    found = tuned(tmp_path)
    assert pairs == [latency.ROUNDS] * (len(found.groups) + 1)


def test_what_is_not_measurably_faster_stays_in_float(
    kernels: type[Kernels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Integer kernels that are 3 % faster, on a machine whose times vary by 20 %."""
    monkeypatch.setattr(Kernels, "int8", {"Conv": 97, "MatMul": 97, "Gemm": 97})
    noise = np.random.default_rng(0)

    def run(self: Kernels, inputs: object) -> None:
        Kernels.now += self.cost * noise.lognormal(sigma=0.2)

    monkeypatch.setattr(Kernels, "run", run)
    found = tuned(tmp_path)
    assert any(group.ratio.value < 1 for group in found.groups)
    assert [group.faster for group in found.groups] == [False] * len(found.groups)
    assert not found.faster


def test_a_runtime_with_slow_integer_kernels_cannot_win(
    kernels: type[Kernels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Kernels, "int8", {"Conv": 250, "MatMul": 140, "Gemm": 100})
    found = tuned(tmp_path)
    assert not found.faster
    assert in_float(found) == CONVOLUTIONS | LINEAR


def test_a_runtime_with_fast_integer_kernels_wins(kernels: type[Kernels], tmp_path: Path) -> None:
    assert tuned(tmp_path).faster


def test_the_reason_names_the_runtime_and_the_factor(kernels: type[Kernels], tmp_path: Path) -> None:
    found = tuned(tmp_path)
    plan = restrict(place(network(batch=1).graph, RULE), found.obstacle)
    (stem,) = [layer for layer in plan if layer.node == "stem_Conv"]
    assert stem.obstacle is not None
    assert "kernels" in stem.obstacle
    (group,) = [group for group in found.groups if "stem_Conv" in group.nodes]
    assert f"x{group.ratio.value:.3f}" in stem.obstacle


def test_a_restricted_plan_leaves_these_layers_without_integers(kernels: type[Kernels], tmp_path: Path) -> None:
    model = network(batch=1)
    plan = restrict(place(model.graph, RULE), tuned(tmp_path).obstacle)
    ranges = {name: S8.params(-1, 1) for name in tensors(model.graph, plan)}
    weights = {
        node.name: node.inputs[1].producer()  # type: ignore[union-attr]
        for node in insert(model, plan, ranges, {}, RULE).graph
        if node.name in CONVOLUTIONS | {"q_MatMul"}
    }
    assert {name for name, maker in weights.items() if maker is not None} == {"q_MatMul"}


def test_a_second_time_nothing_is_measured(
    kernels: type[Kernels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tuned(tmp_path)
    monkeypatch.setattr(Kernels, "loaded", 0)
    second = tuned(tmp_path)
    assert Kernels.loaded == 1  # to learn the runtime's settings
    assert second.to_dict() == first.to_dict()
    assert in_float(second) == CONVOLUTIONS


@pytest.mark.parametrize(("cores", "kept"), [(None, True), (0.0, True), (0.2, True), (0.3, False), (7.0, False)])
def test_what_was_measured_beside_other_work_is_not_kept(
    kernels: type[Kernels],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    cores: float | None,
    kept: bool,
) -> None:
    monkeypatch.setattr(Contention, "cores", lambda self: cores)
    assert in_float(tuned(tmp_path)) == CONVOLUTIONS
    assert bool(list(tmp_path.iterdir())) == kept
    assert (f"other work took {cores} cores" in caplog.text) == (not kept)


def test_other_weights_of_the_same_shapes_are_known_already(kernels: type[Kernels], tmp_path: Path) -> None:
    tuned(tmp_path)
    tuned(tmp_path, network(batch=1, seed=7))
    assert len(list(tmp_path.iterdir())) == 1


def test_other_threads_are_measured_anew(kernels: type[Kernels], tmp_path: Path) -> None:
    tuned(tmp_path, threads=1)
    tuned(tmp_path, threads=2)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"groups": 3}', '{"groups": [{"nodes": 1}]}'])
def test_a_damaged_record_is_measured_anew(kernels: type[Kernels], tmp_path: Path, damage: str) -> None:
    tuned(tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(damage)
    assert in_float(tuned(tmp_path)) == CONVOLUTIONS
    assert json.loads(file.read_text())["groups"]


def test_a_folder_that_cannot_be_written_costs_only_the_record(kernels: type[Kernels], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert in_float(tuned(tmp_path / "file" / "below")) == CONVOLUTIONS


def test_a_runtime_that_does_not_exist_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no runtime called"):
        tuned(tmp_path)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_real_runtimes_time_every_layer(runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(runtime)
    monkeypatch.setattr(latency, "ROUNDS", 2)
    monkeypatch.setattr(latency, "TURN_SECONDS", 1e-6)
    model = network()
    found = time_layers(model, place(model.graph, RULE), RULE, runtime=runtime, threads=1, cache=tmp_path)
    assert {node for group in found.groups for node in group.nodes} == CONVOLUTIONS | LINEAR
    assert found.settings["backend"] == runtime
    assert found.whole.value > 0
