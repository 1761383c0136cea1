"""DATA for segmentation: images, each with a mask that gives the class of every pixel.

A folder or a zip with `images/` and `masks/`, in which an image and its mask have the same name up to the suffix; or an
`.npz` with `images` and `masks` [N, H, W]. The pixel of a mask is the number of its class: a PNG with a single channel
or with a palette, whose entries are the numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.data.arrays import array_names, load_arrays
from vitdeploy.data.dataset import Dataset, DataSource
from vitdeploy.data.image_files import Files, is_hidden, is_image, open_files
from vitdeploy.data.opening import open_data
from vitdeploy.errors import InputError
from vitdeploy.preprocess import open_image

Array = NDArray[Any]

IMAGES, MASKS = "images", "masks"
LOSSLESS = (".png", ".tif", ".tiff", ".bmp", ".gif")
# Modes of Pillow whose values are whole numbers of a single channel; those of a palette are its entries.
_MODES = ("L", "P", "1", "I")
_FORM = "a folder or zip with images/ and masks/ (masks/NAME.png for images/NAME.jpg), or an .npz with images and masks"


class MaskedImages:
    """Images with a mask each; any number of threads may read them.

    images  the images, in a fixed order
    where   the name of DATA in messages
    """

    def __init__(self, images: Dataset, contents: Callable[[int], bytes | Array], names: Sequence[str]) -> None:
        self.images, self.where = images, images.where
        self._contents, self._names = contents, names

    def __len__(self) -> int:
        return len(self.images)

    def mask(self, index: int) -> Array:
        """The class of each pixel, int64 [H, W]; an InputError names a mask that is none."""
        item = self._fetch(index)
        if not isinstance(item, bytes):
            return item.astype(np.int64)
        try:
            with open_image(item) as image:
                mode, values = image.mode, np.asarray(image)
        # Pillow's decoders raise many kinds of errors on damaged files.
        except Exception as error:
            raise self._unreadable(index, str(error) or type(error).__name__) from error
        if not mode.startswith(_MODES) or values.ndim != 2:
            raise InputError(
                f"{self._names[index]} of {self.where} is no mask",
                why=f"its pixels are {mode}, and those of a mask are single numbers, the classes",
                fix="save class numbers as a PNG with one channel (mode L), or with a palette (mode P)",
            )
        return values.astype(np.int64)

    def sha256(self, index: int) -> str:
        """Hash of a mask's file, or of its type, shape and values."""
        item = self._fetch(index)
        if isinstance(item, bytes):
            return hashlib.sha256(item).hexdigest()
        return hashlib.sha256(f"{item.dtype.str} {item.shape}\n".encode() + item.tobytes()).hexdigest()

    def name(self, index: int) -> str:
        """The mask in messages."""
        return f"{self._names[index]} of {self.where}"

    def _fetch(self, index: int) -> bytes | Array:
        try:
            return self._contents(index)
        # An encrypted, damaged or vanished file; each library has its own kinds of errors for them.
        except Exception as error:
            raise self._unreadable(index, str(error) or type(error).__name__) from error

    def _unreadable(self, index: int, why: str) -> InputError:
        return InputError(f"{self.name(index)} cannot be read", why=why, fix="repair the file, or remove it")


def has_masks(data: DataSource) -> bool:
    """Whether DATA looks like images with masks; nothing is decoded."""
    if not isinstance(data, (str, Path)):
        return False
    path = Path(data)
    if path.suffix.lower() == ".npz":
        return MASKS in array_names(path)
    if not path.is_dir() and path.suffix.lower() != ".zip":
        return False
    if not path.exists():
        return False
    files = open_files(path)
    shown = [] if files is None else _shown(files)
    return _root(shown, MASKS) is not None and _root(shown, IMAGES) is not None


