"""Images stream through the graph, in bounded memory, and the statistics are those of its tensors."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from tests.quantize.graphs import CHANNELS, CLASSES, SIDE, activations, network, photos
from vitdeploy.errors import ExportError, InputError, UsageError
from vitdeploy.quantize import activations as activations_module
from vitdeploy.quantize import segments
from vitdeploy.quantize.activations import collect
from vitdeploy.quantize.observers import Statistics
from vitdeploy.quantize.samples import Images

TENSORS = {"images": 1, "conv": 1, "relu": None, "rows": -1, "scores": None, "logits": -1}


def graph(batch: int | str = "batch") -> ir.Model:
    return ir.from_proto(network(batch))


def check(found: dict[str, Statistics], images: np.ndarray) -> None:
    """The statistics are those of the tensors as numpy computes them."""
    expected = activations(images)
    assert list(found) == list(TENSORS)
    for name, statistics in found.items():
        values = expected[name]
        assert statistics.count == values.size, name
        extremes = [values.min(), values.max()]
        np.testing.assert_allclose([statistics.low, statistics.high], extremes, rtol=1e-4, atol=1e-5)
        assert statistics.histogram.counts.sum() == values.size


def units(statistics: Statistics) -> bytes | None:
    return None if statistics.sample is None else statistics.sample.units.tobytes()


@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_statistics_are_those_of_the_tensors(batch: int | str) -> None:
    images = photos(10)
    check(collect(graph(batch), TENSORS, [images[:3], images[3:]]), images)


def test_samples_are_what_the_layers_read() -> None:
    found = collect(graph(), TENSORS, [photos(4)])
    shapes = {name: None if one.sample is None else one.sample.units.shape for name, one in found.items()}
    every = 4 * SIDE * SIDE
    assert shapes == {
        "images": (4 * (SIDE - 2) ** 2, 3, 3, 3),
        "conv": (every, CHANNELS),
        "relu": None,
        "rows": (every, CHANNELS),
        "scores": None,
        "logits": (every, CLASSES),
    }


def test_the_graph_given_stays_as_it_was() -> None:
    model = graph()
    before = ir.to_proto(model).SerializeToString()
    collect(model, TENSORS, [photos(3)])
    assert ir.to_proto(model).SerializeToString() == before


@given(cuts=st.lists(st.integers(0, 10), max_size=4))
def test_batches_do_not_matter(cuts: list[int]) -> None:
    images = photos(10)
    parts = [part for part in np.split(images, sorted(cuts)) if len(part)]
    whole, split = collect(graph(), TENSORS, [images]), collect(graph(), TENSORS, parts)
    for name in TENSORS:
        np.testing.assert_array_equal(whole[name].histogram.counts, split[name].histogram.counts)
        assert units(whole[name]) == units(split[name])
        assert (whole[name].low, whole[name].high) == (split[name].low, split[name].high)


def test_a_second_run_gives_the_same_to_the_bit() -> None:
    first, second = (collect(graph(), TENSORS, [photos(40)]) for _ in range(2))
    for name in TENSORS:
        np.testing.assert_array_equal(first[name].histogram.counts, second[name].histogram.counts)
        assert units(first[name]) == units(second[name])
        assert (first[name].low, first[name].high) == (second[name].low, second[name].high)


@pytest.mark.parametrize("batch", ["batch", 1, 4])
@pytest.mark.parametrize("fetch", [1, 4 * CHANNELS * SIDE * SIDE * 2])
def test_tensors_that_do_not_fit_at_once_come_from_segments(
    monkeypatch: pytest.MonkeyPatch, batch: int | str, fetch: int
) -> None:
    monkeypatch.setattr(activations_module, "FETCH_BYTES", fetch)
    images = photos(10)
    check(collect(graph(batch), TENSORS, [images]), images)


def test_segments_compute_every_node_once_and_load_every_weight_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[ir.Model] = []
    original = segments.open_session
    monkeypatch.setattr(activations_module, "FETCH_BYTES", 4 * CHANNELS * SIDE * SIDE * 2 * activations_module.RUNS)
    monkeypatch.setattr(
        segments, "open_session", lambda part, **options: parts.append(part) or original(part, **options)
    )
    collect(graph(), TENSORS, [photos(3)])
    assert [[node.op_type for node in part.graph] for part in parts] == [
        ["Conv", "Relu"],
        ["Reshape", "Transpose"],
        ["MatMul"],
        ["MatMul"],
    ]
    assert [name for part in parts for name in part.graph.initializers] == ["kernel", "shape", "linear"]


def test_as_many_images_run_at_once_as_fit() -> None:
    one_image = 4 * SIDE * SIDE * (CHANNELS * 2)
    for fit, expected in ((5, 5), (0.5, 1), (1000, activations_module.MAX_IMAGES)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(activations_module, "FETCH_BYTES", int(fit * one_image))
            assert activations_module.Activations(graph(), ["conv", "relu"]).images == expected
    assert activations_module.Activations(graph(4), ["conv"]).images == activations_module.MAX_IMAGES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations_module, "FETCH_BYTES", one_image * 4)  # cut between the tensors: two runs of four
        assert activations_module.Activations(graph(4), ["conv", "relu"]).images == 8


def test_a_fixed_batch_whose_tensors_have_no_known_shape_runs_once_a_call() -> None:
    model = network(4)
    del model.graph.value_info[:]
    del model.graph.node[1:]
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("conv", onnx.TensorProto.FLOAT, [4, 4, "h", "w"]))
    assert activations_module.Activations(ir.from_proto(model), ["conv"]).images == 4


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("cores", [1, 2, 5])
def test_runs_of_a_fixed_batch_side_by_side_give_the_same_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, batch: int, cores: int
) -> None:
    images = photos(10)
    monkeypatch.setattr(activations_module, "usable_cores", lambda: cores)
    together = collect(graph(batch), TENSORS, [images])
    monkeypatch.setattr(activations_module, "MAX_IMAGES", 1)
    apart = collect(graph(batch), TENSORS, [images])
    for name in TENSORS:
        np.testing.assert_array_equal(together[name].histogram.counts, apart[name].histogram.counts)
        assert units(together[name]) == units(apart[name])
        assert (together[name].low, together[name].high) == (apart[name].low, apart[name].high)


def test_tensors_without_a_known_shape_are_observed_too() -> None:
    model = network()
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    images = photos(10)
    check(collect(ir.from_proto(model), TENSORS, [images]), images)


@pytest.mark.parametrize("cores", [1, 2, 7])
def test_every_tensor_is_observed_once_a_batch(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.setattr(activations_module, "usable_cores", lambda: cores)
    images, seen = photos(3), {name: [] for name in TENSORS}
    observing = activations_module.Activations(graph(1), TENSORS)

    def observer(name: str, values: np.ndarray, count: int) -> None:
        assert count == len(images)
        seen[name].append(values)

    assert list(observing.observe([images] * 2, {name: partial(observer, name) for name in TENSORS})) == [3, 3]
    for name, expected in activations(images).items():
        if name in TENSORS:
            assert len(seen[name]) == 2
            np.testing.assert_allclose(seen[name][1], expected, rtol=1e-4, atol=1e-5)


def test_what_an_observer_raises_comes_through() -> None:
    def observer(values: np.ndarray, count: int) -> None:
        raise KeyError("conv")

    with pytest.raises(KeyError):
        list(activations_module.Activations(graph(), ["conv"]).observe([photos(3)], {"conv": observer}))


@pytest.mark.parametrize("cores", [1, 2, 7])
def test_an_observer_sees_one_batch_after_another(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.setattr(activations_module, "usable_cores", lambda: cores)
    batches = [photos(2, seed=seed) for seed in range(6)]
    seen: list[np.ndarray] = []
    busy = threading.Lock()

    def observer(values: np.ndarray, count: int) -> None:
        assert busy.acquire(blocking=False)
        time.sleep(0.01)  # the next batch is there before it is done
        seen.append(values)
        busy.release()

    list(activations_module.Activations(graph(), ["conv"]).observe(batches, {"images": observer}))
    np.testing.assert_array_equal(np.concatenate(seen), np.concatenate(batches))


def test_matrix_products_of_observers_keep_to_their_thread() -> None:
    found: list[int] = []

    def observer(values: np.ndarray, count: int) -> None:
        found.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")

    before = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    list(activations_module.Activations(graph(), ["conv"]).observe([photos(2)], {"conv": observer}))
    assert set(found) == {1}
    assert [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"] == before


def test_batches_are_read_once_and_one_after_another() -> None:
    read: list[int] = []

    def batches() -> Iterator[np.ndarray]:
        for index in range(5):
            read.append(index)
            yield photos(16, seed=index)

    assert collect(graph(), {"relu": None}, batches())["relu"].count == 80 * CHANNELS * SIDE * SIDE
    assert read == [0, 1, 2, 3, 4]


def test_an_interruption_comes_through() -> None:
    def batches() -> Iterator[np.ndarray]:
        yield photos(40)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(graph(), TENSORS, batches())


def test_images_keep_their_record() -> None:
    images = Images([photos(40)])
    collect(graph(), {"relu": None}, images)
    assert images.count == len(set(images.hashes)) == 40


def test_few_images_are_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        collect(graph(), {"relu": None}, [photos(3)])
    assert "only 3 calibration images" in caplog.text


def test_no_images_are_an_error() -> None:
    with pytest.raises(UsageError, match="no calibration images"):
        collect(graph(), {"relu": None}, [])


def test_images_of_another_size_are_an_error() -> None:
    with pytest.raises(InputError, match=r"\[3, 16, 16\].*\[3, 8, 8\]"):
        collect(graph(), {"relu": None}, [np.ones((2, 3, 16, 16), dtype=np.float32)])


@pytest.mark.parametrize("name", ["nowhere", "kernel"])
def test_a_tensor_that_is_not_computed_is_an_error(name: str) -> None:
    with pytest.raises(ExportError, match=f"does not compute {name}"):
        collect(graph(), {name: None}, [photos(3)])


def test_a_tensor_that_is_no_float_is_an_error() -> None:
    model = network()
    model.graph.node.append(onnx.helper.make_node("Shape", ["relu"], ["size"]))
    with pytest.raises(ExportError, match="size is"):
        collect(ir.from_proto(onnx.shape_inference.infer_shapes(model)), {"size": None}, [photos(3)])


_MEASURE = """
import re
from pathlib import Path
import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper
from vitdeploy.quantize.activations import collect

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

