"""Finding the first block that a runtime computes wrongly: the wrong runtime is ONNX Runtime on a damaged graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.bundles import tiny_images
from tests.divergence.damages import of_node, quantized, several
from tests.transformer import BLOCKS, compute, damaged_weight, transformer, wrong_fused_attention
from vitdeploy.graph.names import block_of
from vitdeploy.graph.onnx_file import read_graph
from vitdeploy.proof.bisect import closest_divergence, cuts, first_divergence, same_within, with_outputs
from vitdeploy.proof.parity import BOUNDS

IMAGES = tiny_images(2)


def trusted(model: bytes) -> Mapping[str, np.ndarray]:
    return compute(model, IMAGES)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("weight", "block"),
    [
        ("stem.weight", "stem"),
        ("blocks.0.0.attn.q.weight", "blocks.0.0"),
        ("blocks.1.0.mlp.weight", "blocks.1.0"),
        ("blocks.1.0.attn.v.bias", "blocks.1.0"),
        ("blocks.2.0.gamma", "blocks.2.0"),
        ("head.weight", "head"),
    ],
)
def test_the_damaged_block_is_named(weight: str, block: str, half: bool) -> None:
    damage, asked = damaged_weight(weight), []

    def suspect(model: bytes) -> Mapping[str, np.ndarray]:
        asked.append(model)
        return compute(damage(model), IMAGES)

    bounds = BOUNDS["fp16" if half else "fp32"]
    found = first_divergence(transformer(half=half), trusted, suspect, same_within(bounds))
    assert found is not None
    assert found.block == block
    assert found.healed is False
    assert len(asked) == found.builds <= 5, "halving asks for few builds"


def test_a_runtime_that_is_right_diverges_nowhere() -> None:
    assert first_divergence(transformer(), trusted, trusted, same_within(BOUNDS["fp32"])) is None


def test_a_fusion_that_ends_when_it_is_looked_at_is_told_as_such() -> None:
    """Damage that an output in the second half of the graph makes vanish, as a broken fusion does."""
    damage = damaged_weight("blocks.2.0.attn.q.weight")

    def suspect(model: bytes) -> Mapping[str, np.ndarray]:
        watched = {value.name for value in onnx.load_from_string(model).graph.output}
        return compute(model if any(name.startswith("blocks.1") for name in watched) else damage(model), IMAGES)

    found = first_divergence(transformer(), trusted, suspect, same_within(BOUNDS["fp32"]))
    assert found is not None
    assert found.healed
    assert found.block.startswith("blocks.1")


def test_wrong_attention_is_found_in_the_first_block_that_has_some() -> None:
    found = first_divergence(
        transformer(), trusted, lambda model: compute(wrong_fused_attention(model), IMAGES), same_within(BOUNDS["fp32"])
    )
    assert found is not None
    assert found.block == "blocks.0.0"


def test_a_cut_separates_what_is_before_it_from_what_is_behind() -> None:
    """Every path from the images to the logits crosses every cut: without its tensors, the logits are out of reach."""
    graph = read_graph(transformer()).graph
    places = cuts(graph)
    assert [place.block for place in places if place.block.startswith("blocks")] == [
        f"blocks.{index}.0" for index in range(BLOCKS)
    ]
    assert len(next(place for place in places if place.block == "blocks.0.0").tensors) == 2, "both streams"
    for place in places:
        reached, waiting = set(), [value.name for value in graph.inputs]
        while waiting:
            name = waiting.pop()
            if name in reached or name in place.tensors:
                continue
            reached.add(name)
            consumers = [node for node in graph if name in [value.name for value in node.inputs if value]]
            waiting += [out.name for node in consumers for out in node.outputs]
        assert "logits" not in reached, place


def test_marked_outputs_come_with_the_others_and_change_nothing() -> None:
    model = transformer()
    name = next(iter(cuts(read_graph(model).graph))).tensors[0]
    marked = with_outputs(model, [name, "logits"])
    outputs = compute(marked, IMAGES)
    assert set(outputs) == {"logits", name}
    np.testing.assert_array_equal(outputs["logits"], compute(model, IMAGES)["logits"])
    assert isinstance(ir.serde.deserialize_model(onnx.load_from_string(marked)), ir.Model)


def test_blocks_are_modules() -> None:
    assert block_of("stages.3.0.attn.proj/MatMul_1") == "stages.3.0"
    assert block_of("head/Gemm") == "head"
    assert block_of("images.to_fp16") == "graph"


def test_no_cut_is_between_quantizing_and_what_reads_it() -> None:
    graph = read_graph(quantized()).graph
    places = cuts(graph, range(len(list(graph))))
    assert len(places) > 2
    assert not [place for place in places if any(name.endswith(".q") for name in place.tensors)]


def test_every_kind_of_number_crosses_a_cut_and_results_cross_all_that_follow() -> None:
    places = cuts(read_graph(several()).graph, range(10))
    assert {"best", "above", "kept", "y", "chosen"} <= {name for place in places for name in place.tensors}
    assert all("y" in place.tensors for place in places if place.end >= 7)


def test_the_node_inside_of_the_block_is_found() -> None:
    damage = of_node("blocks.1.0.mlp/Relu", "Sigmoid")
    found = closest_divergence(
        transformer(), trusted, lambda model: compute(damage(model), IMAGES), same_within(BOUNDS["fp32"])
    )
    assert found is not None
    assert found.tensor == "blocks.1.0.mlp/Relu.out"
    names = [str(node.name) for node in read_graph(transformer()).graph]
    assert names[found.start : found.stop] == ["blocks.1.0.mlp/Relu"]


def test_of_a_fusion_that_is_wrong_everywhere_the_end_of_the_first_is_found() -> None:
    found = closest_divergence(
        transformer(), trusted, lambda model: compute(wrong_fused_attention(model), IMAGES), same_within(BOUNDS["fp32"])
    )
    assert found is not None
    assert (found.block, found.healed) == ("blocks.0.0", False)
    names = [str(node.name) for node in read_graph(transformer()).graph][found.start : found.stop]
    assert names == ["blocks.0.0.attn/MatMul_1"]
