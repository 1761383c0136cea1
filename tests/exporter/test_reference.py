"""The images of a proof: what was given or photographs, always the difficult ones, and whole batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.band_cases import RECIPE as BAND_RECIPE
from tests.band_cases import normalised, scenes
from vitdeploy.errors import UsageError
from vitdeploy.exporter.reference import DIFFICULT, choose_images
from vitdeploy.preprocess import Preprocessing, normalise

RECIPE = Preprocessing(size=(48, 64))


def test_without_images_there_are_photographs_and_every_difficult_kind() -> None:
    found = choose_images(None, RECIPE, batch=1)
    assert found.kinds == (*["photograph"] * 4, *DIFFICULT)
    assert found.pixels is not None
    assert found.pixels.shape == (12, 48, 64, 3)
    assert len({image.tobytes() for image in found.pixels}) == 12
    np.testing.assert_array_equal(found.images, normalise(found.pixels, RECIPE))
    assert all(image.std() > 20 for image in found.pixels[:4])


def test_the_difficult_images_are_what_they_are_called() -> None:
    recipe = Preprocessing(size=(64, 64), mean=(0.1, 0.2, 0.9), channels="BGR")
    image = {name: make(recipe) for name, make in DIFFICULT.items()}
    assert np.abs(normalise(image["mean colour"][None], recipe)).max() < 0.01
    assert image["black"].max() == 0
    assert image["white"].min() == 255
    assert set(np.unique(image["saturated"])) == {0, 255}
    assert set(np.unique(image["checkerboard"])) == {0, 255}
    assert (image["lines"] == image["lines"][:, :1]).all()
    assert (image["lines"][::2] != image["lines"][1::2]).all()
    assert image["letterboxed"][:16].std() == image["letterboxed"][-16:].std() == 0
    assert image["letterboxed"][16:48].std() > 20
    assert len(np.unique(image["noise"])) == 256


@pytest.mark.parametrize(("batch", "count"), [(1, 12), (5, 15), (8, 16), (16, 16)])
def test_batches_are_filled_from_the_start(batch: int, count: int) -> None:
    found = choose_images(None, RECIPE, batch=batch)
    assert len(found.images) == len(found.kinds) == count
    for index in range(12, count):
        np.testing.assert_array_equal(found.images[index], found.images[index - 12])
        assert found.kinds[index] == found.kinds[index - 12]


def test_given_images_come_first(tmp_path: Path) -> None:
    pixels = np.full((48, 64, 3), 7, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for given in ([tmp_path / "a.png"], pixels[None], normalise(pixels[None], RECIPE)):
        found = choose_images(given, RECIPE, batch=1)
        assert found.kinds == ("given", *DIFFICULT)
        np.testing.assert_allclose(found.images[0], normalise(pixels[None], RECIPE)[0], atol=1e-6)
        assert (found.pixels is None) == (isinstance(given, np.ndarray) and given.dtype == np.float32)


@pytest.mark.parametrize(
    "given", [[], np.zeros((2, 3, 48, 60), np.float32), np.zeros((2, 48, 64, 3), np.float32), np.zeros((0, 48, 64, 3))]
)
def test_other_arrays_are_refused(given: object) -> None:
    with pytest.raises(UsageError):
        choose_images(given, RECIPE, batch=1)  # type: ignore[arg-type]


# Other channels than colours

GREY = Preprocessing((48, 64), mean=(0.4,), std=(0.3,), channels="L", scale=1000)
SCENE = replace(BAND_RECIPE, size=(48, 64))


@pytest.mark.parametrize("recipe", [GREY, SCENE], ids=["grey", "bands"])
def test_the_own_images_are_mapped_to_the_channels(recipe: Preprocessing) -> None:
    colours = choose_images(None, RECIPE, batch=1)
    assert colours.pixels is not None
    found = choose_images(None, recipe, batch=5)
    assert found.kinds[:12] == colours.kinds
    assert found.pixels is None
    assert (found.images.dtype, found.images.shape) == (np.float32, (15, recipe.depth, 48, 64))
    parts = colours.pixels.astype(np.float64) / 255
    if recipe is GREY:
        parts = parts @ np.array([[0.299], [0.587], [0.114]])
    mean = found.kinds.index("mean colour")
    for channel in range(recipe.depth):
        expected = (parts[..., channel % parts.shape[3]] - recipe.mean[channel]) / recipe.std[channel]
        expected[mean] = 0
        # Pillow rounds a grey to a level.
        tolerance = 0.51 / 255 / recipe.std[channel] if recipe is GREY else 1e-5
        np.testing.assert_allclose(found.images[:12, channel], expected, rtol=0, atol=tolerance)
    assert len({image.tobytes() for image in found.images[:12]}) == 12


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_given_bands_come_first(dtype: str, tmp_path: Path) -> None:
    raw = scenes(2, (48, 64), dtype)
    expected = normalised(raw, SCENE)
    for given in (raw, expected.astype(np.float32)):
        found = choose_images(given, SCENE, batch=1)
        assert found.kinds == ("given", "given", *DIFFICULT)
        np.testing.assert_allclose(found.images[:2], expected, rtol=0, atol=2e-6)
        assert found.pixels is None
    Image.fromarray(raw[0, ..., 0]).save(tmp_path / "a.tif")
    found = choose_images([tmp_path / "a.tif"], replace(GREY, mode="stretch"), batch=1)
    expected = (raw[:1, None, ..., 0].astype(np.float64) / 1000 - 0.4) / 0.3
    np.testing.assert_allclose(found.images[:1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (np.zeros((2, 48, 64, 12), np.uint16), r"uint16 \[2, 48, 64, 12\]\n.*\[n, 13, 48, 64\].*\[n, 48, 64, 13\]"),
        (np.zeros((2, 48, 64, 13)), "float64"),
        (np.zeros((2, 48, 64, 13), bool), "bool"),
        (np.full((2, 13, 48, 64), np.nan, np.float32), "NaN or Inf"),
        (np.full((2, 48, 64, 13), np.inf, np.float32), "NaN or Inf"),
    ],
)
def test_given_bands_of_another_kind_are_refused(given: np.ndarray, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        choose_images(given, SCENE, batch=1)


def test_undefined_numbers_in_normalised_colours_are_refused() -> None:
    with pytest.raises(UsageError, match="NaN or Inf"):
        choose_images(np.full((1, 3, 48, 64), np.nan, np.float32), RECIPE, batch=1)
