"""How much a quantized graph loses against the FP32 graph, on images that it was not calibrated on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.qdq import Array

NOISE_IMAGES = 64  # for the signal-to-noise ratio; accuracy is measured on all


class Judge:
    """Holds quantized graphs against the FP32 graph they were made from.

    graph     FP32, one input [n, 3, H, W]
    batches   images float32 [m, 3, H, W], kept in memory
    labels    class numbers of the images, for `drop`
    """

    def __init__(self, graph: ir.Model, batches: Iterable[Array], labels: Sequence[int] | None = None) -> None:
        self._images = np.concatenate(list(batches))
        self._few = self._images[:NOISE_IMAGES]
        self._expected = evaluate(graph, self._few if labels is None else self._images)
        self._labels = None if labels is None else np.asarray(labels)

    def noise(self, model: ir.Model) -> float:
        """Noise power over signal power of the worst floating-point output; infinite for NaN and Inf."""
        found = evaluate(model, self._few)
        ratios = [_noise(self._expected[name][: len(array)], array) for name, array in found.items()]
        return max((ratio for ratio in ratios if ratio is not None), default=0.0)

    def snr_db(self, model: ir.Model) -> float:
        """The same in decibels."""
        noise = self.noise(model)
        return -10 * math.log10(noise) if noise else math.inf

    def drop(self, model: ir.Model) -> float:
        """Points of top-1 accuracy lost against the FP32 graph, on all images."""
        assert self._labels is not None
        found = evaluate(model, self._images)
        right = [
            float((logits.argmax(axis=1) == self._labels).mean())
            for logits in (next(iter(self._expected.values())), next(iter(found.values())))
        ]
        return 100 * (right[0] - right[1])


def evaluate(model: ir.Model, images: Array) -> dict[str, Array]:
    """All outputs by name for images float32 [n, 3, H, W], with Q and DQ computed as the standard says.

    Integer kernels are left out: they round the same numbers, but some processors saturate on the way.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    payload = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
    source = model.graph.inputs[0]
    fixed = source.shape[0] if source.shape is not None and isinstance(source.shape[0], int) else None
    step = fixed or 16
    count = len(images)
    if fixed:
        images = np.concatenate([images, np.repeat(images[-1:], -count % fixed, axis=0)])
    names = [str(value.name) for value in model.graph.outputs]
    parts = [session.run(names, {str(source.name): images[i : i + step]}) for i in range(0, len(images), step)]
    return {name: np.concatenate(arrays)[:count] for name, *arrays in zip(names, *parts, strict=True)}


def _noise(expected: Array, found: Array) -> float | None:
    """Noise over signal; None for a discrete output."""
    if not np.issubdtype(expected.dtype, np.floating):
        return None
    if not np.isfinite(found).all():
        return math.inf
    signal = float(np.square(expected, dtype=np.float64).sum())
    return float(np.square(found.astype(np.float64) - expected).sum()) / max(signal, 1e-300)
