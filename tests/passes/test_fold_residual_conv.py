from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.graph_cases import batch, ops, parsed, prove
from vitdeploy.passes.fold_residual_conv import FoldResidualConv


def residual(channels: int, attributes: str, kernel: tuple[int, int], group: int = 1, add: str = "c, x") -> ir.Model:
    return parsed(
        f"agraph (float[batch, {channels}, 6, 7] x) => (y) {{ c = Conv <{attributes}> (x, w, b) y = Add ({add}) }}",
        w=batch(channels, channels // group, *kernel, seed=1),
        b=batch(channels, seed=2),
    )


@settings(max_examples=examples(25))
@given(
    group=st.integers(1, 4),
    width=st.integers(1, 3),
    half=st.tuples(st.integers(0, 1), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    swapped=st.booleans(),
)
def test_depthwise_grouped_and_dense_convolutions_take_the_shortcut(
    group: int, width: int, half: tuple[int, int], dilation: tuple[int, int], swapped: bool
) -> None:
    pads = [d * h for d, h in zip(dilation, half, strict=True)]
    attributes = f"group = {group}, dilations = {list(dilation)}, pads = {pads * 2}"
    kernel = (2 * half[0] + 1, 2 * half[1] + 1)
    model = residual(group * width, attributes, kernel, group, add="x, c" if swapped else "c, x")
    prove(FoldResidualConv, model, batch(2, group * width, 6, 7))
    assert ops(model) == {"Conv": 1}
    assert model.graph.initializers.keys() == {"w", "b"}


def test_automatic_padding_counts_as_centred() -> None:
    model = residual(2, 'auto_pad = "SAME_UPPER"', (3, 3))
    prove(FoldResidualConv, model, batch(1, 2, 6, 7))
    assert ops(model) == {"Conv": 1}


def test_a_kernel_that_another_convolution_shares_is_left_to_it() -> None:
    model = parsed(
        """agraph (float[batch, 2, 6, 7] x) => (z) {
            c = Conv <group = 2, pads = [1, 1, 1, 1]> (x, w) y = Add (x, c) z = Conv <group = 2> (y, w)
        }""",
        w=batch(2, 1, 3, 3),
    )
    prove(FoldResidualConv, model, batch(1, 2, 6, 7))
    assert ops(model) == {"Conv": 2}
    assert model.graph.initializers.keys() == {"w", "w_1"}


@pytest.mark.parametrize(
    ("attributes", "kernel"),
    [
        ("pads = [0, 0, 1, 1]", (2, 2)),  # an even kernel has no centre
        ("pads = [0, 1, 2, 1]", (3, 3)),  # off the centre
        ("strides = [1, 1], pads = [2, 0, 0, 2]", (3, 3)),
    ],
)
def test_a_kernel_without_a_tap_on_the_pixel_itself_is_left_alone(attributes: str, kernel: tuple[int, int]) -> None:
    model = residual(2, attributes, kernel)
    assert prove(FoldResidualConv, model, batch(1, 2, 6, 7)).changes == []


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv <pads = [1, 1, 1, 1]> (x, w) y0 = Add (x, c) y = Mul (y0, c)",  # the branch has two consumers
        "r = Relu (x) c = Conv <pads = [1, 1, 1, 1]> (r, w) y = Add (x, c)",  # not the convolution's own input
        "c = Conv <pads = [1, 1, 1, 1]> (x, w) y = Sub (x, c)",
        "c0 = Conv (x, one_by_all) y = Add (x, c0)",  # one channel, broadcast
        "c = Conv <strides = [9, 9], pads = [1, 1, 1, 1]> (x, w) y = Add (x, c)",  # one pixel, broadcast
    ],
)
def test_other_sums_are_left_alone(body: str) -> None:
    weights = {"w": batch(2, 2, 3, 3), "one_by_all": batch(1, 2, 1, 1)}
    model = parsed(f"agraph (float[batch, 2, 6, 7] x) => (y) {{ {body} }}", **weights)
    assert prove(FoldResidualConv, model, batch(1, 2, 6, 7)).changes == []
