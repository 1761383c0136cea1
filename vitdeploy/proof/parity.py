"""Comparing outputs with their reference: the measures of the difference, and the bounds that decide."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import UsageError
from vitdeploy.statistics import json_number, snr_db
from vitdeploy.table import render

Array = NDArray[Any]

# A case is clear when the two best reference logits are further apart than this part of the root mean square of its
# logits. At 45 dB two logits move against each other by 0.8 % of it (standard deviation), so this is almost four.
CLEAR_MARGIN = 0.03

# Scores of two border tokens may lie within rounding of each other; more than this part of a row is no border case.
BORDER_PART = 0.05


@dataclass(frozen=True)
class Bounds:
    """What an output must fulfil; a measure whose bound is None or False is reported but not judged.

    Outputs must be finite whatever the bounds.

    max_relative  largest error over the largest reference magnitude
    min_snr_db    signal-to-noise ratio in dB
    same_top1     the best class is that of the reference in every clear case, see CLEAR_MARGIN
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
    finite        the output holds no NaN and no Inf
    top1_same     clear cases with the same best class; None unless the output is [N, classes]
    top1_clear    clear cases, see CLEAR_MARGIN
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


@dataclass(frozen=True)
class ParityReport:
    """All outputs of one runtime against the reference; `str()` is a table.

    The outputs are compared on the samples that select the same as the reference, see `selections`.
    """

    runtime: str
    precision: str
    outputs: tuple[OutputParity, ...]
    selections: tuple[SelectionParity, ...] = ()

    @property
    def failures(self) -> tuple[str, ...]:
        """The bounds that do not hold for any output, in words."""
        parts: tuple[SelectionParity | OutputParity, ...] = (*self.selections, *self.outputs)
        return tuple(failure for part in parts for failure in part.failures)

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
            "failures": list(self.failures),
        }

    def __str__(self) -> str:
        header = ("output", "max abs error", "relative", "SNR dB", "same top-1", "")
        rows = [_row(output) for output in self.outputs]
        lines = [render(rows, header=header, align="<" * len(header), rule=False)]
        lines += [
            f"{s.name}: {s.same_rows} of {s.rows} samples choose the same {s.size}"
            + (f", at most {s.exchanged} exchanged in the others" if s.exchanged else "")
            for s in self.selections
        ]
        return "\n".join([f"{self.precision} on {self.runtime} against PyTorch FP32", *lines, *self.failures])


def compare(
    name: str, reference: Array, actual: Array, *, precision: str, bounds: Bounds | None = None
) -> OutputParity:
    """One output against its reference, judged by `bounds`, None for those of `precision`."""
    bounds = bounds or find_bounds(precision)
    if reference.shape != actual.shape:
        failure = f"{name}: the shape is {list(actual.shape)} instead of {list(reference.shape)}"
        return OutputParity(name, math.inf, math.inf, -math.inf, finite=False, failures=(failure,))
    expected, found = reference.astype(np.float64), actual.astype(np.float64)
    if not np.isfinite(found).all():
        failure = f"{name}: {np.count_nonzero(~np.isfinite(found))} of {found.size} values are NaN or Inf"
        return OutputParity(name, math.inf, math.inf, -math.inf, finite=False, failures=(failure,))

    error = found - expected
    max_abs = float(np.abs(error).max())
    max_relative = _ratio(max_abs, float(np.abs(expected).max()))
    ratio = snr_db(expected, found)
    same, clear = _top1(expected, found) if expected.ndim == 2 else (None, None)

    failures = []
    if bounds.max_relative is not None and max_relative > bounds.max_relative:
        failures.append(f"{name}: the relative error is {max_relative:.2e}, the bound {bounds.max_relative:.0e}")
    if bounds.min_snr_db is not None and ratio < bounds.min_snr_db:
        failures.append(f"{name}: the signal-to-noise ratio is {ratio:.1f} dB, the bound {bounds.min_snr_db:g} dB")
    if bounds.same_top1 and same != clear:
        failures.append(f"{name}: only {same} of {clear} clear cases keep their best class")
    return OutputParity(name, max_abs, max_relative, ratio, True, same, clear, tuple(failures))


