"""Every way to call attention gives PyTorch's float64 numbers, from the capture to the graph that ships."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
import torch

from tests.exporter.attention_cases import CASES, network, pictures
from tests.rows import TARGETS
from vitdeploy.exporter.capture import capture
from vitdeploy.exporter.composites import MASKED
from vitdeploy.exporter.optimize import lower, optimize
from vitdeploy.graph.edit import constant
from vitdeploy.graph.run import run

FORMS = ("portable", "openvino", "tensorrt8", "tensorrt10", "tensorrt11", "onnxruntime")


def graph_of_case(name: str, batch: int | None) -> ir.Model:
    module = network(name).requires_grad_(False)
    return capture(module, pictures(batch or 2), dynamic_batch=batch is None, output_names=["y"])


def assert_float64(name: str, model: ir.Model, batches: Sequence[int]) -> None:
    """Four batches of each size, so that every kind of picture comes in every place."""
    exact = network(name).double()
    for batch in batches:
        images = pictures(4 * batch)
        with torch.no_grad():
            expected = [exact(part.double()).numpy() for part in images.split(batch)]
        for part, wanted in zip(images.split(batch), expected, strict=True):
            found = run(model, {"images": part.numpy()})["y"]
            assert found.shape == wanted.shape
            assert not np.isnan(found).any()
            assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max(), (batch, name)


@pytest.mark.parametrize(("index", "name"), list(enumerate(CASES)), ids=list(CASES))
def test_any_call_of_attention_equals_pytorch_in_float64(index: int, name: str) -> None:
    model = graph_of_case(name, None)
    assert_float64(name, model, (1, 5))  # the composite by its function body
    target = TARGETS[FORMS[index % len(FORMS)]]
    lower(model, target)
    optimize(model, target)
    assert_float64(name, model, (1, 5))


@pytest.mark.slow
@pytest.mark.parametrize("target", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_any_call_of_attention_equals_pytorch_in_every_form(name: str, target: str) -> None:
    for batch in (1, 3):
        model = graph_of_case(name, batch)
        lower(model, TARGETS[target])
        optimize(model, TARGETS[target])
        assert_float64(name, model, [batch])


@pytest.mark.parametrize("name", ["hidden rows", "hidden rows by -inf", "bias with -inf", "mask of heads"])
def test_a_constant_mask_is_one_addition_of_finite_numbers(name: str) -> None:
    model = graph_of_case(name, None)
    lower(model, TARGETS["portable"])
    optimize(model, TARGETS["portable"])
    (softmax,) = (node for node in model.graph if node.op_type == "Softmax")
    add = softmax.inputs[0].producer()
    assert add is not None
    assert [None if value.producer() is None else value.producer().op_type for value in add.inputs] == ["MatMul", None]
    mask = constant(add.inputs[1])
    assert mask is not None
    assert mask.min() == MASKED
    assert not {"Where", "ReduceMax", "Cast", "GreaterOrEqual"} & {node.op_type for node in model.graph}
