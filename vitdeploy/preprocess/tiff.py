"""The channels of a TIFF that Pillow does not show: many bands or pages, 16 and 32 bits. Needs the extra `tif`."""

from __future__ import annotations

import io
import itertools
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.errors import InputError, MissingDependencyError
from vitdeploy.preprocess.raster import too_large

Array = NDArray[Any]

MOST_PAGES = 4096
# Bytes a pixel of the largest image: three channels of 32 bits.
_BYTES = 12

_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_PHOTOMETRIC, _BITS, _ORIENTATION, _SAMPLES, _PLANES, _FORMAT = 262, 258, 274, 277, 284, 339
_UNSIGNED = 1
_APART = 2
# Grey from black to white, RGB, a palette, YCbCr.
_SHOWN_AS_STORED = (1, 2, 3, 6)
_REDUCED, _MASK = 1, 4

# Those whose decoders write no more than they are told to: a JPEG says itself how large it is.
_UNCOMPRESSED = 1
_COMPRESSIONS = (_UNCOMPRESSED, 5, 8, 32773, 32946, 34925, 34926, 50000, 50013)

# 8-bit and 16-bit halves of what the network's side does not know.
_WIDER = {"int8": np.int16, "float16": np.float32}
_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32")


def is_tiff(file: Path | bytes) -> bool:
    """Whether a file, or the bytes of one, begin as a TIFF or a BigTIFF does."""
    if isinstance(file, bytes):
        return file[:4] in _SIGNATURES
    with file.open("rb") as stream:
        return stream.read(4) in _SIGNATURES


def is_shown(image: Any, *, colours: bool) -> bool:
    """Whether the opened `image` shows all that a TIFF holds: one page, with all its samples and bits.

    colours  whether a change of colour space, such as a white that is stored as 0, is as it should be
    """
    tags = image.tag_v2
    samples, bits = tags.get(_SAMPLES, 1), set(tags.get(_BITS, (1,)))
    if image.n_frames != 1 or set(tags.get(_FORMAT, (_UNSIGNED,))) != {_UNSIGNED}:
        return False
    if not colours and tags.get(_PHOTOMETRIC) not in _SHOWN_AS_STORED:
        return False
    if image.mode.startswith("I;16"):
        return bool(samples == 1 and bits == {16})
    known = colours or image.mode in ("1", "P") or (image.mode in ("L", "RGB") and bits == {8})
    return bool(known and max(bits) <= 8 and samples == len(image.getbands()))


def check_whole(image: Any) -> None:
    """OSError where strips or tiles of the opened TIFF `image` are missing: Pillow leaves black what it does not find.

    Those that are compressed are read by libtiff, which tells itself.
    """
    if any(codec != "raw" for codec, *_ in image.tile):
        return
    planes = image.tag_v2.get(_SAMPLES, 1) if image.tag_v2.get(_PLANES) == _APART else 1
    boxes = [box for _, box, offset, *_ in image.tile if offset]  # an offset of 0 says that there is none
    held = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    whole = image.width * image.height * planes
    if held < whole:
        raise OSError(f"it holds {held:,} of the {whole:,} samples that its header tells")


def read_channels(file: Path | bytes, name: str) -> Array:
    """The samples of all pages of a TIFF as one array [H, W, C], page after page; `name` stands in messages.

    Overviews and masks are passed over. The samples are uint8, uint16, int16, uint32, int32 or float32. Raises
    InputError where pages differ, for other samples and for files that are not safe to read, MissingDependencyError
    without the extra `tif`, and errors of many kinds for damaged files.
    """
    tifffile = _library()
    with tifffile.TiffFile(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
        pages = list(itertools.islice(opened.pages, MOST_PAGES + 1))
        if len(pages) > MOST_PAGES:
            raise InputError(f"{name} has more than {MOST_PAGES:,} pages", fix="write one file for each image")
        pages = [page for page in pages if not page.subfiletype & (_REDUCED | _MASK)]
        if not pages:
            raise InputError(f"{name} has no pages", fix="write it again, or leave it out")
        _check(pages, name)
        found = np.concatenate([_samples(page) for page in pages], axis=2)
        orientation = pages[0].tags.get(_ORIENTATION)
    wide = found.astype(_WIDER.get(found.dtype.name, found.dtype.newbyteorder("=")), copy=False)
    return _upright(wide, 1 if orientation is None else int(orientation.value))


def _library() -> Any:
    try:
        import tifffile
    except ImportError:
        raise MissingDependencyError("tifffile", needed_for="a TIFF of several bands or pages", extra="tif") from None
    # What it finds wrong with a file is said by the error; without a handler Python would print it too.
    log = logging.getLogger("tifffile")
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    return tifffile


def _check(pages: list[Any], name: str) -> None:
    """Whether the pages are those of one image that is safe to decode."""
    first, limit = pages[0], Image.MAX_IMAGE_PIXELS
    kinds = {(page.imagelength, page.imagewidth, str(page.dtype)) for page in pages}
    if len(kinds) > 1:
        shown = ", ".join(f"{dtype} {height}x{width}" for height, width, dtype in sorted(kinds, key=str)[:3])
        raise InputError(
            f"the pages of {name} differ", why=f"they are {shown}", fix="write bands of one size and type, resampled"
        )
    if str(first.dtype) not in _TYPES or 0 in first.shaped or any(page.imagedepth != 1 for page in pages):
        raise InputError(
            f"{name} holds {first.dtype} {list(first.shape)}",
            why="samples are integers of 8, 16 or 32 bits, or floating-point numbers of 16 or 32",
            fix="convert it, e.g. to uint16",
        )
    pixels = first.imagelength * first.imagewidth
    channels = sum(page.samplesperpixel for page in pages)
    tile = max(page.tilelength * page.tilewidth for page in pages)
    if limit is not None and (max(pixels, tile) > limit or pixels * channels * first.dtype.itemsize > _BYTES * limit):
        raise too_large(name)
    for page in pages:
        if page.compression not in _COMPRESSIONS:
            kind = getattr(page.compression, "name", page.compression)
            raise InputError(
                f"{name} is compressed as {kind}",
                why="several bands are read uncompressed, or from LZW, Deflate, PackBits, LZMA or Zstandard",
                fix="write it with one of these, e.g. gdal_translate -co COMPRESS=DEFLATE",
            )
        if page.compression != _UNCOMPRESSED:
            _need_decoders()
        held, whole = len(page.dataoffsets), math.prod(page.chunked)
        if held < whole:
            part = "tiles" if page.is_tiled else "strips"
            raise InputError(
                f"{name} is damaged",
                why=f"it holds {held} of the {whole} {part} that its header tells",
                fix="copy the file again, or leave it out",
            )


def _need_decoders() -> None:
    # The decoders that tifffile brings itself know no limit, and a small file could fill the memory.
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            "imagecodecs", needed_for="a compressed TIFF of several bands", extra="tif"
        ) from None


def _samples(page: Any) -> Array:
    """[H, W, samples], whether they are stored together or one plane after another."""
    stored: Array = page.asarray(maxworkers=1, squeeze=False)[:, 0]  # planes, height, width, samples in a plane
    return np.moveaxis(stored, 0, 2).reshape(*stored.shape[1:3], -1)


def _upright(array: Array, orientation: int) -> Array:
    """[H, W, C] as the tag says that it is seen: of rows and columns some run backwards, and some are exchanged."""
    if orientation in (3, 4, 6, 7):
        array = array[::-1]
    if orientation in (2, 3, 7, 8):
        array = array[:, ::-1]
    return array.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else array
