"""The runs of an accuracy check: every bundle on every runtime, and the FP32 baseline."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from vitdeploy import __version__
from vitdeploy.accuracy.compute import Source
from vitdeploy.bundle import REFERENCE, Bundle, TensorSpec
from vitdeploy.bundle.manifest import ONNX
from vitdeploy.bundle.sbom import SBOM
from vitdeploy.errors import BackendError, GateError, UsageError, VitDeployError
from vitdeploy.machine.settings import machine_settings, usable_cores
from vitdeploy.proof.parity import compare_outputs
from vitdeploy.proof.prove import run_batches, selections_of
from vitdeploy.runtime.backends import backends, find_backend, full_name
from vitdeploy.runtime.session import Session, load

log = logging.getLogger(__name__)

ALL = "all"
# The runtime of the baseline: PyTorch in FP32.
REFERENCE_RUNTIME = "torch"

# Keys of `Session.describe` that do not affect the outputs.
_NOT_IDENTITY = ("bundle", "reason", "num_requests")
# Files of a bundle that do not affect them.
_NO_PART = (REFERENCE, SBOM)


@dataclass(frozen=True)
class Run:
    """A bundle, loaded by a runtime. `facts` are the session's own, see `Session.describe`."""

    bundle: Bundle
    session: Session
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The run in words; for PyTorch, which runs the network and not the bundle, with the name of the model."""
        backend = self.facts["backend"]
        return f"{self.bundle.manifest.model.name if self.is_reference else self.bundle.path.name} on {backend}"

    @property
    def is_reference(self) -> bool:
        """Whether it computes the PyTorch network and not the bundle."""
        return find_backend(str(self.facts["backend"])).reference

    @property
    def source(self) -> Source:
        """The session with everything that its outputs depend on: decoder, files, runtime and machine."""
        manifest = self.bundle.manifest
        machine = machine_settings()
        return Source(
            self.session,
            {
                # PyTorch does not read the files: it rebuilds the network from the record.
                "model": asdict(manifest.model) if self.is_reference else files_of(self.bundle),
                "preprocessing": None if manifest.preprocessing is None else asdict(manifest.preprocessing),
                "tools": {"vitdeploy": __version__, "pillow": PIL.__version__},
                "runtime": {key: value for key, value in self.facts.items() if key not in _NOT_IDENTITY},
                "machine": {key: machine.get(key) for key in ("processor", "gpus", "driver")},
            },
        )


def files_of(bundle: Bundle) -> dict[str, str]:
    """Hashes of the files that outputs depend on, by name."""
    return {name: record.sha256 for name, record in bundle.manifest.files.items() if name not in _NO_PART}


def open_runs(
    bundles: Sequence[Bundle], runtimes: Sequence[str], options: Mapping[str, Any], closing: ExitStack
) -> tuple[list[Run], list[dict[str, str]]]:
    """Every bundle on every runtime, and those of `all` runtimes that cannot run a bundle, each with the reason.

    Raises the errors of `load` for a runtime that was given by name, and BackendError where none of `all` can run.
    """
    runs: list[Run] = []
    skipped: list[dict[str, str]] = []
    for bundle in bundles:
        for name in _names(bundle, runtimes, options):
            try:
                runs.append(_open(bundle, name, options, closing))
            except VitDeployError as error:
                if name in runtimes or ALL not in runtimes:
                    raise
                log.info("leaving %s out: %s", name, error.what)
                skipped.append({"bundle": str(bundle.path), "runtime": name, "reason": error.what})
    if not runs:
        reasons = "; ".join(f"{skip['runtime']}: {skip['reason']}" for skip in skipped)
        raise BackendError("no runtime of this machine can run the bundle", why=reasons, fix="vitdeploy doctor")
    return runs, skipped


def open_baseline(
    bundles: Sequence[Bundle],
    baseline: Bundle | None,
    runtime: str,
    checkpoint: str | Path | None,
    options: Mapping[str, Any],
    closing: ExitStack,
) -> Run:
    """The FP32 baseline: PyTorch, or an FP32 bundle of the same network on `runtime`.

    This is `baseline` where it is given; else PyTorch, where it is installed and the weights are available; else the
    first FP32 bundle of `bundles`. Raises UsageError where there is none of these, or where `baseline` is not FP32 or
    of another network, and GateError where PyTorch does not reproduce the reference outputs in the bundle.
    """
    exact = {name: value for name, value in options.items() if name != "compute_precision"}
    if "build" in exact:
        exact["build"] = _plain(exact["build"])
    if baseline is not None:
        if baseline.manifest.precision != "fp32":
            raise UsageError(
                f"{baseline.path} cannot be the baseline",
                why=f"it is {baseline.manifest.precision}, and its own error would hide that of the others",
                fix="--baseline with the FP32 export of the same network",
            )
        check_same_network([*bundles, baseline])
        return _open(baseline, runtime, exact, closing)
    try:
        return _open_torch(bundles[0], checkpoint, closing)
    except (BackendError, UsageError) as error:
        if checkpoint is not None:
            raise
        twin = next((bundle for bundle in bundles if bundle.manifest.precision == "fp32"), None)
        if twin is None:
            raise UsageError(
                "there is no FP32 baseline to compare with",
                why=f"PyTorch cannot be used: {error.what}{f' ({error.why})' if error.why else ''}",
                fix="--baseline with the FP32 export of the same network"
                + ("" if bundles[0].manifest.model.weights.kind == ONNX else ", or --checkpoint with its weights"),
            ) from error
        log.info("PyTorch cannot be the baseline: %s; using %s", error.what, twin.path)
        return _open(twin, runtime, exact, closing)


def _plain(build: Any) -> Any:
    """Options of an engine for the same calls, without those that change what it computes."""
    from vitdeploy.tensorrt.options import BuildOptions

    plain = {"tf32": False, "optimization_level": None, "int8_if_faster": False, "max_builds": None}
    return replace(BuildOptions.of(build), **plain)  # type: ignore[arg-type]


def check_same_network(bundles: Sequence[Bundle]) -> None:
    """UsageError unless all bundles carry the same network with the same weights and the same classes."""
    first = bundles[0]
    for other in bundles[1:]:
        why = _difference(first, other)
        if why is not None:
            raise UsageError(
                f"{other.path} and {first.path} are not the same network",
                why=why,
                fix="give the bundles of each network alone",
            )


def _difference(one: Bundle, other: Bundle) -> str | None:
    left, right = one.manifest, other.manifest
    if left.model != right.model:
        names = [
            f"{record.name} with {record.weights.kind} {record.weights.detail}" for record in (left.model, right.model)
        ]
        return f"{names[1]} against {names[0]}" if names[0] != names[1] else "size, classes or weights differ"
    if left.labels and right.labels and left.labels != right.labels:
        return "their class names differ"
    # The weights of a live module have no hash, so the reference outputs for the same images are compared.
    mine, theirs = one.reference(), other.reference()
    if all(np.array_equal(array, theirs.inputs.get(name, np.empty(0))) for name, array in mine.inputs.items()):
        selections = selections_of(one.manifest)
        report = compare_outputs(
            mine.outputs, theirs.outputs, runtime="the other", precision="fp32", selections=selections
        )
        if not report.passed:
            return "PyTorch gave other outputs when they were exported"
    return None


def _names(bundle: Bundle, runtimes: Sequence[str], options: Mapping[str, Any]) -> Iterator[str]:
    names: list[str] = []
    for runtime in runtimes:
        if runtime == ALL:
            names += [backend.name for backend in backends() if not backend.reference]
        elif runtime == "auto":
            with load(bundle, **options) as session:
                names.append(session.backend.name)
        else:
            names.append(full_name(runtime))
    return iter(dict.fromkeys(names))


def _open(bundle: Bundle, runtime: str, options: Mapping[str, Any], closing: ExitStack) -> Run:
    log.info("loading %s on %s …", bundle.path, runtime)
    backend = find_backend(runtime)
    if backend.reference:
        return _open_torch(bundle, None, closing)
    chosen = any(options.get(name) is not None for name in ("threads", "num_requests", "device"))
    spread = {} if chosen else backend.throughput_options(usable_cores())
    session = closing.enter_context(load(bundle, runtime=runtime, **{**spread, **options}))
    return Run(bundle, session, session.describe())


def _open_torch(bundle: Bundle, checkpoint: str | Path | None, closing: ExitStack) -> Run:
    """PyTorch with a dynamic batch, after checking that it reproduces the reference outputs of the bundle."""
    any_batch = copy.copy(bundle)
    manifest = bundle.manifest
    any_batch.manifest = replace(
        manifest, inputs=tuple(map(_dynamic, manifest.inputs)), outputs=tuple(map(_dynamic, manifest.outputs))
    )
    log.info("loading %s on %s …", bundle.path, REFERENCE_RUNTIME)
    session = closing.enter_context(load(any_batch, runtime=REFERENCE_RUNTIME, checkpoint=checkpoint))
    reference = bundle.reference()
    outputs = run_batches(session.backend, any_batch.manifest, reference.inputs)
    report = compare_outputs(
        reference.outputs,
        outputs,
        runtime=REFERENCE_RUNTIME,
        precision="fp32",
        selections=selections_of(bundle.manifest),
    )
    if not report.passed:
        raise GateError(
            f"PyTorch does not reproduce the reference outputs of {bundle.path}",
            why=report.failures[0],
            fix="export the bundle again with this version of vitdeploy, or give --baseline with an FP32 bundle",
        )
    return Run(bundle, session, session.describe())


def _dynamic(spec: TensorSpec) -> TensorSpec:
    return replace(spec, shape=("batch", *spec.shape[1:]))
