"""What TensorRT can do, as data: operators, types, limits, fusion rules.

Every row names where it is from. `parser 8.5`, `parser 10.1` and `parser 10.15` are onnx-tensorrt's operator tables
(docs/operators.md) of those versions, `guide` is the TensorRT documentation's page on fused attention, `ModelOpt` the
placement rules in NVIDIA/Model-Optimizer (modelopt/onnx/quantization), `#` and a number an issue of NVIDIA/TensorRT.
Which versions and boards there are is in `vitdeploy.platforms.boards`, versions that compute something wrong are in
`vitdeploy.platforms.known_bad`, and where NVIDIA's own parser contradicts the tables in
`vitdeploy.platforms.parser_reports`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vitdeploy.platforms.versions import Version

MIN_PYTHON: Version = (3, 10)

# Newest opset by the first version whose table says so; the oldest is 9 throughout.
OLDEST_OPSET = 9
NEWEST_OPSETS: tuple[tuple[Version, int, str], ...] = (
    ((8, 5), 17, "parser 8.5"),
    ((10, 0), 20, "parser 10.1"),
    ((10, 15), 24, "parser 10.15"),
)

# In the table of 8.5 and in every later one.
_FLOATS_8_5 = """
    Acos Acosh ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos
    Cosh CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample
    HardSigmoid HardSwish InstanceNormalization LRN LSTM LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul MaxPool
    MeanVarianceNormalization NonMaxSuppression NonZero PRelu Pow QuantizeLinear RNN RandomNormal RandomNormalLike
    RandomUniform RandomUniformLike Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Resize ReverseSequence RoiAlign Round Selu Sigmoid Sin Sinh
    Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu TopK Upsample
"""
_OTHERS_8_5 = """
    Abs Add And Cast Concat Constant ConstantOfShape DepthToSpace DequantizeLinear Div Equal Expand EyeLike Flatten
    Gather GatherElements GatherND Greater GreaterOrEqual Identity If IsNaN Less LessOrEqual Loop Max Mean Min Mod Mul
    Neg Not OneHot Or Pad Range Reshape Scan Scatter ScatterElements ScatterND Shape Shrink Sign Size Slice SpaceToDepth
    Split Squeeze Sub Sum Tile Transpose Trilu Unsqueeze Where Xor
"""
OPERATORS_8_5 = frozenset(f"{_FLOATS_8_5} {_OTHERS_8_5}".split())

# Integer tensors are refused here by 8.x; the table of 10.15 takes them for those in the second set.
FLOAT_ONLY_8 = frozenset(_FLOATS_8_5.split())
_INTEGERS_10 = """
    ArgMax ArgMin Pow ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu ReverseSequence TopK
"""
INTEGERS_SINCE_10 = frozenset(_INTEGERS_10.split())


@dataclass(frozen=True)
class Newcomer:
    """An operator that came later: missing up to `absent`, there from `present`, unknown in between."""

    absent: Version
    present: Version
    source: str


_BETWEEN = Newcomer((8, 5), (10, 15), "parser 8.5 and 10.15")
NEWCOMERS: Mapping[str, Newcomer] = {
    "LayerNormalization": Newcomer((8, 5), (8, 6), "INormalizationLayer of 8.6; parser 8.5"),
    "Gelu": Newcomer((8, 5), (10, 1), "parser 10.1"),
    "GroupNormalization": Newcomer((8, 5), (10, 9), "parser 8.5; the form of opset 21 from 10.9"),
    "Attention": Newcomer((10, 13), (10, 14), "TensorRT 10.14 release notes"),
    "RMSNormalization": Newcomer((10, 14), (10, 15), "parser 10.15"),
    "RotaryEmbedding": Newcomer((10, 14), (10, 15), "parser 10.15"),
    "TensorScatter": Newcomer((10, 14), (10, 15), "TensorRT 10.15 release notes"),
    "Swish": Newcomer((10, 15), (11, 0), "TensorRT 11.0 release notes; parser 10.15"),
    **dict.fromkeys(("BlackmanWindow", "CastLike", "DeformConv", "HammingWindow", "HannWindow"), _BETWEEN),
    **dict.fromkeys(("Hardmax", "IsInf", "Mish", "STFT"), _BETWEEN),
}

_INTEGER_OPERATORS = """
    ConvInteger DynamicQuantizeLinear MatMulInteger QGemm QLinearAdd QLinearConcat QLinearConv QLinearGlobalAveragePool
    QLinearMatMul QLinearMul QLinearSigmoid QLinearSoftmax
