"""A bundle or an ONNX file held against NVIDIA's own parser and graph compiler, without a GPU."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.bundle import Bundle
from vitdeploy.errors import UsageError, VitDeployError
from vitdeploy.targets import Target
from vitdeploy.tensorrt.fusion import FusionReport, broken_rules, read_fusion
from vitdeploy.tensorrt.rtx import requirements
from vitdeploy.tensorrt.rtx.compiler import BUILT, REFUSED, TIME_LIMIT, Outcome, run_compiler
from vitdeploy.tensorrt.rtx.explain import RULES, describe_failure, describe_refusals, reproduce
from vitdeploy.tensorrt.rtx.model_file import free_shapes, open_model, serialized, with_names
from vitdeploy.tensorrt.rtx.receipt import receipt
from vitdeploy.tensorrt.rtx.report import CompilerReport, Failure
from vitdeploy.tensorrt.rtx.roofline import Roofline, read_roofline

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)


def compile_check(
    source: Bundle | str | Path,
    *,
    sm: int | str = requirements.DEFAULT_SM,
    time_limit: float = TIME_LIMIT,
    keep: str | Path | None = None,
) -> CompilerReport:
    """Parse and compile a model with TensorRT for RTX, on the CPU and in a process of its own.

    Args:
        source: A bundle, its folder, or an ONNX file.
        sm: Compute capability, ten times: 86, or `8.6`. Jetson Orin is 87, and 86 is the nearest there is.
        time_limit: Seconds that the compiler may take.
        keep: Where the smallest part that still fails is written if the compiler fails; by default a new file in the
            current folder, called after the model.

    Returns:
        What was refused or failed, what fused, which layers only move data, and memory. A model that does not compile
        is no exception, but `passed` is False.

    Raises:
        BackendError: The compiler is not installed, or does not run on this machine.
        UsageError: There is no such compute capability, or the model has a free axis besides the batch.
        BundleError, InputError: The bundle is damaged, or the file is no ONNX model.
    """
    requirements.require()
    number = requirements.read_sm(sm)
    if time_limit <= 0:
        raise UsageError(f"a time limit of {time_limit:g} s leaves no time", fix="--time-limit 600")
    if keep is not None and Path(keep).exists():
        raise UsageError(f"{keep} exists", why="no file is written over", fix="--keep with another name")
    where, model, bundle = open_model(source)
    known = {name: array.shape for name, array in bundle.reference().inputs.items()} if bundle else {}
    data, shapes = serialized(model, where), free_shapes(model, known)
    outcome = run_compiler(data, number, shapes, time_limit=time_limit)
    failure = None
    if outcome.state not in (BUILT, REFUSED):
        path = Path(keep) if keep else _unused(Path(f"{Path(where).resolve().stem}-fails.onnx"))
        failure = reproduce(outcome, model, number, time_limit, path)
    manifest = bundle.manifest if bundle else None
    what = f"{manifest.model.name}, {manifest.precision}, " if manifest else ""
    return _report(outcome, model, data, number, where, what, failure)


def fusion_receipt(path: Path, target: Target) -> dict[str, Any]:
    """What the compiler makes of the model at `path`, for a manifest under `compiled`.

    Empty for a target that has other runtimes than NVIDIA's, and where the compiler is not installed. A model that does
    not compile is recorded and warned of, and no more: the TensorRT of the target decides.
    """
    if not target.for_nvidia_alone or requirements.unavailable() is not None:
        return {}
    import onnx

    log.info("compiling with %s, for the receipt of fusion …", requirements.NAME)
    proto, sm = with_names(onnx.load(path)), requirements.DEFAULT_SM
    data = proto.SerializeToString()
    try:
        outcome = run_compiler(data, sm, free_shapes(proto))
    except VitDeployError as error:
        log.info("the manifest gets no receipt of fusion: %s", "; ".join(error.lines()))
        return {}
    if outcome.state != BUILT:
        log.warning(
            "%s %s does not compile this graph (%s); `vitdeploy check BUNDLE --compile` says more",
            requirements.NAME,
            outcome.version,
            outcome.state,
        )
    failure = None if outcome.state in (BUILT, REFUSED) else describe_failure(outcome)
    return {"compiled": receipt(_report(outcome, proto, data, sm, "", "", failure))}


def _report(
    outcome: Outcome, model: onnx.ModelProto, data: bytes, sm: int, where: str, what: str, failure: Failure | None
) -> CompilerReport:
    fusion, roofline, note = _layers(outcome, data, sm) if outcome.state == BUILT else (None, None, "")
    return CompilerReport(
        model=where,
        what=what,
        state=outcome.state,
        version=outcome.version,
        sm=sm,
        seconds=outcome.seconds,
        refused=describe_refusals(outcome, model) if outcome.state == REFUSED else (),
        failure=failure,
        warnings=outcome.warnings,
        fusion=fusion,
        roofline=roofline,
        note=note,
        weights_bytes=outcome.weights_bytes,
        activation_bytes=outcome.activation_bytes,
        plan_bytes=outcome.plan_bytes,
    )


def _layers(outcome: Outcome, model: bytes, sm: int) -> tuple[FusionReport | None, Roofline | None, str]:
    """The engine's layers against the graph, and how long they take; a note in place of what cannot be read."""
    fusion = None
    try:
        fusion = read_fusion(outcome.engine, model, why=broken_rules(model, RULES, sm))
        return fusion, read_roofline(outcome.engine, model), ""
    except Exception as error:  # onnx's shape inference has errors of its own for graphs that TensorRT takes
        log.debug("the layers are not read", exc_info=True)
        unknown = "no time is estimated" if fusion else "what fused is not known"
        return fusion, None, f"{unknown}: {' '.join(str(error).split())[:200]}"


def _unused(path: Path) -> Path:
    """`path`, numbered where there is such a file already."""
    candidate, count = path, 0
    while candidate.exists():
        count += 1
        candidate = path.with_stem(f"{path.stem}-{count}")
    return candidate
