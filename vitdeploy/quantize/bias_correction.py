"""The mean of the error that 8-bit integers leave at a layer's outputs, put into its bias."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.qdq import Array
from vitdeploy.quantize.insert import QuantizedWeight
from vitdeploy.quantize.layers import add_to_bias
from vitdeploy.quantize.moments import Moments


def mean_error(weight: Array, axis: int, quantized: QuantizedWeight, moments: Moments) -> Array:
    """E[W x] - E[V q(x)] for each output channel, float64: what the layer's bias has to make up for.

    W is `weight`, V what `quantized` stands for, q the round trip of the layer's input through 8-bit integers; the
    expectations are those of `moments`. After Nagel et al., 2019, arXiv:1906.04721, section 4.2, with the inputs'
    own error besides that of the weights, and from calibration images instead of the statistics of a BatchNorm.
    """
    exact = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    integers = np.moveaxis(quantized.integers, axis, 0).reshape(exact.shape)
    rounded = integers * quantized.scales[:, None].astype(np.float64)
    shift: Array = (exact - rounded) @ moments.mean - rounded @ moments.shift
    return shift


def correct_biases(model: ir.Model, errors: Mapping[str, Array]) -> ir.Model:
    """A copy of `model` whose layers have their mean errors [channels], by name of the node, added to their outputs."""
    model = model.clone()
    nodes = {node.name: node for node in model.graph}
    for name, error in errors.items():
        add_to_bias(nodes[name], error)
    return model
