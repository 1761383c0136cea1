"""What TensorRT made of a graph, read back from the engine: precision of the kernels, and which blocks are fused.

A block is an attention, a layer norm or a GELU. It is fused where one kernel computes all of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from vitdeploy.graph.attention import Attention, find_attentions
from vitdeploy.graph.gelu import find_gelus
from vitdeploy.graph.layer_norm import layer_norms
from vitdeploy.graph.onnx_file import read_graph
from vitdeploy.platforms.boards import Platform
from vitdeploy.platforms.fusion_rules import judge_attention, judge_layer_norms
from vitdeploy.platforms.report import ATTENTION, FUSION_STATES, GELU, LAYER_NORM
from vitdeploy.table import render
from vitdeploy.tensorrt.engine_layers import FOREIGN, EngineLayer, read_layers

_SIDES = ("attention", "layer_norms", "gelus")
UNEXPLAINED = "no documented rule says why"
_HASH = re.compile(r"_0x[0-9a-f]{16,}")
_MHA = re.compile(r"mha|flash|fused_attention", re.IGNORECASE)


@dataclass(frozen=True)
class BlockFusion:
    """An attention, layer norm or GELU of the model in the engine.

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
class Movement:
    """A layer that only moves or converts data: what it does, and the ONNX nodes that it stands for by type.

    nodes  names to operator types, in the order of the graph; empty where the engine does not tell
    """

    layer: str
    operations: tuple[str, ...]
    nodes: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"layer": self.layer, "operations": list(self.operations), "nodes": dict(self.nodes)}


@dataclass(frozen=True)
class FusionReport:
    """What became of the graph.

    precision    layers by the lowest precision among their inputs: int8, fp16, bf16, fp32, or `other`
    conversions  layers that only change format or type
    opaque       layers that hide what they consist of
    movements    layers that only move or convert data inside the network
    """

    layers: int
    precision: Mapping[str, int]
    conversions: int
    opaque: int
    attention: tuple[BlockFusion, ...] = ()
    layer_norms: tuple[BlockFusion, ...] = ()
    gelus: tuple[BlockFusion, ...] = ()
    movements: tuple[Movement, ...] = ()
    note: str = ""

    @property
    def sections(self) -> tuple[tuple[str, tuple[BlockFusion, ...]], ...]:
        """The blocks by what they are."""
        return (ATTENTION, self.attention), (LAYER_NORM, self.layer_norms), (GELU, self.gelus)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "layers": self.layers,
            "precision": dict(self.precision),
            "conversions": self.conversions,
            "opaque": self.opaque,
            **{name: [block.to_dict() for block in getattr(self, name)] for name in _SIDES},
            **{f"{name}_fused": sum(bool(block.fused) for block in getattr(self, name)) for name in _SIDES},
            "movements": [movement.to_dict() for movement in self.movements],
            "note": self.note,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FusionReport:
        """What `to_dict` gave, of this version or an earlier one."""
        blocks = {
            side: tuple(
                BlockFusion(one["block"], one["fused"], one["runs_as"], tuple(one["why"]))
                for one in values.get(side, ())
            )
            for side in _SIDES
        }
        movements = tuple(
            Movement(one["layer"], tuple(one["operations"]), one["nodes"]) for one in values.get("movements", ())
        )
        counts = {name: values[name] for name in ("layers", "precision", "conversions", "opaque", "note")}
        return cls(
            **counts,
            attention=blocks["attention"],
            layer_norms=blocks["layer_norms"],
            gelus=blocks["gelus"],
            movements=movements,
        )

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {precision}" for precision, count in self.precision.items())
        lines = [f"{self.layers} layers: {kinds}; {self.conversions} conversions"]
        for title, blocks in self.sections:
            lines += _section(title, blocks)
        lines += _movements(self.movements)
        return "\n".join([*lines, *([self.note] if self.note else [])])


