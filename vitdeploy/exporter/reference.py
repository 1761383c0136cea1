"""The images a bundle proves itself on when the user names none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import UsageError
from vitdeploy.preprocess import Preprocessing, normalise, to_pixels

REFERENCE_IMAGES = 4


class ReferenceImages(NamedTuple):
    """The same images twice: RGB `pixels` uint8 [n, H, W, 3], and `images` as the network sees them [n, 3, H, W].

    There are no pixels where the caller gave normalised images.
    """

    pixels: NDArray[np.uint8] | None
    images: NDArray[np.float32]


def choose_images(
    given: NDArray[Any] | Sequence[str | Path] | None, recipe: Preprocessing, *, batch: int
) -> ReferenceImages:
    """The images that `given` names, or `reference_images`; in whole batches.

    `given` are paths, of which the last is repeated to fill a batch, or an array of either kind that ReferenceImages
    holds. Raises UsageError for an array of another type or shape, or that does not fill its last batch.
    """
    height, width = recipe.size
    if given is not None and len(given) == 0:
        raise UsageError("there are no reference images", fix="leave reference out for synthetic ones")
    images: Any
    if given is None:
        images = reference_pixels(batch * -(-REFERENCE_IMAGES // batch), recipe.size)
    elif isinstance(given, np.ndarray):
        images = given
    else:
        images = np.stack([to_pixels(path, recipe) for path in (*given, *[given[-1]] * (-len(given) % batch))])
    if len(images) % batch:
        raise UsageError(
            f"{len(images)} reference images do not fill batches of {batch}", fix=f"give a multiple of {batch} images"
        )
    if images.dtype == np.uint8 and images.shape[1:] == (height, width, 3):
        return ReferenceImages(images, normalise(images, recipe))
    if images.dtype == np.float32 and images.shape[1:] == (3, height, width):
        return ReferenceImages(None, images)
    raise UsageError(
        f"reference images are {images.dtype} {list(images.shape)}",
        fix=f"float32 [n, 3, {height}, {width}] normalised, or uint8 [n, {height}, {width}, 3]",
    )


def reference_images(count: int, recipe: Preprocessing, *, seed: int = 0) -> NDArray[np.float32]:
    """`reference_pixels` as the network sees them: normalised images [count, 3, H, W]."""
    return normalise(reference_pixels(count, recipe.size, seed=seed), recipe)


def reference_pixels(count: int, size: tuple[int, int], *, seed: int = 0) -> NDArray[np.uint8]:
    """`count` images [count, H, W, 3] of `size` (H, W), the same on every machine.

    Natural images have a power spectrum that falls with the square of the frequency, large flat regions and the full
    range of 8-bit values. These have too: coloured 1/f noise over a field of flat patches, each image stretched to
    0..255. White noise would be a poor proof: pooling cancels it, and every image would look the same to a network.
    """
    height, width = size
    rng = np.random.RandomState(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((count, 3, height, width))) / frequency
    noise = np.fft.irfft2(spectrum, s=(height, width))
    noise /= noise.std(axis=(1, 2, 3), keepdims=True)
    field = rng.standard_normal((count, 3, 7, 7))
    rows, columns = np.arange(height) * 7 // height, np.arange(width) * 7 // width
    scene = noise + field[:, :, rows][:, :, :, columns]
    low, high = scene.min(axis=(1, 2, 3), keepdims=True), scene.max(axis=(1, 2, 3), keepdims=True)
    pixels = np.rint((scene - low) / (high - low) * 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