names = [f"t{i}" for i in range(40)]
nodes = [helper.make_node("Neg", [a], [b]) for a, b in zip(["images", *names], names)]
info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3, 256, 256]) for n in ["images", *names]]
graph = helper.make_graph(nodes, "chain", [info[0]], [info[-1]], value_info=info[1:-1])
model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
rng = np.random.default_rng(0)
batches = [rng.normal(size=(4, 3, 256, 256)).astype(np.float32) for _ in range(3)]
collect(model, {"t0": None}, batches[:1])
before = peak()
collect(model, dict.fromkeys(names), batches)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_memory_stays_within_what_is_stated() -> None:
    """40 tensors of 0.75 MiB an image: those of all 12 images at once would take 360 MiB."""
    done = subprocess.run([sys.executable, "-c", _MEASURE], capture_output=True, text=True, check=True)
    kept, passing = 40 * (64 << 10), 64 << 20  # histograms; the images on their way, and what the allocator wastes
    assert 0 < int(done.stdout) <= 2 * activations_module.FETCH_BYTES + kept + passing  # two parts of the graph


@pytest.mark.parametrize("alone", [1, 1 << 30])
def test_large_tensors_of_several_runs_are_observed_one_by_one(monkeypatch: pytest.MonkeyPatch, alone: int) -> None:
    monkeypatch.setattr(activations_module, "ALONE", alone)
    images = photos(6)
    seen: list[tuple[np.ndarray, int]] = []
    observing = activations_module.Activations(graph(2), ["conv"])
    list(observing.observe([images], {"conv": lambda values, count: seen.append((values.copy(), count))}))
    assert [count for _, count in seen] == ([2, 2, 2] if alone == 1 else [6])
    found = np.concatenate([values for values, _ in seen])
    np.testing.assert_allclose(found, activations(images)["conv"], rtol=1e-4, atol=1e-5)


def test_an_observer_may_keep_what_it_is_shown() -> None:
    """The arrays lie where ONNX Runtime made them, and stay valid for as long as anybody has them."""
    kept: list[np.ndarray] = []
    observing = activations_module.Activations(graph(1), ["conv"])
    batches = [photos(1, seed=seed) for seed in range(20)]
    list(observing.observe(batches, {"conv": lambda values, count: kept.append(values)}))
    for values, images in zip(kept, batches, strict=True):
        np.testing.assert_allclose(values, activations(images)["conv"], rtol=1e-4, atol=1e-5)
