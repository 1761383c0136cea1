"""Each workaround keeps what the graph computes and changes just what it says."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from tests.bundles import tiny_images, tiny_model
from tests.transformer import BLOCKS, compute, transformer, wrong_fused_attention
from vitdeploy.graph.attention import find_attentions
from vitdeploy.graph.names import block_of
from vitdeploy.graph.onnx_file import read_graph
from vitdeploy.platforms.boards import find_platform
from vitdeploy.platforms.fusion_rules import judge_attention
from vitdeploy.tensorrt.options import WORKAROUNDS as NAMES
from vitdeploy.tensorrt.workarounds import (
    WORKAROUNDS,
    bfloat16_attention,
    defuse_attention,
    single_precision,
)

IMAGES = tiny_images(3)
SINGLE, HALF, BRAIN = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def valid(model: bytes | None) -> ir.Model:
    """The graph of an edited file, once ONNX's own checker and type inference accept it."""
    assert model is not None
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    return read_graph(model)


def types(graph: ir.Graph, part: str) -> set[ir.DataType]:
    return {
        value.dtype
        for node in graph
        if part in str(node.name) and node.op_type != "Cast"
        for value in node.outputs
        if value.dtype is not None
    }


def snr(expected: np.ndarray, found: np.ndarray) -> float:
    noise = float(np.square(found - expected).sum())
    return float(10 * np.log10(np.square(expected).sum() / noise)) if noise else np.inf


def test_the_options_name_the_workarounds_in_their_order() -> None:
    assert tuple(workaround.name for workaround in WORKAROUNDS) == NAMES


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("opset", [17, 20])
def test_attention_kept_from_fusing_computes_the_same_and_matches_no_pattern(half: bool, opset: int) -> None:
    model = transformer(half=half)
    if opset != 17:
        proto = onnx.version_converter.convert_version(onnx.load_from_string(model), opset)
        model = proto.SerializeToString()
    edited = defuse_attention(model)
    graph = valid(edited)
    platform = find_platform("tensorrt10.7")
    found = [judge_attention(attention, platform) for attention in find_attentions(graph.graph)]
    assert len(found) == BLOCKS
    assert types(graph.graph, "Softmax") == {SINGLE}, "in half precision it computes in FP32, which is more exact"
    assert all(not rule.holds for block in found for rule in block.rules if rule.name == "between")
    assert edited is not None
    expected, actual = compute(model, IMAGES)["logits"], compute(edited, IMAGES)["logits"]
    assert snr(expected, actual) > (60 if half else 110)
    np.testing.assert_array_equal(
        compute(wrong_fused_attention(edited), IMAGES)["logits"], actual, "no fused kernel, no wrong one"
    )


def test_a_graph_without_attention_has_nothing_to_keep_from_fusing() -> None:
    assert defuse_attention(tiny_model()) is None
    assert bfloat16_attention(tiny_model()) is None


def test_one_block_in_single_precision_and_nothing_else() -> None:
    model = transformer(half=True)
    edited = single_precision(model, "blocks.1.0")
    graph = valid(edited).graph
    assert types(graph, "blocks.1.0") - {ir.DataType.INT64} == {SINGLE}
    assert types(graph, "blocks.0.0") == types(graph, "blocks.2.0") == {HALF}
    casts = [node for node in graph if node.op_type == "Cast" and block_of(str(node.name)) not in ("stem", "head")]
    assert len(casts) == 4, "two streams in, two out, whoever reads them"
    assert edited is not None
    exact = compute(transformer(), IMAGES)["logits"]
    assert snr(exact, compute(edited, IMAGES)["logits"]) > 45


def test_single_precision_keeps_outputs_and_their_types() -> None:
    edited = single_precision(transformer(half=True), "head")
    graph = valid(edited).graph
    assert [(value.name, value.dtype) for value in graph.outputs] == [("logits", SINGLE)]


@pytest.mark.parametrize("block", [None, "blocks.9.0"])
def test_without_the_block_there_is_nothing_to_compute_in_single_precision(block: str | None) -> None:
    assert single_precision(transformer(half=True), block) is None


def test_a_block_in_single_precision_already_is_left_alone() -> None:
    assert single_precision(transformer(), "blocks.1.0") is None


def test_attention_in_bfloat16_and_nothing_else() -> None:
    edited = bfloat16_attention(transformer(half=True))
    graph = valid(edited).graph
    for found in find_attentions(graph):
        assert {value.dtype for value in found.operands} == {BRAIN}
        assert not found.before
        assert not found.after, "nothing between the products: it may still be fused"
    assert types(graph, "mlp") == {HALF}
    assert bfloat16_attention(transformer()) is None, "FP32 attention has no range to gain"


def test_bfloat16_computes_what_it_should() -> None:
    """By ONNX's reference implementation, since ONNX Runtime's CPU kernels know no bfloat16."""
    from onnx.reference import ReferenceEvaluator

    edited = bfloat16_attention(transformer(half=True))
    assert edited is not None
    (found,) = ReferenceEvaluator(onnx.load_from_string(edited)).run(None, {"images": IMAGES})
    assert snr(compute(transformer(), IMAGES)["logits"], np.asarray(found, np.float32)) > 30


@pytest.mark.parametrize(
    ("version", "sm", "obstacle"),
    [((8, 6), 87, "TensorRT 10"), ((10, 3), 75, "compute capability 8.0"), ((10, 3), 87, None), ((11, 0), None, None)],
)
def test_bfloat16_takes_a_version_and_a_gpu_that_have_it(
    version: tuple[int, int], sm: int | None, obstacle: str | None
) -> None:
    found = WORKAROUNDS[-1].obstacle(version, sm)
    assert found is None if obstacle is None else obstacle in str(found)
    assert WORKAROUNDS[0].obstacle((8, 5), 72) is None


def test_an_initializer_that_two_precisions_read_is_there_twice() -> None:
    graph = onnx.load_from_string(transformer(half=True))
    shared = next(node for node in graph.graph.node if node.name == "blocks.0.0.mlp/MatMul")
    other = next(node for node in graph.graph.node if node.name == "blocks.1.0.mlp/MatMul")
    other.input[1] = shared.input[1]
    edited = single_precision(graph.SerializeToString(), "blocks.1.0")
    weights = {tensor.name: tensor.data_type for tensor in onnx.load_from_string(edited or b"").graph.initializer}
    assert weights[shared.input[1]] == TensorProto.FLOAT16
    assert weights[f"{shared.input[1]}.as_float"] == TensorProto.FLOAT
