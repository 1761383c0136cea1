"""The fusion report: JSON of the engine inspector in the forms of 8.6, 10.x and 11, against a known graph."""

from __future__ import annotations

import json
from typing import Any

import onnx
import pytest

from tests.transformer import BLOCKS, transformer
from vitdeploy.tensorrt.engine_layers import read_layers
from vitdeploy.tensorrt.fusion import (
    UNEXPLAINED,
    FusionReport,
    broken_rules,
    read_fusion,
)

SEPARATOR = "\x1f"


def tensor_8(name: str, words: str) -> dict[str, Any]:
    """A tensor as 8.x and 10.x state it: TensorRT developer guide 8.6, section 12.6, and 10.16, "Engine Inspector"."""
    return {"Name": name, "Location": "Device", "Dimensions": [1, 16, 32], "Format/Datatype": words}


def tensor_11(name: str, words: str) -> dict[str, Any]:
    """As 11 states it: guide 11.0, "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x"."""
    return {"Name": name, "Dimensions": [1, 16, 32], "DataType": words, "Format": "Row major linear (kLINEAR)"}


def layer_10(name: str, nodes: list[str], words: str, kind: str = "kgen", *, new: bool = False) -> dict[str, Any]:
    """A layer with metadata, as in the inspector's answers that NVIDIA/TensorRT#4397 and #3665 quote."""
    tensor = tensor_11 if new else tensor_8
    return {
        "Name": f"{name}_myl0_1",
        "LayerType": kind,
        "Inputs": [tensor("a", words)],
        "Outputs": [tensor("b", words)],
        "TacticName": f"{name}_0x957a2fe283f77dcf",
        "StreamId": 0,
        "Metadata": SEPARATOR.join(f"[ONNX Layer: {node}]" for node in nodes),
    }


def layer_8(name: str, kind: str, words: str, **more: Any) -> dict[str, Any]:
    """A layer of 8.6: what it was fused from is in its name, and nowhere else."""
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor_8("a", words)],
        "Outputs": [tensor_8("b", words)],
        "TacticValue": "0x0000000000000000",
        **more,
    }


def document(*layers: dict[str, Any], new: bool = False) -> str:
    ends: dict[str, Any] = {"I/O Tensors": []} if new else {"Bindings": ["images", "logits"]}
    return json.dumps({"Layers": list(layers), **ends})


def attention(index: int) -> list[str]:
    return [f"blocks.{index}.0.attn/{kind}" for kind in ("MatMul", "Softmax", "MatMul_1")]


@pytest.mark.parametrize("new", [False, True])
def test_ten_and_eleven_name_the_nodes_of_every_kernel(new: bool) -> None:
    report = read_fusion(
        document(
            layer_10("_gemm_mha_v2", attention(0), "Half", new=new),
            layer_10("__myl_fused", attention(1), "Half", new=new),
            layer_10("sm80_xmma_gemm", attention(2)[:1], "Half", "gemm", new=new),
            layer_10("__myl_MaxSubExpSumDivMul", attention(2)[1:2], "Half", new=new),
            layer_10("sm80_xmma_gemm_b", attention(2)[2:], "Half", "gemm", new=new),
            layer_10("__myl_AddMeaSubMul", ["blocks.0.0.norm1/LayerNormalization"], "Float", new=new),
            layer_10("__myl_Mea", ["blocks.1.0.norm1/LayerNormalization"], "Float", new=new),
            layer_10("__myl_SubMul", ["blocks.1.0.norm1/LayerNormalization"], "Float", new=new),
            layer_10("sm80_i8i8", ["blocks.0.0.mlp/MatMul"], "Int8", "gemm", new=new),
            layer_10("in", [], "Half", "Reformat", new=new),
            layer_10("sync", [], "Half", "signal", new=new),
            new=new,
        ),
        transformer(half=True),
        why={"blocks.2.0.attn/Softmax": ["head size: 24"]},
    )
    assert [block.fused for block in report.attention] == [True, True, False]
    assert report.attention[0].runs_as.startswith("_gemm_mha_v2_0x")
    assert report.attention[1].runs_as.startswith("one kernel, __myl_fused")
    assert report.attention[2].runs_as.startswith("3 kernels: sm80_xmma_gemm_0x")
    assert report.attention[2].why == ("head size: 24",)
    assert [block.fused for block in report.layer_norms] == [True, False, None]
    assert report.layer_norms[2].runs_as == "no layer names it"
    assert (report.layers, report.conversions, report.opaque) == (9, 2, 0)
    assert report.precision == {"fp16": 5, "fp32": 3, "int8": 1}


