"""Images in a fixed order, decoded when they are read. Light: numpy and Pillow, and `tifffile` for many bands."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vitdeploy.argument_types import checked_arguments
from vitdeploy.data.classes import check_range, number_classes
from vitdeploy.data.slots import Slot, only_arrays_fit
from vitdeploy.errors import InputError, MissingDependencyError
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
            check_range(self.targets, len(labels), self.where)
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
