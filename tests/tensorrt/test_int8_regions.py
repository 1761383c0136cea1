"""The kinds of layers of an INT8 graph."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from tests.graph_cases import parsed
from vitdeploy.graph.float_form import quantized_inputs
from vitdeploy.tensorrt.int8_regions import (
    CONVOLUTIONS,
    LINEAR,
    MIXERS,
    OTHERS,
    PRODUCTS,
    PROJECTIONS,
    find_regions,
    without,
)


def pair(source: str, target: str) -> str:
    return f"{target}_q = QuantizeLinear (x_of_{target}, s, z) {target} = DequantizeLinear ({target}_q, s, z)".replace(
        f"x_of_{target}", source
    )


def network() -> ir.Model:
    """A stem, one block of attention with all five places quantized, a residual and an MLP."""
    lines = [
        pair("images", "images_d"),
        "stem_w = DequantizeLinear (stem_8, s, z)",
        "[stem_Conv] stem = Conv <strides = [2, 2]> (images_d, stem_w)",
        "flat = Reshape (stem, flat_shape)",
        "tokens = Transpose <perm = [0, 2, 1]> (flat)",
        pair("tokens", "tokens_d"),
        *(f"{n}_w = DequantizeLinear ({n}_8, s, z)" for n in "qkvofg"),
        *(f"[{n}_MatMul] {n}0 = MatMul (tokens_d, {n}_w) {n}1 = Add ({n}0, bias)" for n in "qkv"),
        *(f"{n}2 = Reshape ({n}1, heads) " for n in "qkv"),
        "q3 = Transpose <perm = [0, 2, 1, 3]> (q2)",
        "k3 = Transpose <perm = [0, 2, 3, 1]> (k2)",
        "v3 = Transpose <perm = [0, 2, 1, 3]> (v2)",
        *(pair(f"{n}3", f"{n}_d") for n in "qkv"),
        "[scores_MatMul] scores = MatMul (q_d, k_d)",
        "weights = Softmax <axis = -1> (scores)",
        pair("weights", "weights_d"),
        "[mixed_MatMul] mixed = MatMul (weights_d, v_d)",
        pair("mixed", "mixed_d"),
        "[back] back = Transpose <perm = [0, 2, 1, 3]> (mixed_d)",
        "joined = Reshape (back, tokens_shape)",
        pair("joined", "joined_d"),
        "[o_MatMul] o0 = MatMul (joined_d, o_w) o1 = Add (o0, bias)",
        "sum = Add (tokens, o1)",
        pair("sum", "sum_d"),
        "[f_MatMul] f0 = MatMul (sum_d, f_w) f1 = Relu (f0)",
        pair("f1", "f_d"),
        "[g_MatMul] g0 = MatMul (f_d, g_w)",
        pair("g0", "g_d"),
        "[residual_Add] y = Add (sum, g_d)",
    ]
    text = "network (float[1, 3, 8, 8] images) => (float[1, 16, 8] y) {" + "\n".join(lines) + "}"
    random = np.random.default_rng(0)
    weights = {f"{n}_8": random.integers(-127, 128, (8, 8)).astype(np.int8) for n in "qkvofg"}
    return parsed(
        text,
        s=np.float32(0.05),
        z=np.int8(0),
        stem_8=random.integers(-127, 128, (8, 3, 2, 2)).astype(np.int8),
        bias=np.ones(8, np.float32),
        flat_shape=np.array([0, 8, 16]),
        heads=np.array([0, 16, 2, 4]),
        tokens_shape=np.array([0, 16, 8]),
        **weights,
    )


def test_every_layer_is_of_one_kind() -> None:
    graph = network().graph
    found = {region.name: set(region.nodes) for region in find_regions(graph)}
    assert found == {
        CONVOLUTIONS: {"stem_Conv"},
        PROJECTIONS: {"q_MatMul", "k_MatMul", "v_MatMul"},
        PRODUCTS: {"scores_MatMul", "mixed_MatMul", "back"},
        MIXERS: {"o_MatMul"},
        LINEAR: {"f_MatMul", "g_MatMul"},
        OTHERS: {"residual_Add"},
    }
    assert {str(node.name) for node in graph if quantized_inputs(node)} == set().union(*found.values())
    sizes = {region.name: region.macs for region in find_regions(graph)}
    assert sizes[PROJECTIONS] == 3 * 16 * 8 * 8
    assert sizes[CONVOLUTIONS] == 16 * 8 * 12
    assert sizes[PRODUCTS] == 2 * 2 * 16 * 16 * 4
    assert [region.macs for region in find_regions(graph)] == sorted(sizes.values(), reverse=True)


def test_a_region_leaves_the_others_as_they_are() -> None:
    model = network()
    before = {region.name: region for region in find_regions(model.graph)}
    for name, region in before.items():
        rest = without(model, [region])
        assert {one.name for one in find_regions(rest.graph)} == set(before) - {name}
        onnx.checker.check_model(ir.to_proto(rest), full_check=True)
    nothing = without(model, before.values())
    assert find_regions(nothing.graph) == []
    assert not {node.op_type for node in nothing.graph} & {"QuantizeLinear", "DequantizeLinear"}
    assert len(find_regions(model.graph)) == len(before), "the model itself is left alone"