def test_eight_hides_what_myelin_compiled_and_the_report_says_unknown() -> None:
    hidden = "{ForeignNode[stem/Transpose...blocks.1.0/Add_1]}"
    report = read_fusion(
        document(
            layer_8("Reformatting CopyNode for Input Tensor 0 to stem/Conv", "Reformat", "Row major linear FP32"),
            layer_8("stem/Conv", "CaskConvolution", "Channel major FP16 format where channel % 8 == 0"),
            layer_8(hidden, "Myelin", "Row major linear FP16 format"),
            layer_8("blocks.2.0.norm1/LayerNormalization", "Normalization", "Row major linear FP32"),
            layer_8("blocks.2.0.attn/MatMul + blocks.2.0.attn/Softmax", "Myelin", "Row major linear FP16 format"),
            layer_8("blocks.2.0.attn/MatMul_1", "MatrixMultiply", "Row major linear FP16 format"),
            layer_8("PWN(blocks.2.0.mlp/Relu, blocks.2.0/Add_1)", "PointWiseV2", "Thirty-two wide Int8 format."),
        ),
        transformer(half=True),
    )
    assert [block.fused for block in report.attention] == [None, None, False]
    assert report.attention[0].runs_as == f"inside {hidden}, which the inspector does not open"
    assert [block.fused for block in report.layer_norms] == [None, None, True]
    assert (report.layers, report.conversions, report.opaque) == (6, 1, 1)
    assert report.precision == {"fp16": 4, "fp32": 1, "int8": 1}


def test_a_layer_hides_only_what_lies_between_its_ends() -> None:
    report = read_fusion(
        document(layer_8("{ForeignNode[blocks.1.0.norm1/LayerNormalization...blocks.1.0/Add_1]}", "Myelin", "FP16")),
        transformer(half=True),
    )
    assert [block.runs_as == "no layer names it" for block in report.attention] == [True, False, True]


def test_names_alone_tell_no_precision_and_the_report_says_so() -> None:
    """Profiling verbosity LAYER_NAMES_ONLY: the layers are strings."""
    (first, second) = read_layers(json.dumps({"Layers": ["stem/Conv", "a + b"], "Bindings": ["images"]}))
    assert (first.nodes, first.precision) == ({"stem/Conv"}, "other")
    assert second.nodes == {"a", "b"}


@pytest.mark.parametrize("wrong", ["", "[]", "{}", '{"Layers": 3}', "not JSON"])
def test_anything_else_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"Layers|Expecting"):
        read_layers(wrong)


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        ("Half", "fp16"),
        ("FP16 NHWC", "fp16"),
        ("BFloat16", "bf16"),
        ("BF16 linear", "bf16"),
        ("Float", "fp32"),
        ("Row major linear FP32 format", "fp32"),
        ("Row major Int8 format", "int8"),
        ("FP8 linear", "fp8"),
        ("Int64", "other"),
        ("N/A due to dynamic shapes", "other"),
    ],
)
def test_types_are_read_from_their_words(words: str, precision: str) -> None:
    (layer,) = read_layers(document(layer_8("x", "kgen", words)))
    assert layer.precision == precision


def test_a_layer_that_quantizes_counts_by_what_it_reads() -> None:
    entry = layer_10("q", ["Quantize"], "Half")
    entry["Outputs"] = [tensor_8("b", "Int8")]
    assert read_layers(document(entry))[0].precision == "fp16"


