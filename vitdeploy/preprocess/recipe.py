"""The recorded transform of a checkpoint, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from vitdeploy.argument_types import check_fields
from vitdeploy.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MODES = ("resize_crop", "crop_resize", "stretch", "border")
INTERPOLATIONS = ("bicubic", "bilinear", "bicubic_no_antialias")

# The 8-bit colours of an image, in the order of the network's input.
COLOURS = ("RGB", "BGR")
GREY, BANDS = "L", "bands"
CHANNELS = (*COLOURS, GREY, BANDS)

# The names of the same things in timm's data configuration.
_TIMM_NAMES = {"crop_pct": "crop_ratio", "crop_mode": "mode"}
_TIMM_MODES = {"center": "resize_crop", "squash": "stretch", "border": "border"}

_EXAMPLES = {"crop_ratio": "a number, e.g. 0.875", "scale": "a number, e.g. 255 or 10000"}
_COLOUR_EXAMPLE = "three numbers, e.g. 0.485,0.456,0.406"
_BAND_EXAMPLE = "one number for each channel, e.g. 0.5, or 0.12,0.11,0.1"


@dataclass(frozen=True)
class Preprocessing:
    """The recorded transform of a checkpoint; the same object serves training, calibration and the device.

    Attributes:
        size: (height, width) of the network's input in pixels.
        mode: `resize_crop`: resize so that the centre crop covers `crop_ratio` of the resized shorter side, crop;
            `crop_resize`: centre crop of `crop_ratio` of the shorter side first, then resize (QnA-ViT); `stretch`:
            resize to `size`, whatever the aspect ratio; `border`: resize so that the whole image lies within `size` /
            `crop_ratio`, and crop that to `size` or fill the rest with the mean (letterbox).
        crop_ratio: Part of the shorter side that is kept.
        interpolation: `bicubic` or `bilinear` (Pillow, antialiased), or `bicubic_no_antialias` (Keys a = -0.5,
            half-pixel centres, as in `tf.image.resize`).
        mean: Mean of each channel, after dividing the pixel values by `scale`; in the order of `channels`.
        std: Standard deviation of each channel, after dividing the pixel values by `scale`; in the order of `channels`.
        channels: `RGB` or `BGR`: the colours, in the order of the network's input channels; `L`: one channel, grey;
            `bands`: the channels of the data in their order, as many as there are means.
        scale: The pixel value that becomes 1.0: 255 for 8 bits, 65535 for 16, 10000 for reflectance of Sentinel-2.
    """

    size: tuple[int, int] = (224, 224)
    mode: str = "resize_crop"
    crop_ratio: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: str = "RGB"
    scale: float = 255.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value, known in (
            ("mode", self.mode, MODES),
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("channels", self.channels, CHANNELS),
        ):
            if value not in known:
                raise UsageError(f"invalid preprocessing {name} {value!r}", fix=f"choose {' or '.join(known)}")
        if min(self.size) < 1:
            raise UsageError(f"invalid preprocessing size {self.size}", fix="give (height, width), both 1 or more")
        if not 0 < self.crop_ratio <= 1:
            raise UsageError(
                f"invalid preprocessing crop_ratio {self.crop_ratio}", fix="give a number above 0 and at most 1"
            )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise UsageError(
                f"invalid preprocessing scale {self.scale}",
                why="it is the pixel value that becomes 1.0",
                fix="give a number above 0, e.g. 255, 65535 or 10000",
            )
        self._check_mean_and_std()

    def _check_mean_and_std(self) -> None:
        count = {GREY: 1, BANDS: None}.get(self.channels, 3)
        numbers = {1: "one finite number", 3: "three finite numbers", None: "at least one finite number"}[count]
        for name, values in (("mean", self.mean), ("std", self.std)):
            fits = len(values) > 0 if count is None else len(values) == count
            if not fits or not all(map(math.isfinite, values)):
                raise UsageError(
                    f"invalid preprocessing {name} {values}",
                    why=f"the channels are {self.channels}",
                    fix=f"give {numbers}, in the order of the channels",
                )
        if len(self.mean) != len(self.std):
            raise UsageError(
                f"the preprocessing has {len(self.mean)} numbers as mean and {len(self.std)} as std",
                why="there is one of each for every channel",
                fix=f"give as many as the network has channels, e.g. std={','.join(['0.5'] * len(self.mean))}",
            )
        if min(self.std) <= 0:
            wanted = {1: "one number", 3: "three numbers", None: "numbers"}[count]
            raise UsageError(f"invalid preprocessing std {self.std}", fix=f"give {wanted} above 0")

    @property
    def depth(self) -> int:
        """How many channels the network's input has."""
        return len(self.mean)

    @property
    def takes_colours(self) -> bool:
        """Whether pixels are 8-bit RGB: `channels` is `RGB` or `BGR`."""
        return self.channels in COLOURS

    def changed(self, changes: Mapping[str, Any]) -> Preprocessing:
        """The same recipe with some fields replaced, e.g. `{"mode": "stretch", "mean": (0.5, 0.5, 0.5)}`.

        Args:
            changes: Values by the names of fields. The names of timm are accepted too: `crop_pct`, and `crop_mode` with
                `center` or `squash`. `mean` and `std` may be one number where the channels are `L` or `bands`.

        Returns:
            Another recipe; this one stays as it is.

        Raises:
            UsageError: A field does not exist, is `size`, which is that of the network, or has an invalid value.
        """
        keys = [item.name for item in fields(self) if item.name != "size"]
        colours = changes.get("channels", self.channels) not in (GREY, BANDS)
        values = {}
        for given, value in changes.items():
            key = _TIMM_NAMES.get(given, given)
            value = _TIMM_MODES.get(value, value) if key == "mode" and isinstance(value, str) else value
            if key not in keys:
                if key == "size":
                    raise UsageError(
                        "preprocessing size cannot be changed",
                        why="the size is the input size of the network",
                        fix="use --image-size, or image_size in Python",
                    )
                raise UsageError(f"there is no preprocessing field {key!r}", fix=f"use one of {', '.join(keys)}")
            try:
                values[key] = _as_field(key, value, several=colours)
            except (TypeError, ValueError) as error:
                like = _EXAMPLES.get(key, _COLOUR_EXAMPLE if colours else _BAND_EXAMPLE)
                raise UsageError(f"invalid preprocessing {key} {value!r}", fix=f"give {like}") from error
        return replace(self, **values)


def _as_field(key: str, value: Any, *, several: bool) -> Any:
    if key in ("mean", "std"):
        one = isinstance(value, (int, float)) and not several
        return tuple(float(number) for number in ((value,) if one else value))
    return float(value) if key in ("crop_ratio", "scale") else value
