"""Second moments of what each layer reads: the metric in which the rounding of its weight is judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import ExportError
from vitdeploy.graph.edit import attribute, constant
from vitdeploy.graph.qdq import Array, QuantParams
from vitdeploy.quantize.activations import Activations
from vitdeploy.quantize.placement import CONVOLUTION, LINEAR, Layer, Plan

MOMENT_BYTES = 512 << 20  # of moments held at once, unless those of a single layer are larger

# Multiply-accumulates spent on one image of one tensor, unless that bought fewer than `LEAST_ROWS` rows.
WORK = 1 << 22
LEAST_ROWS = 32

# Part of the mean variance that is added to every input's: the moments of a sample are not those of all images, and
# there are fewer samples than inputs in some layers.
DAMPING = 1e-3
_ROUNDING = 1e-9  # part of the mean square below which a variance is float64's rounding error


@dataclass(frozen=True)
class Window:
    """The patches that a convolution reads: height and width of each; `pads` are top, left, bottom, right."""

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, node: ir.Node) -> Window:
        """The window of a Conv of images, whose weight is constant.

        Raises ExportError where its padding depends on a height and width that are not known.
        """
        weight = constant(node.inputs[1])
        assert weight is not None
        height, width = weight.shape[2:]
        strides = tuple(attribute(node, "strides", (1, 1)))
        dilations = tuple(attribute(node, "dilations", (1, 1)))
        pads = tuple(attribute(node, "pads", (0, 0, 0, 0)))
        auto = attribute(node, "auto_pad", "NOTSET")
        if auto == "VALID":
            pads = (0, 0, 0, 0)
        elif auto != "NOTSET":
            pads = _same(node.inputs[0], (height, width), strides, dilations, lower=auto == "SAME_LOWER")
        return cls((height, width), strides, pads, dilations)

    def patches(self, values: Array) -> Array:
        """`values` [n, channels, h, w] as a view [n, out h, out w, channels, kh, kw] of its zero-padded copy."""
        top, left, bottom, right = self.pads
        padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
        spans = tuple((size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True))
        views: Array = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(2, 3))
        taken: Array = views[:, :, :: self.strides[0], :: self.strides[1], :: self.dilations[0], :: self.dilations[1]]
        patches: Array = np.moveaxis(taken, 1, 3)
        return patches


def _same(
    source: ir.Value | None,
    kernel: tuple[int, int],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    *,
    lower: bool,
) -> tuple[int, ...]:
    """Padding that makes the output as large as the input over the stride, the odd pixel behind or, `lower`, before."""
    sides = None if source is None or source.shape is None else [size for size in source.shape if isinstance(size, int)]
    if sides is None or len(sides) < 2:
        raise ExportError(
            "the padding of a convolution depends on the image size, which is free", fix="export with --image-size"
        )
    before, after = [], []
    for side, size, stride, dilation in zip(sides[-2:], kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(side / stride) - 1) * stride + (size - 1) * dilation + 1 - side)
        small, large = total // 2, total - total // 2
        before.append(large if lower else small)
        after.append(small if lower else large)
    return (*before, *after)


class Moments:
    """Mean and second moment of the vectors x that a layer multiplies by its weight, and what quantizing does to them.

    The vectors are the rows of a tensor [..., K], or the patches of images [n, channels, h, w], K = channels x kh x kw
    in this order, with the zeros of the padding. Memory: 8 K² bytes.

    window  of a convolution; None for rows
    affine  how the tensor is quantized; None where it is not
    rows    vectors seen, and `images`, what they came from
    """

    def __init__(self, window: Window | None = None, params: QuantParams | None = None) -> None:
        self.window, self.params = window, params
        self.rows = self.images = 0
        self._sum: Array = np.zeros(0)
        self._shift: Array = np.zeros(0)
        self._square: Array = np.zeros((0, 0))

    @property
    def mean(self) -> Array:
        """E[x], float64 [K]."""
        return self._sum / self.rows

    @property
    def shift(self) -> Array:
        """E[q(x) - x] for q the round trip through 8-bit integers, float64 [K]."""
        return self._shift / self.rows

    @property
    def second(self) -> Array:
        """E[x xᵀ], float64 [K, K]."""
        return self._square / self.rows

    @property
    def metric(self) -> Array:
        """Covariance of x, damped so that it is positive definite, float64 [K, K].

        The covariance and not the second moment, since a bias makes up for an error of the mean.
        """
        second = self.second
        found: Array = second - np.outer(self.mean, self.mean)
        least = _ROUNDING * float(np.trace(second))
        damping = max(DAMPING * float(np.trace(found)), least) / len(found)
        found[np.diag_indices_from(found)] += damping if damping > 0 else 1.0
        return found

    def update(self, values: Array, images: int) -> None:
        """Add the vectors of a float32 tensor made from `images` images, which lie along its first axis.

        Of an image with more than max(`LEAST_ROWS`, `WORK` / K²) vectors that many count, drawn without replacement by
        a generator seeded with the number of the image: the moments do not depend on how images are batched.
        """
        parts = np.split(values, images) if len(values) % images == 0 else [values]
        vectors = np.concatenate([self._vectors(part) for part in parts])
        exact = vectors.astype(np.float64)
        if not self.rows:
            length = exact.shape[1]
            self._sum, self._shift, self._square = np.zeros(length), np.zeros(length), np.zeros((length, length))
        self._sum += exact.sum(axis=0)
        self._square += exact.T @ exact
        if self.params is not None:
            self._shift += (self.params.round_trip(vectors) - exact).sum(axis=0)
        self.rows += len(vectors)

    def _vectors(self, values: Array) -> Array:
        """The chosen vectors of the next image, [n, K]."""
        self.images += 1
        if self.window is None:
            rows: Array = values.reshape(-1, values.shape[-1])
            return rows[self._chosen(len(rows), rows.shape[1])]
        patches = self.window.patches(values)
        places = patches.shape[:3]
        chosen = np.unravel_index(self._chosen(math.prod(places), math.prod(patches.shape[3:])), places)
        taken: Array = patches[chosen]
        return taken.reshape(len(taken), -1)

    def _chosen(self, count: int, length: int) -> Array:
        keep = max(LEAST_ROWS, WORK // length**2)
        if count <= keep:
            return np.arange(count)
        chosen: Array = np.random.default_rng(self.images).choice(count, keep, replace=False)
        return np.sort(chosen)


def moments(
    model: ir.Model, plan: Plan, ranges: Mapping[str, QuantParams], images: Callable[[], Iterable[Array]]
) -> Iterator[tuple[Layer, Moments]]:
    """The moments of what each quantized linear layer and dense convolution reads, one layer after another.

    model   FP32, one input [n, 3, height, width]
    ranges  by name of an activation, how it is quantized
    images  called for batches float32 [m, 3, height, width], once for each group of layers whose moments fit in
            `MOMENT_BYTES`; layers that read the same vectors share them

    Memory, next to the model: `MOMENT_BYTES`, and what `Activations` holds.
    """
    nodes = {node.name: node for node in model.graph}
    groups: list[dict[tuple[str, Window | None], list[Layer]]] = []
    held = 0
    for key, layers in _read(nodes, plan).items():
        weight = constant(nodes[layers[0].node].inputs[1])
        assert weight is not None
        size = 8 * (weight.size // weight.shape[layers[0].axis]) ** 2
        if not groups or held + size > MOMENT_BYTES:
            groups.append({})
            held = 0
        groups[-1][key] = layers
        held += size
    for group in groups:
        found = {key: Moments(key[1], ranges.get(key[0])) for key in group}
        _observe(model, found, images())
        for key, layers in group.items():
            seen = found.pop(key)
            yield from ((layer, seen) for layer in layers)


def _read(nodes: Mapping[str | None, ir.Node], plan: Plan) -> dict[tuple[str, Window | None], list[Layer]]:
    """Layers by what they read: a tensor and, for convolutions, a window."""
    found: dict[tuple[str, Window | None], list[Layer]] = {}
    for layer in plan:
        if layer.quantized and layer.kind in {LINEAR, CONVOLUTION}:
            node = nodes[layer.node]
            window = Window.of(node) if layer.kind == CONVOLUTION else None
            found.setdefault((str(node.inputs[0].name), window), []).append(layer)  # type: ignore[union-attr]
    return found


def _observe(model: ir.Model, found: Mapping[tuple[str, Window | None], Moments], batches: Iterable[Array]) -> None:
    source = str(model.graph.inputs[0].name)
    activations = Activations(model, list(dict.fromkeys(name for name, _ in found if name != source)))
    readers: dict[str, list[Moments]] = {}
    for (name, _), one in found.items():
        readers.setdefault(name, []).append(one)
    for batch in batches:
        for start in range(0, len(batch), activations.images):
            part = batch[start : start + activations.images]
            for one in readers.get(source, ()):
                one.update(part, len(part))
            for name, values in activations(part):
                for one in readers[name]:
                    one.update(values, len(part))
