"""A model-proc file for DL Streamer's `gvaclassify`.

Keys: the page "Model-proc File" of its documentation, version 2.2.0 of the format. `aspect-ratio` there fits the frame
into the input, and a crop after it scales by 1.125 before; neither is a crop of a recipe.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from vitdeploy.bundle import MODEL, TensorSpec
from vitdeploy.preprocess.recipe import Preprocessing
from vitdeploy.serving.arithmetic import OPENVINO_FP32, integers_overflow, openvino_is_told
from vitdeploy.serving.content import Content, Destination, File, Request
from vitdeploy.serving.edits import check_edited, takes_planes
from vitdeploy.serving.wording import FRAME, interpolation_differs, window

PROC = "model-proc.json"
VERSION = "2.2.0"

_COLOURS = {"RGB": "RGB", "BGR": "BGR", "L": "GRAYSCALE"}


def write(request: Request) -> Content:
    """The model-proc, and the model that it is about."""
    image, logits, recipe = request.classifier(DLSTREAMER.title)
    files = dict(_model(request))
    path = next(iter(files))
    document = {
        "json_schema_version": VERSION,
        "input_preproc": [
            {"layer_name": image.name, "format": "image", "precision": "FP32", "params": _params(request, recipe)}
        ],
        "output_postproc": [
            {
                "layer_name": logits.name,
                "attribute_name": "class",
                "converter": "label",
                "method": "softmax",
                "labels": list(request.labels),
            }
        ],
    }
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    files[PROC] = File(text.encode("utf-8", "replace"), "how frames become inputs, and logits labels")
    return Content(
        files=files,
        start=[
            "gst-launch-1.0 filesrc location=video.mp4 ! decodebin3 ! \\",
            *(f"  {element} ! \\" for element in _cropping(recipe)),
            f"  gvaclassify model={path} model-proc={PROC} inference-region=full-frame \\",
            f"  pre-process-backend=opencv ie-config={'='.join(OPENVINO_FP32)} ! \\",
            "  gvametaconvert ! gvametapublish ! fakesink",
        ],
        baked=list(_baked(request)),
        differs=[*_differs(recipe), *integers_overflow(request.manifest, "the element")],
        told=list(_told(image)),
        client=False,
    )


def _model(request: Request) -> Iterator[tuple[str, File]]:
    if request.manifest.preprocessing_in_graph:
        model = takes_planes(request.model, request.manifest)
        check_edited(model, request.model, request.manifest)
        yield MODEL, File(model, "the model, with what is said below")
    else:
        yield from request.native.items() or ((MODEL, File(request.model, "the bundle's model")),)


def _params(request: Request, recipe: Preprocessing) -> dict[str, Any]:
    colour = "RGB" if request.manifest.preprocessing_in_graph else _COLOURS[recipe.channels]
    params: dict[str, Any] = {
        "resize": "aspect-ratio" if recipe.mode == "border" else "no-aspect-ratio",
        "color_space": colour,
    }
    if not request.manifest.preprocessing_in_graph:
        params |= {"range": [0.0, 255 / recipe.scale], "mean": list(recipe.mean), "std": list(recipe.std)}
    return params


def _cropping(recipe: Preprocessing) -> list[str]:
    """What keeps of a frame of any size what the recipe keeps: elements of GStreamer."""
    height, width = recipe.size
    if recipe.mode == "resize_crop":
        high, wide = (math.floor(side / recipe.crop_ratio) for side in recipe.size)
        found = [f"aspectratiocrop aspect-ratio={wide}/{high}"]
        if (high, wide) != (height, width):
            left, top = (wide - width) // 2, (high - height) // 2
            edges = f"left={left} right={wide - width - left} top={top} bottom={high - height - top}"
            found += [f"videoscale ! video/x-raw,width={wide},height={high}", f"videocrop {edges}"]
        return found
    kept = window(recipe)
    if kept is None:
        return []
    right, bottom = FRAME[1] - kept.left - kept.width, FRAME[0] - kept.top - kept.height
    return [f"videocrop left={kept.left} right={right} top={kept.top} bottom={bottom}"]


def _told(image: TensorSpec) -> Iterator[str]:
    yield openvino_is_told()
    yield "Only the backends `opencv` and `vaapi` of `pre-process-backend` normalise, and `ie` does not."
    if not isinstance(image.shape[0], int):
        yield "The batch of the model is free; where that is refused, `vitdeploy export MODEL --batch 1` fixes it."


def _baked(request: Request) -> Iterator[str]:
    if request.manifest.preprocessing_in_graph:
        yield "The input is float32 planes 0..255 of R, G, B and not uint8 [N, height, width, 3]."


def _differs(recipe: Preprocessing) -> Iterator[str]:
    yield interpolation_differs(recipe, "with OpenCV's bilinear, without antialiasing")
    if recipe.mode == "resize_crop":
        yield (
            "A model-proc has no such crop: the elements in front of gvaclassify crop, and without them the whole "
            "frame is squeezed into the input."
        )
    elif recipe.mode == "crop_resize":
        yield f"A model-proc has no such crop: `videocrop` above is that of frames of {FRAME[1]}x{FRAME[0]} pixels."
    elif recipe.mode == "border":
        yield "It fills the border with black, and may put the image elsewhere; the bundle puts the mean around it."
        if recipe.crop_ratio < 1:
            yield f"It scales the frame to the input, and the bundle to 1/{recipe.crop_ratio:g} of that before a crop."


DLSTREAMER = Destination("DL Streamer", write)
