"""The images a bundle proves itself on: some like those in use, and always some of the kinds that break networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.errors import UsageError
from vitdeploy.preprocess import Preprocessing, normalise, to_pixels

Pixels = NDArray[np.uint8]

_PHOTOGRAPHS = sorted((Path(__file__).parent / "photographs").glob("*.jpg"))
SQUARE = 16  # pixels of a field of the checkerboard: a patch of most vision transformers


class ReferenceImages(NamedTuple):
    """The same images twice: RGB `pixels` uint8 [n, H, W, 3], and `images` as the network sees them [n, 3, H, W].

    kinds    what each image is: `given`, `photograph` or a name of `DIFFICULT`
    pixels   None where the caller gave normalised images
    """

    kinds: tuple[str, ...]
    pixels: Pixels | None
    images: NDArray[np.float32]


def choose_images(
    given: NDArray[Any] | Sequence[str | Path] | None, recipe: Preprocessing, *, batch: int
) -> ReferenceImages:
    """The images that `given` names, or else the package's photographs, and those of `DIFFICULT`; in whole batches.

    `given` are paths, or an array of either kind that ReferenceImages holds. What is missing in the last batch is
    filled from the start. Raises UsageError for an array of another type or shape.
    """
    height, width = recipe.size
    if given is not None and len(given) == 0:
        raise UsageError("there are no reference images", fix="leave reference out, for the photographs of the package")
    kind = "photograph" if given is None else "given"
    first: Any = given
    if given is None:
        first = np.stack([_photograph(recipe, index) for index in range(len(_PHOTOGRAPHS))])
    elif not isinstance(given, np.ndarray):
        first = np.stack([to_pixels(path, recipe) for path in given])
    difficult = np.stack([make(recipe) for make in DIFFICULT.values()])
    kinds = (*[kind] * len(first), *DIFFICULT)
    order = [index % len(kinds) for index in range(-(-len(kinds) // batch) * batch)]
    kinds = tuple(kinds[index] for index in order)
    if first.dtype == np.uint8 and first.shape[1:] == (height, width, 3):
        pixels = np.concatenate([first, difficult])[order]
        return ReferenceImages(kinds, pixels, normalise(pixels, recipe))
    if first.dtype == np.float32 and first.shape[1:] == (3, height, width):
        return ReferenceImages(kinds, None, np.concatenate([first, normalise(difficult, recipe)])[order])
    raise UsageError(
        f"reference images are {first.dtype} {list(first.shape)}",
        fix=f"float32 [n, 3, {height}, {width}] normalised, or uint8 [n, {height}, {width}, 3]",
    )


def _photograph(recipe: Preprocessing, index: int) -> Pixels:
    """One of the package's, whole, at the recipe's size."""
    return to_pixels(_PHOTOGRAPHS[index], replace(recipe, mode="stretch"))


def _colour(colour: Sequence[float], recipe: Preprocessing) -> Pixels:
    image: Pixels = np.broadcast_to(np.rint(colour).astype(np.uint8), (*recipe.size, 3)).copy()
    return image


def _mean_colour(recipe: Preprocessing) -> Pixels:
    """Normalised it is zero, as nearly as pixels allow."""
    mean = recipe.mean if recipe.channels == "RGB" else recipe.mean[::-1]
    return _colour([255 * part for part in mean], recipe)


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


# What cameras and pipelines do deliver and photographs do not show; each uint8 [H, W, 3] at the recipe's size.
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
