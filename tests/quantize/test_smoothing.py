"""Scales that move from activations into weights: nothing changes in float, and integers lose less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graph_cases import assert_same, batch, ops, parsed, run
from tests.quantize import blocks
from vitdeploy.graph.qdq import S8
from vitdeploy.quantize.channels import follow
from vitdeploy.quantize.collect import collect
from vitdeploy.quantize.insert import insert
from vitdeploy.quantize.observers import Statistics
from vitdeploy.quantize.placement import Plan, place
from vitdeploy.quantize.ranges import choose_ranges
from vitdeploy.quantize.smoothing import Smoothed, rescale, smooth
from vitdeploy.targets import Int8Rules

RULES = Int8Rules(activation=S8, min_channels=1)

# Each graph with a node s whose output has 6 channels, along -1 or 1, those that nothing but layers reads, and how many
# layers these are.
ROWS, IMAGE = "float[n,5,6] x", "float[n,6,8,8] x"
NORM = "[s] t = LayerNormalization<axis=-1>(x, gamma, beta)"
GRAPHS = {
    "norm -> two layers": (ROWS, f"{NORM} y = MatMul(t, w) z = MatMul(t, v)", 6, 2),
    "norm -> layer and residual": (ROWS, f"{NORM} y = MatMul(t, w) z = Add(t, x)", 0, 1),
    "norm -> layer and output": (ROWS, f"{NORM} z = MatMul(t, w) y = Identity(t)", 0, 1),
    "norm without beta": (ROWS, "[s] t = LayerNormalization<axis=-1>(x, gamma) y = MatMul(t, w) z = Relu(x)", 6, 1),
    "norm -> image -> convolution": (
        "float[n,16,6] x",
        f"{NORM} r = Transpose<perm=[0,2,1]>(t) i = Reshape(r, image) y = Conv<pads=[1,1,1,1]>(i, kernel) z = Relu(x)",
        6,
        1,
    ),
    "norm -> depthwise convolution": (
        "float[n,16,6] x",
        f"{NORM} r = Transpose<perm=[0,2,1]>(t) i = Reshape(r, image) y = Conv<group=6>(i, single) z = Relu(x)",
        0,
        0,
    ),
    "layer -> relu -> layer": (
        ROWS,
        "[s] t = MatMul(x, w) a = Add(t, b) r = Relu(a) y = MatMul(r, v) z = Relu(x)",
        6,
        1,
    ),
    "layer -> bias in front": (ROWS, "[s] t = MatMul(x, w) a = Add(b, t) y = MatMul(a, v) z = Relu(x)", 6, 1),
    "layer -> scalar sum": (ROWS, "[s] t = MatMul(x, w) a = Add(t, one) y = MatMul(a, v) z = Relu(x)", 6, 1),
    "layer -> gelu -> layer": (ROWS, "[s] t = MatMul(x, w) e = Erf(t) y = MatMul(e, v) z = Relu(x)", 0, 0),
    "layer -> gain -> layer": (ROWS, "[s] t = MatMul(x, w) g = Mul(gamma, t) y = MatMul(g, v) z = Relu(x)", 6, 1),
    "layer -> parts": (
        ROWS,
        "[s] t = MatMul(x, w) l, r = Split<axis=-1>(t, halves) y = MatMul(l, third) e = Erf(r) z = MatMul(e, third)",
        3,
        1,
    ),
    "gemm -> relu -> gemm": (
        "float[n,6] x",
        "[s] t = Gemm<transB=1>(x, w, b) r = Relu(t) y = Gemm<transB=1, alpha=2.0>(r, v) z = Relu(x)",
        6,
        1,
    ),
    "convolution -> relu -> convolution": (
        IMAGE,
        "[s] t = Conv<pads=[1,1,1,1]>(x, kernel, b) r = Relu(t) y = Conv<pads=[1,1,1,1]>(r, kernel) z = Relu(x)",
        6,
        1,
    ),
    "depthwise -> convolution": (
        IMAGE,
        "[s] t = Conv<group=6>(x, single, b) y = Conv<pads=[1,1,1,1]>(t, kernel) z = Relu(x)",
        6,
        1,
    ),
    "convolution -> tokens -> layer": (
        IMAGE,
        "[s] t = Conv(x, kernel, b) f = Reshape(t, flat) r = Transpose<perm=[0,2,1]>(f) y = MatMul(r, w) z = Relu(x)",
        6,
        1,
    ),
    "values -> heads -> mixed -> layer": (
        ROWS,
        """[s] t = MatMul(x, w) a = Add(t, b) h = Reshape(a, heads) v1 = Transpose<perm=[0,2,1,3]>(h)
        h2 = Reshape(x, heads) k = Transpose<perm=[0,2,3,1]>(h2) q = Transpose<perm=[0,2,1,3]>(h2)
        p = MatMul(q, k) m = MatMul(p, v1) o = Transpose<perm=[0,2,1,3]>(m) c = Reshape(o, joined) y = MatMul(c, v)
        z = Relu(x)""",
        6,
        1,
    ),
    "keys": (
        ROWS,
        "[s] t = MatMul(x, w) k = Transpose<perm=[0,2,1]>(t) y = MatMul(x, k) z = Relu(x)",
        0,
        0,
    ),
    "tokens mixed with channels": (
        "float[n,4,6] x",
        "[s] t = MatMul(x, w) f = Reshape(t, mixed) y = MatMul(f, wide) z = Relu(x)",
        0,
        0,
    ),
}


def weights() -> dict[str, np.ndarray]:
    shapes = {"w": (6, 6), "v": (6, 6), "gamma": (6,), "beta": (6,), "b": (6,), "kernel": (6, 6, 3, 3)}
    shapes |= {"single": (6, 1, 1, 1), "third": (3, 6), "wide": (24, 2), "one": ()}
    made = {name: batch(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
    integers = {"image": [0, 6, 4, 4], "halves": [3, 3], "flat": [0, 6, -1], "heads": [0, 5, 2, 3], "joined": [0, 5, 6]}
    integers["mixed"] = [-1, 24]
    return made | {name: np.array(values, np.int64) for name, values in integers.items()}


def case(name: str) -> tuple[ir.Model, ir.Node]:
    source, body, _, _ = GRAPHS[name]
    used = {key: array for key, array in weights().items() if any(f"{key}{end}" in body for end in ",) ")}
    model = parsed(f"agraph ({source}) => (y, z) {{ {body} }}", **used)
    return model, next(node for node in model.graph if node.name == "s")


@pytest.mark.parametrize("name", GRAPHS)
@settings(max_examples=8)
@given(seed=st.integers(0, 1000), spread=st.floats(0, 4))
def test_any_scale_of_a_free_channel_leaves_the_outputs_as_they_were(name: str, seed: int, spread: float) -> None:
    model, source = case(name)
    found = follow(source.outputs[0], 1 if source.op_type == "Conv" else -1)
    free = [index for index in range(6) if index not in found.bound]
    assert len(free) == GRAPHS[name][2]
    assert len(found.sinks) == GRAPHS[name][3]
    shape = [dim if isinstance(dim, int) else 2 for dim in model.graph.inputs[0].shape]
    feed = {"x": batch(*shape, seed=seed)}
    before = run(model, feed)
    scales = np.ones(6, np.float32)
    scales[free] = np.exp(np.random.default_rng(seed).normal(size=len(free)) * spread)
    rescale(source, found, scales)
    assert_same(before, run(model, feed), 1e-4)
    shape = (1, 6, *(1,) * 2) if source.op_type == "Conv" else (6,)
    assert_same([middle(case(name)[0], feed, "t")], [middle(model, feed, "t") * scales.reshape(shape)])


def middle(model: ir.Model, feed: dict[str, np.ndarray], name: str) -> np.ndarray:
    """What a tensor inside holds."""
    model = model.clone()
    model.graph.outputs.append(next(value for node in model.graph for value in node.outputs if value.name == name))
    return run(model, feed)[-1]


def test_a_weight_with_other_readers_is_copied() -> None:
    text = f"""agraph (float[n,5,6] x) => (y, z) {{ {NORM} y = MatMul(t, w)
        u = LayerNormalization<axis=-1>(x, gamma, beta) z = MatMul(u, w) }}"""
    used = {name: weights()[name] for name in ("w", "gamma", "beta")}
    model = parsed(text, **used)
    feed = {"x": batch(2, 5, 6)}
    before = run(model, feed)
    source = next(iter(model.graph))
    rescale(source, follow(source.outputs[0], -1), np.arange(1, 7, dtype=np.float32))
    assert_same(before, run(model, feed))
    assert len(model.graph.initializers) == 6


def outlier_network() -> ir.Model:
    """Norm with one channel 50 times the others, a layer, GELU with one large channel, a layer."""
    gamma, bias = np.ones(24, np.float32), np.zeros(32, np.float32)
    gamma[3] = 50
    bias[5] = 40
    first = batch(24, 32, seed=1)
    first[3] /= 50
    text = """agraph (float[n,16,24] x) => (y) {
        [norm] t = LayerNormalization<axis=-1>(x, gamma)
        [one] m = MatMul(t, first) a = Add(m, bias)
        d = Div(a, root) e = Erf(d) f = Add(e, unit) g = Mul(a, f) [gelu] h = Mul(g, half)
        [two] y = MatMul(h, second) }"""
    scalars = {"root": np.float32(2**0.5), "unit": np.float32(1), "half": np.float32(0.5)}
    arrays = {name: np.asarray(value) for name, value in scalars.items()}
    return parsed(text, gamma=gamma, bias=bias, first=first, second=batch(32, 8, seed=2), **arrays)


def observed(model: ir.Model, plan: Plan, images: np.ndarray) -> dict[str, Statistics]:
    """Statistics of what the quantized layers read, rows of channels."""
    nodes = {node.name: node for node in model.graph}
    found = {}
    for layer in plan:
        name = str(nodes[layer.node].inputs[0].name)
        found[name] = Statistics(name, -1)
        found[name].update(images if name == "x" else middle(model, {"x": images}, name), len(images))
    return found


def snr(model: ir.Model, plan: Plan, images: np.ndarray) -> float:
    statistics = observed(model, plan, images)
    ranges = choose_ranges(statistics, dict.fromkeys(statistics, S8), method="mse")
    quantized = insert(model, plan, {name: found.params for name, found in ranges.items() if found.params}, {}, RULES)
    expected, actual = run(model, {"x": images})[0], run(quantized, {"x": images})[0]
    return float(10 * np.log10(np.square(expected).sum() / np.square(actual - expected).sum()))


def smoothed(model: ir.Model, images: np.ndarray, **options) -> list[Smoothed]:
    plan = place(model.graph, RULES)
    return smooth(model, plan, observed(model, plan, images), **options)


IMAGES = batch(16, 16, 24, seed=9)


def test_a_large_channel_costs_less_once_it_is_scaled_down() -> None:
    model = outlier_network()
    plan, before = place(model.graph, RULES), run(model, {"x": IMAGES})
    plain = snr(model, plan, IMAGES)
    done = smoothed(model, IMAGES)
    assert [(one.source, one.layers) for one in done] == [("norm", ("one",))]
    assert done[0].after > done[0].before + 6
    assert_same(before, run(model, {"x": IMAGES}))
    with_product = outlier_network()
    both = smoothed(with_product, IMAGES, multiply=["one", "two"])
    assert [one.layers for one in both] == [("one",), ("two",)]
    assert ops(with_product)["Mul"] == ops(model)["Mul"] + 1
    assert_same(before, run(with_product, {"x": IMAGES}))
    assert snr(with_product, plan, IMAGES) > plain + 6


def test_names_stay_valid() -> None:
    model = outlier_network()
    before = [(node.name, [value.name for value in node.outputs]) for node in model.graph]
    assert smoothed(model, IMAGES)
    assert [(node.name, [value.name for value in node.outputs]) for node in model.graph] == before


def test_the_record_is_json() -> None:
    (record,) = [one.to_dict() for one in smoothed(outlier_network(), IMAGES)]
    assert record["repair"] == "smoothing"
    assert record["layers"] == ["one"]
    assert 0 < record["strength"] <= 1


def test_layers_that_are_not_quantized_or_not_observed_are_left_alone() -> None:
    model = outlier_network()
    plan = place(model.graph, RULES)
    statistics = observed(model, plan, IMAGES)
    assert smooth(model, plan, {}) == []
    assert smooth(model, tuple(layer.left_in_float("test") for layer in plan), statistics) == []
    assert_same(run(outlier_network(), {"x": IMAGES}), run(model, {"x": IMAGES}), 0)


def test_channels_that_are_alike_are_left_alone() -> None:
    model = outlier_network()
    model.graph.initializers["gamma"].const_value = ir.tensor(np.ones(24, np.float32), name="gamma")
    assert smoothed(model, IMAGES) == []


def test_smoothing_twice_finds_nothing_more() -> None:
    model = outlier_network()
    first = smoothed(model, IMAGES)
    assert first[0].after - first[0].before > 6
    assert smoothed(model, IMAGES) == []


def test_every_kind_of_layer_of_a_network_keeps_its_outputs() -> None:
    model = blocks.network()
    images = blocks.photos(16)
    before = run(model, {"images": images})
    nodes = {node.name: node for node in model.graph}
    plan = place(model.graph, RULES)
    axes = {nodes[one.node].inputs[0].name: 1 if one.kind == "convolution" else -1 for one in plan if one.weight}
    done = smooth(model, plan, collect(model, axes, [images]), multiply=[one.node for one in plan])
    assert {"q_MatMul", "head_Gemm"} & {name for one in done for name in one.layers}
    assert_same(before, run(model, {"images": images}), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("lemevit_tiny.eurosat", {}),
        ("dualvit_s", {"checkpoint": "weights/dualvit_s_eurosat.safetensors", "image_size": 64, "num_classes": 10}),
    ],
)
def test_a_trained_network_keeps_its_logits(source: str, options: dict, shared: Path, tmp_path: Path) -> None:
    from vitdeploy import export
    from vitdeploy.graph.qdq import U8
    from vitdeploy.preprocess import Preprocessing, normalise
    from vitdeploy.quantize.readers import channel_axis
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
    done = smooth(model, plan, collect(model, axes, [images]))
    assert len(done) > 20
    assert_same(before, run(model, {"images": images}), 1e-4)
    assert pixel_grid(model, recipe)
    convolutions = [
        one.node for one in layers if one.kind == "convolution" and nodes[one.node].inputs[0].name != "images"
    ]
    assert shift(model, dict.fromkeys(convolutions[1:], U8.params(-1, 5)))
    assert_same(before, run(model, {"images": images}), 1e-4)
