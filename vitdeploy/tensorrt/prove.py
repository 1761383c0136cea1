"""An engine that is proven: built, held against the bundle's reference on this device, repaired where that is allowed.

Every outcome leaves a report beside the engine: what was tried, what held, what fused, and where it goes wrong if it
does. An engine that fails is not kept, and takes the place of none that was proven before. One that is built ahead,
where no GPU can run it, is kept as what it is, not proven, and every device proves it when it first loads it.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

from vitdeploy.argument_types import checked_arguments
from vitdeploy.bundle import Bundle
from vitdeploy.errors import BackendError, MissingDependencyError, UsageError
from vitdeploy.proof.prove import prove
from vitdeploy.runtime.backends import backends, find_backend
from vitdeploy.runtime.options import Options
from vitdeploy.targets import find_target
from vitdeploy.tensorrt.backend import EngineBackend, TensorRtBackend
from vitdeploy.tensorrt.engine import EngineError
from vitdeploy.tensorrt.options import BuildOptions
from vitdeploy.tensorrt.report import BuildReport
from vitdeploy.tensorrt.sidecar import keep
from vitdeploy.tensorrt.trial import Job, Trial, try_model

log = logging.getLogger(__name__)

DIAGNOSIS_PACKAGES = {"onnx": "onnx", "onnx_ir": "onnx-ir", "onnxruntime": "onnxruntime"}


@checked_arguments
def build(
    bundle: Bundle | str | Path,
    *,
    runtime: str | None = None,
    sm: tuple[int, ...] | str | None = None,
    workspace: int | str | None = None,
    profile: tuple[int, int, int] | str | None = None,
    dla: int | None = None,
    tf32: bool = False,
    optimization_level: int | None = None,
    workarounds: tuple[str, ...] | str | None = None,
    timing_cache: str | Path | None = None,
    time_limit: float | None = None,
    int8_if_faster: bool = False,
    max_builds: int | None = None,
    cache: str | Path | None = None,
    log_file: str | Path | None = None,
    rebuild: bool = False,
) -> BuildReport:
    """Build the bundle's engine and prove it against the reference outputs.

    TensorRT builds for this device. TensorRT for RTX builds ahead on the CPU: without a GPU the engine is kept
    unproven, and proven where it is first loaded.

    Args:
        bundle: the bundle, or its folder.
        runtime: what the engine is for: `tensorrt` or `tensorrt_rtx`; None for what the bundle was exported for, and
            for `tensorrt` where that is open.
        sm: compute capabilities, ten times each, for `tensorrt_rtx`: `86,89,120`; by default those from 8.0 on.
        workspace: bytes of scratch memory, or `2G`, `512M`.
        profile: images a call where the batch is free: min, opt (what kernels are tuned for), max.
        dla: core of the deep learning accelerator, the rest on the GPU.
        tf32: FP32 products with the mantissa of TF32; the bounds of the bundle's precision stay.
        optimization_level: how long TensorRT looks for faster kernels, 0 to 5; by default 3, as TensorRT itself.
        workarounds: what may be tried where the outputs are not right: `auto`, `none`, or some of `defuse`, `fp32`,
            `bf16`.
        timing_cache: file of kernel timings, read and brought up to date.
        time_limit: seconds that the builder of `tensorrt_rtx` may take.
        int8_if_faster: of an INT8 bundle for TensorRT, compute in 8-bit integers only where the device was measured to
            be at least 1.02 times as fast with them; the report says what was dropped.
        max_builds: engines that this search may build, at least 2; by default 8.
        cache: folder of the engines; it must be trusted like a program.
        log_file: another place for what the builder says.
        rebuild: build even where there is a proven engine.

    Returns:
        The report. Outputs that no engine reproduces are no exception, but `passed` is False, and `failed` is True; an
        engine that no device here could prove is neither.

    Raises:
        BundleError: the bundle is damaged or altered.
        UsageError: an option does not fit the bundle, the version or the device.
        BackendError: the builder is missing, or does not build the model.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    kind = _engine_backend(runtime or _default_runtime(opened))
    opened.check_files()
    given: dict[str, Any] = {"workspace": workspace, "profile": profile, "dla": dla, "tf32": tf32, "sm": sm}
    given |= {"workarounds": workarounds, "timing_cache": timing_cache, "time_limit": time_limit}
    given |= {"int8_if_faster": int8_if_faster, "max_builds": max_builds, "optimization_level": optimization_level}
    asked = kind.admit_build(BuildOptions.of(given))
    batch = opened.manifest.inputs[0].shape[0]
    if profile is not None and isinstance(batch, int):
        raise UsageError(
            f"{opened.path} takes no profile",
            why=f"it was exported for batches of exactly {batch}",
            fix="vitdeploy export MODEL --batch dynamic, or leave --profile out",
        )
    if asked.int8_if_faster:
        _require_int8(opened)
    kind.require_builder()
    job = Job(kind, opened, Options(cache=cache, build=asked), asked)
    # Who waited finds what the other one built.
    with job.cache.lock(job.key):
        said = job.cache.attempt(job.key).log
        said.unlink(missing_ok=True)
        try:
            report = None if rebuild else _kept(job)
            report = _proven(job) if report is None else report
        finally:
            said = said if said.exists() else job.cache.files(job.key).log
            if log_file is not None and said.exists():
                keep(Path(log_file), said.read_bytes())
    return report


