"""The arithmetic of the preprocessing as the first nodes of the graph."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import UsageError
from vitdeploy.graph.edit import Builder, consumers, sizes
from vitdeploy.graph.names import fresh_name
from vitdeploy.passes.base import GraphPass
from vitdeploy.preprocess import Preprocessing
from vitdeploy.targets import Target


def require_bakeable(recipe: Preprocessing) -> None:
    """UsageError for a recipe that cannot go into a graph, whose input are the 8-bit colours of images."""
    if not recipe.takes_colours:
        raise UsageError(
            f"preprocessing with channels={recipe.channels} cannot be baked into the graph",
            why="the input of such a graph is uint8 [N, H, W, 3], RGB pixels",
            fix="leave --bake-preprocessing out",
        )


class BakePreprocessing(GraphPass):
    """Puts the scale to 0..1, mean, deviation and order of the channels in front of the network.

    Comes last: in FP32 before whatever precision the network has got, so that calibration and FP16 saw the very values
    that now arrive, and no weight is changed. For the same reason nothing is folded into the first convolution, whose
    padding would see the mean besides. The Cast stands first because TensorRT lets nothing else read uint8
    (NVIDIA/TensorRT#3985), and the Transpose before the arithmetic, which then runs along rows instead of triples.
    """

    name: ClassVar[str] = "bake_preprocessing"

    def __init__(self, target: Target, recipe: Preprocessing) -> None:
        super().__init__(target)
        require_bakeable(recipe)
        self.recipe = recipe

    def requires(self, model: ir.Model) -> None:
        """One input with four axes."""
        shapes = [sizes(value) for value in model.graph.inputs]
        if [len(shape or ()) for shape in shapes] != [4]:
            raise ir.passes.PreconditionError(f"preprocessing makes one input [N, 3, H, W], this graph has {shapes}")

    def ensures(self, model: ir.Model) -> None:
        """The input are pixels, which nothing but one Cast takes."""
        (pixels,) = model.graph.inputs
        if pixels.dtype != ir.DataType.UINT8 or [node.op_type for node in consumers(pixels)] != ["Cast"]:
            raise ir.passes.PostconditionError(f"the input {pixels.name} is {pixels.dtype} and no image for one Cast")

    def rewrite(self, model: ir.Model) -> list[str]:
        """Give the graph its new input."""
        graph = model.graph
        (images,) = graph.inputs
        shape = sizes(images)
        if images.dtype != ir.DataType.FLOAT or shape is None:
            return []
        batch, channels, height, width = shape
        pixels = ir.Value(
            name=images.name, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape([batch, height, width, channels])
        )
        images.name = fresh_name(graph, f"{images.name}.normalised")
        add = Builder(graph, graph[0])
        add.scope = "preprocessing"
        out = add.op("Cast", [pixels], pixels.shape, dtype=ir.DataType.FLOAT, to=ir.DataType.FLOAT.value)
        out = add.op("Transpose", [out], shape, perm=[0, 3, 1, 2])
        if self.recipe.channels == "BGR":
            out = add.op("Gather", [out, add.constant(np.array([2, 1, 0], np.int64), "bgr")], shape, axis=1)
        mean, std = (np.asarray(part, np.float64).reshape(-1, 1, 1) for part in (self.recipe.mean, self.recipe.std))
        out = add.op("Mul", [out, add.constant((1 / (self.recipe.scale * std)).astype(np.float32), "scale")], shape)
        out = add.op("Add", [out, add.constant((-mean / std).astype(np.float32), "shift")], shape)
        ir.convenience.replace_all_uses_with(images, out)
        graph.inputs[0] = pixels
        return [f"{pixels.name}: {self.recipe.channels} from uint8 RGB, mean {list(self.recipe.mean)}"]
