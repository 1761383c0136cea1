"""The arrays of an `.npz`. Light: numpy is all it needs."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
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


def load_arrays(path: Path, names: Collection[str] | None = None) -> dict[str, Array]:
    """The arrays of an `.npz` by name: all, or those of `names` that it has.

    Raises InputError for a file that is not there, is damaged or is too large. Objects are never unpickled.
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
            found = {name: arrays[name] for name in arrays.files if names is None or name in names}
    except InputError:
        raise
    # numpy raises many kinds of errors on damaged files.
    except Exception as error:
        raise InputError(
            f"{path} cannot be read", why=str(error) or type(error).__name__, fix="copy it or write it again"
        ) from error
    for name, array in found.items():
        if not isinstance(array, np.ndarray):  # numpy hands out the bytes of a member that is no .npy
            raise InputError(
                f"{name} in {path} is not an array", why="it is a file of another kind", fix="write it with numpy.savez"
            )
    return found


def array_names(path: Path) -> tuple[str, ...]:
    """The names of the arrays in an `.npz`, none of which is read; empty where it is no such file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(name.removesuffix(".npy") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return ()


def read_arrays(path: Path) -> tuple[Array, Array | None]:
    """The `images` [N, H, W] or [N, H, W, C] of an `.npz`, and its `labels` where it has them.

    Raises InputError as `load_arrays`, and for `images` of another type or shape.
    """
    found = load_arrays(path, ("images", "labels"))
    images, numbers = found.get("images"), found.get("labels")
    if images is None or images.dtype.name not in IMAGE_TYPES or images.ndim not in (3, 4):
        why = "it has no array `images`" if images is None else f"`images` is {images.dtype} {list(images.shape)}"
        raise InputError(
            f"{path} has no usable images",
            why=why,
            fix=f"save `images` as {', '.join(IMAGE_TYPES[:-1])} or {IMAGE_TYPES[-1]} [N, H, W, C], colours as uint8 "
            "[N, H, W, 3], and, if there are labels, `labels` as integers [N]",
        )
    return images, numbers
