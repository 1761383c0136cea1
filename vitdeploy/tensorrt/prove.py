"""An engine that is proven: built, held against the bundle's reference on this device, repaired where that is allowed.

Every outcome leaves a report beside the engine: what was tried, what held, what fused, and where it goes wrong if it
does. An engine that fails is not kept, and takes the place of none that was proven before.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vitdeploy.bundle import MODEL, REFERENCE, Bundle
from vitdeploy.errors import BackendError, UsageError
from vitdeploy.machine.hardware import read_jetson
from vitdeploy.proof.prove import VerifyReport, prove
from vitdeploy.runtime.options import Options
from vitdeploy.tensorrt.backend import TensorRtBackend, engine_key
from vitdeploy.tensorrt.build import BuildError, version_of
from vitdeploy.tensorrt.build import build as build_engine
from vitdeploy.tensorrt.cache import EngineCache, EngineKey, keep
from vitdeploy.tensorrt.engine import EngineError
from vitdeploy.tensorrt.options import BuildOptions
from vitdeploy.tensorrt.report import BuildReport

log = logging.getLogger(__name__)

AS_IT_IS = "as it is"
DIAGNOSIS_PACKAGES = {"onnx": "onnx", "onnx_ir": "onnx-ir", "onnxruntime": "onnxruntime"}


def build(
    bundle: Bundle | str | Path,
    *,
    workspace: int | str | None = None,
    profile: tuple[int, int, int] | str | None = None,
    dla: int | None = None,
    tf32: bool = False,
    workarounds: tuple[str, ...] | str | None = None,
    timing_cache: str | Path | None = None,
    cache: str | Path | None = None,
    log_file: str | Path | None = None,
    rebuild: bool = False,
) -> BuildReport:
    """Build the bundle's TensorRT engine for this device and prove it against the reference outputs.

    Args:
        bundle: the bundle, or its folder.
        workspace: bytes of scratch memory, or `2G`, `512M`.
        profile: images a call where the batch is free: min, opt (what kernels are tuned for), max.
        dla: core of the deep learning accelerator, the rest on the GPU.
        tf32: FP32 products with the mantissa of TF32; the bounds of the bundle's precision stay.
        workarounds: what may be tried where the outputs are not right: `auto`, `none`, or some of `defuse`, `fp32`,
            `bf16`.
        timing_cache: file of kernel timings, read and brought up to date.
        cache: folder of the engines; it must be trusted like a program.
        log_file: another place for what the builder says.
        rebuild: build even where there is a proven engine.

    Returns:
        The report. Outputs that no engine reproduces are no exception, but `passed` is False.

    Raises:
        BundleError: the bundle is damaged or altered.
        UsageError: an option does not fit the bundle, the version or the device.
        BackendError: TensorRT is missing, or does not build the model.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    opened.check_files()
    given = {"workspace": workspace, "profile": profile, "dla": dla, "tf32": tf32, "workarounds": workarounds}
    asked = BuildOptions.of({**given, "timing_cache": timing_cache})
    batch = opened.manifest.inputs[0].shape[0]
    if profile is not None and isinstance(batch, int):
        raise UsageError(
            f"{opened.path} takes no profile",
            why=f"it was exported for batches of exactly {batch}",
            fix="vitdeploy export --batch dynamic, or leave --profile out",
        )
    TensorRtBackend.require()
    job = _Job(opened, Options(cache=cache, build=asked), asked)
    try:
        kept = None if rebuild else _kept(job)
        return _proven(job) if kept is None else kept
    finally:
        said = job.cache.log_file(job.key)
        if log_file is not None and said.exists():
            keep(Path(log_file), said.read_bytes())


class _Job:
    """What stays the same while one bundle's engine is made on this device."""

    def __init__(self, bundle: Bundle, options: Options, asked: BuildOptions) -> None:
        self.bundle, self.options, self.asked = bundle, options, asked
        self.cache = EngineCache(options.cache)
        self.model = bundle.read(MODEL)
        self.reference = bundle.manifest.files[REFERENCE].sha256
        self.key: EngineKey = engine_key(self.model, asked)
        self.timing = asked.timing_cache or self.cache.timing_file(self.key)
        self.attempts: list[dict[str, Any]] = []

    def facts(self) -> dict[str, Any]:
        """What the report says whatever the outcome is."""
        manifest = self.bundle.manifest
        return {
            "bundle": str(self.bundle.path),
            "model": manifest.model.name,
            "precision": manifest.precision,
            "tensorrt": self.key.tensorrt,
            "device": self.key.gpu,
            "sm": self.key.sm,
            "options": self.asked.identity(),
            "engine": None,
            "log": str(self.cache.log_file(self.key)),
            "report": str(self.cache.report_file(self.key)),
        }


class _Trial(NamedTuple):
    """An engine that was built from `model` and held against the reference; `workaround` is empty as it is."""

    workaround: str
    model: bytes
    engine: bytes
    proof: VerifyReport
    inspected: str
    seconds: float
    dla: Mapping[str, Mapping[str, int]]


