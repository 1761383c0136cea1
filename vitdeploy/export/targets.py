"""What each target can do, as data. A row here is all that lowering, passes and precision know of a target.

Sources are named in every row: `parser` is onnx-tensorrt's operator table, `guide` the TensorRT developer guide's page
on fused attention, numbers are issues of the project named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from vitdeploy.errors import UsageError


@dataclass(frozen=True)
class Target:
    """One deployment target.

    opset          ONNX opset of what ships
    attention      `matmul` (MatMul, Softmax, MatMul on rank 4, scale on the query) or `attention` (ONNX, opset 23)
    deconvolution  forms in order of preference; the first that fits the node is taken:
                   `depth_to_space` (kernel equals stride), `conv_transpose`, `resize_conv`
    min_deconvolution_group  fewest channels a group of ConvTranspose may have on either side; smaller ones take
                   another form
    gelu           `erf` (decomposed, the pattern the target fuses) or `gelu` (one operator, opset 20)
    layer_norm     `operator` (LayerNormalization, opset 17) or `decomposed`, kept FP32
    key_transpose  `merged` (one Transpose of the keys) or `apart` (heads first, then the last two axes)
    projections    `fused` (queries, keys and values by one GEMM and a Split) or `separate`
    drops_batch    tokens are [N, C] and heads [h, N, d] where the batch is fixed at 1
    linear         of matrices: `matmul` (MatMul and Add) or `gemm`
    channels_last_maps  tokens become a map by [B, H, W, C] (or by [B, C, HW])
    source         where the facts are from
    """

    name: str
    opset: int
    attention: str = "matmul"
    deconvolution: tuple[str, ...] = ("depth_to_space", "conv_transpose", "resize_conv")
    min_deconvolution_group: int = 1
    gelu: str = "erf"
    layer_norm: str = "operator"
    key_transpose: str = "merged"
    projections: str = "fused"
    drops_batch: bool = False
    linear: str = "matmul"
    channels_last_maps: bool = False
    runtimes: tuple[str, ...] = ("onnxruntime", "openvino", "tensorrt")
    description: str = ""
    source: str = ""


_ROWS = (
    Target(
        "portable",
        opset=17,
        min_deconvolution_group=4,
        channels_last_maps=True,
        description="one file for ONNX Runtime, OpenVINO and TensorRT 8.6 and newer",
        source="opset 17 is the oldest with LayerNormalization and the newest that TensorRT 8.6 reads (parser 8.6); "
        "channels_last_maps as for openvino, 1.00 of the time in ONNX Runtime; where key_transpose apart took 1.02",
    ),
    Target(
        "onnxruntime",
        opset=20,
        gelu="gelu",
        projections="separate",
        drops_batch=True,
        linear="gemm",
        channels_last_maps=True,
        runtimes=("onnxruntime",),
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
        runtimes=("openvino",),
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
        description="TensorRT 8.5 and 8.6 (JetPack 5.1 and 6.0)",
        layer_norm="decomposed",
        source="8.5 has no INormalizationLayer, and its FP16 layer norm overflows (NVIDIA/TensorRT#2564), hence "
        "primitives in FP32; ConvTranspose groups NVIDIA/TensorRT#1934",
    ),
    Target(
        "tensorrt10",
        opset=19,
        min_deconvolution_group=4,
        runtimes=("tensorrt",),
        description="TensorRT 10.3 (JetPack 6.1, 6.2) to 10.16",
        source="guide: scale before the first product, no Cast or Reshape between the two; parser 10.1 reads opset 9 "
        "to 20, and Q/DQ are of FP16 since opset 19; erf GELU is the pattern fused by every 10.x",
    ),
    Target(
        "tensorrt11",
        opset=20,
        gelu="gelu",
        runtimes=("tensorrt",),
        description="TensorRT 11 (JetPack 7.2.2 and newer), strongly typed only",
        source="migration guide 11.0; IAttention fails the build where no fused kernel exists (NvInfer.h), hence "
        "primitives",
    ),
)

TARGETS: Mapping[str, Target] = {row.name: row for row in _ROWS}


def find_target(name: str) -> Target:
    """The target called `name`; a UsageError lists what exists."""
    if name in TARGETS:
        return TARGETS[name]
    close = get_close_matches(name, TARGETS, n=1)
    raise UsageError(
        f"there is no target called {name!r}",
        why=f"targets: {', '.join(TARGETS)}",
        fix=f"--target {close[0] if close else 'portable'}",
    )
