"""What a manifest keeps of NVIDIA's compiler under `graph.compiled`, and how it is shown. Needs neither onnx nor it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitdeploy.tensorrt.rtx.units import gigaflop, mebibytes

if TYPE_CHECKING:
    from vitdeploy.tensorrt.rtx.report import CompilerReport


def receipt(report: CompilerReport) -> dict[str, Any]:
    """The counts of a report, with the version that they are of; why, where the model does not compile."""
    facts: dict[str, Any] = {
        "compiler": report.compiler,
        "version": report.version,
        "sm": report.sm,
        "state": report.state,
    }
    if report.refused:
        first = report.refused[0]
        facts["why"] = f"{first.operator} {first.node}: {first.why}"
    elif report.failure:
        facts["why"] = report.failure.message
    if report.fusion:
        facts["layers"] = report.fusion.layers
        facts["moving_layers"] = len(report.fusion.movements)
        facts |= {
            title.replace(" ", "_"): {"fused": sum(bool(block.fused) for block in blocks), "of": len(blocks)}
            for title, blocks in report.fusion.sections
        }
    if report.roofline:
        facts |= {"moved_bytes": report.roofline.moved_bytes, "flop": report.roofline.flop}
    return facts | {"weights_bytes": report.weights_bytes, "activation_bytes": report.activation_bytes}


def receipt_rows(receipt: Mapping[str, Any]) -> dict[str, str]:
    """The receipt of a manifest as labelled lines; parts that it lacks or that have another form are left out."""
    rows = {"compiler": f"{receipt.get('compiler')} {receipt.get('version')}, sm {receipt.get('sm')}"}
    if receipt.get("state") != "built":
        rows["state"] = f"{receipt.get('state')}: {receipt.get('why')}"
    if "layers" in receipt:
        rows["layers"] = f"{receipt['layers']}, of which {receipt.get('moving_layers')} only move or convert data"
    for name, counts in receipt.items():
        if isinstance(counts, Mapping) and {"fused", "of"} <= counts.keys():
            rows[f"{name.replace('_', ' ')} fused"] = f"{counts['fused']} of {counts['of']}"
    moved, flop = receipt.get("moved_bytes"), receipt.get("flop")
    if isinstance(moved, int) and isinstance(flop, int):
        rows["work of a run"] = f"{mebibytes(moved)} moved, {gigaflop(flop)}"
    for name in ("weights", "activation"):
        size = receipt.get(f"{name}_bytes")
        if isinstance(size, int):
            rows[f"memory of {name.removesuffix('s')}s"] = mebibytes(size)
    return rows
