"""What may be given as an image, and its pixels: upright, in the channels that the recipe asks for."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from vitdeploy.errors import InputError, MissingDependencyError
from vitdeploy.preprocess import tiff
from vitdeploy.preprocess.raster import Raster, too_large
from vitdeploy.preprocess.recipe import GREY, Preprocessing

Array = NDArray[Any]
ImageLike = str | Path | Image.Image | Array

# Of arrays whose channels are not the 8-bit colours of an image.
PIXEL_TYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float32")


# The formats of Pillow for the suffixes of an image set. Others are not tried: some start programs, as EPS does.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
_BEGINNINGS = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n"}


def holds_pixels(array: Array, recipe: Preprocessing) -> bool:
    """Whether an array is an image that is still to be preprocessed, and not one as the network takes it.

    Colours are uint8. Other channels may be float32 too, of any shape but the network's own, [C, H, W].
    """
    if recipe.takes_colours:
        return array.dtype == np.uint8
    return array.dtype != np.float32 or array.shape != (recipe.depth, *recipe.size)


def open_image(source: Path | bytes) -> Image.Image:
    """The image in a file or its bytes, of one of FORMATS; raises what Pillow raises, for others too."""
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats(source))
    if image.format == "TIFF":
        tiff.check_whole(image)
    return image


def _formats(source: Path | bytes) -> tuple[str, ...]:
    """FORMATS, the one first that the file begins as: for one that is not loaded, Pillow loads all that it has."""
    if isinstance(source, bytes):
        head = source[:8]
    else:
        with source.open("rb") as file:
            head = file.read(8)
    first = [name for name, begins in _BEGINNINGS.items() if head.startswith(begins)]
    return tuple(dict.fromkeys([*first, *FORMATS]))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an image that is turned as its EXIF orientation says; its pixels are not decoded."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)


def decode(file: Path | bytes, recipe: Preprocessing | None = None) -> Image.Image | Array:
    """The image in a file or its bytes: as Pillow opens it, or an array [H, W, C] of the channels of a TIFF.

    A TIFF is read as an array where the recipe takes other channels than colours and Pillow would show some of them
    only, or with fewer bits; without a recipe, where Pillow does not open it. InputError says where it has other
    channels than the recipe. Pillow's many kinds of errors are left to the caller.
    """
    if recipe is not None and recipe.takes_colours:
        return open_image(file)
    try:
        image = open_image(file)
    except UnidentifiedImageError:
        if not tiff.is_tiff(file):
            raise
    else:
        if recipe is None or image.format != "TIFF" or tiff.is_shown(image, colours=recipe.channels == GREY):
            return image
        image.close()
    name = "the file" if isinstance(file, bytes) else str(file)
    found = tiff.read_channels(file, name)
    if recipe is not None:
        _check_count(found.shape[2], recipe, name)
    return found


def load(source: Any, recipe: Preprocessing) -> Raster:
    """The pixels of a path, a Pillow image or an array; InputError for anything that is not an image of the recipe."""
    if isinstance(source, np.ndarray):
        return _of_colours(source) if recipe.takes_colours else _of_channels(source, recipe)
    if isinstance(source, Image.Image):
        return _of_image(source, recipe, "the image")
    if not isinstance(source, (str, Path)):
        raise InputError(
            f"a {type(source).__name__} is not an image",
            fix=f"give a path, a Pillow image or {'a uint8 array' if recipe.takes_colours else 'an array'} "
            f"[H, W, {recipe.depth}]",
        )
    path = Path(source)
    try:
        if not path.is_file():
            if path.is_dir():
                raise InputError(f"{path} is a folder, not an image", fix="give the path of an image file")
            raise InputError(f"there is no file {path}", fix="check the path")
        found = decode(path, recipe)
        if isinstance(found, np.ndarray):
            return _of_channels(found, recipe, str(path))
        with found as image:
            return _of_image(image, recipe, str(path))
    except (InputError, MissingDependencyError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_large(str(path)) from None
    except UnidentifiedImageError:
        raise InputError(
            f"{path} is not an image",
            why=f"it is of none of the formats {', '.join(FORMATS)}",
            fix="convert it to PNG or JPEG",
        ) from None
    # Pillow's decoders raise many kinds of errors on damaged files.
    except Exception as error:
        raise InputError(
            f"{path} cannot be read", why=str(error) or type(error).__name__, fix="copy the file again, or leave it out"
        ) from error


def _of_colours(array: Array) -> Raster:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InputError(
            f"an array of {array.dtype} {list(array.shape)} is not an image",
            why="images are uint8 [H, W, 3] in RGB order",
            fix="convert it to uint8 RGB; normalised float32 tensors [N, 3, H, W] go to session(images)",
        )
    return Raster.of_image(Image.fromarray(np.ascontiguousarray(array)))


def _of_channels(array: Array, recipe: Preprocessing, name: str | None = None) -> Raster:
    """The channels of an array [H, W, C], or [H, W] of one; `name` is that of its file."""
    what = name or f"an array of {array.dtype} {list(array.shape)}"
    if array.dtype.name not in PIXEL_TYPES or array.ndim not in (2, 3) or 0 in array.shape:
        raise InputError(
            f"{what} is not an image",
            why=f"images are [H, W, C] of {', '.join(PIXEL_TYPES[:-1])} or {PIXEL_TYPES[-1]}",
            fix="convert it, e.g. image.astype(numpy.float32)",
        )
    channels = array[..., None] if array.ndim == 2 else array
    if recipe.channels == GREY and channels.dtype == np.uint8 and channels.shape[2] == 3:
        return Raster.of_image(Image.fromarray(np.ascontiguousarray(channels)).convert("L"))
    _check_count(channels.shape[2], recipe, what)
    if channels.dtype == np.float32 and not np.isfinite(channels).all():
        broken = np.count_nonzero(~np.isfinite(channels))
        raise InputError(
            f"{what} has {broken} of {channels.size} values that are NaN or Inf",
            why="the network would give NaN for the whole image",
            fix="fill them, e.g. with numpy.nan_to_num",
        )
    return Raster.of_array(channels)


def _check_count(found: int, recipe: Preprocessing, what: str) -> None:
    if found != recipe.depth:
        raise InputError(
            f"{what} has {found} channel{'s' if found > 1 else ''}, and the network takes {recipe.depth}",
            why=f"its preprocessing says channels={recipe.channels} with {recipe.depth} in mean and std",
            fix=f"give [H, W, {recipe.depth}], the channels last and in the order of the network's",
        )


def _of_image(image: Image.Image, recipe: Preprocessing, name: str) -> Raster:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise too_large(name)
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if recipe.takes_colours:
            return Raster.of_image(_as_rgb(image, name))
        if image.mode == "F" or image.mode.startswith("I"):
            return _of_channels(_deep_values(image), recipe, name)
        return _of_bands(image, recipe, name)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{name} cannot be decoded",
            why=str(error) or type(error).__name__,
            fix="copy the file again, or leave it out",
        ) from error


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise InputError(
            f"{name} has floating-point pixels",
            why="the file does not say which value is white",
            fix="convert it to 8-bit RGB",
        )
    if image.mode.startswith("I"):
        values = _deep_values(image)
        if values.dtype != np.uint16:
            raise InputError(f"{name} has more than 16 bits a pixel", fix="convert it to 8-bit RGB")
        # The way Pillow reads 16-bit colour.
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return _without_palette(image).convert("RGB")


def _of_bands(image: Image.Image, recipe: Preprocessing, name: str) -> Raster:
    if recipe.channels == GREY:
        return Raster.of_image(_without_palette(image).convert("L"))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    bands = image.convert("L").split() if image.mode == "1" else image.split()
    _check_count(len(bands), recipe, name)
    return Raster(tuple(bands))


def _without_palette(image: Image.Image) -> Image.Image:
    # Straight to RGB would warn where the palette has transparency; the colours are the same.
    return image.convert("RGBA") if image.mode == "P" else image


def _deep_values(image: Image.Image) -> Array:
    """Pixels of more than 8 bits: uint16 where they fit, whichever mode this version of Pillow reads them in."""
    values = np.asarray(image)
    if values.dtype.kind == "f":
        return values
    fits = values.dtype.itemsize == 2 or (values.min() >= 0 and values.max() <= 65535)
    return values.astype(np.uint16 if fits else np.int32)
