"""From images to tensors: the training-time pixels exactly, or an InputError."""

from __future__ import annotations

import math
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.image_cases import QNA, noise, pixels_of, stretch
from vitdeploy.errors import UsageError
from vitdeploy.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PIXEL_TYPES,
    Preprocessing,
    normalise,
    preprocess,
    preprocess_batch,
    to_pixels,
)

# Independent implementations


def pillow_resize(pixels: np.ndarray, size: tuple[int, int], kernel: str) -> np.ndarray:
    """Pillow's antialiased resize, in integers as its C code does it: 22 fractional bits, columns before rows."""

    def weight(x: float) -> float:
        x = abs(x)
        if kernel == "bilinear":
            return max(0.0, 1 - x)
        if x < 1:
            return (1.5 * x - 2.5) * x * x + 1
        return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0

    def along(values: np.ndarray, target: int) -> np.ndarray:
        """Resizes the second axis."""
        source = values.shape[1]
        if source == target:
            return values
        scale = source / target
        stride = max(scale, 1.0)
        reach = {"bilinear": 1, "bicubic": 2}[kernel] * stride
        columns = []
        for out in range(target):
            centre = (out + 0.5) * scale
            first, last = max(0, int(centre - reach + 0.5)), min(source, int(centre + reach + 0.5))
            weights = np.array([weight((i - centre + 0.5) / stride) for i in range(first, last)])
            scaled = weights / weights.sum() * (1 << 22)
            whole = np.where(scaled < 0, scaled - 0.5, scaled + 0.5).astype(np.int64)
            total = (values[:, first:last].astype(np.int64) * whole[:, None]).sum(axis=1) + (1 << 21)
            columns.append(np.clip(total >> 22, 0, 255))
        return np.stack(columns, axis=1).astype(np.uint8)

    return along(along(pixels, size[1]).swapaxes(0, 1), size[0]).swapaxes(0, 1)


def torchvision_resize_crop(pixels: np.ndarray, size: int, crop_ratio: float, kernel: str) -> np.ndarray:
    """Resize(int) and CenterCrop(int) by their definitions."""
    height, width = pixels.shape[:2]
    short = math.floor(size / crop_ratio)
    long = int(short * max(height, width) / min(height, width))
    resized = pillow_resize(pixels, (short, long) if height <= width else (long, short), kernel)
    top, left = (round((side - size) / 2.0) for side in resized.shape[:2])
    return resized[top : top + size, left : left + size]


