"""The parts of an INT8 graph of which each may compute in floats again: layers of one kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.graph.attention import find_attentions
from vitdeploy.graph.edit import consumers, input_of, is_weight, producer, sizes
from vitdeploy.graph.float_form import DEQUANTIZE, QUANTIZE, quantized_inputs, remove_qdq

CONVOLUTIONS = "convolutions"
PROJECTIONS = "projections to queries, keys and values"
MIXERS = "projections behind attention"
PRODUCTS = "products of attention"
LINEAR = "other linear layers"
OTHERS = "layers without a product"

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_MATRICES = ("MatMul", "Gemm")
_REACH = 12  # nodes between a linear layer and the product of attention that it serves


@dataclass(frozen=True)
class Region:
    """Nodes of one kind that read dequantized values, and the multiply-adds of an image in them."""

    name: str
    nodes: tuple[str, ...]
    macs: int


def find_regions(graph: ir.Graph) -> list[Region]:
    """Every node that reads dequantized values is in one of them; the one with the most arithmetic comes first."""
    kinds = _kinds(graph)
    found: dict[str, list[ir.Node]] = {}
    for node in graph:
        if quantized_inputs(node):
            found.setdefault(_kind(node, kinds), []).append(node)
    regions = [Region(name, tuple(str(n.name) for n in nodes), sum(map(_macs, nodes))) for name, nodes in found.items()]
    return sorted(regions, key=lambda region: -region.macs)


def without(model: ir.Model, regions: Iterable[Region]) -> ir.Model:
    """A copy of `model` in which the nodes of these regions read floats."""
    chosen = {name for region in regions for name in region.nodes}
    copy = model.clone()
    remove_qdq(copy, lambda node: str(node.name) in chosen)
    return copy


def _kind(node: ir.Node, kinds: Mapping[ir.Node, str]) -> str:
    if node in kinds:
        return kinds[node]
    if node.op_type in _CONVOLUTIONS:
        return CONVOLUTIONS
    if node.op_type in _MATRICES:
        return LINEAR
    # Q/DQ behind a product, whatever reads it, is the product's.
    for index in quantized_inputs(node):
        quantize = producer(input_of(_dequantize(node, index), 0), QUANTIZE)
        source = producer(input_of(quantize, 0)) if quantize is not None else None
        if source is not None and kinds.get(source) == PRODUCTS:
            return PRODUCTS
    return OTHERS


def _dequantize(node: ir.Node, index: int) -> ir.Node:
    found = producer(input_of(node, index), DEQUANTIZE)
    assert found is not None, "quantized_inputs says so"
    return found


def _kinds(graph: ir.Graph) -> dict[ir.Node, str]:
    """The products of attention, and the linear layers before and behind them."""
    kinds: dict[ir.Node, str] = {}
    attentions = find_attentions(graph)
    for attention in attentions:
        kinds |= dict.fromkeys((attention.first, attention.second), PRODUCTS)
        kinds |= dict.fromkeys((attention.softmax, *attention.before, *attention.after), PRODUCTS)
    for attention in attentions:
        for operand in attention.operands:
            _mark(operand, kinds, PROJECTIONS, up=True)
    for attention in attentions:
        _mark(attention.second.outputs[0], kinds, MIXERS, up=False)
    return kinds


def _mark(start: ir.Value, kinds: dict[ir.Node, str], kind: str, *, up: bool) -> None:
    """Mark the nearest linear layers from `start` on, through whatever multiplies no matrices."""
    values, seen = [start], set[ir.Node]()
    for _ in range(_REACH):
        nodes = [producer(value) for value in values] if up else [node for value in values for node in consumers(value)]
        values = []
        for node in nodes:
            if node is None or node in seen or node in kinds or node.op_type in _CONVOLUTIONS:
                continue
            seen.add(node)
            if node.op_type in _MATRICES:
                if _has_weight(node):
                    kinds[node] = kind
            elif up:
                values += [value for value in node.inputs if value is not None]
            elif node.op_type != "Add" or _adds_constant(node):  # not along the residual
                values += node.outputs


def _has_weight(node: ir.Node) -> bool:
    """Whether it multiplies by stored numbers, be they integers behind DequantizeLinear."""
    return any(is_weight(value) or _is_stored(value) for value in node.inputs[:2])


def _is_stored(value: ir.Value | None) -> bool:
    source = producer(value, DEQUANTIZE)
    stored = input_of(source, 0) if source is not None else None
    quantize = producer(stored, QUANTIZE)
    return stored is not None and is_weight(input_of(quantize, 0) if quantize is not None else stored)


def _adds_constant(node: ir.Node) -> bool:
    return any(is_weight(value) or _is_stored(value) for value in node.inputs)


def _macs(node: ir.Node) -> int:
    """Multiply-adds of one image; 0 where the shapes do not tell."""
    out, (first, second) = sizes(node.outputs[0]), (sizes(v) for v in (*node.inputs, None, None)[:2])
    if out is None or node.op_type not in (*_CONVOLUTIONS, *_MATRICES):
        return 0
    many = math.prod(size if isinstance(size, int) else 1 for size in out)
    inner = (second[1:] if second else ()) if node.op_type in _CONVOLUTIONS else first[-1:] if first else ()
    return many * math.prod(size if isinstance(size, int) else 1 for size in inner) if inner else 0
