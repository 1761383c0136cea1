"""DATA for networks that take more than one image: an `.npz` with an array for each input, by its name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.data.arrays import array_names, load_arrays
from vitdeploy.data.classes import class_numbers
from vitdeploy.data.dataset import Dataset, DataSource
from vitdeploy.data.opening import open_data
from vitdeploy.data.slots import Slot, only_arrays_fit, takes_images_alone
from vitdeploy.errors import InputError
from vitdeploy.preprocess import Preprocessing

Array = NDArray[Any]

LABELS = "labels"


class NamedArrays(Dataset):
    """Samples of several inputs in a fixed order.

    arrays  by the name of the input, each with the samples along its first axis; inputs that are images are uint8
            [N, H, W, 3], other channels [N, H, W, C], or float32 [N, C, H, W], normalised
    slots   the inputs that the network has
    labels  class number of each sample, integers [N], where they are known

    Raises InputError for an input without an array, arrays of different lengths, and an array of another type or shape
    than its input.
    """

    def __init__(
        self, arrays: Mapping[str, Array], slots: Sequence[Slot], where: str, labels: Array | None = None
    ) -> None:
        self._arrays = {slot.name: _checked(arrays, slot, where) for slot in slots}
        counts = {name: len(array) for name, array in self._arrays.items()}
        if len(set(counts.values())) != 1 or 0 in counts.values():
            raise InputError(
                f"the inputs in {where} have different numbers of samples",
                why=", ".join(f"{name} has {count}" for name, count in counts.items()),
                fix="as many samples, at least one, along the first axis of each array",
            )
        count = next(iter(counts.values()))
        targets = None if labels is None else class_numbers(labels, count, where)
        super().__init__(self._row, [f"samples[{index}]" for index in range(count)], where=where, targets=targets)
        self._images = {slot.name: open_data(list(self._arrays[slot.name])) for slot in slots if slot.image}

    def inputs(
        self, index: int, slots: Sequence[Slot], recipe: Preprocessing | None, *, normalised: bool = True
    ) -> dict[str, Array]:
        """One sample by the names of the inputs; images are preprocessed unless they are normalised already."""
        found: dict[str, Array] = {}
        for slot in slots:
            images = self._images.get(slot.name)
            if images is None or recipe is None:
                found[slot.name] = self._arrays[slot.name][index]
                continue
            try:
                found[slot.name] = images.tensor(index, recipe, normalised=normalised)
            except InputError as error:
                raise InputError(
                    f"{slot.name}[{index}] of {self.where} cannot be an image of the network",
                    why=error.why or error.what,
                    fix=error.fix or "give images as the network takes them",
                ) from error
        return found

    def sha256(self, index: int) -> str:
        """Hash of the types, shapes and values of a sample's arrays."""
        digest = hashlib.sha256()
        for name, array in self._arrays.items():
            row = array[index]
            digest.update(f"{name} {row.dtype.str} {row.shape}\n".encode() + row.tobytes())
        return digest.hexdigest()

    def _row(self, index: int) -> Array:
        row: Array = next(iter(self._arrays.values()))[index]
        return row


def open_samples(data: DataSource, slots: Sequence[Slot], *, labels: Sequence[str] | None = None) -> Dataset:
    """DATA for a network of these inputs: images, or an `.npz` with an array for each input.

    Raises InputError as `open_data` and `NamedArrays`, and for images where the network takes more than one.
    """
    if isinstance(data, Dataset) or (takes_images_alone(slots) and not _named_otherwise(data, slots[0].name)):
        return open_data(data, labels=labels)
    if isinstance(data, Mapping):
        arrays = {str(name): np.asarray(array) for name, array in data.items()}
        return NamedArrays(arrays, slots, "the data", _labels(arrays, slots))
    if isinstance(data, (str, Path)) and Path(data).suffix.lower() == ".npz":
        path = Path(data)
        if not path.is_file():
            raise InputError(f"there is no file {path}", fix="check the path of DATA")
        arrays = load_arrays(path, [*(slot.name for slot in slots), LABELS])
        return NamedArrays(arrays, slots, str(path), _labels(arrays, slots))
    raise only_arrays_fit(str(data) if isinstance(data, (str, Path)) else "the data", slots)


def _named_otherwise(data: DataSource, name: str) -> bool:
    """Whether DATA has the images of an only input by its name, and none that are called images."""
    if isinstance(data, Mapping):
        return True
    names = array_names(Path(data)) if isinstance(data, (str, Path)) and Path(data).suffix.lower() == ".npz" else ()
    return name in names and "images" not in names


def _labels(arrays: Mapping[str, Array], slots: Sequence[Slot]) -> Array | None:
    """The array of labels, unless an input has that name."""
    return None if LABELS in {slot.name for slot in slots} else arrays.get(LABELS)


def _checked(arrays: Mapping[str, Array], slot: Slot, where: str) -> Array:
    """The array of an input, in the type that the input has; images stay as they are."""
    if slot.name not in arrays:
        raise InputError(
            f"{where} has no array for the input {slot.name}",
            why=f"it has {', '.join(arrays) or 'no array of an input'}",
            fix=f"an array {slot}, with the samples along the first axis",
        )
    array = arrays[slot.name]
    if slot.image and array.ndim >= 3:
        return array
    fits = array.ndim == len(slot.shape) + 1 and all(
        isinstance(wanted, str) or wanted == have for wanted, have in zip(slot.shape, array.shape[1:], strict=True)
    )
    if not fits or np.dtype(slot.dtype).kind != array.dtype.kind:
        raise InputError(
            f"the array {slot.name} of {where} is {array.dtype} {list(array.shape)}", fix=f"an array {slot}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(
            f"the array {slot.name} of {where} holds NaN or Inf", fix="leave these samples out, or repair them"
        )
    return array.astype(slot.dtype)
