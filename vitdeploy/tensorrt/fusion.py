"""What TensorRT made of a graph, read back from the engine: precision of the kernels, attention and layer norms fused.

The input is the JSON of IEngineInspector, built with detailed profiling verbosity. Its form differs: 8.x and 10.x state
`Format/Datatype` of every tensor, 11 states `Format` and `DataType` apart; from 9 on `Metadata` names the ONNX nodes of
a kernel, before only its own name does, and what Myelin compiled is one `ForeignNode` that is not opened.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from vitdeploy.graph.attention import Attention, find_attentions
from vitdeploy.graph.layer_norm import layer_norms
from vitdeploy.graph.onnx_file import read_graph
from vitdeploy.platforms.capabilities import Platform
from vitdeploy.platforms.fusion_rules import judge_attention, judge_layer_norms

_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_FOREIGN = re.compile(r"ForeignNode\[(.*?)\.\.\.(.*?)\]")
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
_MHA = re.compile(r"mha|flash|fused_attention", re.IGNORECASE)


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


@dataclass(frozen=True)
class BlockFusion:
    """An attention or layer norm of the model in the engine.

    fused    None where the inspector does not tell
    runs_as  the kernels that compute it
    why      the rules that the graph breaks, where it is not fused
    """

    name: str
    fused: bool | None
    runs_as: str
    why: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"block": self.name, "fused": self.fused, "runs_as": self.runs_as, "why": list(self.why)}


@dataclass(frozen=True)
class FusionReport:
    """What became of the graph.

    precision    layers by the lowest precision among their inputs: int8, fp16, bf16, fp32, or `other`
    conversions  layers that only change format or type
    opaque       layers that hide what they consist of
    """

    layers: int
    precision: Mapping[str, int]
    conversions: int
    opaque: int
    attention: tuple[BlockFusion, ...] = ()
    layer_norms: tuple[BlockFusion, ...] = ()
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "layers": self.layers,
            "precision": dict(self.precision),
            "conversions": self.conversions,
            "opaque": self.opaque,
            "attention": [block.to_dict() for block in self.attention],
            "attention_fused": sum(bool(block.fused) for block in self.attention),
            "layer_norms": [block.to_dict() for block in self.layer_norms],
            "layer_norms_fused": sum(bool(block.fused) for block in self.layer_norms),
            "note": self.note,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FusionReport:
        """What `to_dict` gave."""
        attention, norms = (
            tuple(BlockFusion(one["block"], one["fused"], one["runs_as"], tuple(one["why"])) for one in values[side])
            for side in ("attention", "layer_norms")
        )
        counts = {name: values[name] for name in ("layers", "precision", "conversions", "opaque", "note")}
        return cls(**counts, attention=attention, layer_norms=norms)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {precision}" for precision, count in self.precision.items())
        lines = [f"{self.layers} layers: {kinds}; {self.conversions} conversions"]
        for title, blocks in (("attention", self.attention), ("layer norm", self.layer_norms)):
            lines += _section(title, blocks)
        return "\n".join([*lines, *([self.note] if self.note else [])])


def read_fusion(inspected: str, model: bytes, *, why: Mapping[str, Sequence[str]] | None = None) -> FusionReport:
    """The report of an engine from the inspector's JSON and the ONNX file that it was built from.

    `why` are the broken rules by block, see `broken_rules`. Raises ValueError for text that is not such JSON.
    """
    layers = read_layers(inspected)
    graph, reasons = read_graph(model).graph, why or {}
    order = {str(node.name): position for position, node in enumerate(graph)}
    working = [layer for layer in layers if not layer.converts]
    counted = Counter(layer.precision for layer in working)
    attention = tuple(_attention(found, working, order, reasons) for found in find_attentions(graph, operators=True))
    norms = tuple(_layer_norm(_names(nodes), working, order, reasons) for nodes in layer_norms(graph))
    named = any(layer.nodes for layer in working)
    return FusionReport(
        layers=len(working),
        precision=dict(counted.most_common()),
        conversions=len(layers) - len(working),
        opaque=sum(layer.opaque for layer in working),
        attention=attention,
        layer_norms=norms,
        note="" if named else "the inspector names no layer in detail: nothing is known of the blocks",
    )


def read_layers(inspected: str) -> list[EngineLayer]:
    """The layers of the inspector's JSON; ValueError for anything else."""
    document = json.loads(inspected)
    layers = document.get("Layers") if isinstance(document, dict) else None
    if not isinstance(layers, list):
        raise ValueError("this is no engine information: it has no Layers")
    return [_layer(entry) for entry in layers]


