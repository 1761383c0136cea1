"""Why a part of a network is costly in FP16: what stays FP32 there, and what half precision does to the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from vitdeploy.costs.reasons import LEAST_DB, Reason
from vitdeploy.exporter.emulation import Range
from vitdeploy.exporter.half_parts import HalfParts
from vitdeploy.graph.edit import constant
from vitdeploy.statistics import decibels

CANCELLATION, UNDERFLOW, KEPT = "cancellation", "underflow", "kept in FP32"
_WORDS = ("overflow", "underflow")

NORMAL_DB = 70.0  # a tensor of normal numbers keeps as much in half precision, or up to 5 dB more
_DIFFERENCES = frozenset({"Add", "Sub"})


class HalfReasons:
    """The reasons of parts of a graph."""

    def __init__(self, parts: HalfParts) -> None:
        self._parts = parts
        self._nodes = {str(node.name): node for node in parts.model.graph}

    def of(self, nodes: Sequence[str]) -> tuple[float, tuple[Reason, ...]]:
        """Signal to noise of the coarsest tensor that is made in FP16, dB, and the reasons, the best one first."""
        half = [name for name in nodes if name not in self._parts.kept]
        seen = {name: one for name in half for one in [self._made(self._nodes[name])] if one is not None}
        own_db = min((one.half_snr_db for one in seen.values()), default=math.inf)
        found = [*self._underflow(half), *self._cancelled(half)]
        worth = sorted((one for one in found if one.db >= LEAST_DB), key=lambda one: -one.db)
        return own_db, (*self._kept(nodes), *worth)

    def _made(self, node: ir.Node) -> Range | None:
        return self._parts.ranges.get(str(node.outputs[0].name)) if node.outputs else None

    def _kept(self, nodes: Sequence[str]) -> Iterator[Reason]:
        """What would break, which the part therefore computes in FP32."""
        kept = {name: self._parts.kept[name] for name in nodes if name in self._parts.kept}
        for reason in sorted(dict.fromkeys(kept.values()), key=lambda one: not one.startswith(_WORDS[0])):
            word = reason.partition(":")[0]
            count = sum(other == reason for other in kept.values())
            where = f"{count} node{'s' if count > 1 else ''} in FP32"
            text = reason.partition(": ")[2] if word in _WORDS else reason
            yield Reason(word if word in _WORDS else KEPT, 0.0, f"{where}: {text}")

    def _underflow(self, nodes: Sequence[str]) -> Iterator[Reason]:
        for name in nodes:
            seen = self._made(self._nodes[name])
            if seen is not None and seen.max_abs > 0 and math.isfinite(seen.half_snr_db):
                text = f"{name} reaches {seen.max_abs:.3g}, FP16 keeps {seen.half_snr_db:.0f} dB"
                yield Reason(UNDERFLOW, NORMAL_DB - seen.half_snr_db, text)

    def _cancelled(self, nodes: Sequence[str]) -> Iterator[Reason]:
        """Sums much smaller than what they add up: the error of a rounded term stays."""
        for name in nodes:
            node = self._nodes[name]
            made = self._made(node)
            if node.op_type not in _DIFFERENCES or made is None or not made.max_abs > 0:
                continue
            terms = []
            for value in node.inputs:
                array = None if value is None else constant(value)
                seen = None if value is None else self._parts.ranges.get(str(value.name))
                if array is not None and array.size:
                    terms.append(float(np.abs(array).max()))
                elif seen is not None:
                    terms.append(seen.max_abs)
            largest = max(terms, default=0.0)
            if largest > made.max_abs:
                text = f"{name} makes {made.max_abs:.3g} of terms up to {largest:.3g}"
                yield Reason(CANCELLATION, 2 * decibels(largest, made.max_abs), text)
