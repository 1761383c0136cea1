"""Every form of a transposed convolution equals PyTorch's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.graph_cases import ops, run
from tests.rows import TARGETS
from vitdeploy.errors import ExportError
from vitdeploy.exporter.capture import capture
from vitdeploy.exporter.lowering.deconvolution import lower_deconvolution

FORMS = ("depth_to_space", "conv_transpose", "resize_conv")


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
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple(draw(st.integers(0, min(2, r))) for r in reach)
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    torch.manual_seed(draw(st.integers(0, 99)))
    layer = nn.ConvTranspose2d(
        inputs, outputs, kernel, stride, padding, extra, groups, bias=draw(st.booleans()), dilation=dilation
    )
    return layer.eval()


def lowered_output(layer: nn.Module, x: torch.Tensor, form: str, dynamic: bool) -> tuple[np.ndarray, str]:
    # The captured graph has an image input of any channel count: the layer is captured alone.
    model = capture(layer, x, dynamic_batch=dynamic, output_names=["y"])
    target = replace(TARGETS["onnxruntime"], deconvolution=(form, "conv_transpose", "resize_conv"))
    (change,) = lower_deconvolution(model, target)
    return run(model, {"images": x.numpy()})[0], change.rpartition(" ")[2]


@settings(max_examples=40, deadline=None)
@given(
    layer=layers(),
    form=st.sampled_from(FORMS),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    batch=st.integers(1, 3),
    dynamic=st.booleans(),
)
def test_every_form_equals_pytorch(
    layer: nn.ConvTranspose2d, form: str, size: tuple[int, int], batch: int, dynamic: bool
) -> None:
    x = torch.randn(batch, layer.in_channels, *size)
    expected = layer.double()(x.double()).detach().numpy()
    actual, _ = lowered_output(layer.float(), x, form, dynamic and batch > 1)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * max(1.0, np.abs(expected).max()))


@settings(max_examples=25, deadline=None)
@given(layer=layers(kernel_equals_stride=True), size=st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_kernel_equal_to_stride_becomes_depth_to_space(layer: nn.ConvTranspose2d, size: tuple[int, int]) -> None:
    x = torch.randn(2, layer.in_channels, *size)
    expected = layer.double()(x.double()).detach().numpy()
    actual, form = lowered_output(layer.float(), x, "depth_to_space", dynamic=True)
    assert form == "depth_to_space"
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * max(1.0, np.abs(expected).max()))


def test_one_dimensional_layers_are_captured_too() -> None:
    layer = nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, groups=2).eval()
    x = torch.randn(2, 4, 7)
    for form in ("conv_transpose", "resize_conv"):
        actual, used = lowered_output(layer, x, form, dynamic=False)
        assert used == form
        np.testing.assert_allclose(actual, layer(x).detach().numpy(), rtol=0, atol=1e-5)


def test_depthwise_recovery_holds_no_conv_transpose_on_any_target() -> None:
    layer = nn.ConvTranspose2d(8, 8, 4, 4, groups=8).eval()
    for target in TARGETS.values():
        model = capture(layer, torch.randn(1, 8, 5, 5), dynamic_batch=False, output_names=["y"])
        lower_deconvolution(model, target)
        assert ops(model)["ConvTranspose"] == 0
        assert ops(model)["DepthToSpace"] == 1


def test_small_groups_avoid_conv_transpose_where_the_target_cannot_take_them() -> None:
    layer = nn.ConvTranspose2d(8, 8, 3, 2, 1, groups=8).eval()
    model = capture(layer, torch.randn(1, 8, 5, 5), dynamic_batch=False, output_names=["y"])
    (change,) = lower_deconvolution(model, TARGETS["tensorrt8"])
    assert change.endswith("resize_conv")


def test_a_layer_no_form_suits_is_refused_with_the_groups_that_would() -> None:
    layer = nn.ConvTranspose2d(8, 8, 3, 2, 1, groups=8).eval()
    model = capture(layer, torch.randn(1, 8, 5, 5), dynamic_batch=False, output_names=["y"])
    target = replace(TARGETS["tensorrt8"], deconvolution=("depth_to_space", "conv_transpose"))
    with pytest.raises(ExportError, match="at least 4 channels"):
        lower_deconvolution(model, target)