"""
INTEGER_OPERATORS = frozenset(_INTEGER_OPERATORS.split())

# In the heads of the tables, in ONNX's words; bfloat16 has a rule of its own. Some come by quantization only.
QUANTIZED_TYPES = frozenset({"float8e4m3fn", "float4e2m1", "int4"})
# From which compute capability on the GPU computes in them; before, the builder refuses the network.
NARROW_SINCE: Mapping[str, tuple[Version, str]] = {
    "float8e4m3fn": (
        (8, 9),
        "NVIDIA/TensorRT-LLM#1428; TensorRT-Edge-LLM 0.11.1, overview: Orin has FP16, INT8, INT4",
    ),
    "float4e2m1": ((10, 0), "TensorRT-Edge-LLM 0.11.1, supported models: no FP4 or NVFP4 checkpoints for Orin"),
}
QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear"})
ELEMENT_TYPES_8 = frozenset({"double", "float", "float16", "int8", "int32", "int64", "uint8", "bool"})
ELEMENT_TYPES_10 = ELEMENT_TYPES_8 | QUANTIZED_TYPES
BFLOAT16_SINCE: Version = (10, 0)
INT64_SINCE: Version = (10, 0)

# Pixels may come as uint8 and go no further; quantization has a rule of its own.
UINT8_CONSUMERS = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})
UINT8_SOURCE = "NVIDIA/TensorRT#3985: uint8 inputs feed a cast, no other layer takes them"

TOPK_LIMIT = 3840
TOPK_SOURCE = "NvInfer.h: K is below 3840; parser: K is a constant, sorted is 1"

INT8_DECONVOLUTION_MULTIPLE = 4
DECONVOLUTION_SOURCE = "NvInfer.h: INT8 deconvolution takes groups of a multiple of 4 channels; NVIDIA/TensorRT#1934"

RESIZE_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
RESIZE_MODES = ("nearest", "linear")


@dataclass(frozen=True)
class AttentionRules:
    """When TensorRT's attention kernels are taken, by type of the products' inputs.

    measured_head    the smallest and largest that TensorRT for RTX fuses in half precision, multiple of 8 or not
    vector_multiple  of the heads of one query, which it fuses in FP32 too
    """

    min_sm: Version = (7, 5)
    half_head: tuple[int, int, int] = (16, 256, 8)
    measured_head: tuple[int, int] = (9, 256)
    vector_multiple: int = 8
    int8_heads: tuple[int, ...] = (16, 32, 64)
    int8_max_sequence: int = 512
    half_max_keys: int = 65504
    source: str = "guide; NVIDIA/TensorRT#2981, #4167"


ATTENTION = AttentionRules()


@dataclass(frozen=True)
class AttentionKernels:
    """Which platforms have such kernels at all; the first row that fits counts. None: reports disagree."""

    oldest: Version
    newest: Version
    sm: Version | None
    half: bool | None
    int8: bool
    reason: str


ATTENTION_KERNELS = (
    AttentionKernels((8, 5), (8, 5, 99), None, False, False, "attention fusion came with 8.6"),
    AttentionKernels(
        (8, 6),
        (8, 6, 99),
        (8, 7),
        half=None,
        int8=False,
        reason="reports of 8.6 on Orin disagree: no kernel (#3575), or FP16 four times as fast as INT8 (#3243)",
    ),
    AttentionKernels((10, 0), (10, 3, 99), (8, 7), True, False, "10.3 on Orin fuses FP16 only (#4167)"),
)


@dataclass(frozen=True)
class Int8Rules:
    """Which layers gain from INT8, and how much at best.

    speedup     INT8 over FP16 of the tensor cores, by arithmetic
    min_bound   below this bound over the whole network, conversions and unfused neighbours eat the gain: users report
                5 to 10 % on Thor (rf-detr#955), nothing or a loss elsewhere (NVIDIA/TensorRT#4273, #3186, #4397)
    """

    min_channels: int = 16
    grouped_multiple: int = 8
    grouped_kernel: int = 3
    speedup: float = 2.0
    min_bound: float = 1.2
    source: str = "ModelOpt int8.py, graph_utils.py; NVIDIA/TensorRT#4273"


INT8 = Int8Rules()
INT8_ATTENTION_CAUTION = "fused INT8 attention took 800 µs where FP16 took 200 µs on Orin (#3243): measure"
