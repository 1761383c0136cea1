"""The configuration of DeepStream's `nvinfer` for a classifier.

Keys: the table "Gst-nvinfer Property Group Supported Keys" of the page on the plugin. It computes
y = net-scale-factor * (x - offset), with one factor for all channels and an offset for each, and takes float planes.
Its classifier takes the output for probabilities, and drops those below the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from vitdeploy.bundle import MODEL
from vitdeploy.preprocess.recipe import Preprocessing
from vitdeploy.serving.content import Content, Destination, File, Request
from vitdeploy.serving.edits import check_edited, gives_probabilities, output_of, takes_planes
from vitdeploy.serving.trtexec import ENGINE, build_scripts
from vitdeploy.serving.wording import FRAME, interpolation_differs, window

CONFIG, LABELS = "config_infer.txt", "labels.txt"
BATCH = 8

_MODES = {"fp32": 0, "int8": 1, "fp16": 2}
_COLOURS = {"RGB": 0, "BGR": 1, "L": 2}
# NvBufSurfTransform_Inter: bilinear, and what the GPU computes as cubic.
_FILTERS = {"bilinear": 1, "bicubic": 2, "bicubic_no_antialias": 2}


def write(request: Request) -> Content:
    """The configuration, its model, the labels, and scripts that build the engine with the bundle's types."""
    image, _, recipe = request.classifier(DEEPSTREAM.title)
    shared = _shared_deviation(request, recipe)
    model = gives_probabilities(takes_planes(request.model, request.manifest, normalised=shared))
    check_edited(model, request.model, request.manifest, normalised=shared)
    batch = image.shape[0] if isinstance(image.shape[0], int) else request.max_batch or BATCH
    properties = {
        "gpu-id": "0",
        "gie-unique-id": "1",
        "process-mode": "1",
        "network-type": "1",
        "onnx-file": MODEL,
        "model-engine-file": ENGINE,
        "labelfile-path": LABELS,
        "batch-size": str(batch),
        "network-mode": str(_MODES[request.manifest.precision]),
        "infer-dims": ";".join(map(str, (recipe.depth, *recipe.size))),
        "output-blob-names": output_of(model),
        "classifier-threshold": "0.0",
        "maintain-aspect-ratio": str(int(recipe.mode == "border")),
        "symmetric-padding": str(int(recipe.mode == "border")),
        "scaling-filter": str(_FILTERS[recipe.interpolation]),
        **_normalisation(request, recipe, shared),
    }
    files = {
        CONFIG: File(_ini(properties).encode(), "the configuration of nvinfer"),
        MODEL: File(model, "the model, with what is said below"),
        LABELS: File(_labels(request), "the labels, separated by semicolons"),
        **build_scripts(request, model, batch),
    }
    return Content(
        files=files,
        start=[
            "./trtexec-10.sh    # or that of the version of TensorRT on the device; makes " + ENGINE,
            "gst-launch-1.0 filesrc location=frame.jpg ! jpegdec ! nvvideoconvert ! mux.sink_0 \\",
            f"  nvstreammux name=mux batch-size=1 width={FRAME[1]} height={FRAME[0]} ! \\",
            f"  nvinfer config-file-path={CONFIG} ! fakesink",
        ],
        baked=list(_baked(request, recipe, shared)),
        differs=list(_differs(recipe)),
        told=[
            "The paths are relative to the configuration. Without the engine nvinfer builds one itself, from the flag "
            f"`network-mode={_MODES[request.manifest.precision]}` alone: layers that the bundle keeps in FP32 may then "
            "run in less. The scripts build it with the types of the file.",
            *_of_int8(request),
            f"`batch-size` is {batch}. nvinfer classifies whole frames (`process-mode=1`); for the objects of a "
            "detector set it to 2, with `operate-on-gie-id`.",
        ],
        client=False,
    )


def _shared_deviation(request: Request, recipe: Preprocessing) -> bool:
    """Whether nvinfer can normalise: all channels have one deviation, and the graph does not do it already."""
    return not request.manifest.preprocessing_in_graph and len(set(recipe.std)) == 1


def _normalisation(request: Request, recipe: Preprocessing, shared: bool) -> dict[str, str]:
    # A graph that prepares its pixels takes RGB, and turns them round itself.
    colour = _COLOURS["RGB" if request.manifest.preprocessing_in_graph else recipe.channels]
    if not shared:
        return {"model-color-format": str(colour), "net-scale-factor": "1.0"}
    factor, offsets = _arithmetic(recipe)
    return {
        "model-color-format": str(colour),
        "net-scale-factor": f"{factor:.9g}",
        "offsets": ";".join(f"{one:.9g}" for one in offsets),
    }


def _arithmetic(recipe: Preprocessing) -> tuple[float, list[float]]:
    """Factor and offsets, so that factor * (x - offset) is (x / scale - mean) / deviation."""
    return 1 / (recipe.scale * recipe.std[0]), [mean * recipe.scale for mean in recipe.mean]


def _ini(properties: Mapping[str, str]) -> str:
    return "[property]\n" + "".join(f"{key}={value}\n" for key, value in properties.items())


def _labels(request: Request) -> bytes:
    """One line, since the classes are those of one attribute."""
    return (";".join(label.replace(";", ",") for label in request.labels) + "\n").encode("utf-8", "replace")


def _of_int8(request: Request) -> Iterator[str]:
    if request.manifest.precision == "int8":
        yield (
            "INT8 stands in the file as Q/DQ, and there is no table of calibration: without the engine of a script "
            "nvinfer finds none, and builds FP16."
        )


def _baked(request: Request, recipe: Preprocessing, shared: bool) -> Iterator[str]:
    yield "A Softmax, since nvinfer takes the output for probabilities; `output-blob-names` is what it gives."
    if request.manifest.preprocessing_in_graph:
        yield "The input is float32 planes 0..255 of R, G, B, as nvinfer gives it, and not uint8 [N, height, width, 3]."
    elif not shared:
        std = np.asarray(recipe.std, np.float32).tolist()
        yield (
            f"Scale, mean and deviation, since nvinfer has one factor for all channels and the deviations are "
            f"{[float(f'{one:.6g}') for one in std]}: the input is pixel values 0..255."
        )


def _differs(recipe: Preprocessing) -> Iterator[str]:
    yield interpolation_differs(recipe, "on the GPU or the VIC without antialiasing (`scaling-filter`)")
    kept = window(recipe)
    if kept is not None:
        yield (
            f"It scales the whole frame, and the bundle keeps the middle of it. Crop in front of nvinfer: of "
            f"{FRAME[1]}x{FRAME[0]} pixels with "
            f"`nvvideoconvert src-crop={kept.left}:{kept.top}:{kept.width}:{kept.height}`."
        )
    if recipe.mode == "border":
        yield "It fills the border with black, and the bundle with the mean."
        if recipe.crop_ratio < 1:
            yield f"It scales the frame to the input, and the bundle to 1/{recipe.crop_ratio:g} of that before a crop."


DEEPSTREAM = Destination("DeepStream", write, frozenset({"max_batch"}))
