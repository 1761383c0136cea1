"""Versions that are known to compute wrong numbers, to fail or to be slow, as data. Each row names where it is from.

`measured` in a source means: seen with vitdeploy's own networks, on the versions that the row names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vitdeploy.platforms.versions import version_matches

WRONG, FAILS, SLOW = "wrong numbers", "does not work", "slow"


@dataclass(frozen=True)
class KnownBad:
    """One row.

    package   `tensorrt`, `onnxruntime`, `openvino` or `numpy`
    versions  comma-separated conditions, e.g. `>=10.4,<10.6`; empty for every version
    effect    WRONG, FAILS or SLOW
    affects   the graphs or the use that it hits
    symptom   what one sees
    advice    what to do
    issue     the issue or pull request, `owner/repository#number`; empty where there is none
    source    where the row is from
    sm, jetson, jetpack, architecture, lacks, has
              where it applies: ten times the compute capability, any Jetson, versions of JetPack, the processor, a
              property (`vnni`, `bf16`, `gpu`) that is missing or there; empty means everywhere
    """

    package: str
    versions: str
    effect: str
    affects: str
    symptom: str
    advice: str
    issue: str = ""
    source: str = "issue thread"
    sm: tuple[int, ...] = ()
    jetson: bool = False
    jetpack: str = ""
    architecture: str = ""
    lacks: str = ""
    has: str = ""


@dataclass(frozen=True)
class Circumstances:
    """What the conditions of a row are held against: versions of packages, and the machine."""

    versions: Mapping[str, str]
    sm: tuple[int, ...] = ()
    jetson: bool = False
    jetpack: str | None = None
    architecture: str = ""
    properties: Mapping[str, bool] = field(default_factory=dict)


_VERIFY = "`vitdeploy verify BUNDLE --runtime {}` on this machine before it is used"
_NEWER = "a newer TensorRT; `vitdeploy verify BUNDLE` shows whether this network is hit"
_MEASURED = "measured: OpenVINO 2026.4.1 against ONNX Runtime 1.31.1 on the same file"

KNOWN_BAD: tuple[KnownBad, ...] = (
    KnownBad(
        "tensorrt",
        ">=10.0",
        WRONG,
        "FP16 and bf16 attention on consumer Blackwell",
        "the fused attention kernel is wrong from the first block on; still so in 10.16.1, and trtexec reports success",
        "keep attention from fusing (a Cast between the products) or compute it in FP32; " + _VERIFY.format("tensorrt"),
        "NVIDIA/TensorRT#4837",
        sm=(120,),
    ),
    KnownBad(
        "tensorrt",
        "==10.16.*",
        WRONG,
        "FP16",
        "every output is NaN",
        "FP32, or another version",
        "NVIDIA/TensorRT#4748",
        sm=(120,),
    ),
    KnownBad(
        "tensorrt",
        ">=10.4,<10.6",
        WRONG,
        "DEIMv2 and other DINOv3 backbones",
        "no detections",
        "10.6 or newer",
        "Intellindust/DEIMv2#112",
    ),
    KnownBad(
        "tensorrt",
        "==10.4.*",
        WRONG,
        "DINOv3 ViT-B/16, even in FP32",
        "cosine 0.018 to the reference; NaN in FP16; no workaround is known",
        "another version",
        "NVIDIA/TensorRT#4742",
    ),
    KnownBad(
        "tensorrt",
        "==10.3.*",
        WRONG,
        "DINOv3 segmentation in FP16",
        "one class everywhere; 8.6.1 is right",
        "FP32 for the blocks that diverge; " + _VERIFY.format("tensorrt"),
        "NVIDIA/TensorRT#4723",
    ),
    KnownBad(
        "tensorrt",
        "==10.7.*",
        WRONG,
        "attention exported as scaled_dot_product_attention",
        "miscompiled; written out as MatMul, Softmax, MatMul it is right",
        "export with vitdeploy, which writes attention out; be wary of other ONNX files",
        "NVIDIA/TensorRT#4333",
    ),
    KnownBad(
        "tensorrt",
        "==10.11.*",
        WRONG,
        "attention exported as scaled_dot_product_attention (reported on Windows)",
        "miscompiled",
        "export with vitdeploy, which writes attention out; be wary of other ONNX files",
        "NVIDIA/TensorRT#4482",
    ),
    KnownBad(
        "tensorrt",
        "==10.0.*",
        WRONG,
        "FP16 (NAFNet)",
        "outputs far from FP32",
        _NEWER,
        "NVIDIA/TensorRT#3897",
    ),
    KnownBad(
        "tensorrt",
        ">=10.0",
        WRONG,
        "FP16 attention over more than 65,504 keys",
        "the fused kernel sums the softmax in FP16 and overflows",
        "keep those blocks in FP32: `vitdeploy export MODEL --fp16` does so by itself",
        "tier4/autoware-ml#95",
    ),
    KnownBad(
        "tensorrt",
        "<8.6",
        WRONG,
        "FP16 layer norm",
        "it overflows: there is no normalization layer before 8.6",
        "export it with --target tensorrt8, which keeps layer norms in FP32",
        "NVIDIA/TensorRT#2564",
    ),
    KnownBad(
        "tensorrt",
        "==8.6.*",
        WRONG,
        "FP16 layer norm of some networks",
        "its normalization layer is right for BERT and still wrong for RoBERTa",
        "export it with --target tensorrt8, which keeps layer norms in FP32",
        "NVIDIA/TensorRT#3101",
    ),
    KnownBad(
        "tensorrt",
        "==10.10.*",
        WRONG,
        "FP16 layer norm",
        "LayerNormalization of opset 17 alone does not keep the accuracy",
        "keep layer norms in FP32 if " + _VERIFY.format("tensorrt") + " fails",
        "NVIDIA/TensorRT#4493",
    ),
    KnownBad(
        "tensorrt",
        "==10.2.0",
        FAILS,
        "every build",
        "it looks for libnvinfer_builder_resource_win.so.10.2.0, which Linux does not have",
        "another version",
        "ultralytics/ultralytics#24367",
        "pull request that excludes the version",
    ),
    KnownBad(
        "tensorrt",
        ">=10.5,<11.0",
        FAILS,
        "the TensorRT wheels of PyPI on a Jetson with JetPack 6",
        "they are built for Arm servers, not for Orin",
        "sudo apt-get install tensorrt python3-libnvinfer, NVIDIA's packages for the device",
        "NVIDIA/TensorRT#4176",
        jetpack=">=6,<7",
    ),
    KnownBad(
        "tensorrt",
        ">=11.0,<11.4.1",
        FAILS,
        "Jetson",
        "these versions have no JetPack build and no DLA",
        "TensorRT 11.4.1 with JetPack 7.2.2, or the version that JetPack installs",
        source="TensorRT 11.4.1 Jetson migration page",
        jetson=True,
    ),
    KnownBad(
        "tensorrt",
        ">=11.4.1",
        FAILS,
        "Orin with JetPack 6",
        "TensorRT 11 does not support it",
        "JetPack 7.2.2, or the TensorRT 10.3 of JetPack 6",
        source="TensorRT 11.4.1 Jetson migration page",
        jetpack="<7",
    ),
    KnownBad(
        "tensorrt",
        "==8.6.*",
        SLOW,
        "attention on Orin",
        "no fused kernel, although the same version has one on x86",
        "JetPack 6.1 or newer (TensorRT 10.3)",
        "NVIDIA/TensorRT#3575",
        sm=(87,),
    ),
    KnownBad(
        "tensorrt",
        "==8.6.*",
        SLOW,
        "INT8 attention on Orin",
        "800 us in INT8 against 200 us in FP16",
        "leave attention in FP16",
        "NVIDIA/TensorRT#3243",
        sm=(87,),
    ),
    KnownBad(
        "tensorrt",
        "==10.3.*",
        SLOW,
        "INT8 attention on Orin",
        "attention is fused in FP16 and not in INT8",
        "leave attention in FP16",
        "NVIDIA/TensorRT#4167",
        sm=(87,),
    ),
    KnownBad(
        "onnxruntime",
        "<=1.24.4",
        SLOW,
        "the ONNX operator Attention (opset 23) on a GPU",
        "it runs on the CPU whatever execution provider was asked for",
        "export with vitdeploy, which ships MatMul, Softmax, MatMul; or a newer ONNX Runtime",
        "microsoft/onnxruntime#28025",
        "issue thread; fixed by microsoft/onnxruntime#27542",
        has="gpu",
    ),
    KnownBad(
        "onnxruntime",
        "",
        WRONG,
        "INT8 on a CPU without VNNI, in programs that open the file themselves",
        "pairs of products are added in 16 bits and overflow: 43 dB where the file keeps 71",
        "the session's entry session.x64quantprecision = 1, as vitdeploy's sessions have it",
        source="ONNX Runtime documentation, quantization; measured: 1.31.1 on an EPYC with AVX2",
        architecture="x86_64",
        lacks="vnni",
    ),
    KnownBad(
        "openvino",
        "",
        WRONG,
        "INT8 on a CPU without VNNI, in programs that open the file themselves",
        "pairs of products are added in 16 bits and overflow: 37 dB where the file keeps 71, and no faster than FP32",
        "the FP32 bundle, as vitdeploy's sessions compute INT8 ones in FP32 there",
        source="OpenVINO documentation, saturation issue; measured: 2026.4.1 on an EPYC with AVX2",
        architecture="x86_64",
        lacks="vnni",
    ),
    KnownBad(
        "openvino",
        "==2026.4.*",
        WRONG,
        "INT8: BatchNormalization, Reshape, ReduceMean, Add with a Q/DQ pair anywhere in the graph",
        "-4 dB on six nodes; exact without Q/DQ or without the Reshape",
        "export with vitdeploy, which folds that BatchNormalization behind the mean",
        source=_MEASURED,
    ),
    KnownBad(
        "openvino",
        "==2026.4.*",
        WRONG,
        "INT8: Q/DQ on LayerNormalization, on the Mul or Div of an erf GELU, or after a dense convolution",
        "another function is computed: -266, 3 and 3 dB where ONNX Runtime keeps 18 dB and more",
        "Q/DQ on the inputs of linear layers and convolutions only; " + _VERIFY.format("openvino"),
        source=_MEASURED,
    ),
    KnownBad(
        "openvino",
        "==2026.4.*",
        FAILS,
        "INT8 with asymmetric unsigned activations and per-channel weights at a fixed batch of 1",
        "compilation ends in Check 'any_of(scale.size(), OC, 1U)' failed",
        "symmetric signed activations",
        source=_MEASURED,
    ),
    KnownBad(
        "openvino",
        "==2025.*",
        WRONG,
        "the ONNX operator Attention with a mask or of rank 3",
        "the front end reads the mask from another input and ignores q_num_heads",
        "export with vitdeploy, which ships MatMul, Softmax, MatMul",
        source="OpenVINO source, onnx/frontend/src/op/attention.cpp",
    ),
    KnownBad(
        "openvino",
        "",
        WRONG,
        "programs that call OpenVINO themselves on a CPU with bf16",
        "it computes in bf16 by default, which is far coarser than the FP32 of the graph",
        "INFERENCE_PRECISION_HINT f32, which vitdeploy.load sets",
        source="measured: OpenVINO 2026.4.1 on a CPU with AVX512-BF16",
        has="bf16",
    ),
    KnownBad(
        "openvino",
        "",
        SLOW,
        "attention on Arm",
        "it is not fused: the fusing transformation is switched off there",
        "vitdeploy benchmark BUNDLE --runtime all, and the faster runtime",
        source="OpenVINO source, intel_cpu transformation_pipeline.cpp",
        architecture="aarch64",
    ),
    KnownBad(
        "numpy",
        ">=2.0",
        FAILS,
        "wheels built for JetPack 6, such as its torch and onnxruntime-gpu",
        "they were built against numpy 1 and fail on import",
        "pip install 'numpy<2'",
        "ultralytics/ultralytics#19134",
        jetpack=">=6,<7",
    ),
)


def matching_rows(circumstances: Circumstances, rows: tuple[KnownBad, ...] = KNOWN_BAD) -> list[tuple[KnownBad, str]]:
    """The rows that apply, worst effect first, each with the installed version that it names."""
    order = (WRONG, FAILS, SLOW)
    found = [(row, circumstances.versions[row.package]) for row in rows if _applies(row, circumstances)]
    return sorted(found, key=lambda pair: order.index(pair[0].effect))


def _applies(row: KnownBad, here: Circumstances) -> bool:
    version = here.versions.get(row.package)
    properties = here.properties
    return (
        version is not None
        and version_matches(version, row.versions)
        and (not row.sm or bool(set(row.sm) & set(here.sm)))
        and (not row.jetson or here.jetson)
        and (not row.jetpack or (here.jetpack is not None and version_matches(here.jetpack, row.jetpack)))
        and (not row.architecture or row.architecture == here.architecture)
        and (not row.lacks or properties.get(row.lacks) is False)
        and (not row.has or properties.get(row.has) is True)
    )
