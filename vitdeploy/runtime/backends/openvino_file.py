"""What the OpenVINO files of a bundle have to be before OpenVINO sees them: closed, acyclic, of its own operations."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from xml.parsers import expat

from vitdeploy.errors import BundleError
from vitdeploy.graph.soundness import LARGEST_VALUE, MOST_NODES, shown

# Operations with a graph of their own or with a state.
_REFUSED = ("Loop", "TensorIterator", "If", "ReadValue", "Assign")
_OPSET = re.compile(r"opset[0-9]{1,3}")
_NUMBER = re.compile(r"[0-9]{1,18}")
_BITS = re.compile(r"[a-z]+([0-9]+)")
_SUBBYTE = {"boolean": 8, "bin": 1, "u1": 1, "nf4": 4}


class _FaultError(Exception):
    """Why OpenVINO should not see the files."""


@dataclass
class _Layers:
    """The layers of a file by number: what each one is called, and which it reads."""

    names: dict[str, str] = field(default_factory=dict)
    reads: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def check_files(model: bytes, weights: bytes, where: str) -> None:
    """Hold `model.xml` and the length of `model.bin` against what `vitdeploy export` writes.

    Raises BundleError, which names `where`, for XML with entities, operations that OpenVINO does not define or that run
    graphs of their own, cycles, constants outside of the weights, and absurd sizes.
    """
    try:
        _check(model, len(weights))
    except (_FaultError, expat.ExpatError, ValueError) as error:
        raise BundleError(
            f"{where} is no model that vitdeploy exports", why=str(error), fix="export the bundle again"
        ) from None


def _check(model: bytes, available: int) -> None:
    layers, current = _Layers(), ""
    lengths: list[int] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal current
        if tag == "layer":
            current = _take_layer(layers, attributes)
        elif tag == "data" and current.startswith("Const "):
            _check_constant(current.removeprefix("Const "), attributes, available)
        elif tag == "edge":
            _take_edge(layers, attributes)
        elif tag == "port":
            lengths.clear()

    def text(value: str) -> None:
        if value.strip():
            lengths.append(int(value) if _NUMBER.fullmatch(value.strip()) else 1)
            if math.prod(lengths) > LARGEST_VALUE:
                raise _FaultError(f"a value of {current} has more than {LARGEST_VALUE:,} elements")

    def doctype(*_: object) -> None:
        raise _FaultError("it has a document type, which may hold entities")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.CharacterDataHandler = start, text
    parser.StartDoctypeDeclHandler = doctype
    parser.Parse(model, True)
    _check_order(layers)


def _take_layer(layers: _Layers, attributes: Mapping[str, str]) -> str:
    """Takes note of one layer; its type and name."""
    number, kind, name = (attributes.get(key, "") for key in ("id", "type", "name"))
    if number in layers.names or not _NUMBER.fullmatch(number):
        raise _FaultError(f"the layer {shown(name)} has the number {shown(number)}, which is none or is taken")
    if len(layers.names) == MOST_NODES:
        raise _FaultError(f"it has more than {MOST_NODES:,} layers")
    if kind in _REFUSED or not _OPSET.fullmatch(attributes.get("version", "")):
        raise _FaultError(f"the layer {shown(name)} is {shown(attributes.get('version', ''))}.{shown(kind)}")
    layers.names[number] = name
    return f"{kind} {name}"


def _take_edge(layers: _Layers, attributes: Mapping[str, str]) -> None:
    source, target = attributes.get("from-layer", ""), attributes.get("to-layer", "")
    for number in (source, target):
        if number not in layers.names:
            raise _FaultError(f"an edge names the layer {shown(number)}, which does not exist")
    layers.reads[target].add(source)


def _check_constant(name: str, attributes: Mapping[str, str], available: int) -> None:
    offset, size = (attributes.get(key, "") for key in ("offset", "size"))
    if not _NUMBER.fullmatch(offset) or not _NUMBER.fullmatch(size):
        raise _FaultError(f"the constant {shown(name)} has no place in the weights")
    if int(offset) + int(size) > available:
        raise _FaultError(f"the constant {shown(name)} lies outside of the weights")
    count = math.prod(_axes(attributes.get("shape", "")))
    kind = attributes.get("element_type", "")
    match = _BITS.fullmatch(kind)
    bits = _SUBBYTE.get(kind) or (int(match[1]) if match else 0)
    if bits and -(-count * bits // 8) > int(size):
        raise _FaultError(f"the constant {shown(name)} needs more than its {int(size):,} bytes")


def _axes(text: str) -> Iterator[int]:
    for axis in filter(None, (part.strip() for part in text.split(","))):
        if not _NUMBER.fullmatch(axis):
            raise _FaultError(f"a constant has the shape {shown(text)}")
        yield int(axis)


def _check_order(layers: _Layers) -> None:
    try:
        TopologicalSorter(layers.reads).prepare()
    except CycleError as error:
        names = [shown(layers.names[number]) for number in error.args[1][:3]]
        raise _FaultError(f"its layers {', '.join(names)} read each other in a circle") from None
