"""Every quantized layer's weight and bias, chosen so that the layer gives what it gave in float."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import constant
from vitdeploy.graph.qdq import Array, QuantParams, quantize_weight
from vitdeploy.quantize.bias_correction import mean_error
from vitdeploy.quantize.histogram import decibel, in_json
from vitdeploy.quantize.insert import QuantizedWeight
from vitdeploy.quantize.moments import Moments, moments
from vitdeploy.quantize.placement import Plan
from vitdeploy.quantize.rounding import output_errors, round_weight


@dataclass(frozen=True)
class Reconstructed:
    """A layer's integer weight, and the mean error that is left for its bias.

    weight      for `insert`
    mean_error  for `bias_correction.correct_biases`, float64 [channels]
    nearest_db  variance of the layer's outputs over that of the error that rounding its weight to nearest makes, dB
    rounded_db  the same for `weight`
    biased_db   the same where the bias is not corrected, the mean of the input's error included
    """

    weight: QuantizedWeight
    mean_error: Array
    nearest_db: float
    rounded_db: float
    biased_db: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values: what rounding gained, and then the bias."""
        return {
            "rounding_db": [in_json(self.nearest_db), in_json(self.rounded_db)],
            "bias_db": [in_json(self.biased_db), in_json(self.rounded_db)],
        }


def reconstruct(
    model: ir.Model, plan: Plan, ranges: Mapping[str, QuantParams], images: Callable[[], Iterable[Array]]
) -> dict[str, Reconstructed]:
    """By node, the weight and the mean error of each quantized linear layer and dense convolution.

    The arguments are those of `moments.moments`; the layers are independent of each other, so that what a search
    gives back to float needs no new reconstruction of the others.
    """
    nodes = {node.name: node for node in model.graph}
    found: dict[str, Reconstructed] = {}
    for layer, seen in moments(model, plan, ranges, images):
        weight = constant(nodes[layer.node].inputs[1])
        assert weight is not None
        found[layer.node] = _reconstructed(weight, layer.axis, seen)
    return found


def _reconstructed(weight: Array, axis: int, seen: Moments) -> Reconstructed:
    metric = seen.metric
    rounded, nearest = round_weight(weight, axis, metric), QuantizedWeight(*quantize_weight(weight, axis))
    shift = mean_error(weight, axis, rounded, seen)
    exact = _rows(weight, axis)
    signal = float(output_errors(exact, metric).sum())
    noise = [float(output_errors(exact - _values(one, axis), metric).sum()) for one in (nearest, rounded)]
    ratios = [decibel(signal, power) for power in (*noise, noise[1] + float(np.square(shift).sum()))]
    return Reconstructed(rounded, shift, *ratios)


def _rows(array: Array, axis: int) -> Array:
    """One row for each index of `axis`, float64."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)


def _values(weight: QuantizedWeight, axis: int) -> Array:
    values: Array = _rows(weight.integers, axis) * weight.scales[:, None].astype(np.float64)
    return values
