"""A C++ program that classifies images as the bundle does: CMake, a source for each runtime, constants in a header."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.bundle import MODEL, TensorSpec
from vitdeploy.errors import UsageError
from vitdeploy.machine.settings import ONNXRUNTIME_EXACT, OPENVINO_EXACT
from vitdeploy.preprocess.recipe import GREY, Preprocessing
from vitdeploy.proof.parity import BOUNDS
from vitdeploy.serving.content import Content, Destination, File, Request, octal
from vitdeploy.serving.trtexec import ENGINE, build_scripts, profile

HEADER, INPUTS, OUTPUTS = "model.hpp", "reference/inputs.bin", "reference/outputs.bin"

_SOURCES = {
    "CMakeLists.txt": "how it is built; `-DRUNTIME=onnxruntime`, `openvino` or `tensorrt`",
    "main.cpp": "the program",
    "image.hpp": "reading JPEG and PNG",
    "image.cpp": "reading JPEG and PNG, with libjpeg and libpng",
    "preprocess.hpp": "the recorded preprocessing",
    "preprocess.cpp": "the recorded preprocessing, bit for bit as Pillow and numpy compute it",
    "network.hpp": "what a runtime does",
    "overflow.hpp": "whether INT8 overflows on this processor",
    "onnxruntime.cpp": "ONNX Runtime",
    "openvino.cpp": "OpenVINO, on the CPU",
    "tensorrt.cpp": "TensorRT 8.5 and newer",
}
_FOLDER = Path(__file__).parent / "project"


def write(request: Request) -> Content:
    """The sources, the constants, the model and the reference as raw files."""
    image, logits, recipe = request.classifier("a C++ project")
    for spec in (image, logits):
        if spec.dtype not in ("float32", "uint8"):
            raise UsageError(
                f"the C++ project takes no {spec.dtype}",
                why=f"{spec} would need types that C++ does not have",
                fix="--to triton, which takes every bundle",
            )
    inputs, outputs = request.reference.inputs[image.name], request.reference.outputs[logits.name]
    files = {name: File((_FOLDER / name).read_bytes(), about) for name, about in _SOURCES.items()}
    for name, words in (("onnxruntime.cpp", ONNXRUNTIME_EXACT), ("openvino.cpp", [OPENVINO_EXACT])):
        files[name] = _filled(files[name], ", ".join(map(_text, words)))
    files |= {
        HEADER: File(_header(request, image, logits, recipe, len(inputs)).encode("utf-8", "replace"), "the constants"),
        MODEL: File(request.model, "the bundle's model"),
        INPUTS: File(_raw(inputs, image.dtype), "inputs of the reference, one after another"),
        OUTPUTS: File(_raw(outputs, "float32"), "what PyTorch made of them, float32"),
        **build_scripts(request, request.model, profile(request)[-1]),
    }
    return Content(
        files=files,
        start=[
            "apt-get install cmake g++ libjpeg-dev libpng-dev",
            "cmake -B build -DRUNTIME=onnxruntime && cmake --build build",
            "build/classify --check           # 0: the outputs are those of PyTorch, 1: they are not",
            "build/classify photo.jpg",
        ],
        differs=list(_differs(request)),
        told=[
            "ONNX Runtime: `-DONNXRUNTIME_INCLUDE=` is the folder of `onnxruntime_cxx_api.h` and "
            "`-DONNXRUNTIME_LIBRARY=` the file `libonnxruntime.so`, of a release of ONNX Runtime or of Debian's "
            "`libonnxruntime-dev` (Debian 13). The Python package has the library and no headers.",
            "OpenVINO: the Python package has headers and CMake files, "
            "`-DOpenVINO_DIR=$(python -c 'import openvino; print(openvino.__path__[0])')/cmake`.",
            f"TensorRT: run `trtexec-10.sh`, or that of the installed version, for `{ENGINE}`; `-DTENSORRT_INCLUDE=` "
            "and `-DTENSORRT_LIBRARY=` where CMake does not find it. The source was not compiled with TensorRT yet.",
        ],
        client=False,
    )


def _filled(file: File, text: str) -> File:
    return file._replace(data=file.data.replace(b"@EXACT@", text.encode()))


def _raw(array: np.ndarray[Any, Any], dtype: str) -> bytes:
    return np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<")).tobytes()


def _header(request: Request, image: TensorSpec, logits: TensorSpec, recipe: Preprocessing, references: int) -> str:
    """`model.hpp`: what the sources know of the network."""
    manifest, bounds = request.manifest, BOUNDS[request.manifest.precision]
    pixels = manifest.preprocessing_in_graph
    height, width = recipe.size
    batch = image.shape[0] if isinstance(image.shape[0], int) else 1
    axes = "images, height, width, channels" if pixels else "images, channels, height, width"
    colours = "grey" if recipe.channels == GREY else "rgb" if pixels else recipe.channels.lower()
    mean = recipe.mean[::-1] if recipe.channels == "BGR" else recipe.mean
    border = np.rint(np.asarray(mean) * recipe.scale).clip(0, 255).astype(int).tolist()
    labels = ",\n    ".join(map(_text, request.labels))
    return f"""\
