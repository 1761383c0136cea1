"""The range of each tensor: by one method for all, or the one that does the least harm to the layers that read it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import ExportError, UsageError
from vitdeploy.graph.qdq import QScheme, QuantParams
from vitdeploy.progress import Progress
from vitdeploy.quantize.histogram import Noise, decibel, in_json
from vitdeploy.quantize.methods import METHODS
from vitdeploy.quantize.observers import Statistics
from vitdeploy.quantize.readers import Reader
from vitdeploy.quantize.sample import Sample

Array = NDArray[Any]

log = logging.getLogger("vitdeploy.calibration")

AUTO = "auto"
DEAD = 1e-20  # a tensor that never leaves this magnitude carries nothing
DEAD_NOTE = "zero on every calibration image, left in float"
CONSTANT_NOTE = "one and the same value on every calibration image"


@dataclass(frozen=True)
class TensorRange:
    """How one tensor is quantized, and why.

    affine         scale and zero point; None for a tensor that was zero on every image, which has no range: leave it
                   in float
    method         the method that was taken
    low, high      what the integers cover
    sqnr_db        signal to quantization noise of the tensor itself
    layer_sqnr_db  the same at the outputs of the layers that read it; None where there was none to ask
    candidates     dB by method: at the layers where there are any, else of the tensor
    note           what is unusual about the tensor
    """

    params: QuantParams | None
    method: str
    low: float
    high: float
    sqnr_db: float
    layer_sqnr_db: float | None = None
    candidates: Mapping[str, float] = field(default_factory=dict)
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values; a ratio that is infinite becomes null."""
        return {
            "method": self.method,
            "scale": None if self.params is None else self.params.scale,
            "zero_point": None if self.params is None else self.params.zero_point,
            "low": self.low,
            "high": self.high,
            "sqnr_db": in_json(self.sqnr_db),
            "layer_sqnr_db": in_json(self.layer_sqnr_db),
            "candidates": {name: in_json(value) for name, value in self.candidates.items()},
            "note": self.note,
        }


def choose_ranges(
    statistics: Mapping[str, Statistics],
    schemes: Mapping[str, QScheme],
    *,
    method: str = AUTO,
    readers: Mapping[str, Sequence[Reader]] | None = None,
) -> dict[str, TensorRange]:
    """`choose_range` for every tensor; what is unusual about them goes to the log once, as warnings."""
    chosen: dict[str, TensorRange] = {}
    with Progress("choosing ranges", len(statistics)) as progress:
        for name, found in statistics.items():
            chosen[name] = choose_range(found, schemes[name], method=method, readers=(readers or {}).get(name, ()))
            progress.advance()
    for note in dict.fromkeys(found.note for found in chosen.values() if found.note):
        names = [name for name, found in chosen.items() if found.note == note]
        log.warning("%s: %s%s", note, ", ".join(names[:5]), ", …" if len(names) > 5 else "")
    return chosen


def choose_range(
    statistics: Statistics, scheme: QScheme, *, method: str = AUTO, readers: Sequence[Reader] = ()
) -> TensorRange:
    """Scale and zero point of one tensor.

    method  a name of `METHODS`, or `auto`: the one whose round trip changes the outputs of `readers` least, each
            layer's squared error in proportion to its squared output, on the sample of the tensor; without readers,
            the one that changes the tensor itself least

    Raises UsageError for an unknown method, ExportError for a tensor that no image reached or that held NaN or Inf.
    """
    if method != AUTO and method not in METHODS:
        raise UsageError(f"there is no calibration method {method!r}", fix=f"--method {AUTO}, {', '.join(METHODS)}")
    _check(statistics)
    if statistics.max_abs < DEAD:
        return TensorRange(None, "none", statistics.low, statistics.high, math.inf, note=DEAD_NOTE)
    constant = statistics.low == statistics.high
    names = ["minmax"] if constant else [*METHODS] if method == AUTO else [method]
    params = {name: scheme.params(*METHODS[name](statistics, scheme)) for name in names}
    noise = Noise(statistics.histogram, statistics.low, statistics.high)
    judge = _reader_noise(statistics, readers)
    candidates = {name: (judge or noise).sqnr_db(params) for name, params in params.items()}
    best = max(candidates, key=lambda name: candidates[name])
    low, high = params[best].range
    return TensorRange(
        params[best],
        best,
        low,
        high,
        noise.sqnr_db(params[best]),
        candidates[best] if judge else None,
        candidates,
        CONSTANT_NOTE if constant else None,
    )


def _check(statistics: Statistics) -> None:
    if statistics.nans or statistics.infs:
        raise ExportError(
            f"{statistics.name} holds {statistics.nans} NaN and {statistics.infs} infinite values",
            why="the network computes them from the calibration images, and no range can hold them",
            fix="check the checkpoint: vitdeploy export without --int8, and verify",
        )
    if not statistics.count:
        raise ExportError(f"no calibration image reached {statistics.name}", fix="--calibration with images")


def _reader_noise(statistics: Statistics, readers: Sequence[Reader]) -> _ReaderNoise | None:
    """A judge of ranges by the readers that take the tensor's sample, if there are any."""
    sample = statistics.sample
    if sample is None or not sample.seen:
        return None
    fitting = [reader for reader in readers if _fits(reader.window, sample.window)]
    return _ReaderNoise(sample, fitting) if fitting else None


def _fits(needed: tuple[int, int] | None, given: tuple[int, int] | None) -> bool:
    if needed is None or given is None:
        return needed == given
    return needed[0] <= given[0] and needed[1] <= given[1]


class _ReaderNoise:
    """What a round trip does to the outputs of the readers: squared error over squared output, the mean over them."""

    def __init__(self, sample: Sample, readers: Sequence[Reader]) -> None:
        self._units, self._weights, self._readers = sample.units, sample.weights, readers
        self._outputs = [reader(self._units) for reader in readers]

    def sqnr_db(self, params: QuantParams) -> float:
        rounded = params.round_trip(self._units)
        parts = [
            self._energy(reader(rounded) - output) / max(self._energy(output), 1e-30)
            for reader, output in zip(self._readers, self._outputs, strict=True)
        ]
        return decibel(1.0, float(np.mean(parts)))

    def _energy(self, outputs: Array) -> float:
        rows = outputs.reshape(len(outputs), -1)
        return float(np.einsum("ij,ij->i", rows, rows, dtype=np.float64) @ self._weights)
