"""Every form of a transposed convolution equals PyTorch's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.conftest import examples
from tests.graph_cases import ops, run
from tests.pairwise import pairwise
from tests.rows import TARGETS
from vitdeploy.errors import ExportError
from vitdeploy.exporter.capture import capture
from vitdeploy.exporter.lowering.deconvolution import lower_deconvolution

FORMS = ("broadcast", "depth_to_space", "conv_transpose", "resize_conv")

Pair = tuple[int, int]


def reach_of(kernel: Pair, dilation: Pair) -> list[int]:
    """How far a kernel extends beyond its first sample; PyTorch takes any padding, and more than that crops only."""
    return [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]


@st.composite
def layers(draw: st.DrawFn, *, kernel_equals_stride: bool = False) -> nn.ConvTranspose2d:
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    if kernel_equals_stride:
        kernel = stride = (draw(st.integers(2, 4)),) * 2
        dilation = (1, 1)
    groups = draw(st.sampled_from([1, 2, 4]))
    inputs, outputs = (4 * draw(st.integers(1, 2)) for _ in range(2))
    padding = tuple(draw(st.integers(0, min(2, r))) for r in reach_of(kernel, dilation))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    torch.manual_seed(draw(st.integers(0, 99)))
    layer = nn.ConvTranspose2d(
        inputs, outputs, kernel, stride, padding, extra, groups, bias=draw(st.booleans()), dilation=dilation
    )
    return layer.eval()


def layer_of(
    kernel: Pair, stride: Pair, dilation: Pair, padding: str, extra: str, groups: int, channels: Pair, bias: bool
) -> nn.ConvTranspose2d:
    """A layer whose padding and output padding are none or as large as `layers` draws them, on `one` axis or `both`."""
    most = (
        [min(2, r) for r in reach_of(kernel, dilation)],
        [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)],
    )
    pads, extras = (
        {"none": (0, 0), "one": (0, y), "both": (x, y)}[kind]
        for kind, (x, y) in zip((padding, extra), most, strict=True)
    )
    torch.manual_seed(0)
    return nn.ConvTranspose2d(*channels, kernel, stride, pads, extras, groups, bias=bias, dilation=dilation).eval()


def lowered_output(model: ir.Model, x: torch.Tensor, form: str) -> tuple[np.ndarray, str]:
    """What a captured layer computes in the first form that suits of `form` and the others, and which that is."""
    model = model.clone()
    target = replace(TARGETS["onnxruntime"], deconvolution=(form, "conv_transpose", "resize_conv"))
    (change,) = lower_deconvolution(model, target)
    return run(model, {"images": x.numpy()})[0], change.rpartition(" ")[2]


def assert_forms_equal_pytorch(layer: nn.ConvTranspose2d, size: Pair, batch: int, dynamic: bool) -> set[str]:
    """Capture the layer once, compute it in every form, and return the forms that it took."""
    x = torch.randn(batch, layer.in_channels, *size)
    expected = layer.double()(x.double()).detach().numpy()
    # The captured graph has an image input of any channel count: the layer is captured alone.
    model = capture(layer.float(), x, dynamic_batch=dynamic and batch > 1, output_names=["y"])
    used = set()
    for wanted in FORMS:
        actual, form = lowered_output(model, x, wanted)
        used.add(form)
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * max(1.0, np.abs(expected).max()))
    return used


LAYERS = pairwise(
    kernel=[(3, 3), (1, 4), (4, 2), (2, 1)],
    stride=[(2, 2), (1, 3), (3, 1), (1, 1)],
    dilation=[(1, 1), (2, 1), (1, 2)],
    padding=["none", "one", "both"],
    extra=["none", "one", "both"],
    groups=[1, 2, 4],
    channels=[(4, 8), (8, 4)],
    bias=[True, False],
    size=[(3, 9), (6, 4)],
    batch=[(1, False), (2, True), (3, False)],
)
BLOCKS = pairwise(
    block=[2, 3, 4],
    padding=["none", "one", "both"],
    extra=["none", "one", "both"],
    groups=[1, 2, 4],
    channels=[(4, 8), (8, 4)],
    bias=[True, False],
    size=[(2, 7), (5, 3)],
)
BLOCKS.append({**BLOCKS[0], "padding": "none", "size": (1, 1)})


@pytest.mark.parametrize("row", LAYERS)
def test_every_form_equals_pytorch(row: dict[str, Any]) -> None:
    def check(size: Pair, batch: tuple[int, bool], **layer: Any) -> None:
        assert_forms_equal_pytorch(layer_of(**layer), size, *batch)

    check(**row)


@pytest.mark.slow
@settings(max_examples=examples(40))
@given(
    layer=layers(),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    batch=st.integers(1, 3),
    dynamic=st.booleans(),
)
def test_every_form_of_any_layer_equals_pytorch(
    layer: nn.ConvTranspose2d, size: Pair, batch: int, dynamic: bool
) -> None:
    assert_forms_equal_pytorch(layer, size, batch, dynamic)


@pytest.mark.parametrize("row", BLOCKS)
def test_kernel_equal_to_stride_becomes_depth_to_space(row: dict[str, Any]) -> None:
    def check(block: int, size: Pair, **layer: Any) -> None:
        made = layer_of(kernel=(block, block), stride=(block, block), dilation=(1, 1), **layer)
        assert "depth_to_space" in assert_forms_equal_pytorch(made, size, batch=2, dynamic=True)

    check(**row)


@pytest.mark.slow
@settings(max_examples=examples(25))
@given(layer=layers(kernel_equals_stride=True), size=st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_any_kernel_equal_to_its_stride_becomes_depth_to_space(layer: nn.ConvTranspose2d, size: Pair) -> None:
    reach, extra = layer.kernel_size, layer.output_padding
    assume(all(n * r + e > 2 * p for n, r, e, p in zip(size, reach, extra, layer.padding, strict=True)))
    assert "depth_to_space" in assert_forms_equal_pytorch(layer, size, batch=2, dynamic=True)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(("kernel", "padding", "extra"), [((2, 2), 0, 0), ((2, 3), 1, 1), ((4, 1), 0, 0)])
@pytest.mark.parametrize("bias", [True, False])
def test_one_channel_a_group_is_multiplied_by_its_kernel(
    outputs: int, kernel: Pair, padding: int, extra: int, bias: bool
) -> None:
    torch.manual_seed(0)
    pads, extras = (min(padding, kernel[0] - 1), min(padding, kernel[1] - 1)), (extra, extra)
    layer = nn.ConvTranspose2d(4, 4 * outputs, kernel, kernel, pads, extras, groups=4, bias=bias).eval()
    assert "broadcast" in assert_forms_equal_pytorch(layer, (3, 5), batch=2, dynamic=True)
    assert "broadcast" in assert_forms_equal_pytorch(layer, (5, 2), batch=1, dynamic=False)


def test_one_dimensional_layers_are_captured_too() -> None:
    layer = nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, groups=2).eval()
    x = torch.randn(2, 4, 7)
    model = capture(layer, x, dynamic_batch=False, output_names=["y"])
    for form in ("conv_transpose", "resize_conv"):
        actual, used = lowered_output(model, x, form)
        assert used == form
        np.testing.assert_allclose(actual, layer(x).detach().numpy(), rtol=0, atol=1e-5)


def test_depthwise_recovery_holds_no_conv_transpose_on_any_target() -> None:
    layer = nn.ConvTranspose2d(8, 8, 4, 4, groups=8).eval()
    captured = capture(layer, torch.randn(1, 8, 5, 5), dynamic_batch=False, output_names=["y"])
    for target in TARGETS.values():
        model = captured.clone()
        lower_deconvolution(model, target)
        found = ops(model)
        assert found["ConvTranspose"] == 0
        assert found["DepthToSpace"] + found["Mul"] == 1
        assert bool(found["Mul"]) is ("broadcast" in target.deconvolution)


@pytest.fixture(scope="module")
def small_groups() -> ir.Model:
    """A captured layer of eight groups of one channel."""
    layer = nn.ConvTranspose2d(8, 8, 3, 2, 1, groups=8).eval()
    return capture(layer, torch.randn(1, 8, 5, 5), dynamic_batch=False, output_names=["y"])


def test_small_groups_avoid_conv_transpose_where_the_target_cannot_take_them(small_groups: ir.Model) -> None:
    (change,) = lower_deconvolution(small_groups.clone(), TARGETS["tensorrt8"])
    assert change.endswith("resize_conv")


def test_a_layer_no_form_suits_is_refused_with_the_groups_that_would(small_groups: ir.Model) -> None:
    target = replace(TARGETS["tensorrt8"], deconvolution=("depth_to_space", "conv_transpose"))
    with pytest.raises(ExportError, match="at least 4 channels"):
        lower_deconvolution(small_groups.clone(), target)
