"""FP16 as a step of the export: from a graph and its reference to a typed graph that holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from vitdeploy.errors import GateError
from vitdeploy.exporter.precision import to_half
from vitdeploy.graph.edit import Array
from vitdeploy.proof.parity import BOUNDS, compare_outputs


def half_precision(
    graph: ir.Model, images: Array, expected: Mapping[str, Array], *, min_snr_db: float | None = None
) -> tuple[ir.Model, dict[str, Any]]:
    """A typed FP16 copy of an optimized graph, and what the manifest records of it.

    expected    what PyTorch FP32 makes of `images` [n, 3, H, W], by output name
    min_snr_db  what it has to reach on them, or GateError is raised; None for the bound of FP16
    """

    def quality(actual: Mapping[str, Array]) -> float:
        report = compare_outputs(expected, actual, runtime="emulation", precision="fp16")
        return min(output.snr_db for output in report.outputs)

    bound = BOUNDS["fp16"].min_snr_db if min_snr_db is None else min_snr_db
    assert bound is not None
    typed, report = to_half(graph, {"images": images}, quality, min_snr_db=bound)
    if not report.snr_db >= bound:
        raise GateError(
            f"half precision reaches {report.snr_db:.1f} dB against PyTorch FP32, the bound is {bound:.0f} dB",
            why="; ".join(list(report.kept.values())[-3:]) or None,
            fix="--precision fp32, or check the weights",
        )
    return typed, {"precision": "fp16", **report.to_dict()}
