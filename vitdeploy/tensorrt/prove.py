"""An engine that is proven: built, held against the bundle's reference on this device, repaired where that is allowed.

Every outcome leaves a receipt beside the engine: what was tried, what held, what fused, and where it goes wrong if it
does. A failing engine is not kept.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vitdeploy.bundle import MODEL, Bundle
from vitdeploy.errors import BackendError, GateError, UsageError
from vitdeploy.runtime.backends import Options
from vitdeploy.runtime.session import Session
from vitdeploy.runtime.verify import VerifyReport, verify_session
from vitdeploy.tensorrt.backend import TensorRtBackend, build_and_keep, engine_key
from vitdeploy.tensorrt.build import version_of
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
    remedies: tuple[str, ...] | str | None = None,
    timing_cache: str | Path | None = None,
    cache: str | Path | None = None,
    log_file: str | Path | None = None,
    rebuild: bool = False,
) -> BuildReport:
    """Builds the bundle's TensorRT engine for this device and proves it against the reference outputs.

    workspace     bytes of scratch memory, or `2G`, `512M`
    profile       images a call where the batch is free: least, tuned for, most
    dla           core of the deep learning accelerator, the rest on the GPU
    tf32          FP32 products with the mantissa of TF32; the bounds of the bundle's precision stay
    remedies      what may be tried where the outputs are not right: `auto`, `none`, or some of `defuse`, `fp32`, `bf16`
    timing_cache  file of kernel timings, read and brought up to date
    cache         folder of the engines; it must be trusted like a program
    log_file      another place for what the builder says
    rebuild       builds even where there is a proven engine

    Raises BundleError, UsageError, and BackendError where TensorRT is missing or does not build the model. Outputs
    that no engine reproduces are no exception but `passed` of the report.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    opened.check_files()
    given = {"workspace": workspace, "profile": profile, "dla": dla, "tf32": tf32, "remedies": remedies}
    asked = BuildOptions.of({**given, "timing_cache": timing_cache})
    batch = opened.manifest.inputs[0].shape[0]
    if profile is not None and isinstance(batch, int):
        raise UsageError(
            f"{opened.path} takes no profile",
            why=f"it was exported for batches of exactly {batch}",
            fix="vitdeploy export --batch dynamic, or leave --profile out",
        )
    options = Options(cache=cache, build=asked)
    TensorRtBackend.require()
    place = _Place(opened, options, asked)
    try:
        report, backend = _prove(place, rebuild=rebuild)
    finally:
        said = place.cache.log_file(place.key)
        if log_file is not None and said.exists():
            keep(Path(log_file), said.read_bytes())
    if backend is not None:
        backend.close()
    return report


def obtain(bundle: Bundle, options: Options) -> TensorRtBackend:
    """The proven engine of a bundle, loaded; built first where there is none. GateError where none can be proven."""
    asked = BuildOptions.of(options.build)
    if options.build is None:
        cache = EngineCache(options.cache)
        latest = cache.latest_options(engine_key(bundle.read(MODEL), asked))
        asked = BuildOptions.of(latest) if latest else asked
    report, backend = _prove(_Place(bundle, options, asked))
    if backend is None:
        raise GateError(
            f"no engine reproduces the reference of {bundle.path}",
            why="; ".join(report.failures) or None,
            fix=f"vitdeploy build {bundle.path}, which shows what was tried; the receipt is {report.receipt}",
        )
    return backend


class _Place:
    """What stays the same for one bundle on this device: where the engine goes, and under which key."""

    def __init__(self, bundle: Bundle, options: Options, asked: BuildOptions) -> None:
        self.bundle, self.options, self.asked = bundle, options, asked
        self.cache = EngineCache(options.cache)
        self.model = bundle.read(MODEL)
        self.key: EngineKey = engine_key(self.model, asked)
        self.timing = asked.timing_cache or self.cache.timing_file(self.key)


class _Trial(NamedTuple):
    """An engine that was built from `model` and held against the reference."""

    model: bytes
    engine: bytes
    backend: TensorRtBackend
    report: VerifyReport
    seconds: float
    dla: Mapping[str, Mapping[str, int]]


