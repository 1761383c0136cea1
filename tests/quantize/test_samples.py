"""Images that could not calibrate anything are refused; doubtful ones are named."""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import pytest

from tests.quantize.graphs import photos
from vitdeploy.errors import InputError, UsageError
from vitdeploy.quantize.samples import ENOUGH, Images


def read(*batches: np.ndarray, names: list[str] | None = None) -> Images:
    images = Images(batches, names=names)
    for batch, given in zip(images, batches, strict=True):
        np.testing.assert_array_equal(batch, given)
    return images


def black(count: int) -> np.ndarray:
    """Black after normalisation: one value a channel, not the same in all."""
    return np.tile(np.array([-2.1, -2.0, -1.8], dtype=np.float32).reshape(1, 3, 1, 1), (count, 1, 8, 8))


def test_enough_different_images_pass_silently(caplog: pytest.LogCaptureFixture) -> None:
    read(photos(ENOUGH)).check()
    assert caplog.text == ""


def test_hashes_are_of_each_image() -> None:
    values = photos(3)
    assert read(values[:1], values[1:]).hashes == [hashlib.sha256(image.tobytes()).hexdigest() for image in values]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no calibration images"),
        ([black(40)], "all 40 calibration images are flat"),
        ([np.repeat(photos(1), 40, axis=0)], "all 40 calibration images are the same"),
    ],
)
def test_useless_images_are_refused(batches: list[np.ndarray], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(*batches).check()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (photos(1), "only 1 calibration image:"),
        (photos(ENOUGH - 1), f"only {ENOUGH - 1} calibration images:"),
        (np.tile(photos(8), (8, 1, 1, 1)), "only 8 calibration images that differ"),
        (np.concatenate([photos(40), photos(40)[:5]]), "5 of 45 calibration images are repetitions"),
        (np.concatenate([photos(40), black(1)]), "1 of 41 calibration images are flat: image 40"),
    ],
)
def test_doubtful_images_are_worth_a_warning(batch: np.ndarray, message: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read(batch).check()
    assert message in caplog.text


def test_images_are_called_by_their_names(caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{index}.jpg" for index in range(50)]
    read(np.concatenate([photos(40), black(10)]), names=names).check()
    assert "flat: 40.jpg, 41.jpg, 42.jpg, 43.jpg, 44.jpg, …" in caplog.text


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_that_is_not_finite_is_named(value: float) -> None:
    batch = photos(5)
    batch[3, 1, 2, 2] = value
    with pytest.raises(InputError, match=r"d\.png holds NaN or Inf"):
        read(batch[:2], batch[2:], names=["a.png", "b.png", "c.png", "d.png", "e.png"])


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((3, 8, 8), np.float32),
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((1, 3, 8, 8)),
        np.zeros((1, 3, 8, 8), np.uint8),
    ],
)
def test_arrays_that_are_no_preprocessed_images_are_refused(batch: np.ndarray) -> None:
    with pytest.raises(InputError, match="calibration batch is"):
        read(batch)
