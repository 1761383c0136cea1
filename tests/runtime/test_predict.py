"""Images of every kind: read as any viewer shows them, or refused with a reason."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import examples
from tests.image_cases import QNA, noise, pixels_of, stretch
from vitdeploy.errors import InputError
from vitdeploy.preprocess import Preprocessing, preprocess


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    upright = noise(6, 9)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    np.testing.assert_array_equal(pixels_of(path, (6, 9)), upright)


def test_a_greyscale_image_has_three_equal_channels() -> None:
    grey = noise(5, 4)[..., 0]
    np.testing.assert_array_equal(pixels_of(Image.fromarray(grey), (5, 4)), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(256))])
def test_a_palette_image_has_its_colours(tmp_path: Path, transparency: int | bytes | None) -> None:
    image = Image.fromarray(noise(16, 16)).quantize(32)
    expected = np.asarray(image.convert("RGB"))
    keywords = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "palette.png", **keywords)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(pixels_of(tmp_path / "palette.png", (16, 16)), expected)


def test_transparency_is_dropped_as_in_training() -> None:
    colours = noise(5, 4)
    alpha = np.full((5, 4, 1), 10, np.uint8)
    image = Image.fromarray(np.concatenate([colours, alpha], axis=2))
    assert image.mode == "RGBA"
    np.testing.assert_array_equal(pixels_of(image, (5, 4)), colours)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LA", "1", "HSV"])
def test_other_colour_spaces_are_converted(mode: str) -> None:
    image = Image.fromarray(noise(5, 4)).convert(mode)
    np.testing.assert_array_equal(pixels_of(image, (5, 4)), np.asarray(image.convert("RGB")))


def test_a_cmyk_jpeg_is_read(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    red = pixels_of(tmp_path / "print.jpg", (8, 8))[4, 4].astype(int)
    assert (np.abs(red - [255, 0, 0]) <= 3).all()


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bits_keep_their_upper_byte(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)
    if suffix == "pgm":
        (tmp_path / "deep.pgm").write_bytes(b"P5 3 2 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    expected = np.stack([np.array([[0, 0, 1], [128, 255, 255]], np.uint8)] * 3, axis=-1)
    np.testing.assert_array_equal(pixels_of(tmp_path / f"deep.{suffix}", (2, 3)), expected)


def test_pixels_without_an_agreed_white_are_refused() -> None:
    with pytest.raises(InputError, match="floating-point"):
        preprocess(Image.new("F", (4, 4), 0.5), Preprocessing())
    with pytest.raises(InputError, match="more than 16 bits"):
        preprocess(Image.new("I", (4, 4), 1 << 20), Preprocessing())


def test_the_first_frame_of_an_animation_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert (pixels_of(tmp_path / "moving.gif", (4, 4)) == [255, 0, 0]).all()


def test_a_single_pixel_is_enough() -> None:
    for recipe in (Preprocessing(), QNA, stretch((224, 224))):
        tensor = preprocess(np.full((1, 1, 3), 51, np.uint8), recipe)
        assert tensor.shape == (3, 224, 224)
        assert np.ptp(tensor[0]) < 0.02


def test_a_given_image_is_not_changed() -> None:
    image = Image.fromarray(noise(6, 9))
    image.getexif()[0x0112] = 6
    before = image.tobytes()
    preprocess(image, Preprocessing(size=(8, 8)))
    assert image.tobytes() == before
    assert image.size == (9, 6)
    assert image.getexif()[0x0112] == 6


# What is not an image


def png_with_size(width: int, height: int) -> bytes:
    """A valid PNG header that promises a size, without the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\x00" * 100))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (10_000, 10_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_with_size(width, height))
    with pytest.raises(InputError, match=r"bomb.png is too large\n.*89,478,485 pixels"):
        preprocess(tmp_path / "bomb.png", Preprocessing())


def test_a_huge_image_is_refused_unless_the_limit_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(noise(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1599)
    with pytest.raises(InputError, match="too large"):
        preprocess(image, Preprocessing(size=(8, 8)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert preprocess(image, Preprocessing(size=(8, 8))).shape == (3, 8, 8)


@pytest.mark.parametrize("interpolation", ["bicubic", "bicubic_no_antialias"])
@pytest.mark.parametrize("mode", ["resize_crop", "stretch"])
@pytest.mark.parametrize("shape", [(1, 10_000_000), (10_000_000, 1)])
def test_a_thread_of_a_image_does_not_fill_the_memory(shape: tuple[int, int], mode: str, interpolation: str) -> None:
    if mode == "stretch" and shape[0] == 1:
        pytest.skip("its width shrinks at once")
    with pytest.raises(InputError, match="too long and thin"):
        preprocess(np.zeros((*shape, 3), np.uint8), Preprocessing(mode=mode, interpolation=interpolation))


@pytest.mark.parametrize(
    ("contents", "complaint"),
    [
        (b"", "is not an image"),
        (b"hello, I am a text file", "is not an image"),
        (png_with_size(30, 30), "cannot be"),
        (b"\xff\xd8\xff\xe0" + b"\x00" * 50, "is not an image|cannot be"),
    ],
)
def test_a_file_that_is_not_a_image_is_refused(tmp_path: Path, contents: bytes, complaint: str) -> None:
    (tmp_path / "x.jpg").write_bytes(contents)
    with pytest.raises(InputError, match=rf"x\.jpg ({complaint})"):
        preprocess(tmp_path / "x.jpg", Preprocessing())


def test_a_truncated_photograph_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(InputError, match="truncated"):
        preprocess(tmp_path / "cut.jpg", Preprocessing())


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        preprocess(tmp_path / "absent.jpg", Preprocessing())
    with pytest.raises(InputError, match="is a folder"):
        preprocess(tmp_path, Preprocessing())


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_an_array_of_another_kind_is_refused(array: np.ndarray) -> None:
    with pytest.raises(InputError, match="is not an image"):
        preprocess(array, Preprocessing())


def test_an_object_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="a dict is not an image"):
        preprocess({}, Preprocessing())  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["jpeg", "png", "gif", "tiff", "webp", "bmp"])
@given(data=st.data())
@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore")
def test_damaged_images_are_read_or_refused(
    data: st.DataObject, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(12, 12)).save(buffer, suffix.upper())
    contents = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        contents[data.draw(st.integers(0, len(contents) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged.{suffix}"
    path.write_bytes(contents)
    try:
        assert preprocess(path, Preprocessing(size=(8, 8))).shape == (3, 8, 8)
    except InputError as error:
        assert "damaged" in error.what  # noqa: PT017
