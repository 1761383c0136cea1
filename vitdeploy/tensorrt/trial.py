"""One attempt at an engine: built from a model, and held against the bundle's reference where a device can run it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from vitdeploy.bundle import MODEL, REFERENCE, Bundle
from vitdeploy.errors import BackendError
from vitdeploy.proof.prove import VerifyReport, prove
from vitdeploy.runtime.options import Options
from vitdeploy.tensorrt.backend import EngineBackend
from vitdeploy.tensorrt.build import BuildError, Built
from vitdeploy.tensorrt.cache import EngineCache, EngineKey
from vitdeploy.tensorrt.options import BuildOptions

log = logging.getLogger(__name__)

AS_IT_IS = "as it is"


class Job:
    """What stays the same while one bundle's engine is made here.

    `unusable` says why this machine cannot run the engine, and so cannot prove it; None where it can.
    """

    def __init__(self, kind: type[EngineBackend], bundle: Bundle, options: Options, asked: BuildOptions) -> None:
        self.kind, self.bundle, self.options, self.asked = kind, bundle, options, asked
        self.unusable = _unusable(kind)
        self.device = None if self.unusable else kind.device(kind.gpu())
        self.library = kind.library_type()
        self.cache = EngineCache(options.cache)
        self.model = bundle.read(MODEL)
        self.reference = bundle.manifest.files[REFERENCE].sha256
        self.key: EngineKey = kind.key(self.model, asked)
        self.timing = asked.timing_cache or self.cache.timing_file(self.key)
        self.attempts: list[dict[str, Any]] = []

    def facts(self) -> dict[str, Any]:
        """What the report says whatever the outcome is."""
        manifest, gpu = self.bundle.manifest, None if self.unusable else self.kind.gpu()
        return {
            "bundle": str(self.bundle.path),
            "model": manifest.model.name,
            "precision": manifest.precision,
            "runtime": self.kind.name,
            "product": self.library.product,
            "tensorrt": self.library.version,
            "device": gpu.name if gpu else None,
            "sm": gpu.sm if gpu else None,
            "uuid": (gpu.uuid or None) if gpu else None,
            "options": self.asked.identity(),
        }


def _unusable(kind: type[EngineBackend]) -> str | None:
    try:
        kind.require()
    except BackendError as error:
        return error.what
    return None


class Trial(NamedTuple):
    """An engine that was built from `model` and held against the reference; `workaround` is empty as it is.

    `proof` is None where no device here can run it.
    """

    workaround: str
    model: bytes
    engine: bytes
    proof: VerifyReport | None
    inspected: str
    seconds: float
    dla: Mapping[str, Mapping[str, int]]

    @property
    def passed(self) -> bool | None:
        """Whether it holds; None where that is not known."""
        return None if self.proof is None else self.proof.passed

    @property
    def failures(self) -> tuple[str, ...]:
        """What does not hold, in words."""
        return self.proof.failures if self.proof else ()


def try_model(job: Job, model: bytes, workaround: str, what: str = "") -> Trial:
    """Build, load and prove an engine of `model`; the attempt is noted, the builder's log kept."""
    where = job.key.gpu or f"compute capability {', '.join(map(str, job.asked.sm))}"
    log.info("building the engine for %s with %s %s …", where, job.library.product, job.library.version)
    start = time.perf_counter()
    try:
        built = job.kind.build_engine(model, job.asked, job.timing)
    except BuildError as error:
        log.error("the builder's log is in %s", job.cache.write_log(job.key, error.log))
        raise
    seconds = time.perf_counter() - start
    job.cache.write_log(job.key, built.log)
    proof, inspected = (None, built.layers) if job.unusable else _held(job, built, workaround)
    placed = {"on_dla": built.on_dla, "off_dla": built.off_dla}
    trial = Trial(workaround, model, built.engine, proof, inspected, seconds, placed)
    job.attempts.append(
        {
            "workaround": workaround or AS_IT_IS,
            "what": what,
            "passed": trial.passed,
            "failures": list(trial.failures),
            "build_seconds": round(seconds, 1),
        }
    )
    return trial


def _held(job: Job, built: Built, workaround: str) -> tuple[VerifyReport, str]:
    """The proof of an engine on this device, and where it holds what the engine consists of."""
    backend = job.kind(built.engine, job.options, job.asked, workaround)
    try:
        proof = prove(job.bundle, backend)
        return proof, (built.layers or _inspect(backend)) if proof.passed else ""
    finally:
        backend.close()


def _inspect(backend: EngineBackend) -> str:
    """The inspector's JSON; empty where it cannot be had, which spoils no engine."""
    try:
        return backend.inspect()
    except BackendError as error:
        log.warning("the engine cannot be inspected: %s", error.what)
        return ""
