"""The range of each tensor: by one method for all, or the one that changes the layers behind it least."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import ExportError
from vitdeploy.graph.qdq import QScheme, QuantParams
from vitdeploy.progress import Progress
from vitdeploy.quantize.histogram import Noise
from vitdeploy.quantize.layers import LinearMap
from vitdeploy.quantize.observers import Sample, Statistics
from vitdeploy.quantize.options import AUTO, OWN_METHODS, RANGE_METHODS, check_method
from vitdeploy.statistics import decibels, json_number

Array = NDArray[Any]

log = logging.getLogger(__name__)

DEAD = 1e-20  # a tensor that never leaves this magnitude carries nothing
DEAD_NOTE = "zero on every calibration image, left in float"
CONSTANT_NOTE = "one and the same value on every calibration image"


@dataclass(frozen=True)
class TensorRange:
    """How one tensor is quantized, and why.

    params         scale and zero point; None for a tensor that was zero on every image, which has no range: leave it
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
            "sqnr_db": json_number(self.sqnr_db, 2),
            "layer_sqnr_db": json_number(self.layer_sqnr_db, 2),
            "candidates": {name: json_number(value, 2) for name, value in self.candidates.items()},
            "note": self.note,
        }


def choose_ranges(
    statistics: Mapping[str, Statistics],
    schemes: Mapping[str, QScheme],
    *,
    method: str = AUTO,
    consumers: Mapping[str, Sequence[LinearMap]] | None = None,
) -> dict[str, TensorRange]:
    """`choose_range` for every tensor; what is unusual about them goes to the log once, as warnings."""
    chosen: dict[str, TensorRange] = {}
    with Progress("choosing ranges", len(statistics)) as progress:
        for name, found in statistics.items():
            layers = (consumers or {}).get(name, ())
            chosen[name] = choose_range(found, schemes[name], method=method, consumers=layers)
            progress.advance()
    for note in dict.fromkeys(found.note for found in chosen.values() if found.note):
        names = [name for name, found in chosen.items() if found.note == note]
        log.warning("%s: %s%s", note, ", ".join(names[:5]), ", …" if len(names) > 5 else "")
    return chosen


def choose_range(
    statistics: Statistics, scheme: QScheme, *, method: str = AUTO, consumers: Sequence[LinearMap] = ()
) -> TensorRange:
    """Scale and zero point of one tensor.

    method     name of a range method, or `auto`: of ours the one whose round trip changes the outputs of `consumers`
               least, each layer's squared error in proportion to its squared output, on the sample of the tensor;
               without consumers the one that changes the tensor itself least
    consumers  the layers that read the tensor

    Raises UsageError for an unknown method, ExportError for a tensor that no image reached or that held NaN or Inf.
    """
    check_method(method)
    _check(statistics)
    if statistics.max_abs < DEAD:
        return TensorRange(None, "none", statistics.low, statistics.high, math.inf, note=DEAD_NOTE)
    constant = statistics.low == statistics.high
    names = ("minmax",) if constant else OWN_METHODS if method == AUTO else (method,)
    params = {name: _params(name, statistics, scheme) for name in names}
    tensor_noise = Noise(statistics.histogram, statistics.low, statistics.high)
    noise = layer_noise(statistics, consumers)
    candidates = {name: (noise or tensor_noise).sqnr_db(params) for name, params in params.items()}
    best = max(candidates, key=lambda name: candidates[name])
    low, high = params[best].range
    return TensorRange(
        params[best],
        best,
        low,
        high,
        tensor_noise.sqnr_db(params[best]),
        candidates[best] if noise else None,
        candidates,
        CONSTANT_NOTE if constant else None,
    )


def _params(method: str, statistics: Statistics, scheme: QScheme) -> QuantParams:
    low, high = RANGE_METHODS.find(method)(statistics, scheme)
    if not -math.inf < low <= high < math.inf:
        raise ExportError(
            f"the range method {method} finds no range for {statistics.name}",
            why=f"it returned {low} to {high}",
            fix=f"--method {AUTO}",
        )
    return scheme.params(low, high)


def _check(statistics: Statistics) -> None:
    if statistics.nans or statistics.infs:
        raise ExportError(
            f"{statistics.name} holds {statistics.nans} NaN and {statistics.infs} infinite values",
            why="the network computes them from the calibration images, and no range can hold them",
            fix="check the checkpoint: vitdeploy export without --int8, and verify",
        )
    if not statistics.count:
        raise ExportError(f"no calibration image reached {statistics.name}", fix="--calibration with images")


def layer_noise(statistics: Statistics, consumers: Sequence[LinearMap]) -> LayerNoise | None:
    """The noise at the consumers that take the tensor's sample, if there are any."""
    sample = statistics.sample
    if sample is None or not sample.seen:
        return None
    fitting = [layer for layer in consumers if _fits(layer.window, sample.window)]
    return LayerNoise(sample, fitting) if fitting else None


def _fits(needed: tuple[int, int] | None, given: tuple[int, int] | None) -> bool:
    if needed is None or given is None:
        return needed == given
    return needed[0] <= given[0] and needed[1] <= given[1]


class LayerNoise:
    """What a round trip does to the outputs of layers: squared error over squared output, the mean over the layers."""

    def __init__(self, sample: Sample, layers: Sequence[LinearMap]) -> None:
        self._units, self._weights, self._layers = sample.units, sample.weights, layers
        self._signals = [max(self._energy(layer(self._units)), 1e-30) for layer in layers]

    def sqnr_db(self, params: QuantParams) -> float:
        """Signal to noise at the outputs where the tensor makes a round trip through 8-bit integers, dB."""
        error = params.round_trip(self._units) - self._units
        parts = [self._energy(layer(error)) / signal for layer, signal in zip(self._layers, self._signals, strict=True)]
        return decibels(1.0, float(np.mean(parts)))

    def _energy(self, outputs: Array) -> float:
        return float(np.einsum("ij,ij->i", outputs, outputs, dtype=np.float64) @ self._weights)
