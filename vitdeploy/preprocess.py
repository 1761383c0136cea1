"""From an image to the network's input, with numpy and Pillow only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from vitdeploy.errors import InputError, UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MODES = ("resize_crop", "crop_resize", "stretch")
INTERPOLATIONS = ("bicubic", "bilinear", "bicubic_no_antialias")

# The names of the same things in timm's data configuration.
_TIMM_NAMES = {"crop_pct": "crop_ratio", "crop_mode": "mode"}
_TIMM_MODES = {"center": "resize_crop", "squash": "stretch"}

ImageLike = str | Path | Image.Image | NDArray[np.uint8]


@dataclass(frozen=True)
class Preprocessing:
    """The recorded transform of a checkpoint; the same object serves training, calibration and the device.

    size           (height, width) of the network's input in pixels
    mode           `resize_crop`: resize so that the centre crop covers `crop_ratio` of the resized shorter side, crop;
                   `crop_resize`: centre crop of `crop_ratio` of the shorter side first, then resize (QnA-ViT);
                   `stretch`: resize to `size`, whatever the aspect ratio
    crop_ratio     part of the shorter side that is kept
    interpolation  `bicubic` or `bilinear` (Pillow, antialiased), or `bicubic_no_antialias` (Keys a = -0.5, half-pixel
                   centres, as in `tf.image.resize`)
    mean, std      per channel, after scaling the pixel values to 0..1; in the order of `channels`
    channels       `RGB` or `BGR`, the order of the network's input channels
    """

    size: tuple[int, int] = (224, 224)
    mode: str = "resize_crop"
    crop_ratio: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    channels: str = "RGB"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("mode", self.mode, MODES),
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("channels", self.channels, ("RGB", "BGR")),
        ):
            if value not in known:
                raise UsageError(f"invalid preprocessing {name} {value!r}", fix=f"choose {' or '.join(known)}")
        if min(self.size) < 1:
            raise UsageError(f"invalid preprocessing size {self.size}", fix="give (height, width), both 1 or more")
        if not 0 < self.crop_ratio <= 1:
            raise UsageError(
                f"invalid preprocessing crop_ratio {self.crop_ratio}", fix="give a number above 0 and at most 1"
            )
        for name, three in (("mean", self.mean), ("std", self.std)):
            if len(three) != 3 or not all(map(math.isfinite, three)):
                raise UsageError(
                    f"invalid preprocessing {name} {three}",
                    fix="give three finite numbers, in the order of the channels",
                )
        if min(self.std) <= 0:
            raise UsageError(f"invalid preprocessing std {self.std}", fix="give three numbers above 0")

    def changed(self, changes: Mapping[str, Any]) -> Preprocessing:
        """The same recipe with some fields replaced, e.g. `{"mode": "stretch", "mean": (0.5, 0.5, 0.5)}`.

        The names of timm are accepted too: `crop_pct`, and `crop_mode` with `center` or `squash`. Raises UsageError for
        a field that does not exist, for `size`, which is that of the network, and for an invalid value.
        """
        keys = [item.name for item in fields(self) if item.name != "size"]
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
                values[key] = _as_field(key, value)
            except (TypeError, ValueError) as error:
                like = "three numbers, e.g. 0.485,0.456,0.406" if key in ("mean", "std") else "a number, e.g. 0.875"
                raise UsageError(f"invalid preprocessing {key} {value!r}", fix=f"give {like}") from error
        return replace(self, **values)


def _as_field(key: str, value: Any) -> Any:
    if key in ("mean", "std"):
        return tuple(float(number) for number in value)
    return float(value) if key == "crop_ratio" else value


def preprocess(source: ImageLike, recipe: Preprocessing) -> NDArray[np.float32]:
    """The network's input [3, H, W] for one image: a path, a Pillow image or a uint8 array [H, W, 3] (RGB).

    Images are turned as their EXIF orientation says; transparency is dropped, not blended, as training pipelines do
    with `convert("RGB")`; 16-bit grey keeps its upper byte; of an animation the first frame is taken.
    Raises InputError for anything that is not an image, or too large to be taken safely.
    """
    return normalise(to_pixels(source, recipe), recipe)


def preprocess_batch(images: Sequence[ImageLike], recipe: Preprocessing) -> NDArray[np.float32]:
    """The network's input [N, 3, H, W] for N images, see `preprocess`."""
    batch = np.empty((len(images), 3, *recipe.size), np.float32)
    for row, source in zip(batch, images, strict=True):
        row[:] = preprocess(source, recipe)
    return batch


