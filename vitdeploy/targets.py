"""What each target can do, as data. A row here is all that lowering, passes, precision and INT8 know of a target.

Sources are named in every row: `parser` is onnx-tensorrt's operator table, `guide` the TensorRT developer guide's page
on fused attention, numbers are issues of the project named. A package adds a target by an entry point of the group
`vitdeploy.targets` that names a `Target`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vitdeploy.graph.qdq import S8, U8, QScheme
from vitdeploy.registry import Registry

# The runtimes that read a file by NVIDIA's parser, and make an engine of it.
NVIDIA = frozenset({"tensorrt", "tensorrt_rtx"})


@dataclass(frozen=True)
class Int8Rules:
    """Where a target wants 8-bit integers.

    Attributes:
        activation: Scheme of what linear layers and convolutions read.
        attention: Scheme of what the two products of attention read; None leaves them in float.
        convolution_output: Convolutions also write integers, where the integer kernel does nothing else.
        int32_bias: A bias is an integer too (scale of the input times scale of the weight), where the integer kernel
            takes no other.
        pair_per_consumer: Each layer gets a Q/DQ pair of its own, even where several read one tensor.
        min_channels: Products narrower than this on either side stay in float.
        min_convolution_inputs: Convolutions of fewer input channels stay in float.
        joined_convolutions: Convolutions may read integers of maps that were concatenated.
        half_rest: What is not quantized computes in FP16, for builders that take the precision from the graph alone.
        packed_heads: Queries, keys and values are cut apart once their heads are laid out.
        pair_on_weight: Weights ship as float with a Q/DQ pair, for readers that take no integer initializer.
        source: Where the facts are from.
    """

    activation: QScheme = S8
    attention: QScheme | None = None
    convolution_output: bool = False
    int32_bias: bool = False
    pair_per_consumer: bool = False
    min_channels: int = 16
    min_convolution_inputs: int = 1
    joined_convolutions: bool = True
    half_rest: bool = False
    packed_heads: bool = False
    pair_on_weight: bool = False
    source: str = ""


@dataclass(frozen=True)
class Target:
    """One deployment target.

    Attributes:
        name: What `--target` calls it.
        opset: ONNX opset of what ships.
        deconvolution: Forms in order of preference; the first that fits the node is taken: `broadcast` (kernel equals
            stride, one channel a group), `depth_to_space` (kernel equals stride), `conv_transpose`, `resize_conv`.
        min_deconvolution_group: Fewest channels a group of ConvTranspose may have on either side; smaller ones take
            another form.
        gelu: `erf` (decomposed, the pattern the target fuses) or `gelu` (one operator, opset 20).
        layer_norm: `operator` (LayerNormalization, opset 17) or `decomposed`, kept FP32.
        key_transpose: `merged` (one Transpose of the keys) or `apart` (heads first, then the last two axes).
        projections: `fused` (queries, keys and values by one GEMM and a Split) or `separate`.
        drops_batch: Tokens are [N, C] and heads [h, N, d] where the batch is fixed at 1.
        linear: How linear layers are written: `matmul` (MatMul and Add) or `gemm`, tokens being rows of a matrix.
        channels_last_maps: Tokens become a map by [B, H, W, C] (or by [B, C, HW]).
        projection_bias: Where the bias of queries, keys and values is added: in the `projection`, or what is left of it
            by the `heads`.
        columns_at_once: Linear layers that read what another one reads have a multiple of so many columns.
        absorbs_projections: The precisions in which, between few tokens and many, the linear layers of the many are
            multiplied with what the few give.
        shared_streams: What token streams of the same weights have in common: their `linear` layers, or their
            `attention` too, under a mask; `short attention` where there are few tokens in all.
        runtimes: The runtimes that the file is for, the first of which proves every export.
        native: The runtime whose own files are written beside model.onnx, if there is one.
        int8: Where the target wants 8-bit integers; None for a target that takes no INT8.
        description: One line about it.
        source: Where the facts are from.
    """

    name: str
    opset: int
    deconvolution: tuple[str, ...] = ("depth_to_space", "conv_transpose", "resize_conv")
    min_deconvolution_group: int = 1
    gelu: str = "erf"
    layer_norm: str = "operator"
    key_transpose: str = "merged"
    projections: str = "fused"
    drops_batch: bool = False
    linear: str = "matmul"
    channels_last_maps: bool = False
    projection_bias: str = "projection"
    columns_at_once: int = 1
    absorbs_projections: tuple[str, ...] = ()
    shared_streams: str = "linear"
    runtimes: tuple[str, ...] = ("onnxruntime", "openvino", "tensorrt")
    native: str | None = None
    int8: Int8Rules | None = None
    description: str = ""
    source: str = ""

    @property
    def for_nvidia(self) -> bool:
        """Whether NVIDIA's parser may be what reads the file."""
        return bool(NVIDIA & set(self.runtimes))

    @property
    def for_nvidia_alone(self) -> bool:
        """Whether nothing but NVIDIA's parser reads the file."""
        return self.for_nvidia and set(self.runtimes) <= NVIDIA