def _require_int8(bundle: Bundle) -> None:
    """Raise where there is no INT8 to choose from, or nothing that could take it out of the graph."""
    manifest = bundle.manifest
    try:
        readable = find_target(manifest.target).for_nvidia_alone
    except UsageError:  # of a package that is not installed here
        readable = False
    if manifest.precision != "int8" or not readable:
        raise UsageError(
            f"{bundle.path} has no INT8 for TensorRT to choose from",
            why=f"it is {manifest.precision} for the target {manifest.target}",
            fix="vitdeploy export … --int8 --target tensorrt10, or leave --int8-if-faster out",
        )
    for module, package in (("onnx", "onnx"), ("onnx_ir", "onnx-ir")):
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError(package, needed_for="--int8-if-faster", extra="tensorrt")


def _default_runtime(bundle: Bundle) -> str:
    """The first runtime of the bundle's target that runs engines."""
    try:
        names = find_target(bundle.manifest.target).runtimes
        return next((name for name in names if issubclass(find_backend(name), EngineBackend)), TensorRtBackend.name)
    except UsageError:  # of a package that is not installed here
        return TensorRtBackend.name


def _engine_backend(name: str) -> type[EngineBackend]:
    """The runtime called `name`; UsageError for one that runs no engines."""
    kind = find_backend(name)
    if issubclass(kind, EngineBackend):
        return kind
    able = [backend.name for backend in backends() if issubclass(backend, EngineBackend)]
    raise UsageError(
        f"there is no engine to build for the runtime {name}",
        why="it loads the model file of the bundle",
        fix=f"--runtime {' or '.join(able)}",
    )


def _kept(job: Job) -> BuildReport | None:
    """The report of an engine that is there already and reproduces this bundle's reference; None without one."""
    engine, report = job.cache.find(job.key), job.cache.read_report(job.key)
    workaround = job.cache.workaround(job.key)
    if engine is None or report is None or (workaround and workaround not in job.asked.workarounds):
        return None
    if job.unusable:
        return BuildReport({**report, "passed": None, "unproven": job.unusable}, cached=True)
    try:
        backend = job.kind(engine, job.options, job.asked, workaround, job.kind.kernels(job.cache, job.key, job.device))
    except EngineError:
        log.warning("the engine kept in %s does not load any more", job.cache.folder)
        return None
    try:
        if job.cache.find(job.key, reference=job.reference, device=job.device) is None:
            proof = prove(job.bundle, backend)
            if not proof.passed:
                return None
            proven = {"passed": True, "unproven": None, "parity": proof.parity.to_dict()}
            job.cache.add_reference(job.key, engine, job.reference, device=job.device)
            report = job.cache.write_report(job.cache.files(job.key), {**report, **job.facts(), **proven})
    finally:
        backend.close()
    return BuildReport(report, cached=True)


