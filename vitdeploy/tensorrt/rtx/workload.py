"""What each layer of an engine moves and computes: bytes from the builder's list, operations from the ONNX graph."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx
import onnx_ir as ir

from vitdeploy.graph.flop import PRODUCTS, flop_by_node
from vitdeploy.tensorrt.engine_layers import EngineLayer, read_layers

_SIDES = ("Inputs", "Constants", "Outputs")
_BITS = {
    "double": 64,
    "int64": 64,
    "float": 32,
    "fp32": 32,
    "int32": 32,
    "half": 16,
    "fp16": 16,
    "bfloat16": 16,
    "bf16": 16,
    "int8": 8,
    "uint8": 8,
    "bool": 8,
    "fp8": 8,
    "int4": 4,
    "fp4": 4,
}
# Kernels that multiply matrices or convolve, and those that write the product as a sum.
_MULTIPLYING = frozenset({"gemm", "correlation", "deconvolution"})
_PRODUCT = re.compile(r"Fc|Corr|Conv|Gemm|gemm|gemv|mha")
_SUMMED = re.compile(r"MulSum")


@dataclass(frozen=True)
class LayerWork:
    """One layer.

    precision  the lowest among its inputs: int8, fp8, fp16, bf16, fp32 or other
    moved      bytes that it reads and writes
    lasting    those of them that no cache between layers saves: weights, and the inputs and outputs of the network
    flop       operations
    moves      whether it only moves or converts data
    """

    name: str
    precision: str
    moved: int
    lasting: int
    flop: float
    moves: bool


def layer_works(inspected: str, model: bytes) -> tuple[LayerWork, ...]:
    """The layers of `Outcome.engine` with what they do, in their order; the ONNX file is what they were built from.

    The operations of a node belong to the layer that names it. Of several, they belong to those that multiply if the
    node is a product, or else to those that do more than move data, in equal parts. What no layer names is divided
    among all: products by the size of the products of the layers that name none, the rest by bytes moved. So the sum
    over the layers is the sum over the graph. Only products of unknown shape are counted by their layer's dimensions.

    Raises ValueError where no layers are listed or a length is not known, as with a free batch.
    """
    layers, entries = read_layers(inspected), json.loads(inspected)["Layers"]
    if not layers:
        raise ValueError("the compiler lists no layers")
    graph = _read_graph(model).graph
    ends = {str(value.name) for value in (*graph.inputs, *graph.outputs)}
    op_types = {str(node.name): node.op_type for node in graph}
    seen: set[str] = set()
    works = []
    for layer, entry in zip(layers, entries, strict=True):
        lasting = [one for one in entry.get("Constants", ()) if one["Name"] not in seen]
        lasting += [one for side in ("Inputs", "Outputs") for one in entry[side] if one["Name"] in ends - seen]
        seen |= {one["Name"] for one in lasting}
        moves = layer.converts or bool(layer.moved_by(op_types))
        moved = sum(_bytes_of(entry[side]) for side in _SIDES)
        works.append(LayerWork(layer.name, layer.precision, moved, _bytes_of(lasting), 0.0, moves))
    flop = _assigned(layers, entries, works, flop_by_node(graph), op_types)
    return tuple(replace(work, flop=own) for work, own in zip(works, flop, strict=True))


def _assigned(
    layers: Sequence[EngineLayer],
    entries: Sequence[Mapping[str, Any]],
    works: Sequence[LayerWork],
    flop: Mapping[str, int | None],
    op_types: Mapping[str, str],
) -> list[float]:
    """The operations of every layer, see `layer_works`."""
    found, measured = [0.0] * len(layers), set()
    products: set[int] = set()
    left = {True: 0, False: 0}  # of products and of the rest
    naming: dict[str, list[int]] = {}
    for index, layer in enumerate(layers):
        for node in layer.nodes:
            naming.setdefault(node, []).append(index)
    for node, operations in flop.items():
        product = op_types[node] in PRODUCTS
        owners = _owners(naming.get(node, ()), layers, works, product)
        products |= set(owners) if product else set()
        if operations is None:
            measured |= set(owners) if product else set()
        elif owners:
            for index in owners:
                found[index] += operations / len(owners)
        else:
            left[product] += operations
    sizes = [0 if index in products else _product_size(layers[index], entries[index]) for index in range(len(layers))]
    for index in measured:
        found[index] += _product_size(layers[index], entries[index])
    moved = [work.moved for work in works]
    for amount, weights in ((left[True], sizes if any(sizes) else moved), (left[False], moved)):
        weights = weights if any(weights) else [1] * len(layers)
        found = [own + amount * weight / sum(weights) for own, weight in zip(found, weights, strict=True)]
    return found


def _owners(
    naming: Sequence[int], layers: Sequence[EngineLayer], works: Sequence[LayerWork], product: bool
) -> list[int]:
    """Those of the layers that name a node to which its operations belong."""

    def rank(index: int) -> int:
        layer = layers[index]
        if works[index].moves:
            return 0
        if product and (layer.kind in _MULTIPLYING or _PRODUCT.search(layer.name)):
            return 3
        return 2 if product and _SUMMED.search(layer.name) else 1

    best = max(map(rank, naming), default=0)
    return [index for index in naming if rank(index) == best]


def _product_size(layer: EngineLayer, entry: Mapping[str, Any]) -> int:
    """Operations of a layer's product by its dimensions alone; 0 for a layer that has no product.

    A convolution sums over all but the first axis of its weights [out, in / groups, ...], and a product of matrices
    over the last axis of its first input.
    """
    outputs = [_elements(one["Dimensions"]) for one in entry["Outputs"]]
    if not outputs or not (layer.kind in _MULTIPLYING or _PRODUCT.search(layer.name)):
        return 0
    constants: list[list[int]] = [one["Dimensions"] for one in entry.get("Constants", ())]
    weights = max(constants, key=_elements, default=[])
    if (layer.kind == "correlation" or "Corr" in layer.name) and len(weights) > 2:
        return 2 * max(outputs) * _elements(weights[1:])
    summed = entry["Inputs"][0]["Dimensions"][-1:] if entry["Inputs"] else []
    return 2 * max(outputs) * _elements(summed)


def _bytes_of(tensors: Sequence[Mapping[str, Any]]) -> int:
    """The bytes behind the tensors of a side; the same view listed twice is read once."""
    views = {(one["Name"], str(one["Dimensions"]), str(one["Strides"])): one for one in tensors}
    return sum(_bytes(one) for one in views.values())


def _bytes(tensor: Mapping[str, Any]) -> int:
    """What a view reads or writes: repeated and overlapping elements count once, and gaps between them do not."""
    dims, strides = tensor["Dimensions"], tensor["Strides"]
    kind = str(tensor["Datatype"]).lower()
    if kind not in _BITS:
        raise ValueError(f"a tensor has the type {tensor['Datatype']}, whose size is not known")
    if any(length < 0 for length in (*dims, *(strides or ()))):
        raise ValueError("the batch is free, so the sizes of the layers are not known; export with --batch 1")
    count = _elements(dims)
    if strides is not None and count:
        pairs = list(zip(dims, strides, strict=True))
        extent = 1 + sum((length - 1) * stride for length, stride in pairs)
        count = min(_elements([length for length, stride in pairs if stride]), extent)
    return -(-count * _BITS[kind] // 8)


def _elements(dims: Sequence[int]) -> int:
    return math.prod(dims)


def _read_graph(model: bytes) -> ir.Model:
    """As `vitdeploy.graph.onnx_file.read_graph`, with shapes that the graph itself computes."""
    proto = onnx.load_model_from_string(model)
    found: ir.Model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))
    return found
