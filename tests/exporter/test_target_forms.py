"""The forms that one target asks for, on whole networks: the same outputs, and what the forms are for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from tests.exporter.zoo_models import SHALLOW, captured_network
from tests.graph_cases import ops, run
from tests.rows import TARGETS
from vitdeploy.exporter.optimize import lower, node_count, optimize
from vitdeploy.graph.edit import attribute, constant
from vitdeploy.targets import Target

FORMED = TARGETS["onnxruntime"]
PLAIN = replace(FORMED, projections="fused", drops_batch=False, linear="matmul", channels_last_maps=False)


def built(graph: ir.Model, target: Target) -> tuple[ir.Model, dict[str, list[str]]]:
    """The graph for `target`, and what each pass changed."""
    graph = graph.clone()
    lower(graph, target)
    records = optimize(graph, target)
    return graph, {record["pass"]: record["changes"] for record in records}


def ranks(graph: ir.Model, op_type: str) -> set[int]:
    return {len(node.outputs[0].shape or ()) for node in graph.graph if node.op_type == op_type}


@pytest.mark.parametrize("family", SHALLOW)
def test_the_forms_of_onnxruntime_compute_what_pytorch_computes(family: str) -> None:
    network, images, expected = captured_network(family)
    graph, changes = built(network, FORMED)
    assert changes["drop_batch_axis"]
    for image, logits in zip(images, expected, strict=True):
        actual = run(graph, {"images": image[None]})[0]
        np.testing.assert_allclose(actual[0], logits, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_tokens_of_lemevit_are_matrices_and_its_attention_has_rank_three() -> None:
    network, images, _ = captured_network("lemevit")
    keeping = (replace(target, absorbs_projections=()) for target in (PLAIN, FORMED))  # layers that are counted below
    plain, formed = (built(network, target)[0] for target in keeping)
    before, after = (run(graph, {"images": images[:1]})[0] for graph in (plain, formed))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())

    assert (ranks(plain, "Softmax"), ranks(formed, "Softmax")) == ({4}, {3})
    assert (ranks(plain, "LayerNormalization"), ranks(formed, "LayerNormalization")) == ({3}, {2})
    without_bias = [n for n in formed.graph if n.op_type == "MatMul" and constant(n.inputs[1]) is not None]
    # The layers of the keys: one in the block of kind C, two in each D, one for both streams in each S.
    assert len(without_bias) == 1 + 2 * 2 + 2 * 1
    assert ops(formed)["Add"] < ops(plain)["Add"] - ops(plain)["Gemm"]
    assert {attribute(node, "axis", 0) for node in formed.graph if node.op_type == "Split"} == {0}
    assert node_count(formed) < node_count(plain)


def test_no_key_of_saevit_keeps_its_bias() -> None:
    network, _, _ = captured_network("saevit")
    graph, changes = built(network, TARGETS["portable"])
    assert len(changes["drop_key_bias"]) == ops(graph)["Softmax"] > 0
