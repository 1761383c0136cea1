"""FP16 as graph types: what is safe in half precision is typed FLOAT16, the rest stays FLOAT and says why.

Precision lives in the graph because strongly typed builders (TensorRT 10 and newer) read nothing else. Inputs and
outputs stay float32. What stays FP32 is decided from the activations of the reference inputs, not from a list of
operators.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.errors import GateError
from vitdeploy.exporter.emulation import (
    emulate_half,
)
from vitdeploy.exporter.half_parts import HALF, HalfParts
from vitdeploy.exporter.half_repair import IMAGE_ALLOWANCE_DB, Quality, find_repairs
from vitdeploy.graph.edit import Array
from vitdeploy.graph.run import Inputs, run, samples_in
from vitdeploy.graph.traffic import bytes_moved
from vitdeploy.proof.parity import BOUNDS, compare_outputs
from vitdeploy.proof.recorded import image_db, pick, pooled_db
from vitdeploy.statistics import json_number

log = logging.getLogger(__name__)

SPARE_DB = 1.0  # kept above the bound, for runtimes that round in other places than the emulation


@dataclass
class HalfReport:
    """What the conversion decided.

    kept        the names of the nodes that compute in FP32, and why
    more_bytes  what they cost: the bytes that all operators move, beyond those with every node in FP16, as a part of
                these
    """

    snr_db: float = float("nan")
    half_nodes: int = 0
    more_bytes: float = 0.0
    kept: dict[str, str] = field(default_factory=dict)
    repairs: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As the manifest records it."""
        return {
            "snr_db": json_number(self.snr_db, 2),
            "measured_by": "emulation: every FP16 tensor rounded where it is made, products accumulated in FP32",
            "half_nodes": self.half_nodes,
            "more_bytes": round(self.more_bytes, 4),
            "kept_fp32": [{"node": node, "reason": reason} for node, reason in self.kept.items()],
            "repairs": self.repairs,
        }


def half_precision(
    graph: ir.Model,
    inputs: Inputs,
    expected: Mapping[str, Array],
    *,
    min_snr_db: float | None = None,
    judged: NDArray[np.bool_] | None = None,
    selections: Collection[str] = (),
) -> tuple[ir.Model, dict[str, Any]]:
    """A typed FP16 copy of an optimized graph, and what the manifest records of it.

    expected    what PyTorch FP32 makes of `inputs`, by output name
    min_snr_db  what it has to reach on them, or GateError is raised; None for the bound of FP16
    judged      which of the samples are to reach it; None for all, of which then no single one may fall far below
    selections  outputs that are sets of whole numbers
    """
    wanted = pick(expected, judged)

    def quality(actual: Mapping[str, Array]) -> float:
        found = pick(actual, judged)
        report = compare_outputs(wanted, found, runtime="emulation", precision="fp16", selections=selections)
        ratios = [output.snr_db for output in report.outputs]
        for name in (name for name, array in expected.items() if judged is None and array.dtype.kind == "f"):
            each = image_db(expected[name], actual[name], samples_in(inputs))
            ratios += [min(each) + IMAGE_ALLOWANCE_DB, pooled_db(each)]
        return min(ratios, default=math.inf)

    bound = BOUNDS["fp16"].min_snr_db if min_snr_db is None else min_snr_db
    assert bound is not None, "the bounds of FP16 are ours"
    typed, report = to_half(graph, inputs, quality, min_snr_db=bound)
    if not report.snr_db >= bound:
        raise GateError(
            f"half precision reaches {report.snr_db:.1f} dB against FP32, the bound is {bound:.0f} dB",
            why=_costs(report),
            fix="--precision fp32, or check the weights",
        )
    return typed, {"precision": "fp16", **report.to_dict()}


def _costs(report: HalfReport) -> str:
    """The blocks that cost half precision most, or that none costs more than others; and why nodes stay FP32 anyway."""
    if not report.repairs:
        reasons = "; ".join(dict.fromkeys(list(report.kept.values())[-3:]))
        kept = f", besides what is in FP32 already ({reasons})" if reasons else ""
        return f"no single block in FP32 helps{kept}"
    figures = [(one["block"], one["snr_db_before"] or 0.0, one["snr_db_after"] or 0.0) for one in report.repairs]
    most = sorted(figures, key=lambda one: one[1] - one[2])[:3]
    return "most is lost in " + ", ".join(f"{block} ({low:.1f} dB, in FP32 {high:.1f} dB)" for block, low, high in most)


def to_half(
    model: ir.Model, inputs: Mapping[str, Array], quality: Quality, *, min_snr_db: float
) -> tuple[ir.Model, HalfReport]:
    """A typed FP16 copy of the FP32 graph `model`, and what it took.

    `inputs` are the reference inputs; `quality(outputs) -> dB` judges emulated outputs against PyTorch's. Nodes marked
    by `keep_single`, and nodes whose tensors would overflow or underflow, stay FP32; then, while the emulated quality
    is below `min_snr_db`, blocks are reverted to FP32, those that cost most first.
    The result may still be below the bound: the caller's gate decides.
    """
    parts = HalfParts.of(model, inputs)
    report = HalfReport(kept=dict(parts.kept))
    bound = min_snr_db + SPARE_DB

    blocks = parts.blocks()

    def emulated(half: Collection[str]) -> dict[str, Array]:
        single = {node: "" for block, nodes in blocks.items() if block not in half for node in nodes}
        return run(emulate_half(parts.typed({**report.kept, **single})), inputs, "as_written")

    report.snr_db = quality(emulated(blocks))
    if not report.snr_db >= bound:
        exact = emulated(())
        for one in find_repairs(emulated, quality, blocks, exact, bound=bound, snr_db=report.snr_db):
            reason = f"FP16 here costs accuracy: {one.before:.1f} dB at the outputs with it, {one.after:.1f} without"
            report.kept.update(dict.fromkeys(blocks[one.block], reason))
            before, after = json_number(one.before), json_number(one.after)
            report.repairs.append({"block": one.block, "snr_db_before": before, "snr_db_after": after})
            report.snr_db = one.after
    typed = parts.typed(report.kept)
    report.half_nodes = sum(any(out.dtype == HALF for out in n.outputs) and n.op_type != "Cast" for n in typed.graph)
    report.more_bytes = bytes_moved(typed.graph) / bytes_moved(parts.typed(()).graph) - 1
    return typed, report
