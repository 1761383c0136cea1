"""Forms of pooling against PyTorch, over random windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import examples
from vitdeploy.exporter.capture import capture
from vitdeploy.exporter.lowering.pooling import _fold

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


class Fold(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.fold(x, (14, 14), 3, padding=1, stride=2)


def test_patches_are_added_without_a_multiplication() -> None:
    graph = capture(Fold(), torch.randn(1, 4 * 9, 49), dynamic_batch=False, output_names=["y"]).graph
    operators = {node.op_type for node in graph}
    assert operators & {"Conv", "ConvTranspose", "MatMul", "Mul", "ScatterND", "Col2Im", "Deconvolution"} == set()
    assert max(value.shape.rank() for node in graph for value in node.outputs if value.shape) <= 6
