"""Forms of pooling against PyTorch, over random windows."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import examples
from vitdeploy.exporter.capture import capture
from vitdeploy.exporter.lowering.pooling import _fold, _taps, _Windows

pair = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=examples(200))
@given(
    size=st.tuples(st.integers(2, 12), st.integers(2, 12)),
    kernel=pair,
    stride=pair,
    dilation=pair,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    batch=st.integers(0, 2),
)
def test_overlapping_patches_add_up(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    batch: int,
) -> None:
    room = [n + 2 * p - d * (k - 1) - 1 for n, k, d, p in zip(size, kernel, dilation, padding, strict=True)]
    assume(min(room) >= 0)
    patches = (room[0] // stride[0] + 1) * (room[1] // stride[1] + 1)
    shape = (3 * kernel[0] * kernel[1], patches)
    x = torch.randn((batch, *shape) if batch else shape, dtype=torch.float64)
    expected = F.fold(x, size, kernel, dilation, padding, stride)
    torch.testing.assert_close(_fold(x, size, kernel, dilation, padding, stride), expected)


@settings(max_examples=examples(200))
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernel=pair,
    stride=pair,
    dilation=pair,
    shares=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    ceil=st.booleans(),
    batch=st.integers(0, 2),
    whole=st.booleans(),
)
def test_the_largest_of_windows_with_gaps(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    shares: tuple[int, int],
    ceil: bool,
    batch: int,
    whole: bool,
) -> None:
    assume(max(dilation) > 1)
    padding = tuple(k // 2 * share // 2 for k, share in zip(kernel, shares, strict=True))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    assume(min(n + 2 * p - r for n, p, r in zip(size, padding, reach, strict=True)) >= 0)
    x = torch.randn((batch, 3, *size) if batch else (3, *size), dtype=torch.float64)
    x = (10 * x).round().long() if whole else x - 5  # below the zeros that a wrong padding would put in
    expected = F.max_pool2d(x, kernel, stride, padding, dilation, ceil)
    windows = _Windows(size, kernel, stride, padding, dilation, ceil)
    taps = [_taps(windows, axis, pixels) for axis, pixels in enumerate(size)]
    if taps[0] is None or taps[1] is None:
        lowest = torch.iinfo(x.dtype).min if whole else -torch.inf
        assert (expected == lowest).any()
        return
    rows = x.numpy()[..., taps[0], :].max(-3)
    assert np.array_equal(rows[..., taps[1]].max(-2), expected.numpy())


class Dilated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 2, 1, 2, True)


def test_no_pooling_of_a_graph_is_dilated() -> None:
    graph = capture(Dilated(), torch.randn(1, 4, 14, 14), dynamic_batch=False, output_names=["y"]).graph
    operators = {node.op_type for node in graph}
    assert "MaxPool" not in operators
    assert "Max" in operators


class Fold(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.fold(x, (14, 14), 3, padding=1, stride=2)


def test_patches_are_added_without_a_multiplication() -> None:
    graph = capture(Fold(), torch.randn(1, 4 * 9, 49), dynamic_batch=False, output_names=["y"]).graph
    operators = {node.op_type for node in graph}
    assert operators & {"Conv", "ConvTranspose", "MatMul", "Mul", "ScatterND", "Col2Im", "Deconvolution"} == set()
    assert max(value.shape.rank() for node in graph for value in node.outputs if value.shape) <= 6