def test_the_report_survives_json() -> None:
    text = document(layer_10("_gemm_mha_v2", attention(0), "Half"), layer_10("x", attention(1)[:2], "Half"))
    report = read_fusion(text, transformer(half=True), why={"blocks.1.0.attn/Softmax": ["why not"]})
    again = FusionReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report
    assert str(again) == str(report)
    assert "attention: 1 fused, 1 not fused, 1 unknown" in str(report)
    assert "why not" in str(report)


def test_the_rules_tell_why_for_the_version_and_gpu_at_hand() -> None:
    """FP32 attention is never fused; one GPU generation before Turing nothing is."""
    why = broken_rules(transformer(), (10, 3), 87)
    softmaxes = [f"blocks.{index}.0.attn/Softmax" for index in range(BLOCKS)]
    assert set(softmaxes) <= set(why)
    assert any("types" in reason for reason in why[softmaxes[0]])
    old = broken_rules(transformer(half=True), (10, 3), 72)
    assert any("GPU" in reason for reason in old[softmaxes[0]])


def test_a_block_that_breaks_no_rule_and_is_not_fused_says_so() -> None:
    text = document(layer_10("a", attention(0)[:2], "Half"), layer_10("b", attention(0)[2:], "Half"))
    broken = {"blocks.0.0.attn/Softmax": []}
    assert read_fusion(text, transformer(half=True), why=broken).attention[0].why == (UNEXPLAINED,)
    assert read_fusion(text, transformer(half=True)).attention[0].why == (), "no rules were asked"


def test_a_written_out_layer_norm_is_one_group() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[1, 4, 8] x) => (float[1, 4, 8] y) <float two = {2.0}, float eps = {0.00001}> {
      mean = ReduceMean <axes = [-1]> (x)
      centred = Sub (x, mean)
      square = Pow (centred, two)
      variance = ReduceMean <axes = [-1]> (square)
      shifted = Add (variance, eps)
      deviation = Sqrt (shifted)
      y = Div (centred, deviation)
    }"""
    proto = onnx.parser.parse_model(text)
    for node in proto.graph.node:
        node.name = node.output[0]
    group = ["mean", "centred", "square", "variance", "shifted", "deviation", "y"]
    report = read_fusion(document(layer_10("ln", group, "Float")), proto.SerializeToString())
    assert [(block.name, block.fused) for block in report.layer_norms] == [("y", True)]
    apart = document(layer_10("a", group[:2], "Float"), layer_10("b", group[2:], "Float"))
    (block,) = read_fusion(apart, proto.SerializeToString()).layer_norms
    assert (block.fused, block.runs_as[:9]) == (False, "2 kernels")


def test_layers_that_only_move_data_are_told_by_their_kernels_or_their_nodes() -> None:
    def moved(name: str, *nodes: str) -> tuple[str, ...]:
        (layer,) = read_layers(document(layer_10("x", list(nodes), "Half") | {"Name": name}))
        return layer.moved_by({"t": "Transpose", "r": "Reshape", "m": "MatMul"})

    assert moved("__myl_SlicReshTranResh_myl0_7", "m") == ("slice", "reshape", "transpose")
    assert moved("__myl_SlicAddTran_myl0_7", "t") == ()
    assert moved("__myl_Nova_myl0_7", "t") == (), "an operation that is not known may compute"
    assert moved("t + r", "t", "r") == ("Reshape", "Transpose")
    assert moved("t + m", "t", "m") == ()
    assert moved("t + elsewhere", "t", "elsewhere") == ()
    assert moved("weights") == ()


def test_a_report_of_an_earlier_version_is_still_read() -> None:
    values = read_fusion(document(layer_10("x", attention(0), "Half")), transformer(half=True)).to_dict()
    for name in ("gelus", "gelus_fused", "movements"):
        values.pop(name)
    assert FusionReport.from_dict(values).movements == ()
