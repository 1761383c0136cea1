"""The error for a part of a network that a target has no form for."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.errors import ExportError
from vitdeploy.targets import Target, targets


def refusal(node: ir.Node, what: str, *, why: str, fix: str) -> ExportError:
    """The ExportError for `node`, which names the module of the network that it belongs to."""
    module = (node.name or "").rpartition("/")[0]
    where = f"module {module}" if module and module != "graph" else "the network"
    return ExportError(f"{what} in {where} ({node.op_type})", why=why, fix=fix)


def newer_target(target: Target, since: int, otherwise: str) -> str:
    """What to type for a target of opset `since` or newer, those of the same runtimes first; `otherwise` for none."""
    able = [row for row in targets() if row.opset >= since]
    able.sort(key=lambda row: not set(row.runtimes) & set(target.runtimes))
    return f"vitdeploy export … --target {able[0].name}, or {otherwise}" if able else otherwise


def too_new(node: ir.Node, target: Target, what: str, since: int, otherwise: str) -> ExportError:
    """The ExportError for a form of opset `since` that `target` cannot say."""
    return refusal(
        node,
        f"{what} cannot be said in opset {target.opset}",
        why=f"the form is of opset {since}, and the target {target.name} declares {target.opset}",
        fix=newer_target(target, since, otherwise),
    )