def to_pixels(source: ImageLike, recipe: Preprocessing) -> NDArray[np.uint8]:
    """The first half of `preprocess`: the RGB pixels [H, W, 3] that the recipe's resize and crop leave."""
    image = _as_rgb(source)
    height, width = recipe.size
    if recipe.mode == "stretch":
        return _resize(image, recipe.size, recipe.interpolation)
    if recipe.mode == "crop_resize":
        side = max(1, int(recipe.crop_ratio * min(image.height, image.width)))
        left, top = (image.width - side + 1) // 2, (image.height - side + 1) // 2
        return _resize(image.crop((left, top, left + side, top + side)), recipe.size, recipe.interpolation)
    resized = _resize(image, _covering_size(image, recipe), recipe.interpolation)
    top, left = round((resized.shape[0] - height) / 2), round((resized.shape[1] - width) / 2)
    return resized[top : top + height, left : left + width]


def normalise(pixels: NDArray[np.uint8], recipe: Preprocessing) -> NDArray[np.float32]:
    """The second half of `preprocess`: RGB pixels [..., H, W, 3] as the network's input [..., 3, H, W]."""
    if recipe.channels == "BGR":
        pixels = pixels[..., ::-1]
    scaled = pixels.astype(np.float32) / np.float32(255)
    normalised = (scaled - np.asarray(recipe.mean, np.float32)) / np.asarray(recipe.std, np.float32)
    return np.ascontiguousarray(np.moveaxis(normalised, -1, -3))


def _covering_size(image: Image.Image, recipe: Preprocessing) -> tuple[int, int]:
    """(height, width) after the resize of `resize_crop`: one side exact, the other longer, the aspect ratio kept."""
    height, width = (math.floor(side / recipe.crop_ratio) for side in recipe.size)
    if height * image.width >= width * image.height:
        return height, height * image.width // image.height
    return width * image.height // image.width, width


def _resize(image: Image.Image, size: tuple[int, int], interpolation: str) -> NDArray[np.uint8]:
    height, width = size
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and max(height, image.height) * width > limit:
        raise InputError(
            f"an image of {image.width}x{image.height} pixels is too long and thin",
            why=f"between the two steps of the resize it would have {width}x{max(height, image.height)} pixels",
            fix="crop it first",
        )
    if interpolation == "bicubic_no_antialias":
        return _resize_keys(np.asarray(image), size)
    method = Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR
    # Columns before rows, a call each: Pillow 13 would turn the order round where the height shrinks much more than the
    # width (python-pillow/Pillow#9549), and pixels would depend on the installed version.
    return np.asarray(image.resize((width, image.height), method).resize((width, height), method))


def _resize_keys(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Cubic convolution without antialiasing, then clipped and truncated to whole numbers.

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
    return np.clip(values, 0, 255).astype(np.uint8)


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


def _as_rgb(source: Any) -> Image.Image:
    """The image upright as 8-bit RGB; InputError for anything that is not an image."""
    if isinstance(source, np.ndarray):
        return _array_image(source)
    if isinstance(source, Image.Image):
        return _convert(source, "the image")
    if not isinstance(source, (str, Path)):
        raise InputError(
            f"a {type(source).__name__} is not an image",
            fix="give a path, a Pillow image or a uint8 array [H, W, 3]",
        )
    path = Path(source)
    try:
        if not path.is_file():
            if path.is_dir():
                raise InputError(f"{path} is a folder, not an image", fix="give the path of an image file")
            raise InputError(f"there is no file {path}", fix="check the path")
        with Image.open(path) as image:
            return _convert(image, str(path))
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(str(path)) from None
    except UnidentifiedImageError:
        raise InputError(
            f"{path} is not an image", why="Pillow does not recognise its format", fix="convert it to PNG or JPEG"
        ) from None
    # Pillow's decoders raise many kinds of errors on damaged files.
    except Exception as error:
        raise InputError(
            f"{path} cannot be read", why=str(error) or type(error).__name__, fix="copy the file again, or leave it out"
        ) from error


def _array_image(array: NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InputError(
            f"an array of {array.dtype} {list(array.shape)} is not an image",
            why="images are uint8 [H, W, 3] in RGB order",
            fix="convert it to uint8 RGB; normalised float32 tensors [N, 3, H, W] go to session(images)",
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _convert(image: Image.Image, name: str) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise _too_large(name)
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise InputError(
                f"{name} has floating-point pixels",
                why="the file does not say which value is white",
                fix="convert it to 8-bit RGB",
            )
        if image.mode.startswith("I"):
            image = _upper_byte(image, name)
        if image.mode == "P":
            # Straight to RGB would warn where the palette has transparency; the colours are the same.
            image = image.convert("RGBA")
        return image.convert("RGB")
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{name} cannot be decoded",
            why=str(error) or type(error).__name__,
            fix="copy the file again, or leave it out",
        ) from error


def _upper_byte(image: Image.Image, name: str) -> Image.Image:
    """16-bit grey as 8-bit grey, the way Pillow reads 16-bit colour."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"{name} has more than 16 bits a pixel", fix="convert it to 8-bit RGB")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _too_large(name: str) -> InputError:
    return InputError(
        f"{name} is too large",
        why=f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels, and decoding it could fill the memory",
        fix="scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file",
    )
