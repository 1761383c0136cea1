"""Where a target wants 8-bit integers, as data. A row here is all that placement knows of a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vitdeploy.calibration.scheme import S8, U8, Scheme


@dataclass(frozen=True)
class Int8Rules:
    """Q/DQ placement of one target.

    activation     scheme of what linear layers and convolutions read
    attention      scheme of what the two products of attention read; None leaves them in float
    convolution_output  convolutions also write integers, where the integer kernel does nothing else
    int32_bias     a bias is an integer too (scale of the input times scale of the weight), where the integer kernel
                   takes no other
    pair_per_reader  each layer gets a Q/DQ pair of its own, even where several read one tensor
    min_channels   products narrower than this on either side stay in float
    min_convolution_inputs  convolutions of fewer input channels stay in float
    half_rest      what is not quantized computes in FP16, for builders that take the precision from the graph alone
    pair_on_weight weights ship as float with a Q/DQ pair, for readers that take no integer initializer
    source         where the facts are from
    """

    activation: Scheme = S8
    attention: Scheme | None = None
    convolution_output: bool = False
    int32_bias: bool = False
    pair_per_reader: bool = False
    min_channels: int = 16
    min_convolution_inputs: int = 1
    half_rest: bool = False
    pair_on_weight: bool = False
    source: str = ""


RULES: Mapping[str, Int8Rules] = {
    "portable": Int8Rules(
        pair_per_reader=True,
        source="TensorRT takes zero points of 0 only (onnx-tensorrt, operators.md); OpenVINO compiles no asymmetric "
        "activations with weights by channel at batch 1 (2026.4); ONNX Runtime turns int8 into uint8, for which it has "
        "MatMulIntegerToFloat, only where a pair has one reader (1.31.1)",
    ),
    "onnxruntime": Int8Rules(
        activation=U8,
        convolution_output=True,
        min_convolution_inputs=16,
        int32_bias=True,
        source="QGemm takes 5.7 ms of u8 x s8 and 22.7 of s8 x s8 (LeMeViT-Tiny, 1.31.1), and a bias only as int32; "
        "Conv becomes QLinearConv only between Q and DQ (qdq_selectors.cc), which takes 370 us of 3 channels, Conv 208",
    ),
    "openvino": Int8Rules(source="as portable"),
    "tensorrt8": Int8Rules(pair_on_weight=True, source="the parser of 8.6 takes no int8 initializers as weights"),
    "tensorrt10": Int8Rules(
        half_rest=True,
        source="Model-Optimizer, int8.py: attention and LayerNorm stay in FP16; a strongly typed network runs in FP32 "
        "whatever the graph types FP32",
    ),
    "tensorrt11": Int8Rules(half_rest=True, source="as tensorrt10"),
}


def find_rules(target: str) -> Int8Rules:
    """The rules of the target called `target`."""
    return RULES[target]
