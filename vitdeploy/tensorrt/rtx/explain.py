"""What a refusal or a failure of NVIDIA's compiler means: the node, the module, the cause and what to do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.errors import UsageError
from vitdeploy.files import write_atomically
from vitdeploy.graph.names import module_of
from vitdeploy.graph.onnx_file import read_graph
from vitdeploy.graph.smallest import smallest_failing
from vitdeploy.platforms.boards import PLATFORMS, Platform
from vitdeploy.platforms.graph_rules import check_graph
from vitdeploy.platforms.versions import dotted
from vitdeploy.tensorrt.error_patterns import explain
from vitdeploy.tensorrt.rtx.compiler import FAILED, TIMED_OUT, Outcome, run_compiler, without_driver
from vitdeploy.tensorrt.rtx.model_file import free_shapes
from vitdeploy.tensorrt.rtx.report import Failure, Refusal

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

# Whose documented rules say what to do.
RULES = PLATFORMS["tensorrt_rtx"].newest
_PLUGIN = (
    "TensorRT itself may have it as a plug-in, which this product lacks: vitdeploy check BUNDLE --target tensorrt10"
)
_REPORT = "report the kept part to NVIDIA; until then write that module in other operators, or keep it in FP32"


def describe_refusals(outcome: Outcome, model: onnx.ModelProto) -> tuple[Refusal, ...]:
    """What the parser refuses, with the advice of `check` for that node where it has one."""
    advice = _advice(model)
    found = []
    for error in outcome.errors:
        said = error["why"] or outcome.last_words
        name = f"{error['operator']} {error['node']}"
        cause, fix = explain(f"{said} {error['code']}", dotted(RULES))
        found.append(
            Refusal(
                node=error["node"] or "the model",
                operator=error["operator"],
                module=module_of(error["node"]),
                code=error["code"],
                why=f"{cause} ({said})" if cause else said,
                fix=advice.get(name, _PLUGIN if "plugin" in said.lower() else fix),
            )
        )
    return tuple(dict.fromkeys(found))


def _advice(model: onnx.ModelProto) -> Mapping[str, str]:
    """What the rules of `check` advise, by operator and name of the node; empty for a graph that they cannot read."""
    try:
        findings = check_graph(read_graph(model.SerializeToString()), Platform("rules", RULES, RULES))
        return {finding.where: finding.fix for finding in findings}
    except Exception:  # onnx's shape inference has errors of its own
        log.debug("the rules are not asked", exc_info=True)
        return {}


def _title(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name}"


def _message(outcome: Outcome) -> str:
    return "; ".join(filter(None, (outcome.ended, without_driver(outcome.last_words))))


def describe_failure(outcome: Outcome) -> Failure:
    """The compiler's last words, and what they mean."""
    message = _message(outcome)
    if outcome.state == TIMED_OUT:
        return Failure(message, "--time-limit 3600, or check a part of the network")
    cause, fix = explain(message, dotted(RULES)) if outcome.state == FAILED else (None, _REPORT)
    if cause is None or "Myelin" in message:
        return Failure(message, _REPORT)
    return Failure(f"{cause} ({message})", fix)


def reproduce(outcome: Outcome, model: onnx.ModelProto, sm: int, time_limit: float, path: Path) -> Failure:
    """The failure with the smallest part of the model on which the compiler ends in the same way, written to `path`.

    None is looked for where it ran out of time. Raises UsageError where `path` cannot be written.
    """
    described = describe_failure(outcome)
    if outcome.state == TIMED_OUT:
        return described

    def fails(part: onnx.ModelProto) -> bool:
        try:
            return run_compiler(part.SerializeToString(), sm, free_shapes(part), time_limit=time_limit).state == (
                outcome.state
            )
        except UsageError:  # a free axis that is none of the batch's
            return False

    log.warning("the compiler %s; looking for the smallest part of the graph that fails too …", outcome.state)
    part = smallest_failing(model, fails)
    try:
        write_atomically(path, part.SerializeToString())
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written", why=error.strerror or str(error), fix="--keep with a file in another folder"
        ) from error
    advice = _advice(part)
    return replace(
        described,
        fix=next((advice[name] for node in part.graph.node if (name := _title(node)) in advice), described.fix),
        subgraph=str(path),
        nodes=tuple(_title(node) for node in part.graph.node),
        modules=tuple(dict.fromkeys(filter(None, (module_of(node.name) for node in part.graph.node)))),
    )
