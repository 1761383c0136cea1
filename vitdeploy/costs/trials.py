"""The parts of a network, layers or blocks, and the graphs in which they alone are in INT8 or in FP16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from vitdeploy.costs.half_reasons import HalfReasons
from vitdeploy.costs.origin import Origin
from vitdeploy.costs.reasons import Reason, Reasons
from vitdeploy.errors import ExportError
from vitdeploy.exporter.emulation import emulate_half
from vitdeploy.exporter.half_parts import HalfParts, pinned
from vitdeploy.graph.names import block_of
from vitdeploy.graph.run import Mode
from vitdeploy.quantize.calibrate import calibrate
from vitdeploy.quantize.latency import alike
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.placement import Plan, place, restrict
from vitdeploy.targets import Int8Rules

LAYER, BLOCK = "layer", "block"
_ALONE = "measured without it"


@dataclass(frozen=True)
class Part:
    """What is measured alone.

    name   of the layer or the block
    kind   of a layer; `block`
    nodes  that change their precision
    macs   multiply-accumulates of one image in its products
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    macs: int


class Trial(Protocol):
    """A precision that parts of a graph can take."""

    @property
    def mode(self) -> Mode:
        """In which its graphs are judged, see `graph.run.open_session`."""

    @property
    def left(self) -> Mapping[str, str]:
        """Products that stay as they are whatever is asked for, by name, with the reason."""

    @property
    def model(self) -> ir.Model:
        """The graph with no part in the precision, which latency is compared with."""

    def parts(self, by: str) -> list[Part]:
        """The layers or the blocks, in the order of the graph."""

    def build(self, nodes: Sequence[str]) -> ir.Model:
        """The graph with these nodes in the precision and no others, as it ships."""

    def judged(self, model: ir.Model) -> ir.Model:
        """What of a graph of `build` is run to judge it."""

    def reasons(self, part: Part) -> tuple[float, tuple[Reason, ...]]:
        """Signal to noise of what the part itself makes, dB, and why it is no better."""

    def together(self, parts: Sequence[Part]) -> list[list[Part]]:
        """The parts that are timed together, since they are alike or too small to be timed alone."""


class Int8Trial:
    """Parts in INT8; ExportError where the network has nothing to quantize.

    found  what calibration gave
    """

    mode: Mode = "qdq"

    def __init__(self, origin: Origin, options: Int8Options) -> None:
        rules, samples = origin.target.int8 or Int8Rules(), origin.samples
        self.found = calibrate(
            origin.graph,
            rules,
            samples.recipe,
            samples.calibration(),
            options,
            pinned(origin.graph),
            samples.images,
            target=origin.target,
        )
        self._reasons = Reasons(self.found)
        self.left = {layer.node: str(layer.obstacle) for layer in self.found.plan if not layer.quantized}
        self.model = origin.graph

    def parts(self, by: str) -> list[Part]:
        """See `Trial`."""
        return _parts(tuple(layer for layer in self.found.plan if layer.quantized), by)

    def build(self, nodes: Sequence[str]) -> ir.Model:
        """See `Trial`."""
        return self.found.quantizer.build(self._only(nodes))

    def judged(self, model: ir.Model) -> ir.Model:
        """See `Trial`."""
        return model

    def reasons(self, part: Part) -> tuple[float, tuple[Reason, ...]]:
        """See `Trial`; of a block those of the layer whose own noise is largest."""
        found = {layer.node: self._reasons.of(layer) for layer in self.found.plan if layer.node in part.nodes}
        worst = min(found, key=lambda node: found[node][0])
        own_db, reasons = found[worst]
        if part.kind == BLOCK:
            inner = worst.removeprefix(f"{part.name}.").removeprefix(f"{part.name}/")
            reasons = tuple(one._replace(text=f"{one.text} ({inner})") for one in reasons)
        return own_db, reasons

    def together(self, parts: Sequence[Part]) -> list[list[Part]]:
        """See `Trial`."""
        if any(part.kind == BLOCK for part in parts):
            return [[part] for part in parts]
        groups = alike(self.found.quantizer.model.graph, self.found.plan)
        return [[part for part in parts if part.name in group] for group in groups]

    def _only(self, nodes: Sequence[str]) -> Plan:
        wanted = set(nodes)
        return restrict(self.found.plan, lambda layer: None if layer.node in wanted else _ALONE)


class HalfTrial:
    """Parts in FP16, every FP16 tensor rounded where it is made; ExportError where no node has floats."""

    mode: Mode = "as_written"

    def __init__(self, origin: Origin) -> None:
        self._parts = HalfParts.of(origin.graph, origin.inputs)
        self._plan = place(self._parts.model.graph, origin.target.int8 or Int8Rules())
        self._reasons = HalfReasons(self._parts)
        self.left = {layer.node: self._parts.kept[layer.node] for layer in self._plan if layer.node in self._parts.kept}
        self.model = origin.graph
        if not self._parts.blocks():
            reasons = "; ".join(dict.fromkeys(self._parts.kept.values())) or "it has no float"
            raise ExportError("nothing in this network can compute in FP16", why=reasons, fix="--precision int8")

    def parts(self, by: str) -> list[Part]:
        """See `Trial`; a block has all its nodes, a layer is a product."""
        if by == LAYER:
            return _parts(self._plan, by)
        macs = {layer.node: layer.macs for layer in self._plan}
        nodes: dict[str, list[str]] = {}
        for node in self._parts.model.graph:
            name = str(node.name)
            if name in self._parts.kept or name in self._floats:
                nodes.setdefault(block_of(name), []).append(name)
        return [
            Part(block, BLOCK, tuple(names), sum(macs.get(name, 0) for name in names)) for block, names in nodes.items()
        ]

    def build(self, nodes: Sequence[str]) -> ir.Model:
        """See `Trial`; what FP16 would break stays FP32."""
        return self._parts.only(nodes)

    def judged(self, model: ir.Model) -> ir.Model:
        """See `Trial`."""
        return emulate_half(model)

    def reasons(self, part: Part) -> tuple[float, tuple[Reason, ...]]:
        """See `Trial`."""
        return self._reasons.of(part.nodes)

    def together(self, parts: Sequence[Part]) -> list[list[Part]]:
        """See `Trial`."""
        if any(part.kind == BLOCK for part in parts):
            return [[part] for part in parts]
        groups = alike(self._parts.model.graph, tuple(layer for layer in self._plan if layer.quantized))
        grouped = {name for group in groups for name in group}
        found = [[part for part in parts if part.name in group] for group in groups]
        return found + [[part] for part in parts if part.name not in grouped]

    @property
    def _floats(self) -> set[str]:
        return {name for names in self._parts.blocks().values() for name in names}


def _parts(plan: Plan, by: str) -> list[Part]:
    if by == LAYER:
        return [Part(layer.node, layer.kind, (layer.node,), layer.macs) for layer in plan]
    blocks: dict[str, list[str]] = {}
    for layer in plan:
        blocks.setdefault(block_of(layer.node), []).append(layer.node)
    macs = {layer.node: layer.macs for layer in plan}
    return [Part(name, BLOCK, tuple(nodes), sum(macs[node] for node in nodes)) for name, nodes in blocks.items()]
