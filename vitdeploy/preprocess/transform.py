"""Resize, crop, scale and normalise: the transform that a recipe describes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.argument_types import checked_arguments
from vitdeploy.errors import InputError
from vitdeploy.preprocess.raster import Raster
from vitdeploy.preprocess.recipe import Preprocessing
from vitdeploy.preprocess.sources import PIXEL_TYPES, Array, ImageLike, load


@checked_arguments
def preprocess(source: ImageLike, recipe: Preprocessing) -> NDArray[np.float32]:
    """The network's input [C, H, W] for one image: a path, a Pillow image or an array.

    Images are turned as their EXIF orientation says; of an animation the first frame is taken.

    `RGB`, `BGR`  arrays are uint8 [H, W, 3] (RGB); transparency is dropped, not blended, as training pipelines do with
                  `convert("RGB")`; 16-bit grey keeps its upper byte
    `L`           colours become grey as by `convert("L")`, before the resize; grey keeps its 8, 16 or 32 bits
    `bands`       the channels as they are, without conversion: arrays of `PIXEL_TYPES` [H, W, C], or [H, W] of one; of
                  a TIFF the samples of all its pages

    Raises InputError for anything that is not an image, has other channels, or is too large to be taken safely, and
    MissingDependencyError for a TIFF that needs the extra `tif`.
    """
    return normalise(to_pixels(source, recipe), recipe)


@checked_arguments
def preprocess_batch(images: Sequence[ImageLike], recipe: Preprocessing) -> NDArray[np.float32]:
    """The network's input [N, C, H, W] for N images, see `preprocess`."""
    batch = np.empty((len(images), recipe.depth, *recipe.size), np.float32)
    for row, source in zip(batch, images, strict=True):
        row[:] = preprocess(source, recipe)
    return batch


@checked_arguments
def to_pixels(source: ImageLike, recipe: Preprocessing) -> Array:
    """The first half of `preprocess`: the pixels [H, W, C] that the recipe's resize and crop leave.

    uint8 in RGB order where the recipe takes colours; otherwise uint8 for 8-bit data and float32 for any other, in the
    unit that the data has.
    """
    mean = recipe.mean[::-1] if recipe.channels == "BGR" else recipe.mean
    return _framed(load(source, recipe), recipe, recipe.interpolation, np.asarray(mean) * recipe.scale)


def to_mask(mask: Array, recipe: Preprocessing, fill: int) -> NDArray[np.int32]:
    """A mask of whole numbers [H, W] in the frame of the network's input, [height, width].

    It is resized and cropped as `to_pixels` does its image, but each of its pixels is the nearest one of `mask`, since
    there is nothing between two classes. What lies outside of the image, with a border, is `fill`.
    """
    raster = Raster((Image.fromarray(np.ascontiguousarray(mask, np.int32)),))
    return _framed(raster, recipe, "nearest", np.array([fill]))[..., 0]


def _framed(image: Raster, recipe: Preprocessing, interpolation: str, border: Array) -> Array:
    """The part of an image that the recipe keeps, at its size [H, W, C]; `border` [C] is what lies outside."""
    height, width = recipe.size
    if recipe.mode == "stretch":
        return image.resized(recipe.size, interpolation)
    if recipe.mode == "crop_resize":
        side = max(1, int(recipe.crop_ratio * min(image.height, image.width)))
        left, top = (image.width - side + 1) // 2, (image.height - side + 1) // 2
        return image.crop(top, left, side, side).resized(recipe.size, interpolation)
    if recipe.mode == "border":
        return _bordered(image.resized(_fitting_size(image, recipe), interpolation), recipe.size, border)
    resized = image.resized(_covering_size(image, recipe), interpolation)
    top, left = round((resized.shape[0] - height) / 2), round((resized.shape[1] - width) / 2)
    return resized[top : top + height, left : left + width]


def normalise(pixels: Array, recipe: Preprocessing) -> NDArray[np.float32]:
    """The second half of `preprocess`: pixels [..., H, W, C] as the network's input [..., C, H, W].

    Raises InputError for another number of channels and for a type that pixels do not have.
    """
    if pixels.dtype.name not in PIXEL_TYPES or pixels.ndim < 3 or pixels.shape[-1] != recipe.depth:
        raise InputError(
            f"pixels of {pixels.dtype} {list(pixels.shape)} cannot be normalised",
            why=f"the network takes {recipe.depth} channels ({recipe.channels})",
            fix=f"give [N, H, W, {recipe.depth}] of {', '.join(PIXEL_TYPES[:-1])} or {PIXEL_TYPES[-1]}",
        )
    if recipe.channels == "BGR":
        pixels = pixels[..., ::-1]
    mean, std = tuple(recipe.mean), tuple(recipe.std)
    if pixels.dtype != np.uint8:
        return np.ascontiguousarray(np.moveaxis(_scaled(pixels, mean, std, recipe.scale), -1, -3))
    found = np.empty((*pixels.shape[:-3], recipe.depth, *pixels.shape[-3:-1]), np.float32)
    for channel, values in enumerate(_table(mean, std, recipe.scale)):
        # `clip` because no index is out of range: `raise` would look at each, and write into a second array.
        values.take(pixels[..., channel], out=found[..., channel, :, :], mode="clip")
    return found


def _scaled(pixels: Array, mean: tuple[float, ...], std: tuple[float, ...], scale: float) -> NDArray[np.float32]:
    """Pixels [..., C], each channel through the scale and its own mean and standard deviation."""
    values = pixels.astype(np.float32) / np.float32(scale)
    scaled: NDArray[np.float32] = (values - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return scaled


@lru_cache(maxsize=16)
def _table(mean: tuple[float, ...], std: tuple[float, ...], scale: float) -> NDArray[np.float32]:
    """What becomes of each of the 256 values of a byte, [C, 256]: they are fewer than the pixels of an image."""
    table = np.ascontiguousarray(_scaled(np.arange(256)[:, None], mean, std, scale).T)
    table.flags.writeable = False
    return table


def _covering_size(image: Raster, recipe: Preprocessing) -> tuple[int, int]:
    """(height, width) after the resize of `resize_crop`: one side exact, the other longer, the aspect ratio kept."""
    height, width = (math.floor(side / recipe.crop_ratio) for side in recipe.size)
    if height * image.width >= width * image.height:
        return height, height * image.width // image.height
    return width * image.height // image.width, width


def _fitting_size(image: Raster, recipe: Preprocessing) -> tuple[int, int]:
    """(height, width) after the resize of `border`: the longer side exact, the other shorter, the aspect ratio kept."""
    height, width = (math.floor(side / recipe.crop_ratio) for side in recipe.size)
    ratio = max(image.height / height, image.width / width)
    return max(1, round(image.height / ratio)), max(1, round(image.width / ratio))


def _bordered(pixels: Array, size: tuple[int, int], border: Array) -> Array:
    """The middle of `pixels` [h, w, C] at `size`, and `border` [C] where they do not reach."""
    filled = np.rint(border) if pixels.dtype.kind in "iu" else border
    image: Array = np.broadcast_to(filled.astype(pixels.dtype), (*size, len(border))).copy()
    inside, outside = [], []
    for have, want in zip(pixels.shape[:2], size, strict=True):
        taken, given = max(0, round((have - want) / 2)), max(0, (want - have) // 2)
        inside.append(slice(taken, taken + min(have, want)))
        outside.append(slice(given, given + min(have, want)))
    image[tuple(outside)] = pixels[tuple(inside)]
    return image
