"""An `.onnx` file as an export runs it: ONNX Runtime without optimizations computes what everything is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import onnx_ir as ir

from vitdeploy.errors import BackendError, ExportError
from vitdeploy.exporter.capture import BATCH
from vitdeploy.exporter.onnx_import.composites import state_deconvolutions
from vitdeploy.exporter.onnx_import.names import name_nodes
from vitdeploy.exporter.onnx_import.read import OnnxFile
from vitdeploy.exporter.onnx_import.shapes import annotated, settled
from vitdeploy.exporter.onnx_import.single import in_single
from vitdeploy.exporter.onnx_import.upgrade import upgraded
from vitdeploy.graph.names import make_unique
from vitdeploy.graph.run import Array, Inputs, Runner, joined, rows, samples_in


@dataclass(frozen=True)
class OnnxNetwork:
    """The graph of a file, with the layout of images that a bundle takes.

    file   whose graph has its inputs in the shapes that were asked for
    batch  samples a call; None where that is left open
    """

    file: OnnxFile
    name: str
    batch: int | None = None
    strides: Mapping[str, int] = field(default_factory=dict)
    selections: tuple[str, ...] = ()
    float32_modules: tuple[str, ...] = ()

    @property
    def original(self) -> str:
        """What computes the reference, for messages."""
        return self.file.path.name

    @property
    def scores(self) -> str | None:
        """The output that has the class scores: the only one, or that of this name."""
        names = [str(value.name) for value in self.file.graph.graph.outputs]
        return names[0] if len(names) == 1 else "logits" if "logits" in names else None

    def run(self, inputs: Inputs) -> dict[str, Array]:
        """Its outputs by name for inputs by name, those of the batches one after another.

        Raises ExportError where ONNX Runtime cannot run the graph.
        """
        count = samples_in(inputs)
        step = self.batch or count
        try:
            parts = [self._runner(rows(inputs, start, start + step)) for start in range(0, count, step)]
        except BackendError as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise ExportError(
                f"{self.file.path} fails in ONNX Runtime on {shapes}",
                why=error.why,
                fix="inputs of the sizes that the file was exported for: --input NAME=SHAPE, --batch 1",
            ) from error
        self._check_shapes(parts)
        return {name: joined([part[name] for part in parts], several=self.batch is not None) for name in parts[0]}

    def one_call(self, inputs: Inputs) -> dict[str, Array]:
        """What one batch gives, as it comes."""
        return next(self._runner.batches(self.first_batch(rows(inputs, 0, self.batch or 1))))

    def _check_shapes(self, parts: Sequence[Mapping[str, Array]]) -> None:
        """ExportError for outputs whose size follows from values, such as a list of what was found."""
        for name, first in parts[0].items():
            other = next((part[name] for part in parts if part[name].shape != first.shape), first)
            if other is not first:
                raise ExportError(
                    f"the output {name} of {self.original} is {list(first.shape)} for one input and "
                    f"{list(other.shape)} for another",
                    why="its size follows from values, and a bundle states the shapes of its outputs",
                    fix="export the .onnx without that part, such as the selection of detections",
                )

    @cached_property
    def _runner(self) -> Runner:
        return Runner(self.file.graph, "as_written")

    def first_batch(self, inputs: Inputs) -> Inputs:
        """Of `inputs` those that one call takes."""
        return rows(inputs, 0, self.batch or samples_in(inputs))

    def prepare_half(self, inputs: Inputs) -> None:
        """Nothing: a graph says all that it is."""

    def in_double(self) -> None:
        """No runtime computes a whole graph in float64."""

    def run_optimized(self, inputs: Inputs) -> dict[str, Array]:
        """The same function rounded otherwise: with all optimizations of ONNX Runtime."""
        return Runner(self.file.graph)(inputs, self.batch)

    def imported(self, outputs: Mapping[str, Array]) -> ir.Model:
        """The graph at the opset of the capture, with composites; ExportError or ModelError where it has none.

        outputs  what it makes of one batch: not every file says their shapes
        """
        named = self.file.graph.clone()
        in_single(named, doubles=True)  # hardly a device computes in FP64; the proof says what that costs
        name_nodes(named.graph)
        for value in named.graph.outputs:
            value.shape = ir.Shape([None] * outputs[str(value.name)].ndim)
        # What some operators of older opsets mean depends on the rank of what they take, so shapes come first.
        where = str(self.file.path)
        model = annotated(settled(upgraded(settled(ir.to_proto(named), where), where), where), where)
        for value in model.graph.outputs:
            shape = outputs[str(value.name)].shape
            value.shape = ir.Shape([self._axis(value, index, length) for index, length in enumerate(shape)])
        make_unique(model.graph)
        state_deconvolutions(model)
        return model

    def _axis(self, value: ir.Value, index: int, found: int) -> int | str:
        """The length of an axis of an output, `found` in one call, or its name where it is free."""
        length = None if value.shape is None else value.shape[index]
        if isinstance(length, int):
            return length
        if not index and self.batch is None:
            return BATCH
        return f"{value.name}.axis{index}" if index and self._has_free_axes else found

    @property
    def _has_free_axes(self) -> bool:
        """Whether an axis besides the batch is free."""
        return any(
            not isinstance(axis, int) for value in self.file.graph.graph.inputs for axis in (value.shape or ())[1:]
        )
