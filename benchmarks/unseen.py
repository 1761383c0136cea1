"""Images that no bundle has seen, and what a bundle keeps of the original network's outputs for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vitdeploy import open_data
from vitdeploy.data import DataSource
from vitdeploy.preprocess import Preprocessing, normalise
from vitdeploy.proof.recorded import image_db, pooled_db

# Decibels that are right: of the natural images together, and of the worst of the difficult ones.
BOUNDS_DB = {"fp32": (80.0, 70.0), "fp16": (40.0, 35.0), "int8": (15.0, -np.inf)}
# What FP32 keeps of FP64 where a network does not magnify rounding. An image of which it keeps less is one that FP16,
# too, keeps less of, through no fault of the export.
FP32_DB = 105.0


def natural(images: DataSource, recipe: Preprocessing, count: int) -> np.ndarray:
    """`count` images of DATA as the network takes them, always the same ones."""
    data = open_data(images)
    return np.stack([data.tensor(index, recipe) for index in data.sample(count, 1)])


def difficult(recipe: Preprocessing) -> np.ndarray:
    """Images of the kinds that break networks, none of which is in a bundle's reference."""
    height, width = recipe.size
    rng = np.random.default_rng(7)
    rows, columns = np.mgrid[0:height, 0:width]

    def flat(*colour: int) -> np.ndarray:
        return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3))

    spot = np.zeros((height, width, 3), np.uint8)
    spot[height // 2 : height // 2 + 8, width // 2 : width // 2 + 8] = 255
    half = np.where(rows[..., None] < height // 3, 0, rng.integers(0, 256, (height, width, 3))).astype(np.uint8)
    images = [
        flat(128, 128, 128),
        flat(255, 0, 0),
        flat(0, 255, 0),
        flat(1, 1, 1),
        flat(124, 116, 104),
        spot,
        half,
        np.repeat((255 * columns / width).astype(np.uint8)[..., None], 3, 2),
        np.repeat((columns % 2 * 255).astype(np.uint8)[..., None], 3, 2),
        np.repeat(((rows + columns) % 2 * 255).astype(np.uint8)[..., None], 3, 2),
        np.repeat((columns // 3 % 2 * 255).astype(np.uint8)[..., None], 3, 2),
        rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
        rng.integers(0, 2, (height, width, 3)).astype(np.uint8) * 255,
    ]
    return normalise(np.stack(images), recipe)


def figures(expected: np.ndarray, found: np.ndarray, count: int, single: np.ndarray | None = None) -> dict[str, Any]:
    """Of the first `count` images, which are natural, and of the others, which are difficult: see `BOUNDS_DB`.

    `single` is what the original gives in FP32 where `expected` is in FP64; `magnified_db` is what the worst image is
    below `difficult_db` because FP32 itself keeps less than `FP32_DB` of it.
    """
    each = image_db(expected, found, len(expected))
    own = [FP32_DB] * len(each) if single is None else image_db(expected, single, len(expected))
    hard = [one + max(0.0, FP32_DB - known) for one, known in zip(each, own, strict=True)][count:]
    return {
        "finite": bool(np.isfinite(found).all()),
        "natural_db": round(pooled_db(each[:count]), 1),
        "difficult_db": round(min(hard), 1),
        "magnified_db": round(min(hard) - min(each[count:]), 1),
    }


def largest_error(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest error of an image as a part of its own largest output, or of the median image's if that is more."""
    rows = expected.astype(np.float64).reshape(len(expected), -1)
    largest = np.abs(rows).max(axis=1)
    error = np.abs(found.astype(np.float64).reshape(rows.shape) - rows).max(axis=1)
    return float((error / np.maximum(largest, np.median(largest))).max())


def within(precision: str, found: Mapping[str, Any]) -> bool:
    """Whether `figures` are finite and hold `BOUNDS_DB`."""
    low, lowest = BOUNDS_DB[precision]
    return bool(found["finite"] and found["natural_db"] >= low and found["difficult_db"] >= lowest)