def _proven(job: Job) -> BuildReport:
    """Build, prove and, where that is allowed and needed, repair; keep what holds, and the report in any case."""
    found: dict[str, Any] = {"diverges": None, "diagnosis": ""}
    trial = _first(job, found)
    if trial.passed is False:
        trial = _repair(job, trial, found)
    passed = trial.passed
    contents: dict[str, Any] = {
        **job.facts(),
        "passed": passed,
        "unproven": job.unusable if passed is None else None,
        "workaround": trial.workaround or None,
        "attempts": job.attempts,
        **found,
        "fusion": None if passed is False else _fusion(job, trial),
        "dla": dict(trial.dla),
        "parity": trial.proof.parity.to_dict() if trial.proof else None,
        "failures": list(trial.failures),
    }
    if passed is False:
        contents = job.cache.write_report(job.cache.attempt(job.key), contents)
    else:
        contents = job.cache.store(
            job.key,
            trial.engine,
            contents,
            reference=job.reference if passed else None,
            workaround=trial.workaround,
            seconds=trial.seconds,
            device=job.device,
        )
    return BuildReport(contents, cached=False)


def _first(job: Job, found: dict[str, Any]) -> Trial:
    """The engine of the model, or of as much of its INT8 as is worth it, before any workaround."""
    if not job.asked.int8_if_faster:
        return try_model(job, job.model, "")
    from vitdeploy.tensorrt.int8_choice import MAX_BUILDS, choose_int8

    chosen, found["int8"] = choose_int8(job, job.asked.max_builds or MAX_BUILDS)
    return chosen or try_model(job, job.model, "")


def _repair(job: Job, failed: Trial, found: dict[str, Any]) -> Trial:
    """Name the block that diverges first, and try the workarounds that are allowed until one holds."""
    log.warning("the engine does not reproduce the reference: %s", "; ".join(failed.failures))
    missing = [name for module, name in DIAGNOSIS_PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        found["diagnosis"] = f"to name the block and to repair it: pip install {' '.join(missing)}"
        return failed
    from vitdeploy.tensorrt.diagnosis import diagnose
    from vitdeploy.tensorrt.workarounds import WORKAROUNDS

    divergence, found["diagnosis"] = diagnose(job.kind, job.bundle, job.model, job.options, job.asked, job.timing)
    found["diverges"] = divergence.to_dict() if divergence else None
    sm = job.facts()["sm"]
    for workaround in WORKAROUNDS:
        if workaround.name not in job.asked.workarounds:
            continue
        noted = {"workaround": workaround.name, "what": workaround.what}
        model, why_not = None, workaround.obstacle(job.library.rules, sm)
        if why_not is None:
            model = workaround.apply(job.model, divergence.block if divergence else None)
            why_not = None if model is not None else "there is nothing for it to change"
        if model is None:
            job.attempts.append({**noted, "skipped": why_not})
            continue
        log.warning("trying: %s", workaround.what)
        try:
            trial = try_model(job, model, workaround.name, workaround.what)
        except BackendError as error:
            job.attempts.append({**noted, "passed": False, "failures": error.lines()})
            continue
        if trial.passed:
            return trial
    return failed


def _fusion(job: Job, trial: Trial) -> dict[str, Any] | None:
    """What fused; None, with a warning, where the inspector's words are not understood."""
    if not trial.inspected:
        return None
    try:
        from vitdeploy.tensorrt.fusion import broken_rules, read_fusion
    except ImportError as error:
        log.warning("what TensorRT fused is not read, since %s is missing: pip install onnx onnx-ir", error.name)
        return None
    try:
        sm = job.key.sm if job.key.gpu else min(job.asked.sm)
        why = broken_rules(trial.model, job.library.rules, sm)
        return read_fusion(trial.inspected, trial.model, why=why).to_dict()
    except (ValueError, BackendError) as error:
        log.warning("the engine inspector's answer is not understood: %s", error)
        return None
