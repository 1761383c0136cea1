"""Images and recipes that the tests of preprocessing share."""

from __future__ import annotations

import numpy as np

from vitdeploy.preprocess import Preprocessing, preprocess

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
