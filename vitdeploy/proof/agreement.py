"""Does a tensor inside of a graph agree with the one that is trusted? And within which bounds, for each precision."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.proof.discrete import compare_entries, other_shape
from vitdeploy.proof.parity import BOUNDS, Bounds, OutputParity, compare

Array = NDArray[Any]

# That of the outputs, see `parity.BOUNDS`.
FP16_SNR_DB = 45.0
# bf16 keeps three bits fewer of a number than FP16, and each of them is worth 6.02 dB.
BF16_SNR_DB = 27.0
# What is left of an INT8 tensor where nothing else is known: a single value rounded to the other side, of few values,
# costs about as much.
INT8_SNR_DB = 40.0
# Two roundings of one network are as far apart as that, see `recorded.OTHER_MARGIN_DB`.
INT8_SPARE_DB = 6.0
_FLOATS = {"fp16": FP16_SNR_DB, "bf16": BF16_SNR_DB}


def bounds_for(precision: str, compute_precision: str | None = None, rounding_db: float = math.inf) -> Bounds:
    """The bounds of a tensor inside of a graph that is `fp32`, `fp16` or `int8`, where a runtime computes it.

    The coarser of the graph's precision and of `compute_precision` counts. `rounding_db` is what is left of the
    outputs of an INT8 graph after a change of its inputs as small as rounding.
    """
    known = [_FLOATS[one] for one in (precision, compute_precision) if one in _FLOATS]
    if precision == "int8":
        known.append(min(INT8_SNR_DB, rounding_db - INT8_SPARE_DB))
    return Bounds(min_snr_db=min(known)) if known else BOUNDS["fp32"]


def agreement(name: str, expected: Array, found: Array, bounds: Bounds) -> OutputParity:
    """One tensor against the trusted one; `failures` say why it does not agree.

    NaN and Inf agree with themselves, since masks are made of them, and the rest is judged. 8-bit integers are
    measures, which rounding moves by a step; other integers and flags are compared entry by entry.
    """
    if expected.shape != found.shape:
        return _broken(name, other_shape(name, expected, found))
    if not expected.size:
        return OutputParity(name, 0.0, 0.0, math.inf, finite=True)
    if expected.dtype == np.bool_ or (expected.dtype.kind in "iu" and expected.dtype.itemsize > 1):
        entries = compare_entries(name, expected, found)
        parity = compare(name, expected, found, precision="fp32", bounds=Bounds())
        return replace(parity, failures=entries.failures)
    # Flat, because the best of a row says nothing of a tensor that is no row of logits.
    trusted, judged = (_real(array).ravel() for array in (expected, found))
    if expected.dtype.kind in "iu":  # steps around a zero point are no signal
        trusted, judged = trusted - trusted.mean(), judged - trusted.mean()
    usual = np.isfinite(trusted)
    strange = np.count_nonzero(~((trusted == judged) | (np.isnan(trusted) & np.isnan(judged)))[~usual])
    strange += np.count_nonzero(~np.isfinite(judged[usual]))
    if strange:
        there = f", and {np.count_nonzero(~usual)} where it is right" if not usual.all() else ""
        return _broken(
            name, f"{name}: {np.count_nonzero(~np.isfinite(judged))} of {judged.size} values are NaN or Inf{there}"
        )
    if not usual.any():
        return OutputParity(name, 0.0, 0.0, math.inf, finite=False)
    parity = compare(name, trusted[usual], judged[usual], precision="fp32", bounds=bounds)
    return replace(parity, finite=bool(usual.all()))


def _real(array: Array) -> NDArray[np.float64]:
    return array.astype(np.float64)


def _broken(name: str, failure: str) -> OutputParity:
    return OutputParity(name, math.inf, math.inf, -math.inf, finite=False, failures=(failure,))
