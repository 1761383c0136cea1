"""DATA: images to calibrate, validate or train with. Light: numpy and Pillow are all it needs.

DATA is a folder with one folder of images for each class (`class/file.jpg`), or of images without labels; a zip of
such a folder, packed with or without the folder around it; or an `.npz` with `images`, uint8 [N, H, W, 3] in RGB order,
and perhaps `labels` [N]. Classes are in the order of their sorted names, or of the lines of a `labels.txt` beside them.
In Python it may also be any iterable of images.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.data.image_files import Files, find_images, open_folder, open_zip
from vitdeploy.errors import InputError
from vitdeploy.preprocess import ImageLike, Preprocessing, preprocess, to_pixels

__all__ = ["DataSource", "Dataset", "open_data"]

# What the arrays of an .npz may fill.
LARGEST_ARRAYS = 1 << 33

Array = NDArray[Any]
Integers = NDArray[np.int64]


class Dataset:
    """Images in a fixed order; any number of threads may read them.

    names    of the images: paths inside DATA with forward slashes, or `images[3]`
    targets  class number of each image, int64 [N], or None where there are no labels
    classes  names of the classes by number, or None where DATA has only numbers or no labels
    where    DATA in words, for messages
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
        # Gives the bytes of a file, or the image itself where DATA holds no files.
        self._contents = contents
        # Names of files need not be text; what is shown has to be.
        self.names = tuple(name.encode(errors="surrogateescape").decode(errors="replace") for name in names)
        self.where, self.targets, self.classes = where, targets, classes

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        kinds = "without labels" if self.targets is None else f"of {len(np.unique(self.targets))} classes"
        return f"<Dataset {self.where}: {len(self)} images {kinds}>"

    def label(self, index: int) -> int | None:
        """Class number of an image."""
        return None if self.targets is None else int(self.targets[index])

    def read(self, index: int) -> Image.Image | Array:
        """The image, as `preprocess` takes it; an InputError names one that cannot be read."""
        item = self._fetch(index)
        if not isinstance(item, bytes):
            return item
        try:
            image: Image.Image = Image.open(io.BytesIO(item))
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise InputError(f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels")
            image.load()
            return image
        # Pillow's decoders raise many kinds of errors on damaged files.
        except Exception as error:
            raise self._unreadable(index, error) from error

    def tensor(self, index: int, recipe: Preprocessing, *, normalised: bool = True) -> Array:
        """The network's input, float32 [3, H, W]; of an iterable, an item of that kind is taken as it is.

        With `normalised=False` the RGB pixels that resize and crop leave, uint8 [H, W, 3]: some graphs do the rest.
        """
        image = self.read(index)
        if not isinstance(image, np.ndarray) or image.dtype != np.float32:
            try:
                return (preprocess if normalised else to_pixels)(image, recipe)
            except InputError as error:
                raise self._unreadable(index, error) from error
        if image.shape == (3, *recipe.size) and normalised:
            return image
        wanted = f"float32 {[3, *recipe.size]}, or uint8 [H, W, 3]" if normalised else "uint8 [H, W, 3]"
        raise InputError(
            f"{self.names[index]} of {self.where} is float32 {list(image.shape)}",
            why="float32 is taken as normalised already",
            fix=f"{wanted} for an image that is still to be preprocessed",
        )

    def sha256(self, index: int) -> str:
        """Hash of an image's file, or of an array's type, shape and values."""
        item = self._fetch(index)
        if isinstance(item, bytes):
            return hashlib.sha256(item).hexdigest()
        array = np.asarray(item)
        head = f"{getattr(item, 'mode', '')} {array.dtype.str} {array.shape}\n"
        return hashlib.sha256(head.encode() + array.tobytes()).hexdigest()

    def sample(self, count: int | None = None, seed: int = 0) -> tuple[int, ...]:
        """Indices of `count` images (all, where there are fewer or None is given); fewer are the first of more.

        Every class gets its share by the method of Sainte-Laguë: the k-th image of a class of s, from 0, is due at
        (k + 1/2) / s. Within a class they are in the order of a hash of seed and name, so that a choice depends neither
        on the version of a library nor on the order in which images are found.
        """
        if count is not None and count < 1:
            raise InputError(f"{count} images are none", fix="1 or more")
        chance = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in self.names]
        groups = [0] * len(self) if self.targets is None else self.targets.tolist()
        sizes, taken = Counter(groups), Counter[int]()
        due = []
        for index in sorted(range(len(self)), key=chance.__getitem__):
            group = groups[index]
            due.append(((taken[group] + 0.5) / sizes[group], chance[index], index))
            taken[group] += 1
        return tuple(index for *_, index in sorted(due))[:count]

    def relabelled(self, labels: Sequence[str]) -> Dataset:
        """The same images with classes numbered as in `labels`, by name; InputError for one that is not there."""
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
        why = str(error) or type(error).__name__
        if isinstance(error, InputError):
            why = "; ".join(filter(None, (error.what, error.why)))
        return InputError(
            f"{self.names[index]} of {self.where} cannot be read", why=why, fix="repair it, or take it out"
        )


