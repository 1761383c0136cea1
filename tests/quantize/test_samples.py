"""Images that could not calibrate anything are refused; doubtful ones are named."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.quantize.graphs import photos
from vitdeploy.data import Dataset
from vitdeploy.errors import InputError, UsageError
from vitdeploy.preprocess import Preprocessing
from vitdeploy.quantize.gates import images_needed, judges_wanted
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.samples import ENOUGH, SNR_IMAGES, Images, Kept, choose_samples, open_calibration, regroup


def read(*batches: np.ndarray, names: list[str] | None = None) -> Images:
    images = Images(batches, names=names)
    for batch, expected in zip(images, batches, strict=True):
        np.testing.assert_array_equal(batch, expected)
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


# Batches of another size


@given(st.lists(st.integers(1, 9), max_size=8), st.integers(1, 12))
def test_regrouped_batches_are_the_same_images_in_the_same_order(sizes: list[int], size: int) -> None:
    images = np.arange(3 * sum(sizes), dtype=np.float32).reshape(-1, 3, 1, 1)
    ends = np.cumsum(sizes)
    found = list(regroup((images[end - count : end] for count, end in zip(sizes, ends, strict=True)), size))
    assert all(len(batch) == size for batch in found[:-1])
    assert all(0 < len(batch) <= size for batch in found)
    np.testing.assert_array_equal(np.concatenate([images[:0], *found]), images)


@pytest.mark.parametrize("size", [16, 8, 1])
def test_batches_that_need_no_joining_are_not_copied(size: int) -> None:
    batches = [photos(16, seed=seed) for seed in range(3)]
    found = list(regroup(iter(batches), size))
    assert len(found) == 48 // size
    assert all(any(np.shares_memory(batch, one) for one in batches) for batch in found)


# Which image is for what


def labelled(count: int) -> Dataset:
    return Dataset(
        lambda index: np.zeros((8, 8, 3), np.uint8),
        [f"{index}.png" for index in range(count)],
        where="cats.zip",
        targets=np.arange(count) % 2,
    )


def chosen(count: int, **options: object) -> tuple[int, int, int]:
    """Images that calibrate, images that judge, and images that do both."""
    taken = Int8Options(**options)  # type: ignore[arg-type]
    samples = choose_samples(open_calibration(labelled(count), taken), (), Preprocessing(size=(8, 8)), taken)
    return len(samples.calibrate), len(samples.evaluate), len({*samples.calibrate} & {*samples.evaluate})


def test_no_image_that_calibrates_judges_a_drop() -> None:
    needed = images_needed(1)
    assert chosen(300 + needed, max_drop=1) == (300, needed, 0)
    assert chosen(300 + 16, max_drop=20) == (300, 16, 0)  # fewer than a ratio is measured on, and yet enough
    assert chosen(300 + 64, max_drop=5.67) == (300, 64, 0)


def test_a_small_drop_is_judged_on_more_images_up_to_a_number() -> None:
    assert chosen(300 + 3000, max_drop=1) == (300, judges_wanted(1), 0)
    assert judges_wanted(1) < 3000 < judges_wanted(0.1)
    assert chosen(20_000, max_drop=0.1) == (300, judges_wanted(0.1), 0)
    assert judges_wanted(0.1) == 4 * images_needed(0.1)


def test_too_few_labelled_images_are_refused_before_anything_is_read() -> None:
    with pytest.raises(UsageError, match=r"needs 3,838 labelled images .* cats\.zip has 64"):
        chosen(364, max_drop=0.1)
    assert chosen(364, max_drop=0.1, accept_loss=True) == (300, 64, 0)
    assert chosen(310, max_drop=0.1, accept_loss=True) == (300, 10, 0)
    assert chosen(300, max_drop=0.1, accept_loss=True) == (300, 300, 300)


def test_without_a_drop_a_ratio_is_measured_on_a_few_others() -> None:
    assert chosen(1000) == (300, SNR_IMAGES, 0)
    assert chosen(60) == (60, 60, 60)


@pytest.mark.parametrize(("most", "times"), [(1 << 20, 1), (100, 3)], ids=["kept", "too large"])
def test_batches_are_read_once_where_they_fit(most: int, times: int) -> None:
    class Batches:
        times = 0

        def __iter__(self) -> Iterator[np.ndarray]:
            self.times += 1
            yield from np.split(photos(6), 3)

    read = Batches()
    kept = Kept(read, most)
    next(iter(kept))  # one that stops early keeps nothing
    for _ in range(3):
        np.testing.assert_array_equal(np.concatenate(list(kept)), photos(6))
    assert read.times == times + 1


def test_nothing_is_calibrated_on_masks(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for number in range(3):
            Image.new("RGB" if folder == "images" else "L", (8, 8), number).save(tmp_path / folder / f"{number}.png")
    found = open_calibration(tmp_path, Int8Options())
    assert found is not None
    assert found.names == ("images/0.png", "images/1.png", "images/2.png")
    assert found.targets is None
