"""What an accelerator could compute of a graph: each limit on the graph that passes it, and on that which does not."""

from __future__ import annotations

import subprocess
import sys

import onnx
import pytest

from tests.transformer import transformer
from vitdeploy.graph.onnx_file import read_graph
from vitdeploy.platforms.boards import find_platform
from vitdeploy.platforms.dla import judge_dla
from vitdeploy.platforms.report import DlaReport

ORIN = find_platform("jetson-agx-orin-jp6")


def judged(nodes: str, inputs: str = "float16[1, 8, 16, 16] x", weights: str = "") -> DlaReport:
    """Of a graph of opset 17 from its text, which ends in `y`."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => (float16[a, b, c, d] y) <{weights}> {{ {nodes} }}'
    )
    report = judge_dla(read_graph(proto.SerializeToString()).graph, ORIN)
    assert report is not None
    return report


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("jetson-orin-nano-jp6", "Orin Nano has no DLA"),
        ("jetson-thor-jp7", "AGX Orin only"),
        ("jetson-thor-jp7.2.2-trt11", "AGX Orin only"),
        ("jetson-agx-orin-jp7.2", "TensorRT 10.16.2 has none"),
    ],
)
def test_boards_without_are_told_so(target: str, words: str) -> None:
    report = judge_dla(read_graph(transformer(half=True, batch=1)).graph, find_platform(target))
    assert report is not None
    assert words in str(report.missing)


def test_a_platform_that_is_no_board_has_no_such_question() -> None:
    assert judge_dla(read_graph(transformer()).graph, find_platform("tensorrt10")) is None


def test_of_a_transformer_only_the_stem_is_left() -> None:
    report = judge_dla(read_graph(transformer(half=True, batch=1)).graph, ORIN)
    assert report is not None
    assert (report.missing, report.on) == (None, 4), "the stem, and softmaxes over maps of heads"
    assert report.loadables == 4
    off = dict(report.off)
    assert off["LayerNormalization: it has no such layer"] == 3
    assert off["MatMul: it has no such layer"] == 3 * 6 + 1
    assert sum(off.values()) + report.on == report.total
    assert "not recommended" in str(report)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("y = Relu (x)", None),
        ("z = Relu (x) y = Add (z, x)", None),
        ("y = Erf (x)", "Erf: it has no such layer"),
        ("y = Concat <axis = 1> (x, x)", None),
        ("y = Concat <axis = 2> (x, x)", "Concat: along another axis than the channels"),
        ("y = MaxPool <kernel_shape = [2, 2]> (x)", None),
        ("y = Softmax <axis = 3> (x)", None),
    ],
)
def test_layers(nodes: str, reason: str | None) -> None:
    report = judged(nodes)
    assert dict(report.off) == ({} if reason is None else {reason: 1})


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ("float[1, 8, 16, 16] x", "Relu: fp32, it computes in FP16 and INT8"),
        ("float16[8, 16, 16] x", "Relu: rank 3, it takes maps of rank 4"),
        ("float16[N, 8, 16, 16] x", "Relu: a free axis"),
        ("float16[1, 8, 1, 8193] x", "Relu: an axis longer than 8192"),
        ("float16[1, 8, 1, 8192] x", None),
    ],
)
def test_tensors(inputs: str, reason: str | None) -> None:
    output = inputs.removesuffix(" x")
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => ({output} y) {{ y = Relu (x) }}'
    )
    report = judge_dla(read_graph(proto.SerializeToString()).graph, ORIN)
    assert report is not None
    assert dict(report.off) == ({} if reason is None else {reason: 1})


@pytest.mark.parametrize(
    ("attributes", "kernel", "reason"),
    [
        ("", "[8, 8, 3, 3]", None),
        ("<group = 8>", "[8, 1, 3, 3]", None),
        ("<strides = [9, 9]>", "[8, 8, 3, 3]", "Conv: a stride longer than 8"),
        ("<pads = [32, 32, 32, 32]>", "[8, 8, 33, 33]", "Conv: a kernel longer than 32"),
    ],
)
def test_convolutions(attributes: str, kernel: str, reason: str | None) -> None:
    report = judged(f"y = Conv {attributes} (x, w)", f"float16[1, 8, 16, 16] x, float16{kernel} w")
    assert dict(report.off) == ({} if reason is None else {reason: 1})


@pytest.mark.parametrize(
    ("attributes", "kernel", "reason"),
    [
        ("<strides = [2, 2]>", "[8, 8, 2, 2]", None),
        ("<group = 8, strides = [2, 2]>", "[8, 1, 2, 2]", "ConvTranspose: groups"),
        ("<pads = [1, 1, 1, 1]>", "[8, 8, 3, 3]", "ConvTranspose: padding"),
    ],
)
def test_deconvolutions(attributes: str, kernel: str, reason: str | None) -> None:
    report = judged(f"y = ConvTranspose {attributes} (x, w)", f"float16[1, 8, 16, 16] x, float16{kernel} w")
    assert dict(report.off) == ({} if reason is None else {reason: 1})


def test_a_device_builds_for_an_accelerator_without_the_packages_onnx() -> None:
    code = "import sys, vitdeploy.tensorrt.build; print({'onnx', 'onnx_ir'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
