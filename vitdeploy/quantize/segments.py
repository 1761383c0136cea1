"""A graph cut into segments that run one after another, so that few of its tensors are in memory at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from vitdeploy.errors import REPORT, ExportError
from vitdeploy.graph.edit import for_one
from vitdeploy.graph.run import fill, open_session, take
from vitdeploy.quantize.samples import length

Array = NDArray[Any]


def prune(model: ir.Model, names: Sequence[str]) -> dict[str, ir.Value]:
    """Leave only what computes the named tensors, in place; all tensors that are computed, by name."""
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    missing = sorted(set(names) - set(values))
    if missing:
        why = f"{len(missing)} such names were given"
        raise ExportError(f"the graph does not compute {missing[0]}", why=why, fix=REPORT)
    if any(values[name].shape is None for name in names):
        common.ShapeInferencePass()(model)
    model.graph.outputs.clear()
    for name in names:
        values[name].type = values[name].type or ir.TensorType(ir.DataType.FLOAT)
        if values[name].dtype != ir.DataType.FLOAT:
            raise ExportError(f"{name} is {values[name].dtype}", why="only float32 tensors have ranges", fix=REPORT)
        model.graph.outputs.append(values[name])
    common.RemoveUnusedNodesPass()(model)
    return {str(value.name): value for node in model.graph for value in node.outputs}


def groups_of(values: dict[str, ir.Value], names: Sequence[str], most: int, unknown: int) -> list[list[ir.Value]]:
    """The tensors in the order of the graph, cut where with the next one a group would have more than `most` bytes.

    See `bytes_of`; with `unknown` above `most`, a tensor of unknown shape gets a group of its own.
    """
    groups: list[list[ir.Value]] = []
    size, wanted = 0, set(names)
    for value in (value for name, value in values.items() if name in wanted):
        size += bytes_of(value, unknown)
        if not groups or size > most:
            groups.append([])
            size = bytes_of(value, unknown)
        groups[-1].append(value)
    return groups


def bytes_of(value: ir.Value, unknown: int) -> int:
    """Bytes of the tensor with one image in every free dimension; `unknown` where its shape is."""
    if value.shape is None:
        return unknown
    return 4 * math.prod(for_one(dim) for dim in value.shape)


def is_fixed(value: ir.Value) -> bool:
    """Whether every dimension has a number."""
    return value.shape is not None and all(isinstance(dim, int) for dim in value.shape)


def segments_of(model: ir.Model, groups: Sequence[Sequence[ir.Value]], *, threads: int | None) -> list[Segment]:
    """One segment for each group, which ends with the node that makes the last of its tensors."""
    position = {node: index for index, node in enumerate(model.graph)}
    made: dict[ir.Value, int] = dict.fromkeys(model.graph.inputs, -1)
    made.update({value: index for node, index in position.items() for value in node.outputs})
    last_read = {value: max((position[use.node] for use in value.uses()), default=-1) for value in made}
    segments: list[Segment] = []
    start = -1
    for group in groups:
        end = max(made[value] for value in group)
        inputs = [
            value
            for value, index in made.items()
            if index <= start and any(start < position[use.node] <= end for use in value.uses())
        ]
        later = {value for value, index in made.items() if index <= end < last_read[value]}
        kept = [value for value in later if made[value] > start and value not in group]
        kept.sort(key=made.__getitem__)
        part = ir.convenience.extract(model.graph, inputs, [*group, *kept])
        session = open_session(ir.Model(part, ir_version=model.ir_version), arena=False, threads=threads)
        segments.append(Segment(session, _names(inputs), _names(group), _names(kept), set(_names(later))))
        start = end
    return segments


class Run:
    """One run of the graph: the tensors that wait for later segments.

    arrays  the inputs by name, at most `batch` of each; fewer are filled up
    """

    def __init__(self, arrays: Mapping[str, Array], batch: int) -> None:
        import onnxruntime as ort

        self.count, self._batch = length(arrays), batch
        self.waiting = {
            name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(fill(array, batch)))
            for name, array in arrays.items()
        }

    def array(self, value: Any) -> Array:
        """A tensor that was made, without what was filled up."""
        return take(_view(value), self.count, self._batch)


class _Memory:
    """What numpy needs to read an OrtValue where it lies, and keeps it for as long; `OrtValue.numpy` would copy it."""

    def __init__(self, value: Any) -> None:
        self._value = value
        shape = tuple(value.shape())
        self.__array_interface__ = {"version": 3, "typestr": "<f4", "shape": shape, "data": (value.data_ptr(), True)}


def _view(value: Any) -> Array:
    """The values of a float32 OrtValue, not to be written to."""
    array: Array = np.asarray(_Memory(value)) if all(value.shape()) else value.numpy()
    return array


@dataclass(frozen=True)
class Segment:
    """A part of the graph.

    inputs  what it reads of earlier parts
    names   the tensors asked for
    kept    what it makes for later parts besides
    later   everything that later parts read
    """

    session: Any
    inputs: list[str]
    names: list[str]
    kept: list[str]
    later: set[str]

    def advance(self, run: Run) -> dict[str, Any]:
        """Compute this part of a run: the tensors asked for, by name."""
        outputs = [*self.names, *self.kept]
        # As arrays they would be held twice: once by the session, once by Python.
        made = self.session.run_with_ort_values(outputs, {name: run.waiting[name] for name in self.inputs})
        known = chain(run.waiting.items(), zip(outputs, made, strict=True))
        run.waiting = {name: value for name, value in known if name in self.later}
        return dict(zip(self.names, made, strict=False))


def _names(values: Sequence[ir.Value] | set[ir.Value]) -> list[str]:
    return [str(value.name) for value in values]