def _kept(job: _Job) -> BuildReport | None:
    """The report of an engine that is there already and reproduces this bundle's reference; None without one."""
    engine, report = job.cache.find(job.key), job.cache.read_report(job.key)
    workaround = job.cache.workaround(job.key)
    if engine is None or report is None or (workaround and workaround not in job.asked.workarounds):
        return None
    try:
        backend = TensorRtBackend(engine, job.options, job.asked, workaround)
    except EngineError:
        log.warning("the engine kept in %s does not load any more", job.cache.folder)
        return None
    try:
        if job.cache.find(job.key, reference=job.reference) is None:
            proof = prove(job.bundle, backend)
            if not proof.passed:
                return None
            report = {**report, **job.facts(), "engine": report.get("engine"), "parity": proof.parity.to_dict()}
            job.cache.add_reference(job.key, job.reference)
            job.cache.write_report(job.key, report)
    finally:
        backend.close()
    return BuildReport(report, cached=True)


def _proven(job: _Job) -> BuildReport:
    """Build, prove and, where that is allowed and needed, repair; keep what holds, and the report in any case."""
    found: dict[str, Any] = {"diverges": None, "diagnosis": ""}
    trial = _try(job, job.model, "")
    if not trial.proof.passed:
        trial = _repair(job, trial, found)
    passed = trial.proof.passed
    contents: dict[str, Any] = {
        **job.facts(),
        "passed": passed,
        "workaround": trial.workaround or None,
        "attempts": job.attempts,
        **found,
        "fusion": _fusion(job, trial) if passed else None,
        "dla": dict(trial.dla),
        "parity": trial.proof.parity.to_dict(),
        "failures": list(trial.proof.failures),
    }
    if passed:
        stored = job.cache.store(
            job.key, trial.engine, reference=job.reference, workaround=trial.workaround, seconds=trial.seconds
        )
        contents["engine"] = str(stored)
    job.cache.write_report(job.key, contents)
    return BuildReport(contents, cached=False)


def _try(job: _Job, model: bytes, workaround: str, what: str = "") -> _Trial:
    """Build, load and prove an engine of `model`; the attempt is noted, the builder's log kept."""
    log.info("building the engine for %s with TensorRT %s, which takes minutes …", job.key.gpu, job.key.tensorrt)
    start, jetson = time.perf_counter(), read_jetson()
    try:
        built = build_engine(model, job.asked, timing=job.timing, board=jetson.model if jetson else None)
    except BuildError as error:
        log.error("the builder's log is in %s", job.cache.write_log(job.key, error.log))
        raise
    seconds = time.perf_counter() - start
    job.cache.write_log(job.key, built.log)
    backend = TensorRtBackend(built.engine, job.options, job.asked, workaround)
    try:
        proof = prove(job.bundle, backend)
        inspected = _inspect(backend) if proof.passed else ""
    finally:
        backend.close()
    job.attempts.append(
        {
            "workaround": workaround or AS_IT_IS,
            "what": what,
            "passed": proof.passed,
            "failures": list(proof.failures),
            "build_seconds": round(seconds, 1),
        }
    )
    placed = {"on_dla": built.on_dla, "off_dla": built.off_dla}
    return _Trial(workaround, model, built.engine, proof, inspected, seconds, placed)


def _inspect(backend: TensorRtBackend) -> str:
    """The inspector's JSON; empty where it cannot be had, which spoils no engine."""
    try:
        return backend.inspect()
    except BackendError as error:
        log.warning("the engine cannot be inspected: %s", error.what)
        return ""


def _repair(job: _Job, failed: _Trial, found: dict[str, Any]) -> _Trial:
    """Name the block that diverges first, and try the workarounds that are allowed until one holds."""
    log.warning("the engine does not reproduce the reference: %s", "; ".join(failed.proof.failures))
    missing = [name for module, name in DIAGNOSIS_PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        found["diagnosis"] = f"to name the block and to repair it: pip install {' '.join(missing)}"
        return failed
    from vitdeploy.tensorrt.diagnosis import diagnose
    from vitdeploy.tensorrt.workarounds import WORKAROUNDS

    divergence, found["diagnosis"] = diagnose(job.bundle, job.model, job.options, job.asked, job.timing)
    found["diverges"] = divergence.to_dict() if divergence else None
    for workaround in WORKAROUNDS:
        if workaround.name not in job.asked.workarounds:
            continue
        noted = {"workaround": workaround.name, "what": workaround.what}
        model, why_not = None, workaround.obstacle(version_of(job.key.tensorrt), job.key.sm)
        if why_not is None:
            model = workaround.apply(job.model, divergence.block if divergence else None)
            why_not = None if model is not None else "there is nothing for it to change"
        if model is None:
            job.attempts.append({**noted, "skipped": why_not})
            continue
        log.warning("trying: %s", workaround.what)
        try:
            trial = _try(job, model, workaround.name, workaround.what)
        except BackendError as error:
            job.attempts.append({**noted, "passed": False, "failures": error.lines()})
            continue
        if trial.proof.passed:
            return trial
    return failed


def _fusion(job: _Job, trial: _Trial) -> dict[str, Any] | None:
    """What fused; None, with a warning, where the inspector's words are not understood."""
    if not trial.inspected:
        return None
    try:
        from vitdeploy.tensorrt.fusion import broken_rules, read_fusion
    except ImportError as error:
        log.warning("what TensorRT fused is not read, since %s is missing: pip install onnx onnx-ir", error.name)
        return None
    try:
        why = broken_rules(trial.model, version_of(job.key.tensorrt), job.key.sm)
        return read_fusion(trial.inspected, trial.model, why=why).to_dict()
    except (ValueError, BackendError) as error:
        log.warning("the engine inspector's answer is not understood: %s", error)
        return None
