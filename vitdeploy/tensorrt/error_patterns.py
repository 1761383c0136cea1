"""What TensorRT's parser, builder and runtime say when they refuse a model, what it means, and what to do: as data."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorPattern:
    """One row: a pattern of what is said, the cause in words, and the next thing to do.

    In `fix`, `{version}` stands for TensorRT's version (10.3), and `{0}`, `{1}` for the groups of the pattern.
    """

    pattern: str
    cause: str
    fix: str


_CHECK = "vitdeploy check BUNDLE --target tensorrt{version}, which says what to change"

# The first that matches counts: causes before consequences.
ERROR_PATTERNS: tuple[ErrorPattern, ...] = (
    ErrorPattern(
        r"driver version is insufficient|CUDA initialization failure with error: 35|Cuda failure: 35\b",
        "the driver is older than the CUDA that this TensorRT was built with, or there is none",
        "a newer driver; on a Jetson the TensorRT of its own JetPack: sudo apt-get install tensorrt",
    ),
    ErrorPattern(
        r"no CUDA-capable|CUDA initialization failure with error: 100|Cuda failure: 100\b",
        "the driver sees no GPU",
        "nvidia-smi; in a container --runtime nvidia or --gpus all; CUDA_VISIBLE_DEVICES",
    ),
    ErrorPattern(
        r"libnvinfer_builder_resource",
        "this TensorRT lacks a library, as 10.2.0 does (ultralytics/ultralytics#24367)",
        "another version of TensorRT",
    ),
    ErrorPattern(
        r"Unable to (?:load|open) library: ?(\S+)|error while loading shared libraries: (\S+?):",
        "a library that TensorRT loads while it builds is missing",
        "vitdeploy doctor; LD_LIBRARY_PATH has to hold CUDA's lib64",
    ),
    ErrorPattern(
        r"(?:Target GPU )?SM ?\d+.*(?:not|un)\s?supported|[Uu]nsupported SM|compute capability.*not supported",
        "this TensorRT has no kernels for this GPU",
        "a newer TensorRT for a newer GPU, an older one for an older GPU: see its support matrix",
    ),
    ErrorPattern(
        r"Found unsupported input type of (\w+)|with the given input data type (\w+)|input has type (\w+) but must have"
        r"|Failed to convert ONNX dat[ae] type",
        "an operator of the graph does not take an element type",
        "a Cast to float32 or float16 before it",
    ),
    ErrorPattern(
        r"Failed to convert ONNX dimensions",
        "a tensor has more axes than TensorRT takes, which is 8",
        "Reshape to 8 axes or fewer",
    ),
    ErrorPattern(
        r"Attention operation was not supported by a dedicated kernel",
        "the operator Attention has no kernel for these types and sizes",
        "vitdeploy export SOURCE --fp16, which writes MatMul, Softmax, MatMul",
    ),
    ErrorPattern(
        r"(?:UNSUPPORTED_NODE[\s\S]*?)?No importer registered for op: ?(\w+)|UNSUPPORTED_NODE"
        r"|getPluginCreator could not find plugin:? ?(\w*)|Plugin not found"
        r"|(\w+) plugin creator version \d+ was not found",
        "this version of TensorRT does not know an operator of the graph",
        _CHECK,
    ),
    ErrorPattern(
        r"[Uu]nsupported (?:ONNX )?(?:opset|IR version)|opset version.*not supported|ONNX IR version.*newer",
        "the graph's opset is newer than this parser",
        "vitdeploy export SOURCE --target tensorrt8 (opset 17), or a newer TensorRT",
    ),
    ErrorPattern(
        r"[Uu]nsupported (?:ONNX )?data ?type|UNSUPPORTED_DATATYPE",
        "this version of TensorRT does not know an element type of the graph",
        "vitdeploy export SOURCE --fp16; bfloat16 and int64 take TensorRT 10",
    ),
    ErrorPattern(
        r"[Zz]ero.?point.*(?:must|should|only).*(?:0|zero)|[Aa]symmetric quantization",
        "TensorRT takes symmetric quantization only: zero points of 0",
        "vitdeploy export SOURCE --int8 --target tensorrt10, which quantizes so",
    ),
    ErrorPattern(
        r"TopK.*(?:3840|exceed)|K (?:value )?(?:not supported|exceeds)",
        "TopK takes fewer than 3840 elements, and their number as a constant",
        "export it with a smaller --image-size, or with the model's own number of kept tokens",
    ),
    ErrorPattern(
        r"[Ss]trongly[- ]typed.*(?:type|precision)|(?:must|should) have (?:the )?same (?:data )?types?|type mismatch",
        "operands of different types meet, which a strongly typed network does not convert by itself",
        "vitdeploy export MODEL, which writes the Cast; a graph from elsewhere needs it too",
    ),
    ErrorPattern(
        r"no optimization profile (?:has been )?defined|profile.*(?:kMIN|kOPT|kMAX|min|max).*(?:not|invalid|exceed)"
        r"|optimization profile.*(?:invalid|not valid)",
        "the profile does not fit the graph's free axes",
        "--profile MIN,OPT,MAX; or vitdeploy export MODEL --batch 1, which needs none",
    ),
    ErrorPattern(
        r"DLA.*(?:not (?:supported|available)|fail|invalid|exceed)|(?:not (?:supported|available)|fail).*DLA",
        "the deep learning accelerator does not take what it was given",
        "leave out --dla: attention, layer norm and GELU run on the GPU anyway",
    ),
    ErrorPattern(
        r"[Nn]o space left on device",
        "the disk is full",
        "free some space, or --cache on another disk",
    ),
    ErrorPattern(
        r"out of memory|OutOfMemory|insufficient memory|Cuda failure: 2\b|bad_alloc|Requested amount of GPU memory",
        "not enough memory; on a Jetson the CPU's and the GPU's are the same",
        "stop other programs, --workspace 512M, a smaller --profile, or export with --batch 1",
    ),
    ErrorPattern(
        r"[Cc]ould not find any implementation for node (.+?)(?: due to|\.?\s*$)",
        "no kernel computes this part in these types with the workspace it may take",
        "--workspace 4G where memory allows; else " + _CHECK,
    ),
    ErrorPattern(
        r"magic ?[Tt]ag|[Vv]ersion tag|[Ss]erialization (?:assertion|[Ee]rror)|stdVersionRead|not compatible with",
        "the engine is of another version of TensorRT, or of another GPU",
        "vitdeploy build BUNDLE --rebuild",
    ),
    ErrorPattern(
        r"illegal (?:memory access|instruction)|misaligned address|unspecified launch failure"
        r"|Cuda failure: (?:700|719)\b",
        "a kernel that TensorRT chose crashed",
        "`vitdeploy build BUNDLE --rebuild` with a new --timing-cache; `vitdeploy doctor` names versions that are "
        "known to be bad",
    ),
    ErrorPattern(
        r"[Tt]iming cache.*(?:mismatch|incompatible|not.*valid)",
        "the timing cache is of another TensorRT or another GPU",
        "another --timing-cache, or none",
    ),
    ErrorPattern(
        r"INVALID_(?:GRAPH|NODE|VALUE)|[Aa]ssertion failed|Could not parse ONNX|Failed to parse ONNX",
        "the parser does not accept a part of the graph",
        _CHECK,
    ),
    ErrorPattern(r"[Uu]nsupported|[Nn]ot supported", "this version of TensorRT does not do a part of this", _CHECK),
)


def explain(said: str, version: str) -> tuple[str | None, str]:
    """The cause and what to do for what TensorRT `version` (10.3.0) said; without a cause where no row matches."""
    short = ".".join(re.findall(r"\d+", version)[:2])
    for row in ERROR_PATTERNS:
        found = re.search(row.pattern, said, re.MULTILINE)
        if found:
            named = next((group for group in found.groups() if group), None)
            return f"{row.cause}: {named}" if named else row.cause, row.fix.replace("{version}", short)
    return None, _CHECK.replace("{version}", short)
