"""The preprocessing in words and in whole pixels, for programs that cannot be given the recipe itself."""

from __future__ import annotations

import math
from typing import NamedTuple

from vitdeploy.bundle import Manifest
from vitdeploy.preprocess.recipe import COLOURS, GREY, Preprocessing

# A frame of a camera, which the examples in the texts crop.
FRAME = (1080, 1920)

_INTERPOLATIONS = {
    "bicubic": "bicubic with antialiasing, as Pillow's",
    "bilinear": "bilinear with antialiasing, as Pillow's",
    "bicubic_no_antialias": "bicubic without antialiasing, as tf.image.resize",
}


class Window(NamedTuple):
    """The part of a frame that reaches the network, in whole pixels."""

    left: int
    top: int
    width: int
    height: int


def window(recipe: Preprocessing, frame: tuple[int, int] = FRAME) -> Window | None:
    """What the recipe keeps of a frame (height, width); None where it keeps all of it."""
    height, width = frame
    if recipe.mode in ("stretch", "border"):
        return None
    if recipe.mode == "crop_resize":
        wide = high = max(1, int(recipe.crop_ratio * min(frame)))
    else:
        covering = [math.floor(side / recipe.crop_ratio) for side in recipe.size]
        scale = max(covering[0] / height, covering[1] / width)
        high, wide = (min(have, max(1, round(side / scale))) for side, have in zip(recipe.size, frame, strict=True))
    return Window((width - wide) // 2, (height - high) // 2, wide, high)


def framing(recipe: Preprocessing) -> str:
    """Resize and crop in one sentence."""
    height, width = recipe.size
    size, how = f"{height}x{width} pixels (height x width)", f"resize ({_INTERPOLATIONS[recipe.interpolation]})"
    around = "x".join(str(math.floor(side / recipe.crop_ratio)) for side in recipe.size)
    if recipe.mode == "stretch":
        return f"{how} to {size}, whatever the aspect ratio"
    if recipe.mode == "crop_resize":
        return f"take the middle square of {recipe.crop_ratio:g} of the shorter side, and {how} it to {size}"
    if recipe.mode == "border":
        return (
            f"{how} so that the whole image lies within {around}, put it in the middle of {size}, "
            "and fill the rest with the mean"
        )
    return f"{how} so that the image just covers {around}, its aspect ratio kept, and take the middle {size}"


def client_steps(manifest: Manifest) -> list[str]:
    """What has to be done to an image before it is sent, a sentence each; empty for a network that takes none."""
    recipe = manifest.preprocessing
    if recipe is None:
        return []
    name, others = manifest.images[0], [spec for spec in manifest.inputs if spec.name not in manifest.images[:1]]
    read = {**dict.fromkeys(COLOURS, "8-bit RGB"), GREY: "grey"}.get(recipe.channels, "all channels, as they are")
    steps = [f"Decode it, turn it as its EXIF orientation says, and take {read}.", f"{_capital(framing(recipe))}."]
    if others:
        steps.append(f"Besides, the network takes {', '.join(map(str, others))}.")
    if manifest.preprocessing_in_graph:
        return [*steps, f"Send the pixels as they are: `{name}` is uint8 [N, height, width, 3], RGB."]
    order = " in the order B, G, R" if recipe.channels == "BGR" else ""
    mean, std = ([float(f"{value:.9g}") for value in values] for values in (recipe.mean, recipe.std))
    return [
        *steps,
        f"Divide by {recipe.scale:g}, subtract the mean {mean} and divide by the deviation {std}, channel by channel.",
        f"Send `{name}` as float32 [N, channels, height, width]{order}.",
    ]


def interpolation_differs(recipe: Preprocessing, does: str) -> str:
    """The sentence about a resize that is not Pillow's."""
    return f"It resizes {does}; the bundle's images were resized {_INTERPOLATIONS[recipe.interpolation]} resize."


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