// The constants of the bundle, written by vitdeploy.
#pragma once

#include <array>
#include <cstdint>

namespace model {{

inline constexpr char input[] = {_text(image.name)}, output[] = {_text(logits.name)};
inline constexpr int batch = {batch}, channels = {recipe.depth}, height = {height}, width = {width};
inline constexpr int classes = {len(request.labels)}, references = {references};

// Whether the graph scales and normalises, and takes the pixels as they are.
inline constexpr bool takes_pixels = {str(pixels).lower()};
using Element = {"std::uint8_t" if pixels else "float"};
inline constexpr std::size_t input_elements = std::size_t(channels) * height * width;
inline std::array<std::int64_t, 4> input_shape(std::int64_t images) {{
  return {{{axes}}};
}}

enum class Mode {{ resize_crop, crop_resize, stretch, border }};
enum class Interpolation {{ bicubic, bilinear, bicubic_no_antialias }};
enum class Colours {{ rgb, bgr, grey }};
inline constexpr Mode mode = Mode::{recipe.mode};
inline constexpr Interpolation interpolation = Interpolation::{recipe.interpolation};
inline constexpr Colours colours = Colours::{colours};
inline constexpr double crop_ratio = {recipe.crop_ratio!r};

// In the order of the network's channels; the border, which is the mean as pixels, in that of the image's.
inline constexpr float scale = {_float(recipe.scale)};
inline constexpr std::array<float, channels> mean{{{_floats(recipe.mean)}}};
inline constexpr std::array<float, channels> deviation{{{_floats(recipe.std)}}};
inline constexpr std::array<std::uint8_t, channels> border{{{", ".join(map(str, border))}}};

// What the outputs have to keep, 0 where it is not judged: error over the largest output, and signal to noise.
inline constexpr double max_relative = {bounds.max_relative or 0!r}, min_snr_db = {bounds.min_snr_db or 0!r};

inline constexpr std::array<const char*, classes> labels{{
    {labels},
}};

}}  // namespace model
"""


def _text(text: str) -> str:
    """A literal of a text; what is not printable, which would end its line, is written as bytes in octal digits."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{"".join(letter if letter.isprintable() else octal(letter) for letter in escaped)}"'


def _float(value: float) -> str:
    """The very float32, as a literal."""
    digits = f"{float(np.float32(value)):.9g}"
    return f"{digits}f" if {".", "e"}.intersection(digits) else f"{digits}.0f"


def _floats(values: Iterable[float]) -> str:
    return ", ".join(map(_float, values))


def _differs(request: Request) -> Iterator[str]:
    yield "It reads JPEG and PNG, and no JPEG of CMYK; the bundle's other formats (TIFF, WebP, …) are not read."
    if request.manifest.preprocessing is not None and request.manifest.preprocessing.channels == GREY:
        yield "It refuses PNG of 16-bit grey, of which the bundle keeps all bits."
    if request.manifest.precision == "int8":
        yield (
            "`build/classify --check` reports the error of INT8 and does not judge it; "
            "`vitdeploy validate BUNDLE --data DATA` does."
        )


CPP = Destination("C++", write)
