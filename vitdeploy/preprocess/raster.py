"""Pixels on their way through crop and resize: Pillow images, one of colours or one for each channel."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.errors import InputError

Array = NDArray[Any]

_METHODS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


class Raster(NamedTuple):
    """An image as `planes` of one size and mode: one `RGB`, or one of `L` (8 bits), `F` or `I` for each channel.

    limits  the range of the integers that planes `F` were made of; None where they were no integers
    """

    planes: tuple[Image.Image, ...]
    limits: tuple[int, int] | None = None

    @classmethod
    def of_image(cls, image: Image.Image) -> Raster:
        """The whole image as one plane."""
        return cls((image,))

    @classmethod
    def of_array(cls, array: Array) -> Raster:
        """A plane for each channel of [H, W, C]; 8 bits stay 8 bits."""
        deep = array.dtype != np.uint8
        planes = np.moveaxis(array, 2, 0)
        images = (np.ascontiguousarray(plane, np.float32 if deep else np.uint8) for plane in planes)
        known = deep and array.dtype.kind in "iu"
        limits = (int(np.iinfo(array.dtype).min), int(np.iinfo(array.dtype).max)) if known else None
        return cls(tuple(map(Image.fromarray, images)), limits)

    @property
    def width(self) -> int:
        """Pixels in a row."""
        return self.planes[0].width

    @property
    def height(self) -> int:
        """Pixels in a column."""
        return self.planes[0].height

    def crop(self, top: int, left: int, height: int, width: int) -> Raster:
        """The part of `height` by `width` pixels whose corner is at `top` and `left`."""
        box = (left, top, left + width, top + height)
        return Raster(tuple(plane.crop(box) for plane in self.planes), self.limits)

    def pixels(self) -> Array:
        """The values [H, W, C], uint8 or float32."""
        arrays = [np.asarray(plane) for plane in self.planes]
        if arrays[0].ndim == 3:
            return arrays[0]
        return arrays[0][..., None] if len(arrays) == 1 else np.stack(arrays, axis=-1)

    def resized(self, size: tuple[int, int], interpolation: str) -> Array:
        """The values [height, width, C] at `size` (height, width), in the type and the range that they had."""
        height, width = size
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and max(height, self.height) * width > limit:
            raise InputError(
                f"an image of {self.width}x{self.height} pixels is too long and thin",
                why=f"between the two steps of the resize it would have {width}x{max(height, self.height)} pixels",
                fix="crop it first",
            )
        if interpolation == "bicubic_no_antialias":
            return self._resized_keys(size)
        # Columns before rows, a call each: Pillow 13 would turn the order round where the height shrinks much more than
        # the width (python-pillow/Pillow#9549), and pixels would depend on the installed version.
        found = self
        for step in ((width, self.height), (width, height)):
            found = found._replace(planes=tuple(plane.resize(step, _METHODS[interpolation]) for plane in found.planes))
            found = found._clipped()
        return found.pixels()

    def _clipped(self) -> Raster:
        """Without what a cubic overshoots; Pillow does this to 8 bits itself, and after each of the two steps."""
        if self.limits is None:
            return self
        low, high = self.limits
        return self._replace(planes=tuple(Image.fromarray(np.asarray(p).clip(low, high)) for p in self.planes))

    def _resized_keys(self, size: tuple[int, int]) -> Array:
        values = _resize_keys(self.pixels(), size)
        if self.planes[0].mode != "F":
            return np.clip(values, 0, 255).astype(np.uint8)
        return values if self.limits is None else values.clip(*self.limits)


def too_large(name: str) -> InputError:
    """The error for an image of more pixels than Pillow is told to take."""
    return InputError(
        f"{name} is too large",
        why=f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels, and decoding it could fill the memory",
        fix="scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file",
    )


def _resize_keys(pixels: Array, size: tuple[int, int]) -> NDArray[np.float32]:
    """Cubic convolution without antialiasing; 8 bits are clipped and truncated to whole numbers afterwards.

    R. Keys, "Cubic convolution interpolation for digital image processing", 1981, with a = -0.5. Weights follow
    `tf.image.resize`, with which QnA-ViT was trained: single precision, phases rounded to 1/1024, taps outside the
    image left out and the others scaled to sum to one, rows before columns, each sum from the first tap to the last.
    Truncation makes these last bits visible, in flat areas most of all.
    """
    values = pixels.astype(np.float32)
    for axis in (0, 1):
        indices, weights = _keys_taps(values.shape[axis], size[axis])
        taps = [
            np.take(values, index, axis=axis) * np.expand_dims(weight, (1 - axis, 2))
            for index, weight in zip(indices, weights, strict=True)
        ]
        values = taps[0] + taps[1] + taps[2] + taps[3]
    return values


def _keys_taps(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Indices and weights [4, target] of the taps for resampling `source` pixels to `target`."""
    scale = np.float32(source) / np.float32(target)
    position = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    first = np.floor(position).astype(np.int64)
    phase = np.rint((position - first.astype(np.float32)) * np.float32(1024)).astype(np.float64) / 1024
    a = -0.5
    near = [((a + 2) * x - (a + 3)) * x * x + 1 for x in (phase, 1 - phase)]
    far = [((a * x - 5 * a) * x + 8 * a) * x - 4 * a for x in (phase + 1, 2 - phase)]
    weights = np.stack([far[0], near[0], near[1], far[1]]).astype(np.float32)
    indices = first + np.arange(-1, 3)[:, None]
    weights[(indices < 0) | (indices >= source)] = 0
    total = ((weights[0] + weights[1]) + weights[2]) + weights[3]
    return indices.clip(0, source - 1), weights * (np.float32(1) / total)
