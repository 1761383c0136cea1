"""A convolution with a residual connection around it is one convolution."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Array, attribute, constant, of_type, only_consumer, producer, replace, set_constant
from vitdeploy.passes.base import GraphPass


class FoldResidualConv(GraphPass):
    """Folds x + conv(x) into conv'(x), whose kernel holds 1 more where an output channel meets its own input.

    Positional encodings by depthwise convolution have this form. It holds for every convolution that keeps the shape:
    stride 1, as many channels out as in, an odd kernel centred by its padding, any dilation and any grouping.
    """

    name: ClassVar[str] = "fold_residual_conv"

    def rewrite(self, model: ir.Model) -> list[str]:
        """Fold each Add of a convolution and its input."""
        changes = []
        for node in of_type(model.graph, "Add"):
            for branch, shortcut in (tuple(node.inputs), tuple(reversed(node.inputs))):
                conv = producer(branch, "Conv")
                if (
                    conv is None
                    or branch is None
                    or conv.inputs[0] is not shortcut
                    or only_consumer(branch) is not node
                ):
                    continue
                weight = constant(conv.inputs[1])
                if weight is not None and _keeps_shape(conv, weight):
                    set_constant(conv, 1, _with_identity(weight), "weight")
                    changes.append(f"{node.name}: folded into {conv.name}")
                    replace(node, branch)
                    break
        return changes


def _keeps_shape(conv: ir.Node, weight: Array) -> bool:
    kernel, group = weight.shape[2:], attribute(conv, "group", 1)
    dilations = attribute(conv, "dilations", [1] * len(kernel))
    if any(stride != 1 for stride in attribute(conv, "strides", ())) or weight.shape[0] != weight.shape[1] * group:
        return False
    if any(size % 2 == 0 for size in kernel):
        return False
    centred = [dilation * (size // 2) for dilation, size in zip(dilations, kernel, strict=True)]
    padding = attribute(conv, "auto_pad", "NOTSET")
    if padding in ("SAME_UPPER", "SAME_LOWER"):
        return True
    pads = [0] * 2 * len(kernel) if padding == "VALID" else list(attribute(conv, "pads", [0] * 2 * len(kernel)))
    return pads == centred * 2


def _with_identity(weight: Array) -> Array:
    """The kernel [O, I / group, *kernel] plus the identity: output channel o has input o % (I / group) of its group."""
    changed: Array = weight.copy()
    outputs = np.arange(weight.shape[0])
    centre = (outputs, outputs % weight.shape[1], *(size // 2 for size in weight.shape[2:]))
    changed[centre] += 1
    return changed
