"""Sums inside products that pass half precision although what comes out of them does not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.graph_cases import parsed, run
from vitdeploy.exporter.emulation import HALF_MAX, activation_ranges
from vitdeploy.exporter.half import to_half
from vitdeploy.exporter.partial_sums import partial_sums
from vitdeploy.graph.edit import Array

HEADER = '<ir_version: 10, opset_import: ["": 17]> '
PRODUCTS = {
    "MatMul": ("float[1, 3, 8] x", "float[1, 3, 2] y", "float[8, 2] w", "y = MatMul (x, w)"),
    "Gemm": ("float[3, 8] x", "float[3, 2] y", "float[2, 8] w", "y = Gemm <transB = 1> (x, w)"),
    "Gemm transA": ("float[8, 3] x", "float[3, 2] y", "float[8, 2] w", "y = Gemm <transA = 1> (x, w)"),
    "Conv": (
        "float[1, 2, 4, 4] x",
        "float[1, 3, 4, 4] y",
        "float[3, 2, 3, 3] w",
        "y = Conv <pads = [1, 1, 1, 1]> (x, w)",
    ),
    "depthwise": (
        "float[1, 2, 4, 4] x",
        "float[1, 2, 4, 4] y",
        "float[2, 1, 3, 3] w",
        "y = Conv <pads = [1, 1, 1, 1], group = 2> (x, w)",
    ),
    "ConvTranspose": (
        "float[1, 2, 4, 4] x",
        "float[1, 3, 8, 8] y",
        "float[2, 3, 2, 2] w",
        "y = ConvTranspose <strides = [2, 2]> (x, w)",
    ),
}


def _shape(declaration: str) -> tuple[int, ...]:
    return tuple(int(part) for part in declaration[declaration.index("[") + 1 : declaration.index("]")].split(","))


def _model(kind: str, w: Array) -> ir.Model:
    declared_x, declared_y, declared_w, body = PRODUCTS[kind]
    weight = f"<{declared_w} = {{{', '.join(map(str, w.ravel().tolist()))}}}>"
    model = parsed(HEADER + f"g ({declared_x}) => ({declared_y}) {weight} {{ {body} }}")
    model.graph[-1].name = "product"
    return model


@pytest.mark.parametrize("kind", PRODUCTS)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1.0, 50.0, 300.0, 3e4]))
def test_the_largest_sum_of_magnitudes_is_found_where_half_precision_ends(kind: str, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    x, w = (rng.normal(0, scale, _shape(PRODUCTS[kind][index])).astype(np.float32) for index in (0, 2))
    largest = float(run(_model(kind, np.abs(w)), {"x": np.abs(x)})[0].max())
    model, inputs = _model(kind, w), {"x": x}
    found = partial_sums(model, inputs, activation_ranges(model, inputs))
    assert ("product" in found) == (largest > HALF_MAX)
    if found:
        assert found["product"] == pytest.approx(largest, rel=1e-5)


def test_terms_that_cancel_stay_fp32() -> None:
    model = parsed(
        HEADER + "g (float[1, 4] x) => (float[1, 1] y) <float[4, 1] w = {300.0, -300.0, 300.0, -300.0}>"
        "{ h = MatMul (x, w) y = Tanh (h) }"
    )
    for node in model.graph:
        node.name = str(node.op_type)
    inputs = {"x": np.full((1, 4), 100.0, np.float32)}
    _, report = to_half(model, inputs, lambda outputs: 100.0, min_snr_db=45)
    assert set(report.kept) == {"MatMul"}
    assert "adds up reach 1.2e+05" in report.kept["MatMul"]
