"""The images a bundle proves itself on: some like those in use, and always some of the kinds that break networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.errors import UsageError
from vitdeploy.preprocess import GREY, PIXEL_TYPES, Preprocessing, normalise, to_pixels

Pixels = NDArray[np.uint8]

_PHOTOGRAPHS = sorted((Path(__file__).parent / "photographs").glob("*.jpg"))
SQUARE = 16  # pixels of a field of the checkerboard: a patch of most vision transformers


class ReferenceImages(NamedTuple):
    """The same images twice: RGB `pixels` uint8 [n, H, W, 3], and `images` as the network sees them [n, C, H, W].

    kinds    what each image is: `given`, `photograph` or a name of `DIFFICULT`
    pixels   None where the caller gave normalised images, and where the network takes other channels than colours
    """

    kinds: tuple[str, ...]
    pixels: Pixels | None
    images: NDArray[np.float32]


def choose_images(
    given: NDArray[Any] | Sequence[str | Path] | None, recipe: Preprocessing, *, batch: int
) -> ReferenceImages:
    """The images that `given` names, or else the package's photographs, and those of `DIFFICULT`; in whole batches.

    `given` are paths, pixels [n, H, W, C] of the network's size as they come out of `to_pixels`, or normalised images
    float32 [n, C, H, W]. Where the network takes other channels than colours, the package's own images are mapped to
    them, see `_in_channels`. What is missing in the last batch is filled from the start. Raises UsageError for an array
    of another type or shape, and for values that are not finite.
    """
    if given is not None and len(given) == 0:
        raise UsageError("there are no reference images", fix="leave reference out, for the photographs of the package")
    kind = "photograph" if given is None else "given"
    first: NDArray[Any]
    if given is None:
        shown = np.stack([_photograph(recipe, index) for index in range(len(_PHOTOGRAPHS))])
        first = shown if recipe.takes_colours else _in_channels(shown, recipe)
    elif isinstance(given, np.ndarray):
        first = given
    else:
        first = np.stack([to_pixels(path, recipe) for path in given])
    difficult = difficult_pixels(recipe)
    kinds = (*[kind] * len(first), *DIFFICULT)
    order = [index % len(kinds) for index in range(-(-len(kinds) // batch) * batch)]
    kinds = tuple(kinds[index] for index in order)
    normalised = first.dtype == np.float32 and first.shape[1:] == (recipe.depth, *recipe.size)
    if not normalised:
        _require_pixels(first, recipe)
    if first.dtype == np.float32 and not np.isfinite(first).all():
        raise UsageError("reference images have values that are NaN or Inf", fix="give images without them")
    if recipe.takes_colours and not normalised:
        pixels = np.concatenate([first, difficult])[order]
        return ReferenceImages(kinds, pixels, normalise(pixels, recipe))
    images = first if normalised else normalise(first, recipe)
    return ReferenceImages(kinds, None, np.concatenate([images, normalise(difficult, recipe)])[order])


def _require_pixels(array: NDArray[Any], recipe: Preprocessing) -> None:
    height, width = recipe.size
    types = ("uint8",) if recipe.takes_colours else PIXEL_TYPES
    if array.dtype.name not in types or array.shape[1:] != (height, width, recipe.depth):
        raise UsageError(
            f"reference images are {array.dtype} {list(array.shape)}",
            fix=f"float32 [n, {recipe.depth}, {height}, {width}] normalised, or "
            f"{'uint8' if recipe.takes_colours else 'pixels'} [n, {height}, {width}, {recipe.depth}]",
        )


def difficult_pixels(recipe: Preprocessing) -> NDArray[Any]:
    """Those of `DIFFICULT` as the pixels of the recipe [n, H, W, C]: uint8, or of other channels than colours float32.

    The mean colour is the mean of every channel, whichever colours the others are made of.
    """
    shown = np.stack([make(recipe) for make in DIFFICULT.values()])
    if recipe.takes_colours:
        return shown
    mapped = _in_channels(shown, recipe)
    mapped[list(DIFFICULT).index("mean colour")] = np.asarray(recipe.mean) * recipe.scale
    return mapped


def _in_channels(pixels: Pixels, recipe: Preprocessing) -> NDArray[np.float32]:
    """RGB pixels [n, H, W, 3] as other channels [n, H, W, C]: as grey, or red, green and blue over and over again.

    White is `recipe.scale` in each.
    """
    if recipe.channels == GREY:
        mapped = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in pixels])[..., None]
    else:
        mapped = pixels[..., np.arange(recipe.depth) % 3]
    return (mapped * (recipe.scale / 255)).astype(np.float32)


def _photograph(recipe: Preprocessing, index: int) -> Pixels:
    """One of the package's in RGB, whole, at the recipe's size."""
    colours = Preprocessing(size=recipe.size, mode="stretch", interpolation=recipe.interpolation)
    return to_pixels(_PHOTOGRAPHS[index], colours)


def _colour(colour: Sequence[float] | NDArray[Any], recipe: Preprocessing) -> Pixels:
    image: Pixels = np.broadcast_to(np.rint(colour).astype(np.uint8), (*recipe.size, 3)).copy()
    return image


def _mean_colour(recipe: Preprocessing) -> Pixels:
    """Normalised it is zero, as nearly as pixels allow; of other channels than colours the first three."""
    mean = recipe.mean[::-1] if recipe.channels == "BGR" else (recipe.mean * 3)[:3]
    return _colour(np.clip([recipe.scale * part for part in mean], 0, 255), recipe)


def _letterboxed(recipe: Preprocessing) -> Pixels:
    """A wide photograph in the middle, and the grey of detectors above and below."""
    height, width = recipe.size
    band = max(1, height // 2)
    wide = Image.fromarray(_photograph(recipe, 2)).resize((width, band), Image.Resampling.BILINEAR)
    image = _colour([114, 114, 114], recipe)
    image[(height - band) // 2 :][:band] = np.asarray(wide)
    return image


def _noise(recipe: Preprocessing) -> Pixels:
    return np.random.RandomState(0).randint(0, 256, (*recipe.size, 3)).astype(np.uint8)


def _checkerboard(recipe: Preprocessing) -> Pixels:
    height, width = recipe.size
    fields = np.arange(height)[:, None] // SQUARE + np.arange(width)[None] // SQUARE
    board: Pixels = np.where(fields % 2, 255, 0).astype(np.uint8)[..., None].repeat(3, axis=2)
    return board


def _lines(recipe: Preprocessing) -> Pixels:
    """Lines of one pixel, white and black: the highest vertical frequency there is, as interlaced frames have it."""
    height, width = recipe.size
    odd = (np.arange(height) % 2 * 255).astype(np.uint8)
    image: Pixels = np.broadcast_to(odd[:, None, None], (height, width, 3)).copy()
    return image


def _saturated(recipe: Preprocessing) -> Pixels:
    """A photograph of which every channel is off or at its full."""
    picture: Pixels = np.where(_photograph(recipe, 3) > 127, 255, 0).astype(np.uint8)
    return picture


# What cameras and pipelines do deliver and photographs do not show; each RGB, uint8 [H, W, 3], at the recipe's size.
DIFFICULT: dict[str, Callable[[Preprocessing], Pixels]] = {
    "mean colour": _mean_colour,
    "black": lambda recipe: _colour([0, 0, 0], recipe),
    "white": lambda recipe: _colour([255, 255, 255], recipe),
    "letterboxed": _letterboxed,
    "noise": _noise,
    "checkerboard": _checkerboard,
    "lines": _lines,
    "saturated": _saturated,
}
