"""Grey and multi-spectral images: the channels as they are, resized as 8-bit images are, or an error."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.band_cases import BANDS, RECIPE, normalised, scenes
from tests.conftest import examples
from tests.image_cases import noise
from vitdeploy.errors import InputError, UsageError
from vitdeploy.preprocess import (
    INTERPOLATIONS,
    MODES,
    Preprocessing,
    holds_pixels,
    normalise,
    preprocess,
    preprocess_batch,
    to_pixels,
)


def bands(count: int, size: tuple[int, int] = (8, 8), **options: object) -> Preprocessing:
    """A recipe of `count` bands that neither scales nor shifts, and does not crop."""
    fields: dict[str, object] = {"mode": "stretch", "crop_ratio": 1.0, "scale": 1.0, "channels": "bands"} | options
    return Preprocessing(size, mean=(0.0,) * count, std=(1.0,) * count, **fields)  # type: ignore[arg-type]


GREY = bands(1, channels="L")


# What the network gets


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "int32", "float32"])
def test_bands_of_every_type_are_scaled_and_normalised_by_the_formula(dtype: str) -> None:
    images = scenes(2, RECIPE.size, dtype)
    found = preprocess_batch(list(images), RECIPE)
    assert (found.dtype, found.shape) == (np.float32, (2, BANDS, 8, 8))
    np.testing.assert_allclose(found, normalised(images, RECIPE), rtol=0, atol=2e-6)
    np.testing.assert_array_equal(normalise(images, RECIPE), found)


@settings(max_examples=examples(60))
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    to=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    count=st.integers(1, 5),
    mode=st.sampled_from(MODES),
    interpolation=st.sampled_from(INTERPOLATIONS),
    crop_ratio=st.sampled_from([0.875, 1.0]),
    seed=st.integers(0, 9),
)
def test_deep_bands_are_within_one_level_of_the_8_bit_path(
    size: tuple[int, int],
    to: tuple[int, int],
    count: int,
    mode: str,
    interpolation: str,
    crop_ratio: float,
    seed: int,
) -> None:
    recipe = bands(count, to, mode=mode, interpolation=interpolation, crop_ratio=crop_ratio)
    image = np.random.default_rng(seed).choice(np.array([0, 1, 100, 254, 255], np.uint8), (*size, count))
    shallow = to_pixels(image, recipe)
    # Times 257 fills the 16 bits, so that both are clipped at the same places.
    deep = to_pixels(image.astype(np.uint16) * 257, recipe) / 257
    assert (shallow.dtype, shallow.shape, deep.shape) == (np.uint8, (*to, count), (*to, count))
    if interpolation == "bicubic_no_antialias":  # 8 bits are truncated there
        difference = deep - shallow
        assert -0.01 <= difference.min() <= difference.max() <= 1.01
    else:
        assert np.abs(np.rint(deep) - shallow).max() <= 1


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("mode", MODES)
def test_three_bands_of_8_bits_are_an_rgb_image(mode: str, interpolation: str) -> None:
    image = noise(31, 23)
    recipe = bands(3, (12, 17), mode=mode, interpolation=interpolation, crop_ratio=0.9)
    colours = bands(3, (12, 17), mode=mode, interpolation=interpolation, crop_ratio=0.9, channels="RGB")
    for source in (image, Image.fromarray(image)):
        np.testing.assert_array_equal(to_pixels(source, recipe), to_pixels(image, colours))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("dtype", "low", "high"), [("uint16", 0, 65535), ("int16", -32768, 32767)])
def test_no_integer_overshoots_its_type(dtype: str, low: int, high: int, interpolation: str) -> None:
    edge = np.full((20, 20, 2), low, np.int64)
    edge[:, 10:] = high
    recipe = bands(2, (33, 33), interpolation=interpolation)
    found = to_pixels(edge.astype(dtype), recipe)
    assert (found.min(), found.max()) == (low, high)
    free = to_pixels(edge.astype(np.float32), recipe)
    assert (free.max() > high) == (interpolation != "bilinear")


def test_the_scale_of_colours_is_a_part_of_the_recipe() -> None:
    image = noise(8, 8)
    recipe = bands(3, channels="RGB")
    np.testing.assert_array_equal(preprocess(image, recipe), image.transpose(2, 0, 1).astype(np.float32))


# Grey


def test_colours_become_grey_as_pillow_makes_them(tmp_path: Path) -> None:
    image = noise(13, 21)
    Image.fromarray(image).save(tmp_path / "a.png")
    rgba = Image.fromarray(np.concatenate([image, image[..., :1]], axis=2))
    expected = np.asarray(Image.fromarray(image).convert("L").resize((8, 13), 3).resize((8, 8), 3))[..., None]
    for source in (image, Image.fromarray(image), rgba, tmp_path / "a.png"):
        found = to_pixels(source, GREY)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_grey_of_16_bits_keeps_them(tmp_path: Path, suffix: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (8, 8), dtype=np.uint16)
    if suffix == "pgm":
        (tmp_path / "deep.pgm").write_bytes(b"P5 8 8 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    for recipe in (GREY, bands(1)):
        for source in (tmp_path / f"deep.{suffix}", values, values[..., None], Image.fromarray(values)):
            np.testing.assert_array_equal(to_pixels(source, recipe), values[..., None])


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_grey_of_16_bits_is_clipped_at_16_bits(tmp_path: Path, suffix: str) -> None:
    values = np.zeros((8, 8), np.uint16)
    values[:, 4:] = 65535
    if suffix == "pgm":
        (tmp_path / "deep.pgm").write_bytes(b"P5 8 8 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    found = to_pixels(tmp_path / f"deep.{suffix}", bands(1, (21, 21), channels="L"))
    assert (found.min(), found.max()) == (0, 65535)


def test_grey_without_an_agreed_white_is_scaled_by_the_recipe() -> None:
    values = np.linspace(-1, 2, 64, dtype=np.float32).reshape(8, 8)
    np.testing.assert_array_equal(to_pixels(Image.fromarray(values), GREY), values[..., None])
    deep = Image.fromarray(np.full((8, 8), 1 << 20, np.int32))
    assert (to_pixels(deep, GREY) == 1 << 20).all()


@pytest.mark.parametrize(
    ("mode", "count"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4), ("CMYK", 4), ("1", 1), ("P", 3)]
)
def test_the_bands_of_an_image_are_those_of_its_mode(mode: str, count: int) -> None:
    image = Image.fromarray(noise(8, 8)).convert(mode)
    found = to_pixels(image, bands(count))
    wanted = {"1": "L", "P": "RGB"}.get(mode, mode)
    np.testing.assert_array_equal(found, np.asarray(image.convert(wanted)).reshape(8, 8, count))
    with pytest.raises(InputError, match=f"the image has {count} channel.*the network takes {count + 1}"):
        to_pixels(image, bands(count + 1))


def test_images_of_bands_are_turned_upright() -> None:
    image = Image.fromarray(noise(6, 9)[..., 0])
    image.getexif()[0x0112] = 6
    np.testing.assert_array_equal(to_pixels(image, bands(1, (9, 6)))[..., 0], np.rot90(np.asarray(image), -1))


# What does not fit


@pytest.mark.parametrize("recipe", [GREY, bands(3), bands(13)])
@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8, 3)),
        np.zeros((8, 8, 3), np.complex64),
        np.zeros((8, 8, 3), bool),
        np.zeros((8, 8, 3), np.int64),
        np.zeros((8, 8, 3), object),
        np.zeros((0, 8, 3), np.uint16),
        np.zeros((1, 8, 8, 3), np.uint16),
        np.zeros(8, np.uint16),
    ],
)
def test_arrays_of_other_types_and_shapes_are_refused(array: np.ndarray, recipe: Preprocessing) -> None:
    with pytest.raises(InputError, match=rf"array of {array.dtype} .* is not an image\n.*uint8, uint16, int16"):
        preprocess(array, recipe)


@pytest.mark.parametrize(
    ("array", "recipe", "found"),
    [
        (np.zeros((8, 8, 12), np.uint16), RECIPE, 12),
        (np.zeros((8, 8), np.uint16), RECIPE, 1),
        (np.zeros((13, 8, 8), np.uint16), RECIPE, 8),
        (np.zeros((8, 8, 3), np.uint8), RECIPE, 3),
        (np.zeros((8, 8, 3), np.uint16), GREY, 3),
        (np.zeros((8, 8, 4), np.uint8), GREY, 4),
        (np.zeros((8, 8, 14), np.float32), RECIPE, 14),
    ],
)
def test_another_number_of_channels_is_refused_with_both_counts(
    array: np.ndarray, recipe: Preprocessing, found: int
) -> None:
    with pytest.raises(InputError, match=f"has {found} channel.*and the network takes {recipe.depth}\n"):
        preprocess(array, recipe)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    image = np.zeros((8, 8, BANDS), np.float32)
    image[3, 4, 5] = value
    with pytest.raises(InputError, match=r"1 of 832 values that are NaN or Inf"):
        preprocess(image, RECIPE)
    with pytest.raises(InputError, match="NaN or Inf"):
        preprocess(Image.fromarray(image[..., 5]), GREY)


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 8, 8, 1), np.uint16), np.zeros((2, 8, 8, BANDS)), np.zeros((2, BANDS, 8, 8), np.uint16)]
)
def test_pixels_that_numpy_would_spread_over_the_bands_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"cannot be normalised\n.*13 channels"):
        normalise(pixels, RECIPE)


def test_colours_stay_8_bit() -> None:
    for dtype in ("uint16", "float32"):
        with pytest.raises(InputError, match="is not an image"):
            preprocess(np.zeros((8, 8, 3), dtype), Preprocessing(size=(8, 8)))


def test_a_thread_of_many_bands_does_not_fill_the_memory() -> None:
    with pytest.raises(InputError, match="too long and thin"):
        preprocess(np.zeros((10_000_000, 1, 2), np.uint8), bands(2, (224, 224)))


def test_float32_is_pixels_unless_it_has_the_shape_of_the_networks_input() -> None:
    assert not holds_pixels(np.zeros((BANDS, 8, 8), np.float32), RECIPE)
    assert holds_pixels(np.zeros((8, 8, BANDS), np.float32), RECIPE)
    assert holds_pixels(np.zeros((BANDS, 8, 8), np.uint16), RECIPE)
    assert not holds_pixels(np.zeros((8, 8, 3), np.float32), Preprocessing(size=(8, 8)))


# Recipes


def test_the_channels_are_as_many_as_the_means() -> None:
    assert (RECIPE.depth, GREY.depth, Preprocessing().depth) == (13, 1, 3)
    assert (Preprocessing().scale, Preprocessing().takes_colours, GREY.takes_colours) == (255.0, True, False)


def test_one_number_is_enough_for_one_channel() -> None:
    for channels in ("L", "bands"):
        changed = Preprocessing().changed({"mean": 0.5, "std": 0.25, "channels": channels, "scale": 65535})
        assert (changed.mean, changed.std, changed.channels, changed.scale) == ((0.5,), (0.25,), channels, 65535.0)
        assert changed.changed({"mean": 0.25}).mean == (0.25,)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mean": (0.1, 0.2, 0.3, 0.4)}, r"invalid preprocessing mean .*\n.*RGB\n.*three finite numbers"),
        ({"mean": 0.5}, "invalid preprocessing mean 0.5\n.*three numbers"),
        ({"channels": "L"}, r"invalid preprocessing mean .*\n.*channels are L\n.*one finite number"),
        ({"channels": "L", "mean": 0.5, "std": 0}, "one number above 0"),
        ({"channels": "bands", "mean": (0.5,) * 13}, "13 numbers as mean and 3 as std"),
        ({"channels": "bands", "mean": 0.5, "std": (0.5, 0.5)}, "1 numbers as mean and 2 as std"),
        ({"channels": "bands", "mean": (), "std": ()}, "at least one finite number"),
        ({"channels": "bands", "mean": (0.5, math.nan)}, "at least one finite number"),
        ({"channels": "bands", "std": (0.5, -1.0, 1.0)}, "numbers above 0"),
        ({"channels": "bands", "mean": "dark"}, "invalid preprocessing mean 'dark'\n.*one number for each channel"),
        ({"channels": "Bands"}, "RGB or BGR or L or bands"),
        ({"scale": 0}, "invalid preprocessing scale 0.0\n"),
        ({"scale": -255}, "invalid preprocessing scale -255.0\n"),
        ({"scale": math.inf}, "invalid preprocessing scale inf\n"),
        ({"scale": "white"}, "invalid preprocessing scale 'white'\n.*10000"),
    ],
)
def test_an_impossible_recipe_of_channels_is_refused(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        Preprocessing().changed(changes)
