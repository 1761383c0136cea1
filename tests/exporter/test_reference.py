"""The images of a proof: what was given or photographs, always the difficult ones, and whole batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
