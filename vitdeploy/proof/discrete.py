"""Outputs that are no measures: selections of tokens, classes and flags, which are compared entry by entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Scores of two border tokens may lie within rounding of each other; more than this part of a row is no border case.
BORDER_PART = 0.05

# In a map of classes the best two scores are equal somewhere along every border between two classes, and there the
# last bit decides. More than this part of a map is no border.
FLIPPED_PART = 0.005


@dataclass(frozen=True)
class SelectionParity:
    """A discrete output [N, k] against its reference, each row a set: the order does not count.

    rows       samples
    same_rows  samples with the same set as the reference
    exchanged  the most entries that one sample chose differently
    size       k
    failures   what does not hold, in words
    """

    name: str
    rows: int
    same_rows: int
    exchanged: int
    size: int
    failures: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name,
            "rows": self.rows,
            "same_rows": self.same_rows,
            "exchanged": self.exchanged,
            "size": self.size,
            "passed": not self.failures,
        }

    def __str__(self) -> str:
        exchanged = f", at most {self.exchanged} exchanged in the others" if self.exchanged else ""
        return f"{self.name}: {self.same_rows} of {self.rows} samples choose the same {self.size}{exchanged}"


@dataclass(frozen=True)
class EntryParity:
    """Whole numbers or flags of any rank, against their reference, entry by entry.

    entries   how many there are
    equal     how many are those of the reference
    failures  what does not hold, in words
    """

    name: str
    entries: int
    equal: int
    failures: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"name": self.name, "entries": self.entries, "equal": self.equal, "passed": not self.failures}

    def __str__(self) -> str:
        return f"{self.name}: {self.equal} of {self.entries} entries are equal"


def flips_db(reference: Array, actual: Array, count: int) -> list[float]:
    """For each of `count` samples the share of entries that differ, as a power ratio in dB.

    All shares up to FLIPPED_PART count the same: such a flip is that of a border.
    """
    same = (reference == actual).reshape(count, -1)
    shares = np.maximum(1 - same.mean(axis=1), FLIPPED_PART)
    return [float(value) for value in -10 * np.log10(shares)]


def is_discrete(array: Array) -> bool:
    """Whether the entries are whole numbers or flags, of which one is not nearly another."""
    return array.dtype.kind in "iub"


def compare_selection(name: str, reference: Array, actual: Array) -> SelectionParity:
    """A selection [N, k] against its reference, row by row as sets; a few exchanged border entries do not fail."""
    if reference.ndim != 2 or not is_discrete(reference):
        found = f"{reference.dtype} {list(reference.shape)}"
        return SelectionParity(name, 0, 0, 0, 0, (f"{name}: a selection is whole numbers [N, k], not {found}",))
    rows, size = reference.shape
    if reference.shape != actual.shape:
        return SelectionParity(name, rows, 0, size, size, (other_shape(name, reference, actual),))
    if not reference.size:
        return SelectionParity(name, rows, 0, size, size, (f"{name}: the reference holds no entries",))
    same = int(same_rows(reference, actual).sum())
    exchanged = max(len(set(old) - set(new)) for old, new in zip(reference.tolist(), actual.tolist(), strict=True))
    failures = []
    if exchanged > max(1, BORDER_PART * size):
        failures.append(f"{name}: {exchanged} of {size} entries of one sample are chosen differently")
    elif not same:
        failures.append(f"{name}: no sample selects the same as the reference, so nothing is left to compare")
    return SelectionParity(name, rows, same, exchanged, size, tuple(failures))


def compare_entries(name: str, reference: Array, actual: Array, *, judged: bool = True) -> EntryParity:
    """Whole numbers or flags of any shape against their reference; a few flips at borders do not fail.

    Where it is not `judged`, how many flip is only told.
    """
    entries = reference.size
    if reference.shape != actual.shape:
        return EntryParity(name, entries, 0, (other_shape(name, reference, actual),))
    if not entries:
        return EntryParity(name, 0, 0, (f"{name}: the reference holds no entries",))
    equal = int(np.count_nonzero(reference == actual))
    failures = []
    if judged and not entries - equal <= FLIPPED_PART * entries:
        failures.append(
            f"{name}: {entries - equal} of {entries} entries differ, and at most {FLIPPED_PART:.1%} may, at borders"
        )
    return EntryParity(name, entries, equal, tuple(failures))


def same_rows(reference: Array, actual: Array) -> NDArray[np.bool_]:
    """Which rows of two selections [N, k] of one shape hold the same set, [N]."""
    same: NDArray[np.bool_] = (np.sort(reference, axis=1) == np.sort(actual, axis=1)).all(axis=1)
    return same


def other_shape(name: str, reference: Array, actual: Array) -> str:
    """The failure of an output whose shape is not that of its reference."""
    return f"{name}: the shape is {list(actual.shape)} instead of {list(reference.shape)}"