_JOINED = (
    "OpenVINO keeps 10 to 20 dB of a convolution that reads int8 of a Concat, and all of it with anything in between "
    "that the rounding does not absorb (2026.4.1, tests/quantize/test_placement.py)"
)

# What NVIDIA's graph compiler makes the fewest layers of (benchmarks/graph_forms.py, docs/benchmarks.md).
_COMPILED: dict[str, Any] = {
    "deconvolution": ("broadcast", "depth_to_space", "conv_transpose", "resize_conv"),
    "channels_last_maps": True,
    "projection_bias": "heads",
    "columns_at_once": 8,
    "shared_streams": "attention",
}

_ROWS = (
    Target(
        "portable",
        opset=17,
        min_deconvolution_group=4,
        channels_last_maps=True,
        int8=Int8Rules(
            pair_per_consumer=True,
            joined_convolutions=False,
            source=f"{_JOINED}; TensorRT takes zero points of 0 only (onnx-tensorrt, operators.md); OpenVINO "
            "compiles no asymmetric activations with weights by channel at batch 1 (2026.4); ONNX Runtime turns int8 "
            "into uint8, for which it has MatMulIntegerToFloat, only where a pair has one reader (1.31.1)",
        ),
        description="one file for ONNX Runtime, OpenVINO and TensorRT 8.6 and newer",
        source="opset 17 is the oldest with LayerNormalization and the newest that TensorRT 8.6 reads (parser 8.6); "
        "channels_last_maps as for openvino: 1.00x the time in ONNX Runtime, where key_transpose `apart` took 1.02x; "
        "no absorbs_projections, which is faster in FP32 and no ground for the quantizers of others: of such a file "
        "NNCF 3.4.0 makes one that ONNX Runtime 1.31.1 cannot run, and its preset for transformers stops",
    ),
    Target(
        "onnxruntime",
        opset=20,
        gelu="gelu",
        projections="separate",
        drops_batch=True,
        linear="gemm",
        channels_last_maps=True,
        shared_streams="short attention",
        absorbs_projections=("fp32", "fp16"),
        runtimes=("onnxruntime",),
        int8=Int8Rules(
            activation=U8,
            convolution_output=True,
            min_convolution_inputs=16,
            int32_bias=True,
            source="QGemm takes 5.7 ms of u8 x s8 and 22.7 ms of s8 x s8 (LeMeViT-Tiny, 1.31.1), and a bias only as "
            "int32; Conv becomes QLinearConv only between Q and DQ (qdq_selectors.cc), which takes 370 us for 3 input "
            "channels where Conv takes 208 us",
        ),
        description="ONNX Runtime 1.17 and newer",
        source="CPU kernels for Gelu (opset 20) and LayerNormalization (opset 17); ConvTranspose takes any group; the "
        "CPU kernel of Attention (opset 23) took 1.01 and 1.03 of the time of MatMul and Softmax for LeMeViT-Tiny and "
        "CageViT-Tiny at 224 (ONNX Runtime 1.31.1, median of 60 interleaved rounds); forms of linear layers, maps and "
        "batch: docs/benchmarks.md, rewrites that were measured",
    ),
    Target(
        "openvino",
        opset=17,
        key_transpose="apart",
        channels_last_maps=True,
        absorbs_projections=("fp32", "fp16"),
        runtimes=("openvino",),
        native="openvino",
        int8=Int8Rules(joined_convolutions=False, source=f"as portable; {_JOINED}"),
        description="OpenVINO 2025 and newer, written as model.xml too",
        source="Snippets fuse MatMul, Softmax, MatMul on rank 4 with transpose_b; the front end reads Attention's mask "
        "from another input (onnx/frontend/src/op/attention.cpp), hence the decomposed form; of the keys' two "
        "Transposes the plugin reads one as transpose_b (docs/benchmarks.md, rewrites that were measured)",
    ),
    Target(
        "tensorrt8",
        opset=17,
        min_deconvolution_group=4,
        runtimes=("tensorrt",),
        int8=Int8Rules(
            packed_heads=True,
            pair_on_weight=True,
            source="the parser of 8.6 takes no int8 initializers as weights; packed_heads as tensorrt10",
        ),
        description="TensorRT 8.5 and 8.6 (JetPack 5.1 and 6.0)",
        layer_norm="decomposed",
        source="8.5 has no INormalizationLayer, and its FP16 layer norm overflows (NVIDIA/TensorRT#2564), hence "
        "primitives in FP32; ConvTranspose groups NVIDIA/TensorRT#1934",
        **_COMPILED,
    ),
    Target(
        "tensorrt10",
        opset=19,
        min_deconvolution_group=4,
        runtimes=("tensorrt",),
        int8=Int8Rules(
            half_rest=True,
            packed_heads=True,
            source="Model-Optimizer, int8.py: attention and LayerNorm stay in FP16; a strongly typed network runs in "
            "FP32 whatever the graph types FP32; a Split of columns makes the compiler dequantize the weights at every "
            "call (docs/benchmarks.md)",
        ),
        description="TensorRT 10.3 (JetPack 6.1) to 10.16 (JetPack 7.2)",
        source="guide: scale before the first product, no Cast or Reshape between the two; parser 10.1 reads opset 9 "
        "to 20, and Q/DQ are of FP16 since opset 19; erf GELU is the pattern fused by every 10.x",
        **_COMPILED,
    ),
    Target(
        "tensorrt11",
        opset=20,
        gelu="gelu",
        runtimes=("tensorrt",),
        int8=Int8Rules(half_rest=True, packed_heads=True, source="as tensorrt10"),
        description="TensorRT 11 (JetPack 7.2.2 and newer, by hand), strongly typed only",
        source="migration guide 11.0; IAttention fails the build where no fused kernel exists (NvInfer.h), hence "
        "primitives",
        **_COMPILED,
    ),
    Target(
        "tensorrt_rtx",
        opset=20,
        gelu="gelu",
        runtimes=("tensorrt_rtx",),
        int8=Int8Rules(
            half_rest=True, packed_heads=True, source="as tensorrt10: its networks are strongly typed, all of them"
        ),
        description="TensorRT for RTX 1.7; its engines are built on a CPU",
        source="parser of 1.7.1, asked: opset 17 to 25, Gelu, ConvTranspose of any group; opset 20 is that of the "
        "capture; the operator Attention ends the compiler in FP32 (tests/tensorrt/rtx/test_wheels.py), hence "
        "primitives",
        **_COMPILED,
    ),
)

ALIASES = {
    "ort": "onnxruntime",
    "ov": "openvino",
    "trt8": "tensorrt8",
    "trt10": "tensorrt10",
    "trt11": "tensorrt11",
    "trt_rtx": "tensorrt_rtx",
}

_TARGETS: Registry[Target] = Registry(
    "vitdeploy.targets",
    kind="target",
    option="--target",
    kept={row.name: row for row in _ROWS},
    aliases=ALIASES,
)


def list_targets() -> list[str]:
    """List the targets of `export`.

    Returns:
        The names, those of installed packages last; `vitdeploy targets` shows what each stands for.

    Raises:
        PluginError: Two targets of installed packages have the same name.
    """
    return list(_TARGETS.names())


def targets() -> Iterator[Target]:
    """All targets, ours first."""
    return map(_TARGETS.find, _TARGETS.names())


def find_target(name: str) -> Target:
    """The target called `name`; a UsageError lists what exists."""
    return _TARGETS.find(name)
