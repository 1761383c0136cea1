"""Layers as functions: the patches that they read, and what they make of one unit of their input."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.graph_cases import batch, parsed, run
from tests.quantize.graphs import network
from vitdeploy.errors import ExportError
from vitdeploy.quantize.activations import Activations
from vitdeploy.quantize.layers import LinearMap, Window, channel_axis, linear_map, widest_window

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


def test_patches_lie_as_the_weight_of_the_convolution() -> None:
    values = np.random.default_rng(1).standard_normal((2, 3, 6, 5)).astype(np.float32)
    weight = np.random.default_rng(2).standard_normal((4, 3, 3, 2)).astype(np.float32)
    window = Window((3, 2), (2, 1), (1, 0, 1, 1))
    ours = window.patches(values).reshape(2, 3, 5, -1) @ weight.reshape(4, -1).T
    theirs = torch.nn.functional.conv2d(
        torch.nn.functional.pad(torch.from_numpy(values), (0, 1, 1, 1)), torch.from_numpy(weight), stride=(2, 1)
    )
    np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), theirs.numpy(), atol=1e-5)


@given(
    sides=st.tuples(st.integers(7, 9), st.integers(7, 9)),
    kernel=pairs,
    strides=pairs,
    dilations=pairs,
    auto=st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"]),
)
def test_windows_lie_where_onnx_runtime_puts_them(
    sides: tuple[int, int], kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int], auto: str
) -> None:
    if auto.startswith("SAME"):
        dilations = (1, 1)  # ONNX Runtime takes no others there
    node = convolution(sides, kernel, strides=strides, dilations=dilations, auto_pad=auto)
    values = np.random.default_rng(3).standard_normal((1, 2, *sides)).astype(np.float32)
    assert node.graph is not None
    expected = dict(Activations(ir.Model(node.graph, ir_version=8), ["y"])(values))["y"]
    weight = np.ones((1, 2, *kernel))
    patches = Window.of(node).patches(values.astype(np.float64))
    ours = patches.reshape(*patches.shape[:3], -1) @ weight.reshape(1, -1).T
    np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), expected, atol=1e-5)


def convolution(sides: tuple[int | str, int | str], kernel: tuple[int, int], **attributes: object) -> ir.Node:
    listed = ", ".join(
        f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {list(value)}"  # type: ignore[call-overload]
        for name, value in attributes.items()
    )
    text = f"""
    one (float[batch, 2, {sides[0]}, {sides[1]}] images) => (float[batch, 1, h, w] y) {{
      [Conv] y = Conv <{listed}> (images, weight)
    }}
    """
    return parsed(text, weight=np.ones((1, 2, *kernel), np.float32)).graph[0]


def test_same_padding_of_a_free_image_size_is_an_error_that_says_so() -> None:
    with pytest.raises(ExportError, match="image size"):
        Window.of(convolution(("height", "width"), (3, 3), auto_pad="SAME_UPPER"))


def linear(weight: np.ndarray) -> LinearMap:
    return node_map("MatMul", weight)


def node_map(op_type: str, weight: np.ndarray, **attributes: object) -> LinearMap:
    found = linear_map(a_node(op_type, weight, **attributes))
    assert found is not None
    return found


def a_node(op_type: str, weight: np.ndarray, *, bias: np.ndarray | None = None, **attributes: object) -> ir.Node:
    image = op_type in ("Conv", "ConvTranspose")
    constants = {"w": weight} if bias is None else {"w": weight, "b": bias}
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", *constants], ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * (4 if image else 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)).graph[0]


def executed(op_type: str, x: np.ndarray, weight: np.ndarray, **attributes: object) -> np.ndarray:
    """What ONNX Runtime computes."""
    graph = a_node(op_type, weight, **attributes).graph
    assert isinstance(graph, ir.Graph)
    return run(ir.Model(graph, ir_version=8), {"x": x})[0]


def test_maps_compute_what_the_layers_compute_without_their_bias() -> None:
    rng = np.random.default_rng(0)
    rows, weight, bias = rng.normal(size=(9, 4)), rng.normal(size=(4, 5)), rng.normal(size=5)
    rows = rows.astype(np.float32)
    np.testing.assert_allclose(linear(weight)(rows), rows @ weight, rtol=1e-4, atol=1e-5)
    gemm = node_map("Gemm", weight.T, bias=bias, transB=1)
    np.testing.assert_allclose(gemm(rows), rows @ weight, rtol=1e-4, atol=1e-5)
    scaled = node_map("Gemm", weight, alpha=0.5)
    np.testing.assert_allclose(scaled(rows), 0.5 * rows @ weight, rtol=1e-4, atol=1e-5)
    assert (linear(weight).window, gemm.window) == (None, None)


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_convolutions_read_one_window_at_a_time(dilation: int, group: int) -> None:
    span = 1 + 2 * dilation
    windows, kernel = batch(7, 4, span + 1, span), batch(8, 4 // group, 3, 3, seed=1)
    attributes = {"group": group, "dilations": [dilation, dilation]}
    conv = node_map("Conv", kernel, **attributes, strides=[2, 2], pads=[1, 1, 1, 1], bias=np.ones(8))
    assert conv.window == (span, span)
    np.testing.assert_allclose(conv(windows), executed("Conv", windows, kernel, **attributes)[..., 0, 0], atol=1e-5)


@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    group=st.sampled_from([1, 2, 4]),
)
def test_deconvolutions_give_the_pixels_that_a_whole_window_reaches(
    kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int], group: int
) -> None:
    weight = batch(4, 3, *kernel, seed=1)
    attributes = {"group": group, "strides": list(strides), "dilations": list(dilations)}
    layer = node_map("ConvTranspose", weight, **attributes, pads=[0, 0, 0, 0])
    assert layer.window is not None
    units = batch(5, 4, *layer.window)
    whole = executed("ConvTranspose", units, weight, **attributes)
    # Those of the last pixel's stride; past the kernel's end there is nothing.
    tops = [(size - 1) * step for size, step in zip(layer.window, strides, strict=True)]
    expected = np.zeros((5, 3 * group, *strides), np.float32)
    reached = whole[:, :, tops[0] : tops[0] + strides[0], tops[1] : tops[1] + strides[1]]
    expected[:, :, : reached.shape[2], : reached.shape[3]] = reached
    np.testing.assert_allclose(layer(units), expected.reshape(5, -1), atol=1e-5)


def test_the_widest_window_of_all_readers_is_observed() -> None:
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "tall"], ["a"]), helper.make_node("Conv", ["x", "wide"], ["b"])],
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * 4)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "ab"],
        [
            numpy_helper.from_array(np.ones((2, 2, *size), np.float32), name)
            for name, size in {"tall": (5, 1), "wide": (3, 3)}.items()
        ],
    )
    read = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])).graph
    assert widest_window(read.inputs[0]) == (5, 3)
    assert widest_window(read.outputs[0]) is None


def test_only_layers_of_constant_weights_are_readers() -> None:
    nodes = {node.name: node for node in ir.from_proto(network()).graph}
    assert linear_map(nodes["Scores"]) is None
    assert {name: channel_axis(node) for name, node in nodes.items() if name} == {
        "Conv": 1,
        "Scores": None,
        "Linear": -1,
    }
    assert channel_axis(a_node("Gemm", np.ones((4, 5)), transA=1)) is None
    assert channel_axis(a_node("Gemm", np.ones((4, 5)), bias=np.ones(5))) == -1
    assert channel_axis(a_node("Gemm", np.ones((4, 5)), bias=np.ones((7, 5)))) is None
