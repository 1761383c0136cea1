"""TIFFs of many bands, pages and bits: read as they were written, or refused with a reason."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.band_cases import BANDS, RECIPE, normalised, scenes
from tests.conftest import examples
from tests.image_cases import noise
from tests.test_channels import GREY, bands
from vitdeploy.errors import InputError, MissingDependencyError
from vitdeploy.preprocess import Preprocessing, decode, preprocess, tiff, to_pixels

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")


def write(path: Path, array: np.ndarray, **options: Any) -> Path:
    tifffile.imwrite(path, array, **({"photometric": "minisblack", "metadata": None} | options))
    return path


def encoded(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **({"photometric": "minisblack", "metadata": None} | options))
    return buffer.getvalue()


LAYOUTS = {
    "chunky": {"planarconfig": "contig"},
    "planar": {"planarconfig": "separate"},
    "pages": {},
    "BigTIFF": {"planarconfig": "contig", "bigtiff": True},
    "big-endian": {"planarconfig": "contig", "byteorder": ">"},
    "tiles": {"planarconfig": "contig", "tile": (16, 16)},
    "strips, LZW, predictor": {"planarconfig": "contig", "compression": "lzw", "predictor": True, "rowsperstrip": 2},
    "Deflate": {"planarconfig": "separate", "compression": "zlib"},
    "Zstandard": {"planarconfig": "contig", "compression": "zstd"},
    "ImageJ": {"imagej": True, "metadata": {}},
    "with a description": {"planarconfig": "contig", "metadata": {}},
}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bands_are_read_as_they_were_written(tmp_path: Path, layout: str, dtype: str) -> None:
    if layout == "ImageJ" and dtype == "int16":
        pytest.skip("ImageJ has no such type")
    image, options = scenes(1, (8, 8), dtype)[0], LAYOUTS[layout]
    stored = image if options.get("planarconfig") == "contig" else image.transpose(2, 0, 1)
    path = write(tmp_path / "scene.tif", stored, **options)
    expected = normalised(image[None], RECIPE)[0]
    np.testing.assert_allclose(preprocess(path, RECIPE), expected, rtol=0, atol=2e-6)
    found = decode(path.read_bytes(), RECIPE)
    assert isinstance(found, np.ndarray)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize(
    ("stored", "read"), [("uint32", "uint32"), ("int32", "int32"), ("int8", "int16"), ("float16", "float32")]
)
def test_samples_of_other_types_keep_their_values(tmp_path: Path, stored: str, read: str) -> None:
    image = scenes(1, (5, 6), "uint16", 2)[0].astype(stored)
    found = decode(write(tmp_path / "a.tif", image, planarconfig="contig"), bands(2))
    assert isinstance(found, np.ndarray)
    assert found.dtype == read
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_are_turned_upright_as_pillow_turns_images(tmp_path: Path, orientation: int) -> None:
    image = noise(6, 9)
    tag = [(274, "H", 1, orientation, True)]
    for name, count in (("a", 3), ("b", 2)):
        write(
            tmp_path / f"{name}.tif",
            image[..., :count],
            planarconfig="contig",
            extratags=tag,
            photometric="rgb" if count == 3 else "minisblack",
        )
    size = (6, 9) if orientation < 5 else (9, 6)
    shown = to_pixels(tmp_path / "a.tif", bands(3, size))
    np.testing.assert_array_equal(to_pixels(tmp_path / "b.tif", bands(2, size)), shown[..., :2])
    assert (orientation == 1) == np.array_equal(shown, image)


def test_pages_of_several_samples_follow_each_other_and_overviews_do_not_count(tmp_path: Path) -> None:
    image = scenes(1, (16, 16), "uint16", 6)[0]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for start in (0, 3):
            page = image[..., start : start + 3]
            writer.write(page, photometric="minisblack", planarconfig="contig", metadata=None)
            writer.write(page[::2, ::2], photometric="minisblack", planarconfig="contig", subfiletype=1, metadata=None)
    np.testing.assert_array_equal(to_pixels(tmp_path / "a.tif", bands(6, (16, 16))), image)


def test_an_8_bit_image_is_what_pillow_shows_without_any_other_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, deep = noise(8, 8), scenes(1, (8, 8), "uint16", 1)[0, ..., 0]
    Image.fromarray(image).save(tmp_path / "rgb.tif")
    Image.fromarray(image[..., 0]).save(tmp_path / "grey.tif")
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    Image.fromarray(image).quantize(16).save(tmp_path / "palette.tif")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    np.testing.assert_array_equal(to_pixels(tmp_path / "rgb.tif", bands(3)), image)
    np.testing.assert_array_equal(to_pixels(tmp_path / "rgb.tif", bands(3, channels="RGB")), image)
    np.testing.assert_array_equal(to_pixels(tmp_path / "rgb.tif", GREY)[..., 0], Image.fromarray(image).convert("L"))
    for recipe in (GREY, bands(1)):
        np.testing.assert_array_equal(to_pixels(tmp_path / "grey.tif", recipe), image[..., :1])
        np.testing.assert_array_equal(to_pixels(tmp_path / "deep.tif", recipe)[..., 0], deep)
    assert to_pixels(tmp_path / "palette.tif", bands(3)).shape == (8, 8, 3)


@pytest.mark.parametrize("bits", [8, 16])
def test_pillow_is_not_asked_where_it_drops_samples_bits_or_pages(tmp_path: Path, bits: int) -> None:
    image = scenes(1, (8, 8), f"uint{bits}", 4)[0]
    for name, photometric, count in (("a", "rgb", 3), ("b", "rgb", 4), ("c", "minisblack", 2)):
        path = write(tmp_path / f"{name}.tif", image[..., :count], photometric=photometric, planarconfig="contig")
        np.testing.assert_array_equal(to_pixels(path, bands(count)), image[..., :count])
    path = write(tmp_path / "d.tif", image[..., :3].transpose(2, 0, 1))
    np.testing.assert_array_equal(to_pixels(path, bands(3)), image[..., :3])
    with pytest.raises(InputError, match=r"d\.tif has 3 channels, and the network takes 1"):
        to_pixels(path, GREY)
    inverted = write(tmp_path / "e.tif", image[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(to_pixels(inverted, bands(1)), image[..., :1])


def test_grey_of_the_types_that_only_tifffile_reads(tmp_path: Path) -> None:
    values = scenes(1, (8, 8), "int16", 1)[0, ..., 0] - 5000
    np.testing.assert_array_equal(to_pixels(write(tmp_path / "a.tif", values), GREY)[..., 0], values)


# What cannot be read


@pytest.mark.parametrize(("missing", "options"), [("tifffile", {}), ("imagecodecs", {"compression": "zlib"})])
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, options: dict[str, Any]
) -> None:
    path = write(tmp_path / "a.tif", scenes(1)[0], planarconfig="contig", **options)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingDependencyError, match=rf"{missing} is not installed\n.*\n.*vitdeploy\[tif\]"):
        preprocess(path, RECIPE)


def test_another_number_of_bands_is_refused_with_both_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", scenes(1, bands=12)[0], planarconfig="contig")
    with pytest.raises(InputError, match=r"a\.tif has 12 channels, and the network takes 13\n"):
        preprocess(path, RECIPE)


def test_a_network_of_colours_is_told_that_the_file_is_no_image(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", scenes(1)[0], planarconfig="contig")
    with pytest.raises(InputError, match=r"a\.tif is not an image"):
        preprocess(path, Preprocessing(size=(8, 8)))


@pytest.mark.parametrize("dtype", ["float64", "complex64", "uint64", "bool"])
def test_samples_of_types_that_are_no_pixels_are_refused(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path / "a.tif", scenes(1, bands=2)[0].astype(dtype), planarconfig="contig")
    with pytest.raises(InputError, match=rf"a\.tif holds {dtype} .*\n.*8, 16 or 32 bits"):
        preprocess(path, bands(2))


def test_pages_that_differ_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for size, dtype in (((8, 8), "uint16"), ((4, 4), "uint16")):
            writer.write(np.zeros(size, dtype), photometric="minisblack", metadata=None)
    with pytest.raises(InputError, match=r"the pages of .*a\.tif differ\n.*uint16 4x4, uint16 8x8"):
        preprocess(tmp_path / "a.tif", bands(2))


def test_a_tiff_without_pages_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0\0\0\0\0")
    with pytest.raises(InputError, match=r"a\.tif"):
        preprocess(tmp_path / "a.tif", RECIPE)
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        writer.write(scenes(1)[0], photometric="minisblack", planarconfig="contig", subfiletype=1, metadata=None)
    with pytest.raises(InputError, match=r"b\.tif has no pages"):
        preprocess(tmp_path / "b.tif", RECIPE)


def test_an_undefined_number_is_refused(tmp_path: Path) -> None:
    image = scenes(1, dtype="float32")[0]
    image[0, 0, 0] = np.nan
    with pytest.raises(InputError, match=r"a\.tif has 1 of 819 values that are NaN or Inf"):
        preprocess(write(tmp_path / "a.tif", image, planarconfig="contig"), RECIPE)


def test_compression_that_may_say_its_own_size_is_refused(tmp_path: Path) -> None:
    image = scenes(1, (16, 16), "uint8", 2)[0]
    path = write(tmp_path / "a.tif", image, planarconfig="separate", compression="jpeg")
    with pytest.raises(InputError, match=r"a\.tif is compressed as JPEG\n.*Deflate(.|\n)*gdal_translate"):
        preprocess(path, bands(2))


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = write(tmp_path / "wide.tif", np.zeros((64, 64, 2), np.uint16), planarconfig="contig", compression="zlib")
    deep = write(tmp_path / "deep.tif", np.zeros((8, 8, 200), np.uint16), planarconfig="contig", compression="zlib")
    tile = write(tmp_path / "tile.tif", np.zeros((8, 8, 2), np.uint16), planarconfig="contig", tile=(128, 128))
    pages = write(tmp_path / "pages.tif", np.zeros((20, 8, 8), np.uint16))
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
        for path, count in ((wide, 2), (deep, 200), (tile, 2)):
            with pytest.raises(InputError, match=rf"{path.name} is too large\n.*2,000 pixels"):
                preprocess(path, bands(count))
        patch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert preprocess(wide, bands(2)).shape == (2, 8, 8)
        patch.setattr(tiff, "MOST_PAGES", 19)
        with pytest.raises(InputError, match=r"pages\.tif has more than 19 pages"):
            preprocess(pages, bands(20))


def test_a_truncated_tiff_is_refused(tmp_path: Path) -> None:
    for number, options in enumerate(({}, {"compression": "zlib"}, {"tile": (16, 16)})):
        content = encoded(scenes(1, (40, 40))[0], planarconfig="contig", **options)
        path = tmp_path / f"{number}.tif"
        for part in (0.1, 0.5, 0.95):
            path.write_bytes(content[: int(part * len(content))])
            with pytest.raises(InputError, match=rf"{number}\.tif"):
                preprocess(path, RECIPE)


@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}, {"compression": "zlib"}, {"tile": (16, 16)}], ids=str)
@given(data=st.data())
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore")
def test_damaged_tiffs_are_read_or_refused(
    data: st.DataObject, options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(encoded(scenes(1, (8, 8))[0], planarconfig="contig", **options))
    header = min(400, len(content))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.tif"
    path.write_bytes(content)
    try:
        assert preprocess(path, RECIPE).shape == (BANDS, 8, 8)
    except InputError as error:
        assert "damaged" in error.what  # noqa: PT017


# Tags of TIFF 6.0, section 8.
WIDTH, HEIGHT = 256, 257
MISSING = {
    "one strip": {},
    "strips": {"rowsperstrip": 4},
    "tiles": {"tile": (16, 16)},
    "strips of planes": {"planarconfig": "separate", "rowsperstrip": 4},
    "strips, Deflate": {"rowsperstrip": 4, "compression": "zlib"},
    "tiles, Deflate": {"tile": (16, 16), "compression": "zlib"},
    "strips of planes, LZW": {"planarconfig": "separate", "rowsperstrip": 4, "compression": "lzw"},
}


def retold(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF whose header tells another number."""
    changed = bytearray(data)
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    entries = range(directory + 2, directory + 2 + 12 * count, 12)
    (entry,) = (at for at in entries if struct.unpack_from("<H", data, at)[0] == tag)
    struct.pack_into("<HHII", changed, entry, tag, 4, 1, value)
    return bytes(changed)


@pytest.mark.parametrize("tag", [WIDTH, HEIGHT])
@pytest.mark.parametrize("layout", MISSING)
@pytest.mark.parametrize("channels", ["RGB", "bands"])
def test_what_lacks_strips_or_tiles_is_refused_and_not_black(
    tmp_path: Path, channels: str, layout: str, tag: int
) -> None:
    colours, options = channels == "RGB", {"planarconfig": "contig"} | MISSING[layout]
    image = noise(40, 50) if colours else scenes(1, (40, 50), "uint16")[0]
    stored = image.transpose(2, 0, 1) if options["planarconfig"] == "separate" else image
    data = encoded(stored, **options | {"photometric": "rgb" if colours else "minisblack"})
    recipe = Preprocessing(size=(8, 8)) if colours else RECIPE
    path = tmp_path / "scene.tif"
    path.write_bytes(data)
    assert preprocess(path, recipe).shape[1:] == recipe.size
    path.write_bytes(retold(data, tag, 90))
    with pytest.raises(InputError, match=r"scene\.tif"):
        preprocess(path, recipe)
