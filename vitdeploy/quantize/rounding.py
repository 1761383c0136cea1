"""Rounding of weights that disturbs what their layer computes least, instead of the weights themselves least."""

from __future__ import annotations

import numpy as np

from vitdeploy.graph.qdq import Array, quantize_weight
from vitdeploy.quantize.insert import QuantizedWeight

# Parts of a channel's largest magnitude at which its weights may saturate.
LIMITS = (1.0, 0.95, 0.9, 0.85)

_BLOCK = 64  # inputs whose errors are passed on one by one; between blocks one matrix product does it


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
    nearest, scales = quantize_weight(weight, axis)
    rows = np.moveaxis(weight, axis, 0)
    target = rows.reshape(len(rows), -1).astype(np.float64)
    metric = np.eye(target.shape[1]) if metric is None else metric
    best = np.moveaxis(nearest, axis, 0).reshape(target.shape).astype(np.float64)
    least = output_errors(target - best * scales[:, None], metric)
    order = np.argsort(np.diag(metric), kind="stable")  # the nearest plane goes backwards: large inputs first
    factor = np.linalg.cholesky(metric[np.ix_(order, order)]).T
    factor /= np.diag(factor)[:, None].copy()
    full = scales.copy()
    for limit in LIMITS:
        tried = (full * np.float32(limit)).astype(np.float32)
        integers = np.empty_like(best)
        integers[:, order] = _nearest_plane(target[:, order] / tried[:, None], factor)
        errors = output_errors(target - integers * tried[:, None], metric)
        better = errors < least
        best[better], scales[better], least[better] = integers[better], tried[better], errors[better]
    shaped = best.reshape(rows.shape).astype(np.int8)
    return QuantizedWeight(np.ascontiguousarray(np.moveaxis(shaped, 0, axis)), scales)


def output_errors(errors: Array, metric: Array) -> Array:
    """eᵀ H e of every row e of `errors` [n, K]: float64 [n]."""
    found: Array = np.einsum("nk,nk->n", errors @ metric, errors)
    return found


def _nearest_plane(target: Array, factor: Array) -> Array:
    """Integers -127..127 near `target` [n, K] in the metric Rᵀ R, given R with its rows divided by its diagonal.

    R is upper triangular, so the last input's error disturbs the others, which are shifted by as much before they
    are rounded in their turn.
    """
    integers, errors = np.empty_like(target), np.zeros_like(target)
    for end in range(target.shape[1], 0, -_BLOCK):
        start = max(0, end - _BLOCK)
        shifted = target[:, start:end] + errors[:, end:] @ factor[start:end, end:].T
        for j in range(end - 1, start - 1, -1):
            wanted = shifted[:, j - start] + errors[:, j + 1 : end] @ factor[j, j + 1 : end]
            integers[:, j] = np.clip(np.rint(wanted), -127, 127)
            errors[:, j] = target[:, j] - integers[:, j]
    return integers
