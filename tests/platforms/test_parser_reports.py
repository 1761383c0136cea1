"""The rows about NVIDIA's parser are what benchmarks/nvidia_operators.py found, and none of it is left out."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from benchmarks import nvidia_operators as probe
from benchmarks.exporter_operators import emitted, left_out, standard_operators
from benchmarks.operator_forms import TYPES as ELEMENT_TYPES
from vitdeploy.platforms.boards import find_platform
from vitdeploy.platforms.graph_rules import check_graph
from vitdeploy.platforms.parser_reports import OTHER_REASONS, PARSER, beside, takes, takes_form
from vitdeploy.platforms.parser_table import FORMS, TYPES
from vitdeploy.platforms.report import BLOCKS, WARNS, Finding
from vitdeploy.tensorrt.rtx.requirements import unavailable

FOUND: dict[str, Any] = json.loads(probe.RESULTS.read_text())
VARIANTS = {variant.name: variant.model for variant in probe.variants()}
OK = probe.OK
NEWEST = "tensorrt10.16"
NO_RULE = {
    "Reshape shape=computed": "the probe computes a shape and states none",
    "Slice starts=computed": "the probe computes a shape and states none",
    "QuantizeLinear type=float8e4m3fn": "no FP8 before compute capability 8.9, and the probe compiles for 8.6",
}
# Type variables of other inputs than the first, of which the rules know nothing.
OTHER_INPUTS = {
    ("OneHot", "T2"): "int8 and uint8 for a depth, which exporters write in int64",
    ("OneHot", "T3"): "int8 outside of quantization",
    ("Pow", "T1"): "int8 and uint8 for an exponent",
    ("QuantizeLinear", "T2"): "the type of a scale",
    ("QuantizeLinear", "T3"): "uint8, which the rules refuse, and FP8 and FP4, which take a newer GPU",
    ("Where", "T"): "int8 outside of quantization",
}


def findings(kind: str, element: int, outputs: int = 1, platform: str = "tensorrt10", **said: Any) -> list[Finding]:
    shape = [1, 4, 8, 8]
    value = helper.make_tensor_value_info("x", element, shape)
    extra = ["mean", "deviation"][: outputs - 1]
    inputs = ["x", "w"] if kind == "LayerNormalization" else ["x"]
    weight = onnx.numpy_helper.from_array(np.ones(8, np.float32), "w")
    node = helper.make_node(kind, inputs, ["y", *extra], name=f"part/{kind}", **said)
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("y", element, None)], [weight])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)]))
    return [finding for finding in check_graph(model, find_platform(platform)) if finding.where != "model"]


def of_variant(name: str, platform: str = NEWEST) -> list[Finding]:
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(VARIANTS[name]))
    found = check_graph(ir.from_proto(model), find_platform(platform))
    return [finding for finding in found if finding.where != "model"]


def test_the_table_of_the_package_is_what_was_measured() -> None:
    """`python benchmarks/nvidia_operators.py --write` brings both up to date."""
    assert probe.TABLE.read_text() == probe.package_table(FOUND)
    assert FOUND["version"].startswith(PARSER.rpartition(" ")[2])


def test_the_rules_beside_the_measured_forms_are_those_of_today() -> None:
    assert set(FOUND["variants"]) == set(VARIANTS)
    changed = {
        name: row["rules"] for name, row in FOUND["variants"].items() if probe.rules(VARIANTS[name]) != row["rules"]
    }
    assert changed == {}


def test_no_operator_that_an_exporter_emits_is_left_out() -> None:
    exporters = emitted()
    assert {name: len(found) for name, found in exporters.items()} == FOUND["emitted"]
    assert min(FOUND["emitted"].values()) > 100
    asked = {*FOUND["operators"], *(name.split()[0] for name in VARIANTS)}
    reasons = {name: why for name, row in standard_operators().items() if (why := left_out(row)) is not None}
    assert reasons == FOUND["left_out"]
    assert set().union(*exporters.values()) - asked - set(reasons) == set()
    assert not asked & set(reasons)


def test_every_type_of_every_schema_is_asked_for() -> None:
    schemas = standard_operators()
    for name, row in FOUND["operators"].items():
        schema = onnx.defs.get_schema(name, row["opset"], "")
        first = schema.inputs[0].type_str
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}.get(first, [first])
        kinds = {str(kind).removeprefix("tensor(").removesuffix(")") for kind in allowed}
        missing = (kinds & set(ELEMENT_TYPES)) - set(row["types"])
        # A condition has one type, and forms of bits and labels tie some of theirs to others.
        assert not missing or name in ("If", "Loop", "Scan", "BitCast", "Gradient"), (name, missing)
        assert name in schemas


def test_every_disagreement_about_a_type_has_a_row_that_names_both() -> None:
    for row in FOUND["disagreements"]:
        name, kind, taken = row["operator"], row["type"], row["compiler"] == OK
        first = standard_operators()[name].inputs[0].type_str == row["variable"]
        if name in OTHER_REASONS or (name, row["variable"]) in OTHER_INPUTS:
            continue
        assert first, row
        assert takes(name, kind) is taken
        if name != "QuantizeLinear":  # of a zero point of uint8, see the variants
            sources = [
                finding.source for finding in findings(name, getattr(TensorProto, kind.upper()), platform=NEWEST)
            ]
            assert any((f"{PARSER} takes it" in source) if taken else (PARSER in source) for source in sources), row


@pytest.mark.parametrize(
    "name", [n for n, r in FOUND["variants"].items() if (r["compiler"] == OK) != (r["rules"] == OK)]
)
def test_every_disagreement_about_a_form_has_a_row_that_names_both(name: str) -> None:
    if (name.split()[0] in OTHER_REASONS and not name.startswith("Attention")) or name in NO_RULE:
        return
    assert any("TensorRT for RTX" in finding.source for finding in of_variant(name)), of_variant(name)


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


@pytest.mark.parametrize("element", [TensorProto.INT16, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64])
@pytest.mark.parametrize("platform", ["tensorrt8", "tensorrt10", "tensorrt11"])
def test_types_that_tensorrt_does_not_have(element: int, platform: str) -> None:
    (found,) = findings("Abs", element, platform=platform)
    assert found.level == BLOCKS
    assert found.source.endswith(f"{PARSER} refuses it too")


@pytest.mark.parametrize(
    ("name", "level", "says"),
    [
        ("MaxPool ceil_mode=0 dilations=2x2", BLOCKS, "refuses it too"),
        ("MaxPool ceil_mode=1 dilations=2x2", BLOCKS, "refuses it too"),
        ("AveragePool ceil_mode=1 dilations=2x2", BLOCKS, "refuses it too"),
        ("MaxPool outputs=2", BLOCKS, "refuses it too"),
        ("ScatterElements reduction=add type=float", BLOCKS, "refuses it too"),
        ("ScatterND reduction=max type=float", BLOCKS, "refuses it too"),
        ("ReduceSum axes=computed", BLOCKS, "refuses it too"),
        ("Resize keep_aspect_ratio_policy=not_larger", BLOCKS, "refuses it too"),
        ("Cast float through uint8", BLOCKS, "refuses it too"),
        ("QuantizeLinear zero_point=3 type=int8", BLOCKS, "refuses it too"),
        ("TopK K=5000", BLOCKS, "refuses it too"),
        ("TopK K=3840", BLOCKS, "takes it"),
        ("TopK sorted=0 largest=1", BLOCKS, "takes it"),
        ("Resize mode=cubic coordinate_transformation_mode=asymmetric scale=0.7", BLOCKS, "takes it"),
        ("CumSum exclusive=1 reverse=0 type=int32", BLOCKS, "takes it"),
        ("ConvTranspose int8 group=16 channels=16 type=float16", BLOCKS, "takes it"),
        ("QuantizeLinear scale=computed", BLOCKS, "takes it"),
        ("BatchNormalization training_mode=1", BLOCKS, "do not say so"),
        ("Attention head=264 type=float16", WARNS, "has no kernel for it"),
        ("Attention heads=4 kv_heads=4 type=float", WARNS, "has no kernel for it"),
    ],
)
def test_a_documented_refusal_says_what_the_parser_does(name: str, level: str, says: str) -> None:
    found = [finding for finding in of_variant(name) if finding.level == level]
    assert found
    assert all(finding.source.endswith(says) for finding in found), found


def test_what_the_parser_takes_and_was_never_refused_is_no_finding() -> None:
    taken = [name for name, row in FOUND["variants"].items() if row["compiler"] == row["rules"] == OK]
    assert len(taken) > 300
    noisy = {name for name in taken for finding in of_variant(name) if "float64" not in finding.what}
    assert all(name.startswith(("Attention rank=3", "ConvTranspose group=16")) for name in noisy), noisy


@pytest.mark.parametrize(
    ("name", "blocked"),
    [
        ("TopK K=3840", False),
        ("Resize mode=cubic coordinate_transformation_mode=half_pixel scale=2.0", False),
        ("Clip ends=both type=int32", False),
        ("ReduceL2 type=int32", True),
        ("NonZero", True),
        ("MaxPool ceil_mode=0 dilations=2x2", True),
    ],
)
def test_for_the_product_that_was_asked_the_parser_decides(name: str, blocked: bool) -> None:
    assert any(finding.level == BLOCKS for finding in of_variant(name, "tensorrt_rtx")) is blocked
    assert (FOUND["variants"][name]["compiler"] != OK) is blocked


def test_words_pick_forms() -> None:
    assert takes_form("TopK", "sorted=0") is True
    assert takes_form("TopK", "K=5000") is False
    assert takes_form("TopK") is None  # some
    assert takes_form("TopK", "sorted=7") is None
    assert takes("Relu", "int32") is False
    assert takes("Relu", "float") is True
    assert takes("Relu", "string") is None
    assert takes("Nothing", "float") is None
    assert beside("a", None) == "a"


def test_a_layer_norm_gives_one_result() -> None:
    assert findings("LayerNormalization", TensorProto.FLOAT) == []
    (found,) = findings("LayerNormalization", TensorProto.FLOAT, outputs=3)
    assert (found.level, PARSER in found.source) == (BLOCKS, True)
    refused = FOUND["operators"]["LayerNormalization"]["refused_forms"]
    assert refused
    assert all("1 outputs" in why and not name.endswith("_one_output") for name, why in refused.items())


@pytest.mark.nvidia
@pytest.mark.skipif(unavailable() is not None, reason="vitdeploy[nvidia] is not installed")
def test_the_parser_still_says_what_was_measured() -> None:
    """All forms of rules, and as many element types as a fixed seed draws."""
    names = [name for name in VARIANTS if name in FORMS] + random.Random(7).sample(sorted(VARIANTS), 60)
    names = list(dict.fromkeys(names))
    verdicts = dict(zip(names, probe.ask([VARIANTS[name] for name in names]), strict=True))
    assert {name: verdict.split(":")[0] for name, verdict in verdicts.items()} == {
        name: FOUND["variants"][name]["compiler"].split(":")[0] for name in names
    }
    drawn = random.Random(7).sample(sorted(TYPES), 20)
    found = [form for form in probe.forms() if form.node.op_type in drawn]
    answers = probe.judged(probe.typed(probe.candidates(found, probe.accepted(found))))
    measured = {
        (name, variable, kind): verdict.split(":")[0]
        for name in drawn
        for variable, verdicts in probe.types_of(FOUND["operators"][name]).items()
        for kind, verdict in verdicts.items()
    }
    assert {key: verdict.split(":")[0] for key, (verdict, _) in answers.items()} == measured
