"""Is rounding enough to move a network's outputs? PyTorch in FP32 is held against PyTorch in FP64, image by image.

A network may be ill-conditioned on one image only. On an image of a single colour all tokens are alike, and which of
equal scores is the largest is decided by rounding. Nothing that happens there says anything about the other images.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import ExportError
from vitdeploy.exporter.module_calls import first_difference, tracing
from vitdeploy.exporter.network import Network
from vitdeploy.exporter.onnx_import.network import OnnxNetwork
from vitdeploy.exporter.torch_network import TorchNetwork
from vitdeploy.graph.run import Inputs
from vitdeploy.proof.discrete import is_discrete

Array = NDArray[Any]

log = logging.getLogger(__name__)


def in_double(network: Network, inputs: Inputs) -> dict[str, Array] | None:
    """What a FP64 copy of the network gives; None for a network that has no such form, or hard-codes FP32.

    A file has none. What it gives with the optimizations of ONNX Runtime, which round otherwise, is as good here.
    """
    if isinstance(network, OnnxNetwork):
        return network.run_optimized(inputs)
    double = network.in_double()
    try:
        outputs = None if double is None else double.run(_double(inputs))
    except ExportError:
        log.debug("%s does not run in FP64", network.name, exc_info=True)
        return None
    floats = [array for array in (outputs or {}).values() if not is_discrete(array)]
    usable = all(array.dtype == np.float64 and np.isfinite(array).all() for array in floats)
    return outputs if usable else None


def first_rounded(network: Network, inputs: Inputs, limit: float) -> str | None:
    """The first module where PyTorch in FP32 differs from FP64 by more than `limit` of the largest value.

    `inputs` are one batch. None where no module does, or the network has no form in FP64.
    """
    double = network.in_double()
    if double is None or not isinstance(network, TorchNetwork):
        return None
    with tracing(double.module) as expected:
        double.run(_double(inputs))
    with tracing(network.module) as found:
        network.run(inputs)
    return first_difference(expected, found, limit)


def _double(inputs: Inputs) -> dict[str, Array]:
    return {name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in inputs.items()}


def image_errors(
    reference: Mapping[str, Array], found: Mapping[str, Array], images: int, selections: Sequence[str] = ()
) -> NDArray[np.float64]:
    """For each image the largest error of any output, as a part of the largest value of that output [images].

    Of whole numbers and flags the part that is another one counts, in `selections` whatever their order. Infinite where
    something is not finite. An output whose first axis does not count the images stands for all of them.
    """
    worst = np.zeros(images)
    for name, array in reference.items():
        if array.shape != found[name].shape:
            return np.full(images, np.inf)
        count = images if array.ndim and len(array) == images else 1
        old, new = (one.astype(np.float64).reshape(count, -1) for one in (array, found[name]))
        if name in selections:
            errors = np.array([len(set(a) - set(b)) / len(a) for a, b in zip(old.tolist(), new.tolist(), strict=True)])
        elif is_discrete(array):
            errors = (old != new).mean(axis=1)
        else:
            largest = np.abs(old).max(initial=0.0)
            errors = np.abs(new - old).max(axis=1, initial=0.0)
            errors = np.divide(errors, largest, out=np.where(errors > 0, np.inf, 0.0), where=largest > 0)
        worst = np.maximum(worst, np.where(np.isnan(errors), np.inf, errors))
    return worst
