"""The images a bundle proves itself on when the user names none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitdeploy.runtime.preprocess import Preprocessing

REFERENCE_IMAGES = 4


def reference_images(count: int, recipe: Preprocessing, *, seed: int = 0) -> NDArray[np.float32]:
    """`count` normalised images [count, 3, H, W], the same on every machine.

    Natural images have a power spectrum that falls with the square of the frequency, large flat regions and the full
    range of 8-bit values. These have too: coloured 1/f noise over a field of flat patches, each picture stretched to
    0..255 and rounded to integers, then scaled and normalised as the recipe says. White noise would be a poor proof:
    pooling cancels it, and every image would look the same to a network.
    """
    height, width = recipe.size
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
    pixels = np.rint((scene - low) / (high - low) * 255)
    if recipe.channels == "BGR":
        pixels = pixels[:, ::-1]
    mean, std = (np.asarray(v, dtype=np.float64).reshape(1, 3, 1, 1) for v in (recipe.mean, recipe.std))
    normalised: NDArray[np.float32] = ((pixels / 255 - mean) / std).astype(np.float32)
    return normalised