def read_fusion(inspected: str, model: bytes, *, why: Mapping[str, Sequence[str]] | None = None) -> FusionReport:
    """The report of an engine from the inspector's JSON and the ONNX file that it was built from.

    `why` are the broken rules by block, see `broken_rules`. Raises ValueError for text that is not such JSON.
    """
    layers = read_layers(inspected)
    graph, reasons = read_graph(model).graph, why or {}
    order = {str(node.name): position for position, node in enumerate(graph)}
    op_types = {str(node.name): node.op_type for node in graph}
    working = [layer for layer in layers if not layer.converts]
    counted = Counter(layer.precision for layer in working)
    attention = tuple(_attention(found, working, order, reasons) for found in find_attentions(graph, operators=True))
    norms = tuple(_together(_names(nodes), working, order, reasons) for nodes in layer_norms(graph))
    gelus = tuple(_together(_names(gelu.nodes), working, order, reasons) for gelu in find_gelus(graph))
    movements = tuple(
        Movement(layer.name, moves, {name: kind for name, kind in op_types.items() if name in layer.nodes})
        for layer in working
        if (moves := layer.moved_by(op_types))
    )
    named = any(layer.nodes for layer in working)
    return FusionReport(
        layers=len(working),
        precision=dict(counted.most_common()),
        conversions=len(layers) - len(working),
        opaque=sum(layer.opaque for layer in working),
        attention=attention,
        layer_norms=norms,
        gelus=gelus,
        movements=movements,
        note="" if named else "the inspector names no layer in detail: nothing is known of the blocks",
    )


def broken_rules(model: bytes, version: tuple[int, ...], sm: int | None) -> dict[str, list[str]]:
    """The fusion rules that each attention and layer norm breaks, in words, by the block's name."""
    platform = Platform("here", version, version, None if sm is None else divmod(sm, 10))
    graph = read_graph(model).graph
    blocks = [judge_attention(found, platform) for found in find_attentions(graph)]
    blocks += judge_layer_norms(graph, platform)
    return {block.name: [f"{rule.name}: {rule.detail}" for rule in block.open_rules] for block in blocks}


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


def _together(
    names: tuple[str, ...], layers: Sequence[EngineLayer], order: Mapping[str, int], why: Mapping[str, Sequence[str]]
) -> BlockFusion:
    """A block that is fused where one layer carries all of its nodes that any layer names."""
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
    reasons = tuple(why.get(name, ())) or ((UNEXPLAINED,) if name in why else ())
    return BlockFusion(name, False, f"{len(kernels)} kernels: {', '.join(kernels)}", reasons)


def _hiding(parts: Iterable[str], layers: Sequence[EngineLayer], order: Mapping[str, int]) -> EngineLayer | None:
    """The opaque layer whose first and last node enclose the parts; weights that it starts with count as the start."""
    positions = [order[part] for part in parts if part in order]
    for layer in layers:
        ends = FOREIGN.search(layer.name)
        if ends and positions:
            first, last = order.get(ends[1], 0), order.get(ends[2], len(order))
            if first <= min(positions) and max(positions) <= last:
                return layer
    return None


def _section(title: str, blocks: Sequence[BlockFusion]) -> list[str]:
    if not blocks:
        return []
    states = Counter(block.fused for block in blocks)
    counted = ", ".join(f"{states[state]} {word}" for state, word in FUSION_STATES.items() if states[state])
    lines = [f"{title}: {counted}"]
    alike: dict[tuple[Any, ...], list[BlockFusion]] = {}
    for block in blocks:
        if not block.fused:
            alike.setdefault((block.fused, block.runs_as if block.fused is None else "", block.why), []).append(block)
    for same in alike.values():
        first = same[0]
        more = f" and {len(same) - 1} more" if len(same) > 1 else ""
        lines.append(f"  {first.name}{more}: {_HASH.sub('', first.runs_as)}")
        lines += [f"    {reason}" for reason in first.why]
    return lines


def _movements(movements: Sequence[Movement]) -> list[str]:
    """How many layers only move data, and a row for each set of them that do the same for the same operators."""
    alike: dict[tuple[str, str], list[Movement]] = {}
    for one in movements:
        alike.setdefault((", ".join(one.operations), ", ".join(sorted(set(one.nodes.values())))), []).append(one)
    rows = [
        [f"  {len(same)}", does, kinds or "none named", next(iter(same[0].nodes), same[0].layer)]
        for (does, kinds), same in sorted(alike.items(), key=lambda item: -len(item[1]))
    ]
    title = f"{len(movements)} layers only move or convert data"
    return [title, render(rows, header=("  layers", "by", "ONNX operators", "e.g."), rule=False)] if rows else [title]
