"""Images and recipes that the tests of preprocessing share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitdeploy.preprocess import Preprocessing, normalise, preprocess

QNA = Preprocessing(mode="crop_resize", interpolation="bicubic_no_antialias")


def stretch(size: tuple[int, int]) -> Preprocessing:
    """A recipe whose output is the image itself when it has that size already."""
    return Preprocessing(size=size, mode="stretch", crop_ratio=1.0, mean=(0, 0, 0), std=(1, 1, 1))


def pixels_of(image: object, size: tuple[int, int]) -> np.ndarray:
    """What the network would see, as uint8 [H, W, 3]."""
    tensor = preprocess(image, stretch(size))  # type: ignore[arg-type]
    return np.rint(tensor.transpose(1, 2, 0) * 255).astype(np.uint8)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


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
