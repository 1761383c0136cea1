"""DATA: images to calibrate, validate or train with. Light: numpy and Pillow, and `tifffile` for a TIFF of many bands.

DATA is a folder with one folder of images for each class (`class/file.jpg`), or of images without labels; a zip of
such a folder, packed with or without the folder around it; tars of WebDataset or Parquet files, by a path, a pattern
such as `train-{0000..0009}.tar` or a URL; or an `.npz` with `images` [N, H, W, C], or [N, H, W] of one channel, and
perhaps `labels` [N]. Colours are uint8 in RGB order. Classes are in the order of their sorted names, or of the lines of
a `labels.txt` beside them. In Python it may also be any iterable of images.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vitdeploy.argument_types import checked_arguments
from vitdeploy.data.arrays import read_arrays
from vitdeploy.data.containers import is_container, open_container
from vitdeploy.data.image_files import Files, find_images, open_folder, open_zip
from vitdeploy.data.slots import Slot, only_arrays_fit
from vitdeploy.errors import InputError, MissingDependencyError, VitDeployError
from vitdeploy.preprocess import (
    ImageLike,
    Preprocessing,
    decode,
    holds_pixels,
    open_image,
    preprocess,
    to_pixels,
    upright_size,
)

__all__ = ["DataSource", "Dataset", "open_data"]

Array = NDArray[Any]
Integers = NDArray[np.int64]


class Dataset:
    """Images in a fixed order; any number of threads may read them.

    Attributes:
        names: Names of the images: paths inside DATA with forward slashes, or `images[3]`.
        targets: Class number of each image, int64 [N], or None where there are no labels.
        classes: Names of the classes by number, or None where DATA has only numbers or no labels.
        where: The name of DATA in messages.
    """

    def __init__(
        self,
        contents: Callable[[int], bytes | Image.Image | Array],
        names: Iterable[str],
        *,
        where: str,
        targets: Integers | None = None,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        # Returns the bytes of a file, or the image itself where DATA holds no files.
        self._contents = contents
        self.names = tuple(map(_printable, names))
        self.where, self.targets, self.classes = where, targets, classes

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        kinds = "without labels" if self.targets is None else f"of {len(np.unique(self.targets))} classes"
        return f"<Dataset {self.where}: {len(self)} images {kinds}>"

    def label(self, index: int) -> int | None:
        """Class number of an image."""
        return None if self.targets is None else int(self.targets[index])

    def read(self, index: int, recipe: Preprocessing | None = None) -> Image.Image | Array:
        """The image, as `preprocess` takes it.

        Args:
            index: Which image, from 0.
            recipe: The preprocessing, on which it may depend whether a file becomes an image or an array of its
                channels, see `vitdeploy.preprocess.decode`.

        Returns:
            A Pillow image, or an array [H, W, C] of the channels.

        Raises:
            InputError: The image cannot be read.
        """
        item = self._fetch(index)
        if not isinstance(item, bytes):
            return item
        try:
            image = decode(item, recipe)
            if isinstance(image, np.ndarray):
                return image
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise InputError(
                    f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels",
                    fix="scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file",
                )
            image.load()
            return image
        except MissingDependencyError:
            raise
        # Pillow's decoders raise many kinds of errors on damaged files.
        except Exception as error:
            raise self._unreadable(index, error) from error

    def tensor(self, index: int, recipe: Preprocessing, *, normalised: bool = True) -> Array:
        """The network's input; an item of an iterable in this form is returned as it is.

        Args:
            index: Which image, from 0.
            recipe: The preprocessing.
            normalised: False for a graph that normalises itself.

        Returns:
            float32 [C, H, W]; where not `normalised`, the pixels [H, W, C] after resize and crop, see
            `vitdeploy.preprocess.to_pixels`.

        Raises:
            InputError: The image cannot be read.
        """
        image = self.read(index, recipe)
        if not isinstance(image, np.ndarray) or image.dtype != np.float32 or holds_pixels(image, recipe):
            try:
                return (preprocess if normalised else to_pixels)(image, recipe)
            except InputError as error:
                raise self._unreadable(index, error) from error
        shape = [recipe.depth, *recipe.size]
        if list(image.shape) == shape and normalised:
            return image
        raw = f"{'uint8' if recipe.takes_colours else 'pixels'} [H, W, {recipe.depth}]"
        raise InputError(
            f"{self.names[index]} of {self.where} is float32 {list(image.shape)}",
            why="float32 is taken as normalised already",
            fix=f"give {f'float32 {shape}, or ' if normalised else ''}{raw} for an image that is still to be "
            "preprocessed",
        )

    def inputs(
        self, index: int, slots: Sequence[Slot], recipe: Preprocessing | None, *, normalised: bool = True
    ) -> dict[str, Array]:
        """What a network takes of one sample, by the names of its inputs; see `tensor`.

        Raises:
            InputError: The network takes more or other things than one image.
        """
        if recipe is None or len(slots) != 1:
            raise only_arrays_fit(self.where, slots)
        return {slots[0].name: self.tensor(index, recipe, normalised=normalised)}

    def shape(self, index: int, recipe: Preprocessing) -> tuple[int, int] | None:
        """(height, width) of an upright image; None for an array that is normalised already."""
        item = self._fetch(index)
        if isinstance(item, np.ndarray):
            if item.ndim < 2:
                raise InputError(
                    f"{self.names[index]} of {self.where} is {item.dtype} {list(item.shape)}",
                    fix="give arrays [H, W, C] of pixels, or [C, H, W] that are normalised",
                )
            pixels = item.dtype != np.float32 or holds_pixels(item, recipe)
            return (item.shape[0], item.shape[1]) if pixels else None
        if isinstance(item, Image.Image):
            return upright_size(item)
        try:
            with open_image(item) as image:
                return upright_size(image)
        except UnidentifiedImageError:  # a TIFF of channels that Pillow does not know
            found = self.read(index, recipe)
            return found.shape[:2] if isinstance(found, np.ndarray) else (found.height, found.width)
        except Exception as error:
            raise self._unreadable(index, error) from error

    def sha256(self, index: int) -> str:
        """Hash of an image's file, or of an array's type, shape and values."""
        item = self._fetch(index)
        if isinstance(item, bytes):
            return hashlib.sha256(item).hexdigest()
        array = np.asarray(item)
        head = f"{getattr(item, 'mode', '')} {array.dtype.str} {array.shape}\n"
        return hashlib.sha256(head.encode() + array.tobytes()).hexdigest()

    @checked_arguments
    def sample(self, count: int | None = None, seed: int = 0) -> tuple[int, ...]:
        """Indices of some images, the same ones each time; fewer are the first of more.

        Every class gets its share by the method of Sainte-Laguë: the k-th image of a class of s, from 0, is due at
        (k + 1/2) / s. Within a class they are in the order of a hash of seed and name, so that a choice depends neither
        on the version of a library nor on the order in which images are found.

        Args:
            count: How many; all, where there are fewer or None is given.
            seed: Another choice.

        Returns:
            The indices, in the order of the images.
        """
        if count is not None and count < 1:
            raise InputError(f"invalid sample size {count}", fix="take 1 or more images")
        chance = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in self.names]
        groups = [0] * len(self) if self.targets is None else self.targets.tolist()
        sizes, taken = Counter(groups), Counter[int]()
        due = []
        for index in sorted(range(len(self)), key=chance.__getitem__):
            group = groups[index]
            due.append(((taken[group] + 0.5) / sizes[group], chance[index], index))
            taken[group] += 1
        return tuple(index for *_, index in sorted(due))[:count]

    @checked_arguments
    def relabelled(self, labels: Sequence[str]) -> Dataset:
        """The same images with other numbers of their classes.

        Args:
            labels: Names of the classes; their places are the numbers.

        Returns:
            The images, which are not read again.

        Raises:
            InputError: `labels` lacks a class of these images.
        """
        if self.targets is None or self.classes == tuple(labels):
            return self
        if self.classes is None:
            _check_range(self.targets, len(labels), self.where)
            return self
        targets = number_classes([self.classes[i] for i in self.targets.tolist()], labels, self.where)
        return Dataset(self._contents, self.names, where=self.where, targets=targets, classes=tuple(labels))

    def _fetch(self, index: int) -> bytes | Image.Image | Array:
        try:
            return self._contents(index)
        # An encrypted, damaged or vanished file; each library has its own kinds of errors for them.
        except Exception as error:
            raise self._unreadable(index, error) from error

    def _unreadable(self, index: int, error: Exception) -> InputError:
        why, fix = str(error) or type(error).__name__, "repair the file, or remove it"
        if isinstance(error, InputError):
            why, fix = "; ".join(filter(None, (error.what, error.why))), error.fix or fix
        return InputError(f"{self.names[index]} of {self.where} cannot be read", why=why, fix=fix)


def _printable(name: str) -> str:
    """The name of a file, which may be bytes that are not UTF-8, as it can be printed."""
    try:
        return name.encode(errors="surrogateescape").decode(errors="replace")
    except UnicodeEncodeError:  # half of a character, which no file has in its name
        return name.encode(errors="replace").decode()


DataSource = str | Path | Dataset | Iterable[ImageLike | Array]


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


def number_classes(kinds: Sequence[str], classes: Sequence[str], where: str) -> Integers:
    """The number of each class by its name; InputError for one that is not in `classes`."""
    number = {name: i for i, name in enumerate(classes)}
    unknown = sorted(set(kinds) - number.keys())
    if unknown:
        raise InputError(
            f"{where} has images of {_some(unknown)}",
            why=f"the classes are {_some(classes)}",
            fix="name the folders after the classes",
        )
    return np.array([number[kind] for kind in kinds], np.int64)


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


def class_numbers(targets: Sequence[int] | Array, count: int, where: str) -> Integers:
    """The class numbers of `count` images, int64; InputError for anything else than one whole number each from 0."""
    numbers = np.asarray(targets)
    if numbers.shape != (count,) or numbers.dtype.kind not in "iu":
        raise InputError(
            f"the labels of {where} are {numbers.dtype} {list(numbers.shape)}",
            why=f"there are {count} images, and each needs one class number",
            fix=f"give {count} integers",
        )
    _check_range(numbers, None, where)
    return numbers.astype(np.int64)


def _check_range(numbers: Array, count: int | None, where: str) -> None:
    if numbers.min() < 0 or (count is not None and numbers.max() >= count):
        raise InputError(
            f"the labels of {where} go from {numbers.min()} to {numbers.max()}",
            why=f"class numbers go from 0{'' if count is None else f' to {count - 1}'}",
            fix="number the classes from 0" + ("" if count is None else f", in the order of the network's {count}"),
        )


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
