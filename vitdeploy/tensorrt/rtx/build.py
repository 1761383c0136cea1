"""An engine of TensorRT for RTX, built in a process of its own that a crash or the time limit ends alone."""

from __future__ import annotations

from typing import Any

from vitdeploy.tensorrt.build import BuildError, Built
from vitdeploy.tensorrt.options import BuildOptions
from vitdeploy.tensorrt.rtx import requirements
from vitdeploy.tensorrt.rtx.compiler import BUILT, REFUSED, TIME_LIMIT, TIMED_OUT, Outcome, run_compiler
from vitdeploy.tensorrt.rtx.explain import describe_failure, describe_refusals
from vitdeploy.tensorrt.rtx.model_file import free_shapes, parse, serialized, with_names


def build(model: bytes, asked: BuildOptions) -> Built:
    """An engine of `model`; BuildError, with what was said, where there is none."""
    proto = with_names(parse(model, "the bundle"))
    outcome = run_compiler(
        serialized(proto, "the model"),
        asked.sm,
        free_shapes(proto, batch=asked.profile),
        time_limit=asked.time_limit or TIME_LIMIT,
        engine={"tf32": asked.tf32, "workspace": asked.workspace},
    )
    said = "\n".join(f"[{severity}] {text}" for severity, text in outcome.log)
    if outcome.state != BUILT:
        raise _not_built(outcome, proto, said)
    return Built(outcome.plan, said, layers=outcome.engine)


def _not_built(outcome: Outcome, model: Any, said: str) -> BuildError:
    what = f"{requirements.NAME} {outcome.version} does not build this model ({outcome.state})"
    if outcome.state == REFUSED:
        first = describe_refusals(outcome, model)[0]
        return BuildError(what, log=said, why=f"{first.operator} {first.node}: {first.why}", fix=first.fix)
    failure = describe_failure(outcome)
    fix = failure.fix if outcome.state == TIMED_OUT else "vitdeploy check BUNDLE --compile, which finds the part"
    if "for Turing" in failure.message:  # whose tensor cores take no FP32
        fix = "leave 75 out of the compute capabilities (sm), or vitdeploy export MODEL --fp16"
    return BuildError(what, log=said, why=failure.message, fix=fix)