DataSource = str | Path | Dataset | Iterable[ImageLike | Array]


def open_data(
    data: DataSource, *, labels: Sequence[str] | None = None, targets: Sequence[int] | Array | None = None
) -> Dataset:
    """DATA, ready to be read; images are decoded when they are read.

    data     a folder, a zip, an `.npz`, or an iterable of paths, Pillow images, uint8 arrays [H, W, 3] in RGB order or
             normalised float32 arrays [3, H, W]; an iterator is read into memory
    labels   names of the classes in the network's order, as `manifest.labels`: DATA's classes are found in them by
             name, and DATA need not have all of them. Without them the order is DATA's own
    targets  class numbers of an iterable

    Raises InputError for a place that is not there or holds no images, for classes that are not in `labels`, and for
    a zip or an `.npz` that is damaged or not safe to read.
    """
    names = tuple(labels) if labels else None
    if isinstance(data, (str, Path)):
        if targets is not None:
            raise InputError(f"class numbers were given for {data}", why="it has its own, or none")
        return _open_path(Path(data), names)
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
            fix="folders named after the classes",
        )
    return np.array([number[kind] for kind in kinds], np.int64)


def _open_path(path: Path, labels: tuple[str, ...] | None) -> Dataset:
    try:
        if path.is_dir():
            return _from_files(open_folder(path), labels)
        if not path.exists():
            raise InputError(f"there is no {path}")
        if path.suffix.lower() == ".npz":
            return _from_npz(path, labels)
        if path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
            return _from_files(open_zip(path), labels)
    except OSError as error:
        raise InputError(f"{path} cannot be read", why=error.strerror or str(error)) from error
    raise InputError(
        f"{path} is neither a folder nor a zip of one nor an .npz",
        fix="a folder with one folder of images for each class",
    )


def _from_files(files: Files, labels: tuple[str, ...] | None) -> Dataset:
    paths, kinds, classes = find_images(files, labels)

    def contents(index: int) -> bytes:
        return files.read(paths[index])

    if kinds is None or classes is None:
        return Dataset(contents, paths, where=files.where)
    numbers = number_classes(kinds, labels or classes, files.where)
    return Dataset(contents, paths, where=files.where, targets=numbers, classes=labels or classes)


def _from_npz(path: Path, labels: tuple[str, ...] | None) -> Dataset:
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
        if total > LARGEST_ARRAYS:
            raise InputError(f"unpacked it has {total:,} bytes, and all of them would be in memory")
        with np.load(path, allow_pickle=False) as arrays:
            images, numbers = (arrays[name] if name in arrays.files else None for name in ("images", "labels"))
    # numpy raises many kinds of errors on damaged files.
    except Exception as error:
        raise InputError(f"{path} cannot be read", why=str(error) or type(error).__name__) from error
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        found = "there are no `images` in it" if images is None else f"`images` is {images.dtype} {list(images.shape)}"
        raise InputError(f"{path} is not DATA", why=found, fix="images: uint8 [N, H, W, 3]; labels: integers [N]")
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
    items = data if isinstance(data, (Sequence, np.ndarray)) else list(data)
    if len(items) == 0:
        raise InputError(f"there are no images in {where}")

    def contents(index: int) -> Any:
        item = items[index]
        return Path(item).read_bytes() if isinstance(item, (str, Path)) else item

    names = [str(item) if isinstance(item, (str, Path)) else f"images[{i}]" for i, item in enumerate(items)]
    if targets is None:
        return Dataset(contents, names, where=where)
    numbers = np.asarray(targets)
    if numbers.shape != (len(items),) or numbers.dtype.kind not in "iu":
        raise InputError(
            f"the labels of {where} are {numbers.dtype} {list(numbers.shape)}",
            why=f"there are {len(items)} images, and each has one class number",
        )
    _check_range(numbers, None, where)
    return Dataset(contents, names, where=where, targets=numbers.astype(np.int64), classes=classes)


def _check_range(numbers: Array, count: int | None, where: str) -> None:
    if numbers.min() < 0 or (count is not None and numbers.max() >= count):
        raise InputError(
            f"the labels of {where} go from {numbers.min()} to {numbers.max()}",
            why=f"class numbers go from 0{'' if count is None else f' to {count - 1}'}",
        )


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
