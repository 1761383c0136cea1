"""Second moments of what each layer reads: the metric in which the rounding of its weight is measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import input_of
from vitdeploy.graph.qdq import Array, QuantParams
from vitdeploy.progress import Progress
from vitdeploy.quantize.activations import Activations
from vitdeploy.quantize.layers import Window, weight_of
from vitdeploy.quantize.placement import CONVOLUTION, LINEAR, Layer, Plan
from vitdeploy.quantize.samples import Batch, Images, regroup

MOMENT_BYTES = 512 << 20  # of moments held at once, unless those of a single layer are larger

# Multiply-accumulates spent on one image of one tensor, unless that bought fewer than `LEAST_ROWS` rows.
WORK = 1 << 22
LEAST_ROWS = 32
TOGETHER = 512  # rows multiplied at once: the sum of the products, K² numbers, is read and written once for so many

# Part of the mean variance that is added to every input's: the moments of a sample are not those of all images, and
# there are fewer samples than inputs in some layers.
DAMPING = 1e-3
_ROUNDING = 1e-9  # part of the mean square below which a variance is float64's rounding error
_ROUNDING_32 = 1e-6  # part of the sum of all variances below which an eigenvalue is float32's


class SecondMoments:
    """Mean and second moment of the vectors x that a layer multiplies by its weight, and what quantizing does to them.

    The vectors are the rows of a tensor [..., K], or the patches of images [n, channels, h, w], K = channels x kh x kw
    in this order, with the zeros of the padding. Products are taken in float32 of vectors less the mean of the first
    ones, so that what is far from zero loses nothing, and summed in float64. Memory: 8 K² bytes, 4 K for each of
    `TOGETHER` rows and those of one image, which wait to be added, and 4 K² while they are.

    window  of a convolution; None for rows
    params  how the tensor is quantized; None where it is not
    rows    vectors seen, and `images`, what they came from
    """

    def __init__(self, window: Window | None = None, params: QuantParams | None = None) -> None:
        self.window, self.params = window, params
        self.rows = self.images = 0
        self._waiting: list[Array] = []
        self._centre: Array = np.zeros(0)
        self._sum: Array = np.zeros(0)
        self._shift: Array = np.zeros(0)
        self._square: Array = np.zeros((0, 0))

    @property
    def mean(self) -> Array:
        """E[x], float64 [K]."""
        self._add_waiting()
        found: Array = self._centre + self._sum / self.rows
        return found

    @property
    def shift(self) -> Array:
        """E[q(x) - x] for q the round trip through 8-bit integers, float64 [K]."""
        self._add_waiting()
        return self._shift / self.rows

    @property
    def second(self) -> Array:
        """E[x xᵀ], float64 [K, K]."""
        found: Array = self._covariance + np.outer(self.mean, self.mean)
        return found

    @property
    def _covariance(self) -> Array:
        self._add_waiting()
        mean = self._sum / self.rows
        found: Array = self._square / self.rows - np.outer(mean, mean)
        return found

    @property
    def metric(self) -> Array:
        """Covariance of x, damped so that it is positive definite, float64 [K, K].

        The covariance and not the second moment, since a bias makes up for an error of the mean.
        """
        found = self._covariance
        variance = float(np.trace(found))
        least = _ROUNDING * (variance + float(np.square(self.mean).sum()))
        damping = max(variance * max(DAMPING / len(found), _ROUNDING_32), least / len(found))
        found[np.diag_indices_from(found)] += damping if damping > 0 else 1.0
        return found

    def update(self, values: Array, images: int) -> None:
        """Add the vectors of a float32 tensor made from `images` images, which lie along its first axis.

        Of an image with more than max(`LEAST_ROWS`, `WORK` / K²) vectors that many count, drawn without replacement by
        a generator seeded with the number of the image: the moments do not depend on how images are batched.
        """
        for part in np.split(values, images) if len(values) % images == 0 else [values]:
            self._waiting.append(self._vectors(part))
            self.rows += len(self._waiting[-1])
            if sum(map(len, self._waiting)) >= TOGETHER:
                self._add_waiting()

    def _add_waiting(self) -> None:
        if not self._waiting:
            return
        vectors = np.concatenate(self._waiting)
        self._waiting.clear()
        if not self._sum.size:
            length = vectors.shape[1]
            self._centre = vectors.mean(axis=0)
            self._sum, self._shift, self._square = np.zeros(length), np.zeros(length), np.zeros((length, length))
        if self.params is not None:
            self._shift += (self.params.round_trip(vectors) - vectors).sum(axis=0, dtype=np.float64)
        vectors -= self._centre
        self._sum += vectors.sum(axis=0, dtype=np.float64)
        self._square += vectors.T @ vectors

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


_Inputs = tuple[str, Window | None]  # what layers read: a tensor and, for convolutions, a window


def second_moments(
    model: ir.Model,
    plan: Plan,
    ranges: Mapping[str, QuantParams],
    images: Iterable[Batch],
    *,
    purpose: str = "using second moments",
) -> Iterator[tuple[Layer, SecondMoments]]:
    """The moments of what each quantized linear layer and dense convolution reads, one layer after another.

    model   FP32
    ranges  by name of an activation, how it is quantized
    images  batches, see `Images`, iterated once for each group of layers whose moments fit in
            `MOMENT_BYTES`; layers that read the same vectors share them
    purpose  what the caller does with each layer, for whoever waits

    Memory, next to the model: `MOMENT_BYTES`, and what `Activations` holds.
    """
    nodes = {node.name: node for node in model.graph}
    for group in _groups(nodes, plan):
        found = {key: SecondMoments(key[1], ranges.get(key[0])) for key in group}
        _observe(model, found, images)
        with Progress(purpose, sum(map(len, group.values()))) as progress:
            for key, layers in group.items():
                seen = found.pop(key)
                for layer in layers:
                    yield layer, seen
                    progress.advance()


def _groups(nodes: Mapping[str | None, ir.Node], plan: Plan) -> Iterator[dict[_Inputs, list[Layer]]]:
    """Layers by what they read, as many at a time as fit."""
    read: dict[_Inputs, list[Layer]] = {}
    for layer in plan:
        if layer.quantized and layer.kind in {LINEAR, CONVOLUTION}:
            node = nodes[layer.node]
            window = Window.of(node) if layer.kind == CONVOLUTION else None
            read.setdefault((str(input_of(node, 0).name), window), []).append(layer)
    group: dict[_Inputs, list[Layer]] = {}
    held = 0
    for key, layers in read.items():
        weight = weight_of(nodes[layers[0].node])
        length = weight.size // weight.shape[layers[0].axis]
        size = 8 * length**2 + 4 * length * TOGETHER
        if group and held + size > MOMENT_BYTES:
            yield group
            group, held = {}, 0
        group[key] = layers
        held += size
    if group:
        yield group


def _observe(model: ir.Model, found: Mapping[_Inputs, SecondMoments], batches: Iterable[Batch]) -> None:
    of_tensor: dict[str, list[SecondMoments]] = {}
    for (name, _), one in found.items():
        of_tensor.setdefault(name, []).append(one)
    activations = Activations(model, of_tensor)
    expected = batches.expected if isinstance(batches, Images) else None
    observers = {name: partial(_update, seen) for name, seen in of_tensor.items()}
    with Progress("taking second moments", expected) as progress:
        for count in activations.observe(regroup(batches, activations.images), observers):
            progress.advance(count)


def _update(moments: Sequence[SecondMoments], values: Array, images: int) -> None:
    for one in moments:
        one.update(values, images)
