"""Comparing outputs with their reference: the measures of the difference, and the bounds that decide."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.bundle.manifest import PYTORCH
from vitdeploy.errors import UsageError
from vitdeploy.proof.discrete import (
    EntryParity,
    SelectionParity,
    compare_entries,
    compare_selection,
    is_discrete,
    other_shape,
    same_rows,
)
from vitdeploy.statistics import json_number, snr_db
from vitdeploy.table import render

Array = NDArray[Any]

# A case is clear when the two best reference logits are further apart than this part of the root mean square of its
# logits. At 45 dB two logits move against each other by 0.8 % of it (standard deviation), so this is almost four.
CLEAR_MARGIN = 0.03


@dataclass(frozen=True)
class Bounds:
    """What an output must fulfil; a measure whose bound is None or False is reported but not judged.

    Outputs must be finite whatever the bounds, and so must their reference. A bound holds where the measure is known to
    keep it: NaN keeps none.

    max_relative  largest error over the largest reference magnitude
    min_snr_db    signal-to-noise ratio in dB
    same_top1     the best class is that of the reference in every clear case, see CLEAR_MARGIN. Without a clear case
                  it shows nothing, so that an output on which no other measure is judged fails then
    """

    max_relative: float | None = None
    min_snr_db: float | None = None
    same_top1: bool = False


# INT8 is judged by its accuracy on data.
BOUNDS: Mapping[str, Bounds] = {
    "fp32": Bounds(max_relative=1e-4),
    "fp16": Bounds(min_snr_db=45.0, same_top1=True),
    "int8": Bounds(),
}


@dataclass(frozen=True)
class OutputParity:
    """One output against its reference.

    max_abs       largest absolute error
    max_relative  max_abs over the largest magnitude of the reference
    snr_db        `statistics.snr_db`: infinite when there is no error
    finite        the output and its reference hold no NaN and no Inf
    top1_same     clear cases with the same best class; None where there is none
    top1_clear    clear cases, see CLEAR_MARGIN; None unless the output is [N, classes] of two classes or more
    failures      the bounds that do not hold, in words
    """

    name: str
    max_abs: float
    max_relative: float
    snr_db: float
    finite: bool
    top1_same: int | None = None
    top1_clear: int | None = None
    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every bound holds."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """JSON values; a measure that is infinite or not a number becomes null."""
        values: dict[str, Any] = {"name": self.name}
        for key in ("max_abs", "max_relative", "snr_db"):
            values[key] = json_number(getattr(self, key))
        return {
            **values,
            "finite": self.finite,
            "top1_same": self.top1_same,
            "top1_clear": self.top1_clear,
            "passed": self.passed,
        }


@dataclass(frozen=True)
class ParityReport:
    """All outputs of one runtime against the reference; `str()` is a table.

    The outputs are compared on the samples that select the same as the reference, see `selections`. `against` says
    what the reference comes from.
    """

    runtime: str
    precision: str
    outputs: tuple[OutputParity, ...]
    selections: tuple[SelectionParity, ...] = ()
    entries: tuple[EntryParity, ...] = ()
    against: str = PYTORCH

    @property
    def failures(self) -> tuple[str, ...]:
        """The bounds that do not hold for any output, in words."""
        parts: tuple[SelectionParity | EntryParity | OutputParity, ...] = (
            *self.selections,
            *self.entries,
            *self.outputs,
        )
        return tuple(failure for part in parts for failure in part.failures) if parts else ("nothing was compared",)

    @property
    def passed(self) -> bool:
        """Whether every bound holds for every output."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """JSON values, as they stand in a manifest."""
        return {
            "runtime": self.runtime,
            "precision": self.precision,
            "passed": self.passed,
            "outputs": [output.to_dict() for output in self.outputs],
            "selections": [selection.to_dict() for selection in self.selections],
            "entries": [entries.to_dict() for entries in self.entries],
            "failures": list(self.failures),
        }

    def __str__(self) -> str:
        header = ("output", "max abs error", "relative", "SNR dB", "same top-1", "")
        rows = [_row(output) for output in self.outputs]
        lines = [render(rows, header=header, align="<" * len(header), rule=False)] if rows else []
        lines += map(str, (*self.selections, *self.entries))
        return "\n".join([f"{self.precision} on {self.runtime} against {self.against} FP32", *lines, *self.failures])


def compare(
    name: str, reference: Array, actual: Array, *, precision: str, bounds: Bounds | None = None
) -> OutputParity:
    """One output against its reference, judged by `bounds`, None for those of `precision`."""
    bounds = bounds or find_bounds(precision)
    if reference.shape != actual.shape:
        return _nothing(name, other_shape(name, reference, actual))
    if not reference.size:
        return _nothing(name, f"{name}: the reference holds no values")
    for array, whose in ((reference, " of the reference"), (actual, "")):
        if array.dtype.kind not in "fiub":
            return _nothing(name, f"{name}: the values{whose} are of type {array.dtype}, which is no real number")
    expected, found = reference.astype(np.float64), actual.astype(np.float64)
    for values, whose in ((found, ""), (expected, " of the reference")):
        broken = np.count_nonzero(~np.isfinite(values))
        if broken:
            return _nothing(name, f"{name}: {broken} of {values.size} values{whose} are NaN or Inf")

    with np.errstate(over="ignore"):
        max_abs = float(np.abs(found - expected).max())
    max_relative = _ratio(max_abs, float(np.abs(expected).max()))
    ratio = snr_db(expected, found)
    same, clear = _top1(expected, found)

    failures = []
    if bounds.max_relative is not None and not max_relative <= bounds.max_relative:
        failures.append(f"{name}: the relative error is {max_relative:.2e}, the bound {bounds.max_relative:.0e}")
    if bounds.min_snr_db is not None and not ratio >= bounds.min_snr_db:
        failures.append(f"{name}: the signal-to-noise ratio is {ratio:.1f} dB, the bound {bounds.min_snr_db:g} dB")
    if bounds.same_top1 and clear and same != clear:
        failures.append(f"{name}: only {same} of {clear} clear cases keep their best class")
    if bounds.same_top1 and not clear and bounds.max_relative is None and bounds.min_snr_db is None:
        failures.append(f"{name}: there is no clear case, so nothing shows that the best class is kept")
    return OutputParity(name, max_abs, max_relative, ratio, True, same, clear, tuple(failures))


def compare_outputs(
    reference: Mapping[str, Array],
    actual: Mapping[str, Array],
    *,
    runtime: str,
    precision: str,
    bounds: Bounds | None = None,
    selections: Collection[str] = (),
) -> ParityReport:
    """Every output of the reference against the one of the same name, judged by `bounds` or those of `precision`.

    The outputs that `selections` names are sets of whole numbers [N, k]. A sample whose selection differs is reported
    as such and left out of the other comparisons: with other tokens its logits are those of another function, and their
    difference is no numerical error. Other whole numbers, and flags, are compared entry by entry; INT8 may move them as
    far as it moves the scores that they are decided from, which is judged when it is exported.
    """
    absent = np.empty(0)
    pairs = {name: (array, actual.get(name, absent)) for name, array in reference.items()}
    chosen = {name: pair for name, pair in pairs.items() if name in selections}
    sets = [compare_selection(name, *pair) for name, pair in chosen.items()]
    if sets and not any(one.failures for one in sets):
        same = _all_the_same(list(chosen.values()))
        if same is None or not same.any():
            why = "no sample selects the same as the reference in all selections, so nothing is left to compare"
            sets[0] = replace(sets[0], failures=(f"{', '.join(chosen)}: {why}",))
        else:
            pairs = {name: (_rows(one, same), _rows(other, same)) for name, (one, other) in pairs.items()}
    measured = {name: pair for name, pair in pairs.items() if not is_discrete(pair[0])}
    entries = [name for name in pairs if name not in chosen and name not in measured]
    return ParityReport(
        runtime,
        precision,
        tuple(compare(name, *pair, precision=precision, bounds=bounds) for name, pair in measured.items()),
        tuple(sets),
        tuple(compare_entries(name, *pairs[name], judged=precision != "int8") for name in entries),
    )


def _all_the_same(chosen: Sequence[tuple[Array, Array]]) -> NDArray[np.bool_] | None:
    """Which samples have the same set in every selection, [N]; None where selections differ in their samples."""
    each = [same_rows(*pair) for pair in chosen]
    return np.logical_and.reduce(each) if len({len(rows) for rows in each}) == 1 else None


def _rows(array: Array, same: NDArray[np.bool_]) -> Array:
    """The samples of `array` that are to be compared; an array of no samples stays as it is."""
    return array[same] if array.ndim and len(array) == len(same) else array


def find_bounds(precision: str) -> Bounds:
    """The bounds of a precision; UsageError for one that has none."""
    if precision not in BOUNDS:
        raise UsageError(f"there are no parity bounds for precision {precision!r}", fix=f"use {' or '.join(BOUNDS)}")
    return BOUNDS[precision]


def _ratio(part: float, whole: float) -> float:
    if whole == 0:
        return 0.0 if part == 0 else math.inf
    return part / whole


def _nothing(name: str, failure: str) -> OutputParity:
    """The result for an output of which nothing can be measured."""
    return OutputParity(name, math.inf, math.inf, -math.inf, finite=False, failures=(failure,))


def _top1(expected: NDArray[np.float64], found: NDArray[np.float64]) -> tuple[int | None, int | None]:
    """How many clear cases keep their best class, and how many are clear; see `OutputParity`."""
    if expected.ndim != 2 or expected.shape[1] < 2:
        return None, None
    second, first = np.partition(expected, -2, axis=1)[:, -2:].T
    with np.errstate(over="ignore"):
        clear = first - second > CLEAR_MARGIN * np.sqrt(np.square(expected).mean(axis=1))
    same = expected.argmax(axis=1) == found.argmax(axis=1)
    return (int((same & clear).sum()), int(clear.sum())) if clear.any() else (None, 0)


def _row(output: OutputParity) -> tuple[str, ...]:
    top1 = "-" if output.top1_clear is None else f"{output.top1_same}/{output.top1_clear}"
    if output.top1_clear == 0:
        top1 = "no clear case"
    measures = (f"{output.max_abs:.3e}", f"{output.max_relative:.3e}", f"{output.snr_db:.1f}")
    return (output.name, *measures, top1, "ok" if output.passed else "FAILED")
