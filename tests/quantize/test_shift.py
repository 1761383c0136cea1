"""Shifted inputs leave a graph's outputs as they were, and make symmetric int8 as good as asymmetric."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.graph_cases import annotated, assert_same, batch, ops, parsed, run
from vitdeploy.errors import ExportError
from vitdeploy.graph.qdq import S8, U8, QuantParams
from vitdeploy.preprocess import Preprocessing, normalise
from vitdeploy.quantize.calibrate import calibrate
from vitdeploy.quantize.insert import insert
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.placement import place, restrict, tensors
from vitdeploy.quantize.samples import Images
from vitdeploy.quantize.shift import Move, Moved, obstacle, pixel_grid, put_back, shift
from vitdeploy.targets import Int8Rules

RELU = U8.params(0.0, 6.0)
GELU = U8.params(-0.17, 15.0)


def layer(graph: ir.Graph, index: int = 0) -> str:
    return str([node for node in graph if node.op_type in {"Conv", "MatMul", "Gemm", "ConvTranspose"}][index].name)


def named(model: ir.Model) -> ir.Model:
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type.lower()}{index}"
    return model


def tapped(model: ir.Model, name: str, feed: dict[str, np.ndarray]) -> np.ndarray:
    """What the tensor `name` holds."""
    model = model.clone()
    model.graph.outputs.append(next(value for node in model.graph for value in node.outputs if value.name == name))
    return run(model, feed)[-1]


def convolution(attributes: str, *, bias: bool, kernel: tuple[int, int] = (3, 3), group: int = 1) -> ir.Model:
    weights = {"w": batch(8, 6 // group, *kernel, seed=1)}
    if bias:
        weights["b"] = batch(8, seed=2)
    inputs = "r, w, b" if bias else "r, w"
    return named(
        parsed(
            f"agraph (float[n,6,9,10] x) => (y) {{ r = Relu(x) y = Conv<{attributes}>({inputs}) }}".replace(
                "<", "<kernel_shape=" + str(list(kernel)) + (", " if attributes else "")
            ),
            **weights,
        )
    )


def unchanged(model: ir.Model, params: QuantParams, *names: str, tolerance: float = 1e-5) -> dict[str, QuantParams]:
    """Shift the layers and put them back, hold the outputs against those before, return the ranges of the shifted."""
    feed = {"x": batch(*(2 if not isinstance(dim, int) else dim for dim in model.graph.inputs[0].shape), seed=3)}
    before, outputs = run(model, feed), [value.name for value in model.graph.outputs]
    read = {node.name: node.inputs[0].name for node in model.graph}
    ranges, moves = shift(model, dict.fromkeys(names or (layer(model.graph),), params))
    returned(model, moves, read, feed, before, tolerance)
    assert_same(before, run(model, feed), tolerance)
    assert [value.name for value in model.graph.outputs] == outputs
    assert annotated(model)
    return ranges


def returned(model, moves: list[Move], read, feed, expected, tolerance: float = 1e-5) -> None:
    """Put some of the layers back, then the rest: each reads what it read before, and the outputs stay."""
    again = model.clone()
    for some in (moves[:1], moves[1:]):
        put_back(again, some)
        assert_same(expected, run(again, feed), tolerance)
        assert annotated(again)
    nodes = {node.name: node for node in again.graph}
    assert all(nodes[move.node].inputs[0].name == read[move.node] for move in moves)
    assert not ops(again)["Pad"]


@given(
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    bias=st.booleans(),
    high=st.floats(0.1, 20),
)
def test_a_convolution_gives_the_same_for_any_padding(pads, strides, dilations, kernel, bias, high) -> None:
    attributes = f"pads={list(pads)}, strides={list(strides)}, dilations={list(dilations)}"
    model = convolution(attributes, bias=bias, kernel=kernel)
    ranges = unchanged(model, U8.params(0.0, high))
    assert len(ranges) == 1
    assert ops(model)["Pad"] == any(pads)
    assert ops(model)["Conv"] == ops(model)["Add"] == 1


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("strides", ["[1, 1]", "[2, 3]"])
def test_padding_that_onnx_works_out_itself_becomes_explicit(mode: str, strides: str) -> None:
    model = convolution(f'auto_pad="{mode}", strides={strides}', bias=True, kernel=(3, 4))
    unchanged(model, GELU)
    assert ops(model)["Pad"] == (mode != "VALID")


def test_the_integers_are_those_of_the_asymmetric_range() -> None:
    rules = Int8Rules(activation=U8, min_channels=1)
    asymmetric = convolution("pads=[1, 1, 1, 1]", bias=True)
    # Weights that rounding leaves alone; their error would meet the offset too.
    exact = np.round(batch(8, 6, 3, 3, seed=1) * 40).clip(-126, 126)
    exact[:, 0, 0, 0] = 127
    asymmetric.graph.initializers["w"].const_value = ir.tensor((exact / 128).astype(np.float32), name="w")
    feed = {"x": batch(2, 6, 9, 10, seed=4) * 3}
    plan = place(asymmetric.graph, rules)
    expected = run(insert(asymmetric, plan, {"r": RELU}, {}, rules), feed)
    symmetric = asymmetric.clone()
    ranges = shift(symmetric, {layer(symmetric.graph): RELU}).ranges
    plan = place(symmetric.graph, replace(rules, activation=S8))
    assert set(ranges) == set(tensors(symmetric.graph, plan))
    assert all(params.scheme == S8 and params.zero_point == 0 for params in ranges.values())
    assert_same(expected, run(insert(symmetric, plan, ranges, {}, rules), feed))


@given(high=st.floats(0.01, 100), low=st.floats(-10, 0))
def test_zero_stays_exact(high: float, low: float) -> None:
    model = convolution("pads=[1, 1, 1, 1]", bias=True)
    ((name, params),) = shift(model, {layer(model.graph): U8.params(low, high)}).ranges.items()
    zeros = tapped(model, name, {"x": -np.ones((1, 6, 9, 10), np.float32)})
    assert np.all(zeros == zeros[0, 0, 0, 0])
    assert np.abs(params.round_trip(zeros) - zeros).max() < 1e-6 * max(high, -low)


@pytest.mark.parametrize(
    ("nodes", "adds"),
    [
        ("m = MatMul(x, w) y = Add(m, b)", 2),
        ("m = MatMul(x, w) y = Add(b, m)", 2),
        ("m = MatMul(x, w) y = Relu(m)", 2),
        ("y = MatMul(x, w)", 2),
        ("m = MatMul(x, w) s = Add(m, b) r = Relu(m) y = Mul(s, r)", 3),
        ("m = MatMul(x, w) y = Add(m, x2)", 3),
    ],
)
def test_a_linear_layer_puts_the_correction_into_the_bias_behind_it_or_gets_one(nodes: str, adds: int) -> None:
    text = f"agraph (float[n,5,12] x) => (y) {{ x2 = Relu(x) {nodes} }}"
    model = named(parsed(text, w=batch(12, 12, seed=1), b=batch(12, seed=2)))
    unchanged(model, GELU)
    assert ops(model)["Add"] == adds


@pytest.mark.parametrize("attributes", ["", "<transB=1>", "<alpha=0.5, beta=2.0>", "<transB=1, alpha=3.0>"])
@pytest.mark.parametrize("bias", [(7,), (1, 7), (1,), None])
def test_a_gemm_takes_it_into_its_own_bias(attributes: str, bias: tuple[int, ...] | None) -> None:
    weight = batch(*((7, 12) if "transB" in attributes else (12, 7)), seed=1)
    text = f"agraph (float[n,12] x) => (y) {{ y = Gemm{attributes}(x, w{', b' if bias else ''}) }}"
    model = named(parsed(text, w=weight, **({"b": batch(*bias, seed=2)} if bias else {})))
    unchanged(model, GELU)
    assert ops(model) == {"Add": 1, "Gemm": 1}


def test_layers_that_share_an_input_share_the_sum_and_keep_shared_weights_apart() -> None:
    text = """agraph (float[n,6,9,9] x) => (y, z, u) {
        y = Conv<pads=[1,1,1,1]>(x, w, b) z = Conv<pads=[1,1,1,1]>(x, w, b) u = Conv(x, w, b) }"""
    model = named(parsed(text, w=batch(8, 6, 3, 3, seed=1), b=batch(8, seed=2)))
    names = [layer(model.graph, index) for index in range(2)]
    ranges = unchanged(model, GELU, *names)
    assert len(ranges) == ops(model)["Pad"] == ops(model)["Add"] == 1


def test_different_ranges_of_one_input_are_kept_apart() -> None:
    text = "agraph (float[n,6,9,9] x) => (y, z) { y = Conv(x, w) z = Conv(x, w) }"
    model = named(parsed(text, w=batch(8, 6, 3, 3, seed=1)))
    ranges = shift(model, {layer(model.graph, 0): GELU, layer(model.graph, 1): RELU}).ranges
    assert sorted(params.scale for params in ranges.values()) == sorted([GELU.scale, RELU.scale])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("y = Conv<group=2>(x, grouped)", "grouped"),
        ("y = ConvTranspose(x, w)", "neither"),
        ("r = Relu(w) y = Conv(x, r)", "computed"),
        ("r = Relu(b) y = Conv(x, w, r)", "computed"),
    ],
)
def test_a_layer_that_cannot_be_shifted_is_refused_with_the_reason(text: str, reason: str) -> None:
    weights = {"w": batch(6, 6, 3, 3), "grouped": batch(6, 3, 3, 3), "b": batch(6)}
    model = named(parsed(f"agraph (float[n,6,9,9] x) => (y) {{ {text} }}", **weights))
    with pytest.raises(ExportError, match=reason):
        shift(model, {layer(model.graph): GELU})
    assert run(model, {"x": batch(1, 6, 9, 9)})  # untouched


def test_strided_padding_of_a_free_image_size_is_refused() -> None:
    text = 'agraph (float[n,6,h,w] x) => (y) { y = Conv<auto_pad="SAME_UPPER", strides=[2, 2]>(x, k) }'
    model = named(parsed(text, k=batch(8, 6, 3, 3)))
    assert "image size" in str(obstacle(next(iter(model.graph))))


RECIPES = [
    Preprocessing(size=(9, 10)),
    Preprocessing(size=(9, 10), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), channels="BGR"),
    Preprocessing(size=(9, 10), mean=(120.0, 110.0, 100.0), std=(60.0, 61.0, 62.0), scale=1.0),
]


def first_convolution(pads: str) -> ir.Model:
    text = f"""agraph (float[n,3,9,10] images) => (y, z) {{
        c = Conv<pads={pads}, strides=[2, 2]>(images, w, b) y = Relu(c) z = Neg(images) }}"""
    return named(parsed(text, w=batch(8, 3, 3, 3, seed=1), b=batch(8, seed=2)))


def pixels() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (4, 9, 10, 3), dtype=np.uint8)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("scheme", [S8, U8])
def test_pixels_leave_the_outputs_as_they_were(recipe: Preprocessing, scheme) -> None:
    model = first_convolution("[1, 0, 2, 1]")
    feed = {"images": normalise(pixels(), recipe)}
    before = run(model, feed)
    read = {node.name: node.inputs[0].name for node in model.graph}
    ranges, moves = pixel_grid(model, recipe, scheme)
    assert_same(before, run(model, feed))
    returned(model, moves, read, feed, before)
    assert list(ranges.values()) == [QuantParams(1.0, 0, scheme)]


def test_only_convolutions_in_integers_read_pixels() -> None:
    """In float a convolution reads images around zero: of pixels bfloat16 would round most of the answer away."""
    text = """agraph (float[n,3,9,10] images) => (y) {
        c = Conv<pads=[1, 1, 1, 1]>(images, w, b) r = Relu(c) d = Conv<pads=[1, 1, 1, 1]>(r, v) y = Relu(d) }"""
    weights = {"w": batch(8, 3, 3, 3, seed=1), "b": batch(8, seed=2), "v": batch(8, 8, 3, 3, seed=3)}
    model, recipe = named(parsed(text, **weights)), RECIPES[0]
    images = normalise(pixels(), recipe)
    rules = Int8Rules(activation=S8, min_channels=1)
    found = calibrate(model, rules, recipe, Images([images]), Int8Options(samples=4), {})
    expected = run(model, {"images": images})
    first, second = (layer(model.graph, index) for index in (0, 1))
    for inside in ((first, second), (first,), (second,), ()):
        plan = restrict(found.plan, lambda one, inside=inside: None if one.node in inside else "float")
        built = found.quantizer.build(plan)
        names = {node.name: node for node in built.graph}
        assert (names[first].inputs[0].name == "images") is (first not in inside)
        assert ops(built)["QuantizeLinear"] == len(inside)
        shifts = ops(built)["Pad"]
        assert shifts == len(inside)
        tolerance = 0.1 if inside else 1e-6
        assert np.abs(run(built, {"images": images})[0] - expected[0]).max() < tolerance * np.abs(expected[0]).max()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("scheme", [S8, U8])
def test_quantizing_pixels_loses_nothing(recipe: Preprocessing, scheme) -> None:
    model = first_convolution("[0, 0, 0, 0]")
    feed = {"images": normalise(pixels(), recipe)}
    ((name, params),) = pixel_grid(model, recipe, scheme).ranges.items()
    values = tapped(model, name, feed)
    wanted = np.moveaxis(pixels()[..., ::-1] if recipe.channels == "BGR" else pixels(), -1, 1).astype(int) + scheme.low
    assert np.array_equal(params.quantize(values), wanted)
    assert np.abs(params.round_trip(values) - values).max() < 1e-4


@pytest.mark.parametrize("channels", ["bands", "L"])
def test_pixels_that_may_have_more_than_8_bits_have_no_grid(channels: str) -> None:
    text = "agraph (float[n,1,9,10] images) => (y) { y = Conv(images, w) }"
    model = parsed(text, w=batch(8, 1, 3, 3, seed=1))
    recipe = Preprocessing(size=(9, 10), mean=(0.5,), std=(0.5,), channels=channels, scale=10000)
    assert pixel_grid(model, recipe) == Moved({}, [])
    assert ops(model) == {"Conv": 1}


def test_a_network_whose_input_no_convolution_reads_has_no_pixel_grid() -> None:
    model = parsed("agraph (float[n,3,8,8] images) => (y) { y = Relu(images) }")
    assert pixel_grid(model, RECIPES[0]) == Moved({}, [])
    assert ops(model) == {"Relu": 1}