def open_masks(data: DataSource, masks: Iterable[Array] | None = None) -> MaskedImages:
    """DATA with its masks; images and masks are decoded when they are read.

    Args:
        data: A folder, a zip or an `.npz` as above, or an iterable as of `open_data`.
        masks: Of the items of an iterable, whole numbers [H, W] each.

    Raises:
        InputError: `data` does not exist or has no masks, an image has none, or a file is damaged.
    """
    if not isinstance(data, (str, Path)):
        images = open_data(data)
        if masks is None:
            raise _without_masks(images.where, "an iterable of images has none of its own")
        return _from_arrays(images, list(masks))
    if masks is not None:
        raise InputError(
            f"masks were given for {data}",
            why="those of a folder, a zip or an .npz are read from it",
            fix="leave them out, or give the images as an iterable",
        )
    path = Path(data)
    if path.suffix.lower() == ".npz" and path.is_file():
        images = open_data(path)
        found = load_arrays(path, (MASKS,))
        if MASKS not in found:
            raise _without_masks(str(path), f"it has no array {MASKS}")
        return _from_arrays(images, found[MASKS])
    files = open_files(path)
    if files is None:
        raise InputError(f"there is no file or folder {path}", fix=f"check the path of DATA: {_FORM}")
    return _from_files(files)


def _from_arrays(images: Dataset, masks: Sequence[Any] | Array) -> MaskedImages:
    arrays = [np.asarray(mask) for mask in masks]
    if len(arrays) != len(images) or any(mask.ndim != 2 or mask.dtype.kind not in "iu" for mask in arrays):
        odd = next((mask for mask in arrays if mask.ndim != 2 or mask.dtype.kind not in "iu"), None)
        raise InputError(
            f"the masks of {images.where} do not fit its images",
            why=f"there are {len(arrays)} for {len(images)} images"
            if odd is None
            else f"one is {odd.dtype} {list(odd.shape)}",
            fix=f"{len(images)} masks of whole numbers [H, W], each as high and wide as its image",
        )
    return MaskedImages(images, arrays.__getitem__, [f"masks[{index}]" for index in range(len(arrays))])


def _from_files(files: Files) -> MaskedImages:
    shown = _shown(files)
    images, masks = _root(shown, IMAGES), _root(shown, MASKS)
    if images is None or masks is None:
        raise _without_masks(files.where, f"it has no folder {IMAGES if images is None else MASKS}/ with images")
    pictures = [entry for entry in shown if _inside(entry, images)]
    drawn: dict[str, str] = {}
    for entry in (entry for entry in shown if _inside(entry, masks)):
        if not entry.lower().endswith(LOSSLESS):
            raise InputError(
                f"{entry} in {files.where} cannot be a mask",
                why="its format changes pixels, and a pixel is the number of a class",
                fix="save masks as PNG",
            )
        drawn[_stem(entry, masks)] = entry
    for path in pictures:
        if _stem(path, images) not in drawn:
            raise _without_masks(files.where, f"{path} has no mask {masks}/{_stem(path, images)}.png")
    found = [drawn[_stem(path, images)] for path in pictures]
    dataset = Dataset(lambda index: files.read(pictures[index]), pictures, where=files.where)
    return MaskedImages(dataset, lambda index: files.read(found[index]), found)


def _shown(files: Files) -> list[str]:
    return sorted(entry for entry in files.entries if is_image(entry) and not is_hidden(entry))


def _root(shown: Sequence[str], name: str) -> PurePosixPath | None:
    """The folder of that name that has images in it, the outermost one."""
    places = {
        PurePosixPath(*parts[: parts.index(name) + 1])
        for entry in shown
        if name in (parts := PurePosixPath(entry).parts[:-1])
    }
    return min(places, key=lambda place: (len(place.parts), place), default=None)


def _inside(entry: str, folder: PurePosixPath) -> bool:
    return PurePosixPath(entry).is_relative_to(folder)


def _stem(entry: str, folder: PurePosixPath) -> str:
    return PurePosixPath(entry).relative_to(folder).with_suffix("").as_posix()


def _without_masks(where: str, why: str) -> InputError:
    return InputError(
        f"the images of {where} have no masks", why=why, fix=f"{_FORM}; or --task features, which needs none"
    )
