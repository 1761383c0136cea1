"""The rows about NVIDIA's parser are what benchmarks/nvidia_operators.py found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from vitdeploy.platforms.capabilities import find_platform
from vitdeploy.platforms.graph_rules import check_graph
from vitdeploy.platforms.parser_reports import PARSER, REFUSED, TAKEN
from vitdeploy.platforms.report import BLOCKS, WARNS, Finding

RESULTS = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "results" / "nvidia_operators.json"
FOUND = json.loads(RESULTS.read_text())
# What the two say differently for a reason that is none of the element type's.
EXPLAINED = {
    "Attention": "the form: its kernels take some sizes and types, see the rules of fused attention",
    "DeformConv": "a plug-in, which TensorRT for RTX lacks",
    "GridSample": "the rule is about wrong numbers, which no compiler tells",
    "Loop": "the probe computes how often it runs",
    "Max": "a form of one input, which is the identity",
    "Min": "a form of one input, which is the identity",
    "NonMaxSuppression": "no kernels in TensorRT for RTX",
    "NonZero": "a plug-in, which TensorRT for RTX lacks",
    "QuantizeLinear": "to uint8 with a zero point of 0, which a DLA wants",
    "Range": "the probe computes its ends",
    "RoiAlign": "a plug-in, which TensorRT for RTX lacks",
    "Scan": "the form",
}


def findings(kind: str, element: int, outputs: int = 1, platform: str = "tensorrt10") -> list[Finding]:
    shape = [1, 4, 8, 8]
    value = helper.make_tensor_value_info("x", element, shape)
    extra = ["mean", "deviation"][: outputs - 1]
    inputs = ["x", "w"] if kind == "LayerNormalization" else ["x"]
    weight = onnx.numpy_helper.from_array(np.ones(8, np.float32), "w")
    node = helper.make_node(kind, inputs, ["y", *extra], name=f"part/{kind}")
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("y", element, None)], [weight])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)]))
    return list(check_graph(model, find_platform(platform)))


def test_the_rows_are_of_this_version_and_no_disagreement_is_left_out() -> None:
    assert FOUND["version"].startswith(PARSER.rpartition(" ")[2])
    refused: dict[str, set[str]] = {}
    taken: dict[str, set[str]] = {}
    for name, row in FOUND["operators"].items():
        for kind, verdict in row["types"].items():
            (taken if verdict == "ok" else refused).setdefault(name, set()).add(kind)
    assert all(kinds <= refused[name] for name, kinds in REFUSED.items())
    assert all(kinds <= taken[name] for name, kinds in TAKEN.items())
    # The benchmark compares with the rules as they are, in which REFUSED warns and TAKEN lifts nothing.
    left = {(row["operator"], row["type"]) for row in FOUND["disagreements"] if row["operator"] not in EXPLAINED}
    known = {(name, kind) for rows in (REFUSED, TAKEN) for name, kinds in rows.items() for kind in kinds}
    assert left == known


@pytest.mark.parametrize(("kind", "element"), [("Relu", TensorProto.INT32), ("ReduceL2", TensorProto.INT64)])
def test_what_only_the_parser_refuses_is_a_warning_that_names_both(kind: str, element: int) -> None:
    (found,) = findings(kind, element)
    assert (found.level, found.where) == (WARNS, f"{kind} part/{kind}")
    assert PARSER in found.source
    assert "parser 10.15" in found.source
    assert findings(kind, TensorProto.FLOAT) == []


@pytest.mark.parametrize(("kind", "element"), [("Clip", TensorProto.INT32), ("Identity", TensorProto.UINT8)])
def test_what_only_the_parser_takes_is_still_refused_and_the_source_says_so(kind: str, element: int) -> None:
    (found,) = findings(kind, element)
    assert found.level == BLOCKS
    assert found.source.endswith(f"{PARSER} takes it")


def test_a_layer_norm_gives_one_result() -> None:
    assert findings("LayerNormalization", TensorProto.FLOAT) == []
    (found,) = findings("LayerNormalization", TensorProto.FLOAT, outputs=3)
    assert (found.level, found.source) == (BLOCKS, PARSER)
    refused = FOUND["operators"]["LayerNormalization"]["refused_forms"]
    assert refused
    assert all("1 outputs" in why and not name.endswith("_one_output") for name, why in refused.items())