def broken_rules(model: bytes, version: tuple[int, ...], sm: int | None) -> dict[str, list[str]]:
    """The fusion rules that each attention and layer norm breaks, in words, by the block's name."""
    platform = Platform("here", version, version, None if sm is None else divmod(sm, 10))
    graph = read_graph(model).graph
    blocks = [judge_attention(found, platform) for found in find_attentions(graph)]
    blocks += judge_layer_norms(graph, platform)
    return {block.name: [f"{rule.name}: {rule.detail}" for rule in block.open_rules] for block in blocks}


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
    foreign = _FOREIGN.search(name)
    if foreign:
        return [foreign[1], foreign[2]]
    return [part for part in re.split(r" \+ |\+|,\s*|PWN\(|\)", name) if part.strip()]


def _type_of(tensor: Any) -> str:
    words = str(tensor.get("DataType") or tensor.get("Datatype") or tensor.get("Format/Datatype") or "").lower()
    return next((kind for kind, pattern in _TYPES if re.search(pattern, words)), "other")


def _names(nodes: Iterable[ir.Node]) -> tuple[str, ...]:
    return tuple(str(node.name) for node in nodes)


def _attention(
    found: Attention, layers: Sequence[EngineLayer], order: Mapping[str, int], why: Mapping[str, Sequence[str]]
) -> BlockFusion:
    name, parts = found.name, _names((found.first, found.softmax, found.second))
    together = next((layer for layer in layers if not layer.opaque and set(parts) <= layer.nodes), None)
    if together is not None:
        kernel = together.tactic or together.name
        return BlockFusion(name, True, kernel if _MHA.search(kernel) else f"one kernel, {kernel}")
    hidden = _hiding(parts, layers, order)
    if hidden is not None:
        return BlockFusion(name, None, f"inside {hidden.name}, which the inspector does not open", ())
    return _apart(name, parts, layers, why)


def _layer_norm(
    names: tuple[str, ...], layers: Sequence[EngineLayer], order: Mapping[str, int], why: Mapping[str, Sequence[str]]
) -> BlockFusion:
    carrying = [layer for layer in layers if not layer.opaque and layer.nodes & set(names)]
    title = names[-1]
    if len(carrying) == 1:
        return BlockFusion(title, True, carrying[0].tactic or carrying[0].name)
    hidden = _hiding(names, layers, order) if not carrying else None
    if hidden is not None:
        return BlockFusion(title, None, f"inside {hidden.name}, which the inspector does not open")
    return _apart(title, names, layers, why)


def _apart(
    name: str, parts: Sequence[str], layers: Sequence[EngineLayer], why: Mapping[str, Sequence[str]]
) -> BlockFusion:
    kernels = [layer.tactic or layer.name for layer in layers if not layer.opaque and layer.nodes & set(parts)]
    if not kernels:
        return BlockFusion(name, None, "no layer names it")
    return BlockFusion(name, False, f"{len(kernels)} kernels: {', '.join(kernels)}", tuple(why.get(name, ())))


def _hiding(parts: Iterable[str], layers: Sequence[EngineLayer], order: Mapping[str, int]) -> EngineLayer | None:
    """The opaque layer whose first and last node enclose the parts; weights that it starts with count as the start."""
    positions = [order[part] for part in parts if part in order]
    for layer in layers:
        ends = _FOREIGN.search(layer.name)
        if ends and positions:
            first, last = order.get(ends[1], 0), order.get(ends[2], len(order))
            if first <= min(positions) and max(positions) <= last:
                return layer
    return None


def _section(title: str, blocks: Sequence[BlockFusion]) -> list[str]:
    if not blocks:
        return []
    words = {True: "fused", False: "not fused", None: "unknown"}
    states = Counter(block.fused for block in blocks)
    lines = [f"{title}: {', '.join(f'{states[state]} {words[state]}' for state in words if states[state])}"]
    alike: dict[tuple[Any, ...], list[BlockFusion]] = {}
    for block in blocks:
        if not block.fused:
            alike.setdefault((block.fused, block.runs_as if block.fused is None else "", block.why), []).append(block)
    for same in alike.values():
        first = same[0]
        more = f" and {len(same) - 1} more" if len(same) > 1 else ""
        lines.append(f"  {first.name}{more}: {first.runs_as}")
        lines += [f"    {reason}" for reason in first.why]
    return lines
