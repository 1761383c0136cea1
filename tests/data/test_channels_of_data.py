"""DATA of other channels than colours: arrays, TIFFs and grey images."""

from __future__ import annotations

import dataclasses
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.band_cases import BANDS, RECIPE, normalised, scenes
from tests.image_cases import noise
from tests.test_channels import GREY, bands
from vitdeploy.data import open_data
from vitdeploy.errors import InputError, MissingDependencyError
from vitdeploy.preprocess import Preprocessing, preprocess, to_pixels

SAME_SIZE = dataclasses.replace(RECIPE, size=(9, 7))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", ">u2"])
def test_an_npz_holds_bands(tmp_path: Path, dtype: str) -> None:
    images = scenes(3, dtype="uint16" if dtype == ">u2" else dtype).astype(dtype)
    np.savez(tmp_path / "data.npz", images=images, labels=np.array([2, 0, 1]))
    data = open_data(tmp_path / "data.npz")
    assert (len(data), data.label(0)) == (3, 2)
    for index in range(3):
        found = data.tensor(index, SAME_SIZE)
        np.testing.assert_allclose(found, normalised(images[index][None], SAME_SIZE)[0], rtol=0, atol=2e-6)
        np.testing.assert_array_equal(data.tensor(index, SAME_SIZE, normalised=False), images[index])
        np.testing.assert_array_equal(data.tensor(index, RECIPE), preprocess(images[index], RECIPE))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_an_npz_of_one_channel_has_it_as_an_axis_or_not(tmp_path: Path, dtype: str) -> None:
    images = scenes(3, dtype=dtype, bands=1)
    np.savez(tmp_path / "with.npz", images=images)
    np.savez(tmp_path / "without.npz", images=images[..., 0])
    for recipe in (GREY, bands(1)):
        found = [open_data(tmp_path / name).tensor(1, recipe) for name in ("with.npz", "without.npz")]
        np.testing.assert_array_equal(found[0], found[1])
        assert found[0].shape == (1, 8, 8)


def test_folders_and_zips_hold_tiffs_of_bands(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    images = scenes(4)
    folder = tmp_path / "data"
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for number, image in enumerate(images):
            buffer = io.BytesIO()
            tifffile.imwrite(buffer, image, photometric="minisblack", planarconfig="contig")
            path = folder / "ab"[number // 2] / f"{number}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
            archive.writestr(path.relative_to(tmp_path).as_posix(), buffer.getvalue())
    for data in (open_data(folder), open_data(tmp_path / "data.zip")):
        assert data.classes == ("a", "b")
        for index, image in enumerate(images):
            np.testing.assert_array_equal(data.read(index), image)
            np.testing.assert_array_equal(data.tensor(index, RECIPE), preprocess(image, RECIPE))
        with pytest.raises(InputError, match=r"ab?/?0\.tif of .* cannot be read\n.*has 13 channels, and .* takes 12"):
            data.tensor(0, bands(12))
        with pytest.raises(InputError, match=r"0\.tif of .* cannot be read"):
            data.tensor(0, Preprocessing(size=(8, 8)))
    (folder / "a" / "0.tif").write_bytes((folder / "a" / "0.tif").read_bytes()[:300])
    with pytest.raises(InputError, match=r"a/0\.tif of .* cannot be read"):
        open_data(folder).tensor(0, RECIPE)


def test_a_package_that_is_missing_is_not_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "0.tif", scenes(1)[0], photometric="minisblack", planarconfig="contig")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(MissingDependencyError, match=r"tifffile is not installed\n.*\n.*vitdeploy\[tif\]"):
        open_data(tmp_path).tensor(0, RECIPE)


def test_a_folder_of_grey_images_is_of_one_channel(tmp_path: Path) -> None:
    grey, deep, colours = noise(9, 7)[..., 0], scenes(1, bands=1)[0, ..., 0], noise(9, 7, seed=1)
    for name, image in (("a", grey), ("b", deep), ("c", colours)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    data = open_data(tmp_path)
    as_grey = np.asarray(Image.fromarray(colours).convert("L"))
    recipe = dataclasses.replace(GREY, size=(9, 7))
    for index, expected in enumerate((grey, deep, as_grey)):
        np.testing.assert_array_equal(data.tensor(index, recipe), expected[None].astype(np.float32))
    one = dataclasses.replace(recipe, channels="bands")
    np.testing.assert_array_equal(data.tensor(1, one), deep[None].astype(np.float32))
    with pytest.raises(InputError, match=r"c\.png of .*\n.* has 3 channels, and the network takes 1"):
        data.tensor(2, one)


def test_an_iterable_holds_bands_and_normalised_images() -> None:
    raw, ready = scenes(2), np.random.default_rng(0).normal(size=(BANDS, 8, 8)).astype(np.float32)
    data = open_data([raw[0], raw[1].astype(np.float32), ready, ready[:12], ready.transpose(1, 2, 0)])
    np.testing.assert_array_equal(data.tensor(0, RECIPE), preprocess(raw[0], RECIPE))
    np.testing.assert_array_equal(data.tensor(1, RECIPE), preprocess(raw[1].astype(np.float32), RECIPE))
    np.testing.assert_array_equal(data.tensor(2, RECIPE), ready)
    with pytest.raises(InputError, match=r"images\[3\] of .*\n.*float32 \[12, 8, 8\] has 8 channels.*takes 13"):
        data.tensor(3, RECIPE)
    pixels = ready.transpose(1, 2, 0)
    np.testing.assert_array_equal(data.tensor(4, RECIPE, normalised=False), to_pixels(pixels, RECIPE))
    with pytest.raises(InputError, match=r"images\[2\] of .* is float32 \[13, 8, 8\]"):
        data.tensor(2, RECIPE, normalised=False)


@pytest.mark.parametrize("dtype", ["float64", "complex64", "bool", "int64"])
def test_items_of_other_types_are_refused_by_name(dtype: str) -> None:
    with pytest.raises(InputError, match=rf"images\[0\] of the data cannot be read\n.*array of {dtype}"):
        open_data([scenes(1)[0].astype(dtype)]).tensor(0, RECIPE)


def test_an_undefined_number_in_an_npz_is_named(tmp_path: Path) -> None:
    images = scenes(2, dtype="float32")
    images[1, 0, 0, 0] = np.nan
    np.savez(tmp_path / "data.npz", images=images)
    data = open_data(tmp_path / "data.npz")
    data.tensor(0, RECIPE)
    with pytest.raises(InputError, match=r"images\[1\] of .*data\.npz cannot be read\n.*NaN or Inf"):
        data.tensor(1, RECIPE)
