"""The layers of an engine, from the JSON of IEngineInspector, built with detailed profiling verbosity.

Its form differs: 8.x and 10.x state `Format/Datatype` of every tensor, 11 states `Format` and `DataType` apart, and
TensorRT for RTX `Datatype`. From 9 on `Metadata` names the ONNX nodes of a kernel, before only its own name does, and
what Myelin compiled is one `ForeignNode` that is not opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitdeploy.graph.traffic import MOVING as MOVING_OPERATORS

_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
FOREIGN = re.compile(r"ForeignNode\[(.*?)\.\.\.(.*?)\]")
# Between precisions and layouts, or between streams: work, but none of the network's own.
_CONVERSIONS = frozenset({"reformat", "noop", "signal", "wait", "constant"})
# The first that a type's words contain; `bfloat16` holds `float16`, so it comes first. Lowest precision first.
_TYPES = (
    ("int8", r"int8|\bi8\b"),
    ("fp8", r"fp8|e4m3"),
    ("bf16", r"bf16|bfloat16"),
    ("fp16", r"half|fp16|float16"),
    ("fp32", r"float|fp32"),
)
# The graph compiler calls a kernel after its operations, in four letters at most each: __myl_SlicReshTran_myl0_7.
_KERNEL = re.compile(r"__myl_((?:[A-Z][a-z0-9]*)+)_myl\d+_\d+")
_OPERATION = re.compile(r"[A-Z][a-z0-9]*")
MOVING = {
    "Move": "copy",
    "Slic": "slice",
    "Resh": "reshape",
    "Tran": "transpose",
    "Conc": "concatenate",
    "Repl": "repeat",
    "Gath": "gather",
    "Scat": "scatter",
    "Cast": "cast",
}


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine: its name, kind, the ONNX nodes that it stands for, precision and kernel."""

    name: str
    kind: str
    nodes: frozenset[str]
    precision: str
    tactic: str = ""

    @property
    def opaque(self) -> bool:
        """Whether it hides what it consists of."""
        return "ForeignNode[" in self.name

    @property
    def converts(self) -> bool:
        """Whether it only changes format or type, or waits."""
        return self.kind.lower() in _CONVERSIONS or self.name.startswith("Reformatting CopyNode")

    def moved_by(self, op_types: Mapping[str, str]) -> tuple[str, ...]:
        """The operations of a layer that only moves or converts data, each once; none for one that computes.

        The kernel's own name tells them; that of another layer leaves it to its ONNX nodes, whose types are
        `op_types` by name.
        """
        kernel = _KERNEL.fullmatch(self.name)
        if kernel:
            words = dict.fromkeys(_OPERATION.findall(kernel[1]))
            return tuple(MOVING[word] for word in words) if words.keys() <= MOVING.keys() else ()
        kinds = {op_types.get(node, "") for node in self.nodes}
        return tuple(sorted(kinds)) if kinds and kinds <= MOVING_OPERATORS and not self.opaque else ()


def read_layers(inspected: str) -> list[EngineLayer]:
    """The layers of the inspector's JSON; ValueError for anything else."""
    document = json.loads(inspected)
    layers = document.get("Layers") if isinstance(document, dict) else None
    if not isinstance(layers, list):
        raise ValueError("this is no engine information: it has no Layers")
    return [_layer(entry) for entry in layers]


def _layer(entry: Any) -> EngineLayer:
    if not isinstance(entry, dict):  # profiling verbosity LAYER_NAMES_ONLY: names, and nothing else
        return EngineLayer(str(entry), "", frozenset(_from_name(str(entry))), "other")
    name = str(entry.get("Name", ""))
    nodes = _ONNX_NODE.findall(str(entry.get("Metadata", ""))) or _from_name(name)
    kinds = [_type_of(tensor) for side in ("Inputs", "Outputs") for tensor in entry.get(side) or ()]
    inputs = [_type_of(tensor) for tensor in entry.get("Inputs") or ()] or kinds
    precision = next((kind for kind, _ in _TYPES if kind in inputs), None)
    precision = precision or next((kind for kind, _ in _TYPES if kind in kinds), "other")
    return EngineLayer(
        name, str(entry.get("LayerType", "")), frozenset(nodes), precision, str(entry.get("TacticName", ""))
    )


def _from_name(name: str) -> list[str]:
    """The nodes that a layer's own name tells: `a + b`, `PWN(a, b)`; of a ForeignNode the first and the last."""
    foreign = FOREIGN.search(name)
    if foreign:
        return [foreign[1], foreign[2]]
    return [part for part in re.split(r" \+ |\+|,\s*|PWN\(|\)", name) if part.strip()]


def _type_of(tensor: Any) -> str:
    words = str(tensor.get("DataType") or tensor.get("Datatype") or tensor.get("Format/Datatype") or "").lower()
    return next((kind for kind, pattern in _TYPES if re.search(pattern, words)), "other")
