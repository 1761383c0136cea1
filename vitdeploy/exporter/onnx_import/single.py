"""A graph of any float type in FP32: half precision is a storage format here, and the reference is computed in FP32."""

from __future__ import annotations

from collections.abc import Container, Iterator

import numpy as np
import onnx_ir as ir

_HALVES = {ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}
_TYPE_ATTRIBUTES = ("to", "dtype")  # of Cast, and of what makes tensors


def in_single(model: ir.Model, *, doubles: bool = False) -> tuple[str, ...]:
    """Turn all floats of `model` into FP32, in place; returns the names of the other types that it had.

    FP64 is turned with `doubles`, or where an input or an output has it: a network of that type.
    """
    ports = (*model.graph.inputs, *model.graph.outputs)
    others = dict(_HALVES)
    if doubles or any(value.dtype == ir.DataType.DOUBLE for value in ports):
        others[ir.DataType.DOUBLE] = "float64"
    found: dict[str, None] = {}
    graphs = [model.graph, *(graph for graph in model.graph.subgraphs() if graph is not model.graph)]
    for graph in graphs:
        for value in _values(graph):
            if value.dtype in others:
                found[others[value.dtype]] = None
                value.type = ir.TensorType(ir.DataType.FLOAT)
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype in others:
                found[others[tensor.dtype]] = None
                value.const_value = _single(tensor)
                value.type = ir.TensorType(ir.DataType.FLOAT)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in others:
                    node.attributes[name] = ir.AttrTensor(name, _single(attribute.as_tensor()))
                elif _states(name, attribute, others):
                    node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT.value)
    return tuple(sorted(found))


def _states(name: str, attribute: ir.Attr, types: Container[ir.DataType]) -> bool:
    number = attribute.type == ir.AttributeType.INT and name in _TYPE_ATTRIBUTES
    return number and ir.DataType(attribute.as_int()) in types


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _single(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)