def keys_resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cubic convolution pixel by pixel: the two-dimensional sum in single precision, then truncation."""
    one = np.float32

    def weight(x: float) -> np.float32:
        x = abs(x)
        return one((1.5 * x - 2.5) * x * x + 1 if x <= 1 else ((-0.5 * x + 2.5) * x - 4) * x + 2)

    def taps(out: int, source: int, target: int) -> list[tuple[int, np.float32]]:
        position = (one(out) + one(0.5)) * (one(source) / one(target)) - one(0.5)
        first = math.floor(position)
        phase = round(float((position - one(first)) * one(1024))) / 1024
        inside = [(first + k, weight(k - phase)) if 0 <= first + k < source else (0, one(0)) for k in (-1, 0, 1, 2)]
        total = inside[0][1] + inside[1][1] + inside[2][1] + inside[3][1]
        return [(index, value * (one(1) / total)) for index, value in inside]

    def blend(values: list[np.ndarray], weights: list[np.float32]) -> np.ndarray:
        return values[0] * weights[0] + values[1] * weights[1] + values[2] * weights[2] + values[3] * weights[3]

    result = np.empty((*size, 3), np.uint8)
    source = pixels.astype(one)
    for y in range(size[0]):
        rows = taps(y, pixels.shape[0], size[0])
        for x in range(size[1]):
            columns = taps(x, pixels.shape[1], size[1])
            upright = [blend([source[r, c] for r, _ in rows], [w for _, w in rows]) for c, _ in columns]
            result[y, x] = np.clip(blend(upright, [w for _, w in columns]), 0, 255)
    return result


def expected_tensor(pixels: np.ndarray) -> np.ndarray:
    """ToTensor and Normalize, channel by channel in single precision."""
    one = np.float32
    planes = [(pixels[..., c].astype(one) / one(255) - one(IMAGENET_MEAN[c])) / one(IMAGENET_STD[c]) for c in range(3)]
    return np.stack(planes)


# The same pixels as training


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("height", "width"), [(61, 97), (97, 61), (40, 40), (13, 9), (301, 33)])
@pytest.mark.parametrize(("size", "crop_ratio"), [(32, 0.875), (33, 0.96), (24, 1.0), (31, 0.9)])
def test_resize_and_crop_are_the_training_transform(
    height: int, width: int, size: int, crop_ratio: float, interpolation: str
) -> None:
    image = noise(height, width)
    recipe = Preprocessing(size=(size, size), crop_ratio=crop_ratio, interpolation=interpolation)
    expected = expected_tensor(torchvision_resize_crop(image, size, crop_ratio, interpolation))
    np.testing.assert_array_equal(preprocess(image, recipe), expected)


@pytest.mark.parametrize("name", ["01.png", "04.png", "23.png"])
@pytest.mark.parametrize("crop_ratio", [0.875, 0.96])
def test_photographs_become_the_training_pixels(shared: Path, name: str, crop_ratio: float) -> None:
    path = shared / "data" / "kodak" / name
    pixels = np.asarray(Image.open(path))
    assert pixels.shape in ((512, 768, 3), (768, 512, 3))
    expected = expected_tensor(torchvision_resize_crop(pixels, 224, crop_ratio, "bicubic"))
    np.testing.assert_array_equal(preprocess(path, Preprocessing(crop_ratio=crop_ratio)), expected)


def test_eurosat_images_pass_through_unchanged_and_resized(shared: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared / "data" / "eurosat" / "eurosat_val.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][::500]
        archive.extractall(tmp_path, names)
    assert len(names) > 5
    same = Preprocessing(size=(64, 64), crop_ratio=1.0)
    larger = Preprocessing(size=(96, 96), crop_ratio=0.875)
    batch = preprocess_batch([tmp_path / name for name in names], same)
    for name, row in zip(names, batch, strict=True):
        pixels = np.asarray(Image.open(tmp_path / name))
        np.testing.assert_array_equal(row, expected_tensor(pixels))
        expected = torchvision_resize_crop(pixels, 96, 0.875, "bicubic")
        np.testing.assert_array_equal(preprocess(tmp_path / name, larger), expected_tensor(expected))


@pytest.mark.parametrize(("height", "width"), [(40, 50), (50, 40), (23, 23), (7, 5), (1, 1), (90, 31)])
def test_qna_crops_first_and_resizes_without_antialiasing(height: int, width: int) -> None:
    image = noise(height, width)
    side = max(1, int(0.875 * min(height, width)))
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    expected = keys_resize(image[top : top + side, left : left + side], (24, 24))
    recipe = Preprocessing(size=(24, 24), mode="crop_resize", interpolation="bicubic_no_antialias")
    np.testing.assert_array_equal(preprocess(image, recipe), expected_tensor(expected))


def test_enlarging_without_antialiasing_is_what_pillow_does_up_to_rounding() -> None:
    image = noise(19, 27) // 4 + 96  # nothing overshoots, which Pillow would clip between its two passes
    recipe = replace(stretch((64, 80)), interpolation="bicubic_no_antialias")
    ours = np.rint(preprocess(image, recipe).transpose(1, 2, 0) * 255)
    pillow = np.asarray(Image.fromarray(image).resize((80, 64), Image.Resampling.BICUBIC)).astype(float)
    # Pillow rounds after each of two passes, this truncates once.
    assert np.abs(pillow - ours - 0.5).max() <= 1.5
    assert abs((pillow - ours).mean() - 0.5) < 0.05


def test_a_photograph_through_qna_keeps_its_corners_and_mean(shared: Path) -> None:
    pixels = np.asarray(Image.open(shared / "data" / "kodak" / "05.png"))
    side = int(0.875 * 512)
    top, left = (512 - side + 1) // 2, (768 - side + 1) // 2
    crop = pixels[top : top + side, left : left + side]
    tensor = preprocess(pixels, QNA)
    expected = expected_tensor(keys_resize(crop, (224, 224))[:8])
    np.testing.assert_array_equal(tensor[:, :8], expected)


@pytest.mark.parametrize(("height", "width"), [(100, 100), (60, 200), (200, 60), (3, 3)])
@pytest.mark.parametrize("size", [(32, 48), (48, 32), (20, 60)])
def test_a_crop_of_any_aspect_ratio_fits_its_image(height: int, width: int, size: tuple[int, int]) -> None:
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width)[None].round()
    ramp[..., 1] = np.linspace(0, 255, height)[:, None].round()
    tensor = preprocess(ramp, Preprocessing(size=size, crop_ratio=0.875, mean=(0, 0, 0), std=(1, 1, 1)))
    assert tensor.shape == (3, *size)
    # The crop is central: what is cut off on one side is cut off on the other.
    for channel, axis in ((0, 1), (1, 0)):
        ends = tensor[channel].mean(axis=1 - axis)[[0, -1]]
        assert abs(ends.sum() - 1) < 0.06


def test_stretching_ignores_the_aspect_ratio() -> None:
    image = noise(30, 50)
    expected = pillow_resize(image, (20, 12), "bicubic")
    np.testing.assert_array_equal(pixels_of(image, (20, 12)), expected)


def test_channels_can_be_swapped() -> None:
    image = noise(8, 8)
    swapped = Preprocessing(size=(8, 8), mode="stretch", mean=(0.1, 0.2, 0.3), std=(1, 2, 3), channels="BGR")
    expected = (image[..., ::-1].astype(np.float32) / 255 - np.float32([0.1, 0.2, 0.3])) / np.float32([1, 2, 3])
    np.testing.assert_array_equal(preprocess(image, swapped), expected.transpose(2, 0, 1))


def test_scaling_and_normalising_are_those_of_torch_to_the_last_bit() -> None:
    torch = pytest.importorskip("torch")
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = torch.from_numpy(levels).permute(2, 0, 1).float().div(255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = tensor.sub(mean).div(std).numpy()
    np.testing.assert_array_equal(preprocess(levels, Preprocessing(size=(16, 16), mode="stretch")), expected)
    np.testing.assert_array_equal(expected_tensor(levels), expected)


NUMBERS = st.floats(-1e3, 1e3)
ABOVE_ZERO = st.floats(1e-3, 1e5)


@given(data=st.data(), depth=st.integers(1, 5), leading=st.sampled_from([(), (1,), (2, 3), (0,)]))
def test_pixels_of_every_type_and_layout_are_normalised_by_the_formula_to_the_last_bit(
    data: st.DataObject, depth: int, leading: tuple[int, ...]
) -> None:
    channels = data.draw(st.sampled_from(["RGB", "BGR", "bands"] if depth == 3 else ["bands"]))
    mean = data.draw(st.tuples(*[NUMBERS] * depth))
    std, scale = data.draw(st.tuples(*[ABOVE_ZERO] * depth)), data.draw(ABOVE_ZERO)
    recipe = Preprocessing(size=(16, 16), channels=channels, mean=mean, std=std, scale=scale)
    levels = np.arange(256 * depth).reshape(depth, 16, 16).transpose(1, 2, 0)  # each value once in each channel
    images = np.broadcast_to(levels, (*leading, 16, 16, depth)).astype(data.draw(st.sampled_from(PIXEL_TYPES)))
    image = data.draw(
        st.sampled_from([images, np.asfortranarray(images), images[..., ::-1, :], images[..., 3:9, 1::2, :]])
    )

    found = normalise(image, recipe)

    ordered = image[..., ::-1] if channels == "BGR" else image
    formula = (ordered.astype(np.float32) / np.float32(scale) - np.array(mean, np.float32)) / np.array(std, np.float32)
    expected = np.ascontiguousarray(np.moveaxis(formula, -1, -3))
    assert (found.dtype, found.shape, found.flags.c_contiguous) == (np.float32, expected.shape, True)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_the_result_is_ready_for_a_runtime() -> None:
    tensor = preprocess(noise(20, 30), Preprocessing(size=(16, 16)))
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    batch = preprocess_batch([noise(20, 30), noise(9, 8, seed=1)], Preprocessing(size=(16, 16)))
    assert batch.shape == (2, 3, 16, 16)
    np.testing.assert_array_equal(batch[0], tensor)


def test_pixels_and_normalising_are_the_two_halves() -> None:
    recipe, images = Preprocessing(size=(16, 24), channels="BGR"), [noise(20, 30), noise(9, 8, seed=1)]
    pixels = np.stack([to_pixels(image, recipe) for image in images])
    assert (pixels.dtype, pixels.shape) == (np.uint8, (2, 16, 24, 3))
    np.testing.assert_array_equal(normalise(pixels, recipe), preprocess_batch(images, recipe))


def test_some_fields_can_be_changed() -> None:
    changed = Preprocessing(size=(16, 24)).changed({"mode": "stretch", "mean": [0, 0.5, 1], "crop_ratio": 1})
    assert changed == Preprocessing((16, 24), "stretch", 1.0, mean=(0.0, 0.5, 1.0))
    with pytest.raises(UsageError, match=r"field 'crop'\n.*mode, crop_ratio, interpolation, mean, std, chann"):
        changed.changed({"crop": 1})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"mode": "zoom"}, "invalid preprocessing mode 'zoom'"),
        ({"interpolation": "lanczos"}, "interpolation 'lanczos'"),
        ({"channels": "GBR"}, "channels 'GBR'"),
        ({"crop_ratio": 0.0}, "invalid preprocessing crop_ratio .*\n.*above 0 and at most 1"),
        ({"crop_ratio": 1.5}, "invalid preprocessing crop_ratio .*\n.*above 0 and at most 1"),
        ({"size": (0, 8)}, "invalid preprocessing size"),
        ({"std": (1.0, 0.0, 1.0)}, "numbers above 0"),
        ({"std": (1.0, math.nan, 1.0)}, "three finite numbers"),
        ({"mean": (0.5, 0.5)}, "three finite numbers"),
    ],
)
def test_an_impossible_recipe_is_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        Preprocessing(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(60, 60), (30, 60), (60, 30), (7, 500), (200, 90)])
@pytest.mark.parametrize("ratio", [1.0, 0.8])
def test_a_border_keeps_the_whole_image_in_the_middle_of_the_mean_colour(size: tuple[int, int], ratio: float) -> None:
    recipe = Preprocessing(size=(40, 40), mode="border", crop_ratio=ratio, mean=(0.1, 0.5, 0.9), std=(1, 1, 1))
    image = np.broadcast_to(np.array([255, 0, 0], np.uint8), (*size, 3))
    pixels = to_pixels(image, recipe)
    assert pixels.shape == (40, 40, 3)
    inside = (pixels == [255, 0, 0]).all(axis=2)
    assert ((pixels == np.rint([25.5, 127.5, 229.5])).all(axis=2) | inside).all()
    rows, columns = inside.any(axis=1).sum(), inside.any(axis=0).sum()
    assert inside.sum() == rows * columns
    longest = min(40, round(40 / ratio))
    assert max(rows, columns) == longest
    exact = [min(40.0, 40 / ratio * side / max(size)) for side in size]
    assert abs(rows - exact[0]) <= 1
    assert abs(columns - exact[1]) <= 1
    top, bottom = inside.any(axis=1).argmax(), inside.any(axis=1)[::-1].argmax()
    assert abs(top - bottom) <= 1


def test_what_a_border_adds_is_zero_for_the_network() -> None:
    recipe = Preprocessing(size=(8, 8), mode="border", crop_ratio=1.0, mean=(0.2, 0.4, 0.6), channels="BGR")
    network = preprocess(np.full((4, 8, 3), 255, np.uint8), recipe)
    np.testing.assert_allclose(network[:, [0, 1, 6, 7]], 0, atol=0.01)
    assert (network[:, 2:6] > 0.5).all()
