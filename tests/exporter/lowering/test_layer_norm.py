"""Layer norm in primitive operators computes the same, and is marked to stay FP32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.graph_cases import captured, ops, run
from tests.rows import TARGETS
from vitdeploy.exporter.half import to_half
from vitdeploy.exporter.half_parts import HALF
from vitdeploy.exporter.lowering.layer_norm import lower_layer_norm


@pytest.mark.parametrize("shape", [(6,), (4, 6)])
@pytest.mark.parametrize("affine", [True, False])
def test_the_primitives_compute_the_operator(shape: tuple[int, ...], affine: bool) -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(shape, eps=1e-6, elementwise_affine=affine).eval()
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 4, 6) * 0.01
    model = captured(norm, x)
    assert len(lower_layer_norm(model, TARGETS["tensorrt8"])) == 1
    assert ops(model)["LayerNormalization"] == 0
    actual = run(model, {"images": x.numpy()})[0]
    expected = norm.double()(x.double()).detach().numpy()
    np.testing.assert_allclose(actual, expected, atol=2e-6 * np.abs(expected).max())


def test_in_half_precision_only_its_surroundings_are_half() -> None:
    model = captured(nn.Sequential(nn.Tanh(), nn.LayerNorm(6), nn.Tanh()), torch.randn(2, 6))
    lower_layer_norm(model, TARGETS["tensorrt8"])
    typed, report = to_half(model, {"images": np.ones((2, 6), np.float32)}, lambda _: 99.0, min_snr_db=45)
    assert {out.dtype == HALF for node in typed.graph if node.op_type == "Tanh" for out in node.outputs} == {True}
    assert {n.op_type for n in typed.graph for out in n.outputs if out.dtype == HALF} == {"Tanh", "Cast"}
    assert any("layer norm" in reason for reason in report.kept.values())


def test_other_targets_keep_the_operator() -> None:
    model = captured(nn.LayerNorm(6), torch.randn(2, 6))
    assert lower_layer_norm(model, TARGETS["portable"]) == []
    assert ops(model)["LayerNormalization"] == 1


@pytest.mark.parametrize("target", TARGETS)
def test_no_target_keeps_the_operator_over_a_single_element(target: str) -> None:
    model = captured(nn.LayerNorm((1, 1)), torch.randn(2, 3, 1, 1))
    assert len(lower_layer_norm(model, TARGETS[target])) == 1
    assert ops(model)["LayerNormalization"] == 0
    np.testing.assert_array_equal(run(model, {"images": np.full((2, 3, 1, 1), 7, np.float32)})[0], 0)