def compare_outputs(
    reference: Mapping[str, Array],
    actual: Mapping[str, Array],
    *,
    runtime: str,
    precision: str,
    bounds: Bounds | None = None,
) -> ParityReport:
    """Every output of the reference against the one of the same name, judged by `bounds` or those of `precision`.

    Integer outputs are selections. A sample whose selection differs is reported as such and left out of the other
    comparisons: with other tokens its logits are those of another function, and their difference is no numerical error.
    """
    absent = np.empty(0)
    discrete = [name for name, array in reference.items() if np.issubdtype(array.dtype, np.integer)]
    selections = tuple(compare_selection(name, reference[name], actual.get(name, absent)) for name in discrete)
    same: NDArray[np.bool_] | slice = slice(None)
    if selections and all(not s.failures for s in selections):
        same = np.logical_and.reduce([_same_rows(reference[name], actual[name]) for name in discrete])
    outputs = tuple(
        compare(name, array[same], actual.get(name, absent)[same], precision=precision, bounds=bounds)
        for name, array in reference.items()
        if name not in discrete
    )
    return ParityReport(runtime, precision, outputs, selections)


def compare_selection(name: str, reference: Array, actual: Array) -> SelectionParity:
    """A selection [N, k] against its reference, row by row as sets; a few exchanged border entries do not fail."""
    rows, size = reference.shape
    if reference.shape != actual.shape:
        failure = f"{name}: the shape is {list(actual.shape)} instead of {list(reference.shape)}"
        return SelectionParity(name, rows, 0, size, size, (failure,))
    same = int(_same_rows(reference, actual).sum())
    exchanged = max(len(set(old) - set(new)) for old, new in zip(reference.tolist(), actual.tolist(), strict=True))
    failures = []
    if exchanged > max(1, BORDER_PART * size):
        failures.append(f"{name}: {exchanged} of {size} entries of one sample are chosen differently")
    elif not same:
        failures.append(f"{name}: no sample selects the same as the reference, so nothing is left to compare")
    return SelectionParity(name, rows, same, exchanged, size, tuple(failures))


def _same_rows(reference: Array, actual: Array) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = (np.sort(reference, axis=1) == np.sort(actual, axis=1)).all(axis=1)
    return same


def find_bounds(precision: str) -> Bounds:
    """The bounds of a precision; UsageError for one that has none."""
    if precision not in BOUNDS:
        raise UsageError(f"there are no parity bounds for precision {precision!r}", fix=f"use {' or '.join(BOUNDS)}")
    return BOUNDS[precision]


def _ratio(part: float, whole: float) -> float:
    if whole == 0:
        return 0.0 if part == 0 else math.inf
    return part / whole


def _top1(expected: NDArray[np.float64], found: NDArray[np.float64]) -> tuple[int, int]:
    """How many clear cases keep their best class, and how many are clear."""
    if expected.shape[1] < 2:
        return len(expected), len(expected)
    second, first = np.partition(expected, -2, axis=1)[:, -2:].T
    clear = first - second > CLEAR_MARGIN * np.sqrt(np.square(expected).mean(axis=1))
    same = expected.argmax(axis=1) == found.argmax(axis=1)
    return int((same & clear).sum()), int(clear.sum())


def _row(output: OutputParity) -> tuple[str, ...]:
    top1 = "-" if output.top1_clear is None else f"{output.top1_same}/{output.top1_clear}"
    measures = (f"{output.max_abs:.3e}", f"{output.max_relative:.3e}", f"{output.snr_db:.1f}")
    return (output.name, *measures, top1, "ok" if output.passed else "FAILED")
