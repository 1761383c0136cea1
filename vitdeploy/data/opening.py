"""Opening DATA: images to calibrate, validate or train with.

DATA is a folder with one folder of images for each class (`class/file.jpg`), or of images without labels; a zip of
such a folder, packed with or without the folder around it; tars of WebDataset or Parquet files, by a path, a pattern
such as `train-{0000..0009}.tar` or a URL; or an `.npz` with `images` [N, H, W, C], or [N, H, W] of one channel, and
perhaps `labels` [N]. Colours are uint8 in RGB order. Classes are in the order of their sorted names, or of the lines of
a `labels.txt` beside them. In Python it may also be any iterable of images.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.argument_types import checked_arguments
from vitdeploy.data.arrays import read_arrays
from vitdeploy.data.classes import class_numbers, number_classes
from vitdeploy.data.containers import is_container, open_container
from vitdeploy.data.dataset import Dataset, DataSource
from vitdeploy.data.image_files import Files, find_images, open_folder, open_zip
from vitdeploy.errors import InputError, VitDeployError

Array = NDArray[Any]


@checked_arguments
def open_data(
    data: DataSource, *, labels: Sequence[str] | None = None, targets: Sequence[int] | Array | None = None
) -> Dataset:
    """Open DATA; images are decoded when they are read.

    Args:
        data: A folder, a zip, tars, Parquet files, an `.npz`, or an iterable of paths, Pillow images, uint8 arrays
            [H, W, 3] in RGB order, arrays [H, W, C] of other channels or normalised float32 arrays [C, H, W]. An
            iterator is read into memory.
        labels: Names of the classes in the network's order, as `manifest.labels`: the classes of DATA are found in them
            by name, and DATA need not have all of them. Without `labels` the order is that of DATA.
        targets: Class numbers of the items of an iterable, integers [N].

    Returns:
        The images in a fixed order, with their class numbers where DATA has labels.

    Raises:
        InputError: `data` does not exist or holds no images, a class is not in `labels`, or a zip or an `.npz` is
            damaged or not safe to read.
    """
    names = tuple(labels) if labels else None
    if isinstance(data, (str, Path)):
        if targets is not None:
            raise InputError(
                f"class numbers were given for {data}",
                why="the labels of a folder, a zip or an .npz are read from it",
                fix="leave targets out, or give the images as an iterable",
            )
        return _from_container(data, names) if is_container(data) else _open_path(Path(data), names)
    dataset = data if isinstance(data, Dataset) else _from_items(data, targets, "the data")
    return dataset.relabelled(names) if names else dataset


def _open_path(path: Path, labels: tuple[str, ...] | None) -> Dataset:
    try:
        if path.is_dir():
            return _from_files(open_folder(path), labels)
        if not path.exists():
            raise InputError(f"there is no file or folder {path}", fix="check the path of DATA")
        if path.suffix.lower() == ".npz":
            return _from_npz(path, labels)
        if path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
            return _from_files(open_zip(path), labels)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read", why=error.strerror or str(error), fix=f"check its permissions: ls -ld {path}"
        ) from error
    raise InputError(
        f"{path} is not a folder, a zip of a folder, or an .npz",
        fix="give a folder with one folder of images for each class",
    )


def _from_container(data: str | Path, labels: tuple[str, ...] | None) -> Dataset:
    found = open_container(data)
    if isinstance(found, Files):
        return _from_files(found, labels)
    dataset = Dataset(found.read, found.names, where=found.where)
    if found.kinds is not None and found.classes is not None:
        targets = number_classes(found.kinds, labels or found.classes, found.where)
        return Dataset(found.read, found.names, where=found.where, targets=targets, classes=labels or found.classes)
    if found.numbers is None:
        return dataset
    targets = class_numbers(found.numbers, len(found.names), found.where)
    numbered = Dataset(found.read, found.names, where=found.where, targets=targets)
    return numbered.relabelled(labels) if labels else numbered


def _from_files(files: Files, labels: tuple[str, ...] | None) -> Dataset:
    paths, kinds, classes = find_images(files, labels)

    def contents(index: int) -> bytes:
        return files.read(paths[index])

    if kinds is None or classes is None:
        return Dataset(contents, paths, where=files.where)
    numbers = number_classes(kinds, labels or classes, files.where)
    return Dataset(contents, paths, where=files.where, targets=numbers, classes=labels or classes)


def _from_npz(path: Path, labels: tuple[str, ...] | None) -> Dataset:
    images, numbers = read_arrays(path)
    classes = None
    if numbers is not None and numbers.dtype.kind == "U":
        kinds = numbers.ravel().tolist()
        classes = tuple(sorted(set(kinds)))
        numbers = number_classes(kinds, classes, str(path))
    dataset = _from_items(images, numbers, str(path), classes)
    return dataset.relabelled(labels) if labels else dataset


def _from_items(
    data: Iterable[Any], targets: Sequence[int] | Array | None, where: str, classes: tuple[str, ...] | None = None
) -> Dataset:
    items = data if isinstance(data, (Sequence, np.ndarray)) else _listed(data, where)
    if len(items) == 0:
        raise InputError(f"there are no images in {where}", fix="give at least one image")

    def contents(index: int) -> Any:
        item = items[index]
        return Path(item).read_bytes() if isinstance(item, (str, Path)) else item

    names = [str(item) if isinstance(item, (str, Path)) else f"images[{i}]" for i, item in enumerate(items)]
    if targets is None:
        return Dataset(contents, names, where=where)
    return Dataset(contents, names, where=where, targets=class_numbers(targets, len(items), where), classes=classes)


def _listed(data: Iterable[Any], where: str) -> list[Any]:
    """What an iterator gives; InputError for whatever it raises."""
    items: list[Any] = []
    try:
        items.extend(data)
    except VitDeployError:
        raise
    except Exception as error:
        raise InputError(
            f"{where} ends with {type(error).__name__} after {len(items)} images",
            why=str(error) or None,
            fix="repair the iterable, or give a list of images",
        ) from error
    return items
