"""Every quantized layer's weight and bias, chosen so that the layer gives what it gave in float.

The weight is rounded by GPTQ with clipped scales; the mean error that is left goes into the bias. The layers are
independent of each other: a layer that is reverted to float needs no new rounding of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.qdq import Array, QuantizedWeight, QuantParams, quantize_weight
from vitdeploy.quantize.layers import add_to_bias, weight_of
from vitdeploy.quantize.moments import SecondMoments, second_moments
from vitdeploy.quantize.placement import Plan
from vitdeploy.quantize.samples import Batch
from vitdeploy.statistics import decibels, json_number

# Parts of a channel's largest magnitude at which its weights may saturate.
LIMITS = (1.0, 0.95, 0.9, 0.85)

_CHANNELS = 256  # of output, rounded at once: what they take stays small, however large the layer
_BLOCK = 64  # inputs whose errors are passed on one by one; between blocks one matrix product does it


@dataclass(frozen=True)
class RoundedLayer:
    """A layer's integer weight, and the mean error that is left for its bias.

    weight      for `insert.insert`
    mean_error  for `correct_biases`, float64 [channels]
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
        nearest, rounded, biased = (json_number(db, 2) for db in (self.nearest_db, self.rounded_db, self.biased_db))
        return {"rounding_db": [nearest, rounded], "bias_db": [biased, rounded]}


def round_layers(
    model: ir.Model, plan: Plan, ranges: Mapping[str, QuantParams], images: Iterable[Batch]
) -> dict[str, RoundedLayer]:
    """By node, each quantized linear layer and dense convolution; the arguments are those of `second_moments`."""
    nodes = {node.name: node for node in model.graph}
    return {
        layer.node: _round_layer(weight_of(nodes[layer.node]), layer.axis, moments)
        for layer, moments in second_moments(model, plan, ranges, images, purpose="rounding weights")
    }


def _round_layer(weight: Array, axis: int, moments: SecondMoments) -> RoundedLayer:
    metric = moments.metric
    rounded, nearest = round_weight(weight, axis, metric), quantize_weight(weight, axis)
    shift = mean_error(weight, axis, rounded, moments)
    exact = _rows(weight, axis)
    signal = float(output_errors(exact, metric).sum())
    noise = [float(output_errors(exact - _real_rows(one, axis), metric).sum()) for one in (nearest, rounded)]
    ratios = [decibels(signal, power) for power in (*noise, noise[1] + float(np.square(shift).sum()))]
    return RoundedLayer(rounded, shift, *ratios)


def round_weight(weight: Array, axis: int, metric: Array | None = None) -> QuantizedWeight:
    """`weight` as int8 with a scale for each index of `axis`, chosen so that the layer's outputs err least.

    A channel w of output, read as a vector of its K other elements in their order, errs by e = w - scale * integers.
    What is minimised is eᵀ H e, for H the covariance of what the layer multiplies w by: the variance of the error at
    its output. Several scales that saturate the largest weights are tried, for each the integers are found by GPTQ
    (Frantar et al. 2022, arXiv:2210.17323) in the form of Babai's nearest plane (Chen et al. 2025, arXiv:2507.18553),
    and each channel takes its best, or round-to-nearest at full scale where nothing is better.

    weight  of any shape
    axis    of the output channels
    metric  H, symmetric positive definite [K, K]; None for the identity, where rounding to nearest is best and only
            the scales are searched
    """
    nearest, full = quantize_weight(weight, axis)
    target, best, scales = _rows(weight, axis), _rows(nearest, axis), full.copy()
    metric = np.eye(target.shape[1]) if metric is None else metric
    least = output_errors(target - best * scales[:, None], metric)
    order = np.argsort(np.diag(metric), kind="stable")  # the nearest plane goes backwards: large inputs first
    factor = np.linalg.cholesky(metric[np.ix_(order, order)]).T
    for start in range(0, len(full), _CHANNELS):
        part = slice(start, start + _CHANNELS)
        tried = np.concatenate([full[part] * np.float32(limit) for limit in LIMITS])
        integers, errors = _nearest_plane(np.tile(target[part, order].T, len(LIMITS)) / tried, factor)
        errors *= np.square(tried, dtype=np.float64)
        parts = (np.split(one, len(LIMITS), axis=-1) for one in (integers, tried, errors))
        for found, scale, error in zip(*parts, strict=True):
            better = np.flatnonzero(error < least[part])
            best[np.ix_(start + better, order)] = found[:, better].T
            scales[start + better], least[start + better] = scale[better], error[better]
    shaped = best.reshape(np.moveaxis(weight, axis, 0).shape).astype(np.int8)
    return QuantizedWeight(np.ascontiguousarray(np.moveaxis(shaped, 0, axis)), scales)


def output_errors(errors: Array, metric: Array) -> Array:
    """eᵀ H e of every row e of `errors` [n, K]: float64 [n]."""
    found: Array = np.einsum("nk,nk->n", errors @ metric, errors)
    return found


def _nearest_plane(target: Array, factor: Array) -> tuple[Array, Array]:
    """Integers -127..127 near `target` [K, n] in the metric Rᵀ R, R being `factor`, and eᵀ Rᵀ R e of each error, [n].

    R is upper triangular, so the last input's error disturbs the others, which are shifted by as much before they
    are rounded in their turn. What is left then of an input, times its number on R's diagonal, is its part of R e.
    """
    diagonal = np.diag(factor)
    factor = factor / diagonal[:, None]
    integers, errors, left = np.empty_like(target), np.zeros_like(target), np.empty_like(target)
    for end in range(len(target), 0, -_BLOCK):
        start = max(0, end - _BLOCK)
        shifted = target[start:end] + factor[start:end, end:] @ errors[end:]
        for j in range(end - 1, start - 1, -1):
            wanted = shifted[j - start] + factor[j, j + 1 : end] @ errors[j + 1 : end]
            np.clip(np.rint(wanted), -127, 127, out=integers[j])
            np.subtract(target[j], integers[j], out=errors[j])
            np.subtract(wanted, integers[j], out=left[j])
    powers: Array = np.square(diagonal) @ np.square(left, out=left)
    return integers, powers


def mean_error(weight: Array, axis: int, quantized: QuantizedWeight, moments: SecondMoments) -> Array:
    """E[W x] - E[V q(x)] for each output channel, float64: what the layer's bias has to make up for.

    W is `weight`, V what `quantized` stands for, q the round trip of the layer's input through 8-bit integers; the
    expectations are those of `moments`. After Nagel et al., 2019, arXiv:1906.04721, section 4.2, with the inputs'
    own error besides that of the weights, and from calibration images instead of the statistics of a BatchNorm.
    """
    rounded = _real_rows(quantized, axis)
    shift: Array = (_rows(weight, axis) - rounded) @ moments.mean - rounded @ moments.shift
    return shift


def correct_biases(model: ir.Model, errors: Mapping[str, Array]) -> ir.Model:
    """A copy of `model` whose layers have their mean errors [channels], by name of the node, added to their outputs."""
    model = model.clone()
    nodes = {node.name: node for node in model.graph}
    for name, error in errors.items():
        add_to_bias(nodes[name], error)
    return model


def _rows(array: Array, axis: int) -> Array:
    """One row for each index of `axis`, float64."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)


def _real_rows(weight: QuantizedWeight, axis: int) -> Array:
    rows: Array = _rows(weight.integers, axis) * weight.scales[:, None].astype(np.float64)
    return rows
