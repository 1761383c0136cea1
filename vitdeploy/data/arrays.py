"""The arrays of an `.npz` of images. Light: numpy is all it needs."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import InputError

# The most bytes that the arrays of an .npz may have.
LARGEST_ARRAYS = 1 << 33

# What `images` may be; how many channels a network takes is known to its preprocessing alone.
IMAGE_TYPES = ("uint8", "uint16", "int16", "float32")

Array = NDArray[Any]


def read_arrays(path: Path) -> tuple[Array, Array | None]:
    """The `images` [N, H, W] or [N, H, W, C] of an `.npz`, and its `labels` where it has them.

    Raises InputError for a damaged file, one that is too large, and `images` of another type or shape. Objects are
    never unpickled.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
        if total > LARGEST_ARRAYS:
            raise InputError(
                f"{path} is too large",
                why=f"unpacked it has {total:,} bytes, and all of them would be in memory",
                fix="give the images as files, in a folder or a zip",
            )
        with np.load(path, allow_pickle=False) as arrays:
            images, numbers = (arrays[name] if name in arrays.files else None for name in ("images", "labels"))
    except InputError:
        raise
    # numpy raises many kinds of errors on damaged files.
    except Exception as error:
        raise InputError(
            f"{path} cannot be read", why=str(error) or type(error).__name__, fix="copy it or write it again"
        ) from error
    if images is None or images.dtype.name not in IMAGE_TYPES or images.ndim not in (3, 4):
        found = "it has no array `images`" if images is None else f"`images` is {images.dtype} {list(images.shape)}"
        raise InputError(
            f"{path} has no usable images",
            why=found,
            fix=f"save `images` as {', '.join(IMAGE_TYPES[:-1])} or {IMAGE_TYPES[-1]} [N, H, W, C], colours as uint8 "
            "[N, H, W, 3], and, if there are labels, `labels` as integers [N]",
        )
    return images, numbers
