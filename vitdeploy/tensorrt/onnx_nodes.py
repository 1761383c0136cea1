"""The nodes of an ONNX file, read without the package onnx: a device has none, and names and edges are all it needs.

The wire format of protocol buffers: a key (field number and wire type), then a varint, 8 bytes, a length and so many
bytes, or 4 bytes (protobuf.dev, "Encoding"). Field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

_GRAPH, _NODES = 7, 1  # ModelProto.graph, GraphProto.node
_INPUT, _OUTPUT, _NAME, _OP_TYPE = 1, 2, 3, 4  # of NodeProto
_FIXED = {1: 8, 5: 4}


@dataclass
class Node:
    """One node: `op_type`, its `name`, and the names of the tensors that it reads and makes."""

    op_type: str = ""
    name: str = ""
    input: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)


@dataclass
class Graph:
    """The nodes of a model in their order."""

    node: list[Node] = field(default_factory=list)


@dataclass
class Model:
    """As much of a model as is read; named as in onnx, so that what asks for names and edges takes either."""

    graph: Graph = field(default_factory=Graph)


def read_nodes(data: bytes) -> Model:
    """The nodes of a serialized model, without their attributes; ValueError for bytes that are no such message."""
    model = Model()
    for number, graph in _fields(memoryview(data)):
        if number == _GRAPH and isinstance(graph, memoryview):
            model.graph.node += [
                _node(part) for key, part in _fields(graph) if key == _NODES and isinstance(part, memoryview)
            ]
    return model


def _node(data: memoryview) -> Node:
    node = Node()
    for number, value in _fields(data):
        if not isinstance(value, memoryview) or number > _OP_TYPE:
            continue
        text = bytes(value).decode()
        if number == _INPUT:
            node.input.append(text)
        elif number == _OUTPUT:
            node.output.append(text)
        elif number == _NAME:
            node.name = text
        elif number == _OP_TYPE:
            node.op_type = text
    return node


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values of one message; fixed-width numbers come as their bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire = key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in _FIXED:
            length = _FIXED[wire]
        else:
            raise ValueError(f"wire type {wire} at byte {position}: this is no ONNX file")
        if position + length > len(data):
            raise ValueError("the ONNX file ends in the middle of a message")
        yield key >> 3, data[position : position + length]
        position += length


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
    raise ValueError("the ONNX file ends in the middle of a number")
