"""The classes of images: numbers by name, and numbers that are checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import InputError

Array = NDArray[Any]
Integers = NDArray[np.int64]


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


def class_numbers(targets: Sequence[int] | Array, count: int, where: str) -> Integers:
    """The class numbers of `count` images, int64; InputError for anything else than one whole number each from 0."""
    numbers = np.asarray(targets)
    if numbers.shape != (count,) or numbers.dtype.kind not in "iu":
        raise InputError(
            f"the labels of {where} are {numbers.dtype} {list(numbers.shape)}",
            why=f"there are {count} images, and each needs one class number",
            fix=f"give {count} integers",
        )
    check_range(numbers, None, where)
    return numbers.astype(np.int64)


def check_range(numbers: Array, count: int | None, where: str) -> None:
    """InputError for class numbers that are negative, or not below `count`."""
    if numbers.min() < 0 or (count is not None and numbers.max() >= count):
        raise InputError(
            f"the labels of {where} go from {numbers.min()} to {numbers.max()}",
            why=f"class numbers go from 0{'' if count is None else f' to {count - 1}'}",
            fix="number the classes from 0" + ("" if count is None else f", in the order of the network's {count}"),
        )


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