def _prove(place: _Place, *, rebuild: bool = False) -> tuple[BuildReport, TensorRtBackend | None]:
    """The report, and the loaded engine where one reproduces the reference."""
    cache, key = place.cache, place.key
    kept = None if rebuild else cache.find(key, verified=True)
    receipt = cache.read_receipt(key)
    if kept is not None and receipt is not None:
        try:
            backend = TensorRtBackend(kept, place.options, place.asked, str(receipt.get("remedy") or ""))
            return BuildReport(receipt, cached=True), backend
        except EngineError:
            log.warning("the engine kept in %s does not load any more", cache.folder)
    cache.forget(key)
    attempts: list[dict[str, Any]] = []
    found: dict[str, Any] = {"diverges": None, "diagnosis": ""}
    remedy, trial = AS_IT_IS, _try(place, place.model, AS_IT_IS, attempts)
    if not trial.report.passed:
        remedy, trial = _repair(place, trial, attempts, found)
    passed = trial.report.passed
    contents: dict[str, Any] = {
        **_facts(place),
        "passed": passed,
        "remedy": None if remedy == AS_IT_IS or not passed else remedy,
        "attempts": attempts,
        **found,
        "fusion": _fusion(place, trial) if passed else None,
        "dla": dict(trial.dla),
        "parity": trial.report.parity.to_dict(),
        "failures": list(trial.report.failures),
    }
    if passed:
        contents["engine"] = str(cache.store(key, trial.engine, seconds=trial.seconds, verified=True))
    else:
        trial.backend.close()
        cache.forget(key)
    cache.write_receipt(key, contents)
    return BuildReport(contents, cached=False), trial.backend if passed else None


def _try(place: _Place, model: bytes, remedy: str, attempts: list[dict[str, Any]], what: str = "") -> _Trial:
    """Builds, loads and verifies; the attempt is noted."""
    start = time.perf_counter()
    engine, dla = build_and_keep(model, place.key, place.cache, place.asked)
    seconds = time.perf_counter() - start
    backend = TensorRtBackend(engine, place.options, place.asked, "" if remedy == AS_IT_IS else remedy)
    report = verify_session(Session(place.bundle, backend, reason="it was asked for"))
    attempts.append(
        {
            "remedy": remedy,
            "what": what,
            "passed": report.passed,
            "failures": list(report.failures),
            "build_seconds": round(seconds, 1),
        }
    )
    return _Trial(model, engine, backend, report, seconds, dla)


def _repair(place: _Place, failed: _Trial, attempts: list[dict[str, Any]], found: dict[str, Any]) -> tuple[str, _Trial]:
    """Names the block that diverges first, and tries the remedies that are allowed until one holds."""
    log.warning("the engine does not reproduce the reference: %s", "; ".join(failed.report.failures))
    missing = [name for module, name in DIAGNOSIS_PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        found["diagnosis"] = f"to name the block and to repair it: pip install {' '.join(missing)}"
        return AS_IT_IS, failed
    from vitdeploy.tensorrt.diagnosis import diagnose
    from vitdeploy.tensorrt.workarounds import REMEDIES

    divergence, found["diagnosis"] = diagnose(place.bundle, place.model, place.options, place.asked, place.timing)
    found["diverges"] = divergence.to_dict() if divergence else None
    for remedy in REMEDIES:
        if remedy.name not in place.asked.remedies:
            continue
        model, why_not = None, remedy.obstacle(version_of(place.key.tensorrt), place.key.sm)
        if why_not is None:
            model = remedy.apply(place.model, divergence.block if divergence else None)
            why_not = None if model is not None else "there is nothing for it to change"
        if model is None:
            attempts.append({"remedy": remedy.name, "what": remedy.what, "skipped": why_not})
            continue
        log.warning("trying: %s", remedy.what)
        try:
            trial = _try(place, model, remedy.name, attempts, remedy.what)
        except BackendError as error:
            attempts.append({"remedy": remedy.name, "what": remedy.what, "passed": False, "failures": error.lines()})
            continue
        if trial.report.passed:
            failed.backend.close()
            return remedy.name, trial
        trial.backend.close()
    return AS_IT_IS, failed


def _facts(place: _Place) -> dict[str, Any]:
    manifest = place.bundle.manifest
    return {
        "bundle": str(place.bundle.path),
        "model": manifest.model.name,
        "precision": manifest.precision,
        "tensorrt": place.key.tensorrt,
        "device": place.key.gpu,
        "sm": place.key.sm,
        "options": place.asked.identity(),
        "engine": None,
        "log": str(place.cache.log_file(place.key)),
        "receipt": str(place.cache.receipt_file(place.key)),
    }


def _fusion(place: _Place, trial: _Trial) -> dict[str, Any] | None:
    """The fusion receipt; None, with a warning, where the inspector's words are not understood."""
    from vitdeploy.tensorrt.fusion import broken_rules, read_receipt

    try:
        why = broken_rules(trial.model, version_of(place.key.tensorrt), place.key.sm)
        return read_receipt(trial.backend.inspect(), trial.model, why=why).to_dict()
    except (ValueError, BackendError) as error:
        log.warning("the engine inspector's answer is not understood: %s", error)
        return None
