"""Outlier channels of a norm are scaled down where only linear layers read them: the same outputs, and less is lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.graph_cases import assert_same, batch, ops, parsed, run
from vitdeploy.graph.qdq import S8
from vitdeploy.quantize import smoothing
from vitdeploy.quantize.activations import collect
from vitdeploy.quantize.insert import insert
from vitdeploy.quantize.layers import channel_axis
from vitdeploy.quantize.observers import Statistics
from vitdeploy.quantize.placement import Plan, place
from vitdeploy.quantize.ranges import choose_ranges
from vitdeploy.quantize.smoothing import OUTLIER, Smoothed, smooth
from vitdeploy.statistics import snr_db
from vitdeploy.targets import Int8Rules

RULES = Int8Rules(activation=S8, min_channels=1)
CHANNELS = 12

# Each graph with a norm of 12 channels, and the layers that undo its scales: none where something else reads them.
TOKENS = f"float[n,16,{CHANNELS}] x"
NORM = "[norm] t = LayerNormalization<axis=-1>(x, gamma, beta)"
WINDOWS = "g = Reshape(t, grid) p = Transpose<perm=[0,1,3,2,4,5]>(g) v = Reshape(p, parts)"
ROLLED = "a = Slice(t, two, end, tokens) b = Slice(t, zero, two, tokens) c = Concat<axis=1>(a, b)"
GRAPHS = {
    "two layers": (TOKENS, f"{NORM} [one] y = MatMul(t, w) [two] z = MatMul(t, u)", {"one", "two"}),
    "no bias": (TOKENS, "[norm] t = LayerNormalization(x, gamma) [one] y = MatMul(t, w) z = Relu(x)", {"one"}),
    "gemm": (
        f"float[n,{CHANNELS}] x",
        f"{NORM} [one] y = Gemm<transB=1, alpha=2.0>(t, w, gamma) [two] z = Gemm(t, u)",
        {"one", "two"},
    ),
    "product and sum": (
        TOKENS,
        "[norm] m = Mul(gamma, x) t = Add(m, beta) [one] y = MatMul(t, w) z = Relu(x)",
        {"one"},
    ),
    "windows": (TOKENS, f"{NORM} {WINDOWS} [one] y = MatMul(v, w) z = Relu(x)", {"one"}),
    "rolled": (TOKENS, f"{NORM} {ROLLED} [one] y = MatMul(c, w) z = Relu(x)", {"one"}),
    "rolled and plain": (TOKENS, f"{NORM} {ROLLED} [one] y = MatMul(c, w) [two] z = MatMul(t, u)", {"one", "two"}),
    "one token": (TOKENS, f"{NORM} c = Gather<axis=1>(t, first) [one] y = MatMul(c, w) z = Relu(x)", {"one"}),
    "tokens apart": (
        TOKENS,
        f"{NORM} a, b = Split<axis=1>(t, halves) [one] y = MatMul(a, w) [two] z = MatMul(b, u)",
        {"one", "two"},
    ),
    "residual": (TOKENS, f"{NORM} y = MatMul(t, w) z = Add(t, x)", set()),
    "output": (TOKENS, f"{NORM} z = MatMul(t, w) y = Identity(t)", set()),
    "activation": (TOKENS, f"{NORM} e = Erf(t) y = MatMul(e, w) z = Relu(x)", set()),
    "computed weight": (TOKENS, f"{NORM} r = Relu(w) y = MatMul(t, r) z = MatMul(t, u)", set()),
    "joined with others": (TOKENS, f"{NORM} c = Concat<axis=1>(t, x) y = MatMul(c, w) z = Relu(x)", set()),
    "channels apart": (
        TOKENS,
        f"{NORM} a, b = Split<axis=-1>(t, sixes) y = MatMul(a, six) z = MatMul(b, six)",
        set(),
    ),
    "channels first": (
        TOKENS,
        f"{NORM} r = Transpose<perm=[0,2,1]>(t) i = Reshape(r, image) y = Conv(i, kernel) z = Relu(x)",
        set(),
    ),
    "channels mixed": (TOKENS, f"{NORM} r = Reshape(t, mixed) y = MatMul(r, wide) z = Relu(x)", set()),
    "channels of another axis": (
        f"float[n,{CHANNELS},{CHANNELS}] x",
        f"{NORM} r = Transpose<perm=[0,2,1]>(t) y = MatMul(r, w) z = Relu(x)",
        set(),
    ),
}


def weights(outliers: dict[int, float]) -> dict[str, np.ndarray]:
    shapes = {"w": (CHANNELS, CHANNELS), "u": (CHANNELS, CHANNELS), "kernel": (5, CHANNELS, 1, 1), "six": (6, 7)}
    made = {name: batch(*shape, seed=seed) for seed, (name, shape) in enumerate((shapes | {"wide": (96, 3)}).items())}
    made |= {"gamma": 1 + 0.2 * batch(CHANNELS, seed=8), "beta": 0.1 * batch(CHANNELS, seed=9)}
    for channel, factor in outliers.items():
        made["gamma"][channel] *= factor
    integers = {"grid": [0, 2, 2, 2, 2, CHANNELS], "parts": [-1, 4, CHANNELS], "image": [0, CHANNELS, 4, 4]}
    integers |= {"two": [2], "end": [16], "zero": [0], "tokens": [1], "halves": [8, 8], "sixes": [6, 6]}
    integers |= {"mixed": [0, 2, 96]}
    made |= {name: np.array(values, np.int64) for name, values in integers.items()}
    return made | {"first": np.array(0, np.int64)}


def case(name: str, outliers: dict[int, float]) -> ir.Model:
    source, body, _ = GRAPHS[name]
    words = re.findall(r"\w+", body)
    used = {key: array for key, array in weights(outliers).items() if key in words}
    return parsed(f"agraph ({source}) => (y, z) {{ {body} }}", **used)


def observed(model: ir.Model, x: np.ndarray) -> dict[str, Statistics]:
    """Statistics of what linear layers read of tensors inside the graph."""
    tapped = model.clone()
    read = {node.inputs[0].name: node.inputs[0] for node in tapped.graph if channel_axis(node) == -1}
    tapped.graph.outputs.clear()
    tapped.graph.outputs.extend(value for value in read.values() if value is not None and not value.is_graph_input())
    found: dict[str, Statistics] = {}
    if not tapped.graph.outputs:
        return found
    for value, array in zip(tapped.graph.outputs, run(tapped, {"x": x}), strict=True):
        found[str(value.name)] = Statistics(str(value.name), -1)
        found[str(value.name)].update(array)
    return found


@pytest.mark.parametrize("name", GRAPHS)
@given(
    seed=st.integers(0, 1000),
    outliers=st.dictionaries(st.integers(0, CHANNELS - 1), st.floats(20, 200), min_size=1, max_size=3),
)
def test_the_outputs_stay_as_they_were_and_the_outliers_do_not(
    name: str, seed: int, outliers: dict[int, float]
) -> None:
    model = case(name, outliers)
    # Of 64 vectors at the least, so that an outlier channel is one in what was seen of it.
    x = batch(*(64 if not isinstance(dim, int) else dim for dim in model.graph.inputs[0].shape), seed=seed)
    before, statistics = run(model, {"x": x}), observed(model, x)
    done = smooth(model, statistics)
    assert_same(before, run(model, {"x": x}), 1e-4)
    layers = GRAPHS[name][2]
    assert [set(one.layers) for one in done] == ([layers] if layers else [])
    if layers:
        assert done[0].node == "norm"
        assert done[0].channels >= len(outliers)
        for statistics in observed(model, x).values():
            assert statistics.sample is not None
            largest = np.abs(statistics.sample.units).max(axis=0)
            assert largest.max() <= 2 * OUTLIER * np.median(largest)


def test_a_weight_with_other_consumers_is_copied() -> None:
    text = f"""agraph ({TOKENS}) => (y, z) {{ {NORM} [one] y = MatMul(t, w)
        u = LayerNormalization<axis=-1>(x, beta, gamma) e = Erf(u) z = MatMul(e, w) }}"""
    made = weights({3: 50.0})
    model, x = parsed(text, **{name: made[name] for name in ("w", "gamma", "beta")}), batch(2, 16, CHANNELS)
    before = run(model, {"x": x})
    assert [one.layers for one in smooth(model, observed(model, x))] == [("one",)]
    assert_same(before, run(model, {"x": x}), 1e-4)
    assert len(model.graph.initializers) == 6


def outlier_network(size: float = 50.0) -> ir.Model:
    """A norm with one channel `size` times the others, which the layer behind it reads with weights as much smaller."""
    gamma, first = np.ones(24, np.float32), batch(24, 32, seed=1)
    gamma[3] *= size
    first[3] /= size
    text = """agraph (float[n,16,24] x) => (float[n,16,32] y) {
        [norm] t = LayerNormalization<axis=-1>(x, gamma) [one] y = MatMul(t, first) }"""
    return parsed(text, gamma=gamma, first=first)


def quantized_snr(model: ir.Model, plan: Plan, images: np.ndarray) -> float:
    statistics = {name: found for name, found in observed(model, images).items() if name == "t"}
    ranges = choose_ranges(statistics, dict.fromkeys(statistics, S8), method="mse")
    quantized = insert(model, plan, {name: found.params for name, found in ranges.items() if found.params}, {}, RULES)
    return snr_db(run(model, {"x": images})[0], run(quantized, {"x": images})[0])


IMAGES = batch(16, 16, 24, seed=9)


def test_a_large_channel_costs_less_once_it_is_scaled_down() -> None:
    model = outlier_network()
    plan = place(model.graph, RULES)
    plain = quantized_snr(model, plan, IMAGES)
    (done,) = smooth(model, observed(model, IMAGES))
    assert (done.node, done.layers, done.channels) == ("norm", ("one",), 1)
    assert 15 < done.largest < 40
    assert quantized_snr(model, plan, IMAGES) > plain + 12


def test_in_front_of_convolutions_a_product_does_it_where_that_is_asked_for() -> None:
    text = """agraph (float[n,6,9,9] x) => (y, z) { r = Relu(x) g = Mul(r, gains)
        [one] y = Conv<pads=[1,1,1,1]>(g, k) [two] z = Conv(g, k) }"""
    gains = np.array([1, 1, 90, 1, 1, 1], np.float32).reshape(1, 6, 1, 1)
    model = parsed(text, gains=gains, k=batch(8, 6, 3, 3, seed=1))
    x = batch(3, 6, 9, 9)
    before, statistics = run(model, {"x": x}), {"g": Statistics("g", 1, (3, 3))}
    statistics["g"].update(np.maximum(x, 0) * gains)
    assert smooth(model, statistics) == []
    assert smooth(model, statistics, multiply=["three"]) == []
    (done,) = smooth(model, statistics, multiply=["one", "two"])
    assert (done.layers, done.channels) == (("one", "two"), 1)
    assert done.largest > 20
    assert_same(before, run(model, {"x": x}), 1e-4)
    assert ops(model) == {"Relu": 1, "Mul": 2, "Conv": 2}
    read = {node.inputs[0].name for node in model.graph if node.op_type == "Conv" and node.inputs[0] is not None}
    assert len(read - {"g"}) == 1


def test_names_stay_valid() -> None:
    model = outlier_network()
    before = [(node.name, [value.name for value in node.outputs]) for node in model.graph]
    assert smooth(model, observed(model, IMAGES))
    assert [(node.name, [value.name for value in node.outputs]) for node in model.graph] == before


def test_the_record_is_json() -> None:
    record = Smoothed("norm", ("one", "two"), 3, 12.345).to_dict()
    assert json.loads(json.dumps(record)) == record
    assert record["repair"] == "smoothing"
    assert record["layers"] == ["one", "two"]


def test_what_was_not_observed_or_has_no_outlier_is_left_alone() -> None:
    for model, statistics in (
        (outlier_network(), {}),
        (outlier_network(1.0), observed(outlier_network(1.0), IMAGES)),
        (outlier_network(1.5), observed(outlier_network(1.5), IMAGES)),
    ):
        before = ir.to_proto(model).SerializeToString()
        assert smooth(model, statistics) == []
        assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("half", ["float half = {0.5}", "float[1] half = {0.5}"])
def test_a_tensor_of_one_channel_times_a_scalar_is_taken(half: str) -> None:
    body = "s = Mul (x, half) a = Add (s, half) y = MatMul (a, w)"
    text = f"agraph (float[1, 4, 1] x) => (float[1, 4, 3] y) <{half}, float[1, 3] w> {{ {body} }}"
    model = parsed(text, w=batch(1, 3, seed=2))
    assert smooth(model, observed(model, batch(1, 4, 1))) == []


def test_smoothing_twice_finds_nothing_more() -> None:
    model = outlier_network()
    assert smooth(model, observed(model, IMAGES))
    assert smooth(model, observed(model, IMAGES)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("lemevit_tiny.eurosat", {}),
        ("dualvit_s", {"checkpoint": "weights/dualvit_s_eurosat.safetensors", "image_size": 64, "num_classes": 10}),
    ],
)
def test_a_trained_network_keeps_its_logits(
    source: str, options: dict, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdeploy import export
    from vitdeploy.graph.qdq import U8
    from vitdeploy.preprocess import Preprocessing, normalise
    from vitdeploy.quantize.shift import pixel_grid, shift

    if "checkpoint" in options:
        options = options | {"checkpoint": shared / options["checkpoint"]}
    export(source, tmp_path / "bundle", batch="dynamic", **options)
    model = ir.load(tmp_path / "bundle" / "model.onnx")
    recipe = Preprocessing(size=(64, 64), mode="stretch")
    images = normalise(np.random.default_rng(0).integers(0, 256, (32, 64, 64, 3), dtype=np.uint8), recipe)
    before = run(model, {"images": images})
    plan = place(model.graph, Int8Rules())
    nodes = {node.name: node for node in model.graph}
    layers = [layer for layer in plan if layer.quantized and layer.weight is not None]
    axes = {nodes[layer.node].inputs[0].name: channel_axis(nodes[layer.node]) for layer in layers}
    monkeypatch.setattr(smoothing, "OUTLIER", 0.5)  # nearly every channel of every norm
    monkeypatch.setattr(smoothing, "WORTH", 1.0)
    assert len(smooth(model, collect(model, axes, [images]))) > 10
    assert_same(before, run(model, {"images": images}), 1e-4)
    assert pixel_grid(model, recipe).layers
    convolutions = [
        one.node for one in layers if one.kind == "convolution" and nodes[one.node].inputs[0].name != "images"
    ]
    assert shift(model, dict.fromkeys(convolutions[1:], U8.params(-1, 5))).layers
    assert_same(before, run(model, {"images": images}), 1e-4)
