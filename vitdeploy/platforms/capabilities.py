"""What TensorRT and the boards that carry it can do, as data: platforms, operators, limits, fusion rules.

Every row names where it is from. `parser 8.5`, `parser 10.1` and `parser 10.15` are onnx-tensorrt's operator tables
(docs/operators.md) of those versions, `guide` is the TensorRT documentation's page on fused attention, `ModelOpt` the
placement rules in NVIDIA/Model-Optimizer (modelopt/onnx/quantization), `#` and a number an issue of NVIDIA/TensorRT.
Versions that compute something wrong are in `vitdeploy.platforms.known_bad`, and where NVIDIA's own parser contradicts
the tables in `vitdeploy.platforms.parser_reports`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from vitdeploy.errors import UsageError

Version = tuple[int, ...]


@dataclass(frozen=True)
class Platform:
    """Where an engine is built: a range of TensorRT versions, and for a board what comes with its JetPack.

    oldest, newest  TensorRT versions, both included; what one of them cannot do counts as missing
    sm              compute capability of the GPU, None where the platform leaves it open
    jetpack, cuda, python  what the board's system image brings; empty where the platform leaves it open
    product  another product than TensorRT, which is judged by the rules of these versions
    """

    name: str
    oldest: Version
    newest: Version
    sm: Version | None = None
    jetpack: str = ""
    cuda: str = ""
    python: str = ""
    source: str = ""
    product: str = ""

    @property
    def minors(self) -> tuple[Version, ...]:
        """Every version of the range to its second place; the ends as they are stated."""
        between = ((self.oldest[0], minor) for minor in range(self.oldest[1] + 1, self.newest[1]))
        return tuple(dict.fromkeys((self.oldest, *between, self.newest)))

    @property
    def versions(self) -> str:
        """The range in words."""
        old, new = dotted(self.oldest), dotted(self.newest)
        range_ = f"TensorRT {old}" if old == new else f"TensorRT {old} to {new}"
        return f"{self.product}, by the rules of {range_}" if self.product else range_


@dataclass(frozen=True)
class JetPack:
    """One generation of system images."""

    key: str
    releases: str
    tensorrt: Version
    cuda: str
    python: str
    boards: tuple[str, ...]
    source: str


BOARDS: Mapping[str, Version] = {
    "jetson-orin-nano": (8, 7),
    "jetson-orin-nx": (8, 7),
    "jetson-agx-orin": (8, 7),
    "jetson-thor": (11, 0),
}
_ORIN = tuple(name for name in BOARDS if "orin" in name)

# JetPack 7.2 on Orin is missing: which TensorRT it brings is in none of the sources.
JETPACKS = (
    JetPack("jp5", "5.1.x", (8, 5, 2), "11.4", "3.8", _ORIN, "jetson-containers l4t_version.py; CUDA unverified"),
    JetPack("jp6.0", "6.0", (8, 6, 2), "12.2", "3.10", _ORIN, "jetson-containers config.py; CUDA unverified"),
    JetPack("jp6", "6.1, 6.2", (10, 3), "12.6", "3.10", _ORIN, "jetson-containers packages/cuda/tensorrt/config.py"),
    JetPack("jp7", "7.0, 7.1", (10, 13), "13.0", "3.12", ("jetson-thor",), "TensorRT-Edge-LLM support matrix 0.11.1"),
    JetPack(
        "jp7.2",
        "7.2.2 and newer",
        (11, 4, 1),
        "13.2",
        "3.12",
        ("jetson-agx-orin", "jetson-thor"),
        "TensorRT 11.4.1 Jetson migration page",
    ),
)


def _platforms() -> Iterator[Platform]:
    yield Platform("tensorrt8", (8, 5, 2), (8, 6, 2), source="vitdeploy export MODEL --target tensorrt8")
    yield Platform("tensorrt10", (10, 3), (10, 16), source="vitdeploy export MODEL --target tensorrt10")
    yield Platform("tensorrt11", (11, 0), (11, 4, 1), source="vitdeploy export MODEL --target tensorrt11")
    # Of the line of TensorRT 10 and 11, with a numbering of its own: it is judged as the newest whose tables are here.
    yield Platform(
        "tensorrt_rtx",
        (10, 16),
        (10, 16),
        source="vitdeploy export MODEL --target tensorrt_rtx; `vitdeploy check BUNDLE --compile` asks it itself",
        product="TensorRT for RTX 1.7",
    )
    for pack in JETPACKS:
        for board in pack.boards:
            yield Platform(
                f"{board}-{pack.key}",
                pack.tensorrt,
                pack.tensorrt,
                BOARDS[board],
                pack.releases,
                pack.cuda,
                pack.python,
                pack.source,
            )


PLATFORMS: Mapping[str, Platform] = {row.name: row for row in _platforms()}
_EXACT = re.compile(r"tensorrt((?:8|10|11)(?:\.\d+){1,2})")


def find_platform(name: str) -> Platform:
    """The platform called `name`, or `tensorrt10.7` for one version; a UsageError lists what exists."""
    if name in PLATFORMS:
        return PLATFORMS[name]
    exact = _EXACT.fullmatch(name)
    if exact:
        version = tuple(map(int, exact[1].split(".")))
        return Platform(name, version, version, source="asked for by version")
    close = get_close_matches(name, PLATFORMS, n=1)
    raise UsageError(
        f"there is no platform called {name!r}",
        why=f"platforms: {', '.join(PLATFORMS)}, or a version such as tensorrt10.7",
        fix=f"--target {close[0] if close else 'tensorrt10'}",
    )


def dotted(version: Version) -> str:
    """10.3 for (10, 3)."""
    return ".".join(map(str, version))


# Boards without a deep learning accelerator (DLA), by what their names contain once dashes are spaces; how many cores
# another one has, the builder tells.
WITHOUT_DLA: Mapping[str, str] = {
    "orin nano": "Jetson Orin Nano has no DLA",
    "thor": "TensorRT 11.4.1 serves the DLA of AGX Orin only (Jetson migration page)",
}
# The first version of TensorRT that builds for none, the first that does again.
DLA_GAP: tuple[Version, Version] = (10, 8), (11, 4, 1)


def missing_dla(version: Version, board: str | None) -> str | None:
    """Why TensorRT `version` cannot build for an accelerator on `board`; None where it may.

    `board` is the name in the device tree or that of a platform of `vitdeploy check`, None for any other machine.
    """
    if board is None:
        return "only Jetson modules have a DLA"
    name = board.lower().replace("-", " ")
    lacking = next((reason for part, reason in WITHOUT_DLA.items() if part in name), None)
    if lacking:
        return lacking
    if DLA_GAP[0] <= version < DLA_GAP[1]:
        return f"TensorRT {dotted(version)} has none: 10.7 was the last, 11.4.1 is the next"
    return None


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
