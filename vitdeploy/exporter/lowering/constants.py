"""Constant tensors inside the decomposition of an ATen operator.

torch.export takes no new constants once a program is captured, and long lists in its graph are slow. So a constant is
put aside, an operator with its key stands for it, and the captured graph gets it as an initializer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from vitdeploy.graph.edit import Array

OPSET = 20  # of the capture, see exporter.capture
DOMAIN, NAME = "vitdeploy", "Constant"

_ASIDE: dict[str, Array] = {}


def embedded(array: Array, dtype: torch.dtype | None = None) -> Tensor:
    """`array` as a constant of the traced program, of `dtype` or else float32 for numbers and int64 for integers."""
    whole = array.dtype.kind in "iu"
    kept = np.ascontiguousarray(array, dtype=np.int64 if whole else np.float32)
    key = hashlib.sha256(repr(kept.shape).encode() + kept.tobytes()).hexdigest()
    _ASIDE[key] = kept
    made: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{NAME}",
        (),
        {"key": key},
        dtype=torch.int64 if whole else torch.float32,
        shape=kept.shape,
        version=1,
    )
    return made if dtype in (None, made.dtype) else made.to(dtype)


def computed(function: Callable[[], Tensor]) -> Array:
    """What `function` returns when it is computed for real in the middle of a trace, as an array."""
    with _disable_current_modes(), torch.no_grad():
        array: Array = function().numpy()
    return array


def attach_constants(graph: ir.Graph) -> None:
    """Make the embedded constants of a captured graph its initializers."""
    made: dict[str, ir.Value] = {}
    for node in list(graph):
        if (node.domain, node.op_type) != (DOMAIN, NAME):
            continue
        key = node.attributes["key"].as_string()
        if key not in made:
            array, name = _ASIDE[key], f"constant_{len(made)}"
            tensor = ir.tensor(array, name=name)
            made[key] = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            graph.register_initializer(made[key])
        ir.convenience.replace_all_uses_with(node.outputs[0], made[key])
        graph.remove(node, safe=True)
    _ASIDE.clear()
