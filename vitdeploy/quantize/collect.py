"""Statistics of chosen tensors while calibration images stream through the FP32 graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.progress import Progress
from vitdeploy.quantize.activations import Activations
from vitdeploy.quantize.images import Images
from vitdeploy.quantize.observers import Statistics
from vitdeploy.quantize.readers import widest_window

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]


def collect(
    model: ir.Model | onnx.ModelProto | bytes,
    tensors: Mapping[str, int | None],
    batches: Iterable[Array],
) -> dict[str, Statistics]:
    """Run the images through an FP32 graph (ONNX Runtime, CPU) and keep the statistics of its tensors.

    model     one input, [n, 3, height, width] with a fixed or a free batch
    tensors   the tensors to observe, inputs and outputs of the graph included, each with the axis of its channels
              (for magnitudes a channel and samples, see `Statistics`) or None
    batches   images float32 [m, 3, height, width] of any m, or `Images`; read once, one after another

    Memory, next to the model: what `Activations` holds at once, `activations.FETCH_BYTES` and what the graph itself
    needs between two of its parts, and what `Statistics` states for each tensor. The statistics do not depend on how
    the images are split into batches.

    Raises ExportError for a tensor that the graph does not compute, InputError for images that the graph cannot take,
    and UsageError where there are none or none to learn from.
    """
    graph = _model(model)
    source = str(graph.graph.inputs[0].name) if graph.graph.inputs else None
    activations = Activations(graph, [name for name in tensors if name != source])
    statistics = {name: Statistics(name, axis, _window(graph, name, axis)) for name, axis in tensors.items()}
    images = batches if isinstance(batches, Images) else Images(batches)
    with Progress("calibrating", images.expected) as progress:
        for batch in _regroup(images, activations.images):
            if source in statistics:
                statistics[source].update(batch, len(batch))
            for name, values in activations(batch):
                statistics[name].update(values, len(batch))
            progress.advance(len(batch))
    images.check()
    return statistics


def _model(model: ir.Model | onnx.ModelProto | bytes) -> ir.Model:
    if isinstance(model, ir.Model):
        return model
    if isinstance(model, bytes):
        import onnx

        model = onnx.load_from_string(model)
    converted: ir.Model = ir.from_proto(model)
    return converted


def _window(model: ir.Model, name: str, axis: int | None) -> tuple[int, int] | None:
    """What the convolutions that read the tensor [n, channels, h, w] read at once."""
    values = chain(model.graph.inputs, (value for node in model.graph for value in node.outputs))
    return widest_window(next(value for value in values if value.name == name)) if axis == 1 else None


def _regroup(batches: Iterable[Array], size: int) -> Iterator[Array]:
    """The images in batches of `size`; the last one may be smaller."""
    waiting: list[Array] = []
    count = 0
    for batch in batches:
        waiting.append(batch)
        count += len(batch)
        if count >= size:
            whole = np.concatenate(waiting)
            for start in range(0, count - count % size, size):
                yield whole[start : start + size]
            count %= size
            waiting = [whole[len(whole) - count :]]
    if count:
        yield np.concatenate(waiting)
