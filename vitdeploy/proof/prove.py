"""Does a loaded model give the numbers that its bundle carries? Asked of anything that runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitdeploy.bundle import Bundle, Manifest, Reference, TensorSpec
from vitdeploy.bundle.contradictions import differences
from vitdeploy.bundle.manifest import PYTORCH, damaged
from vitdeploy.errors import BundleError
from vitdeploy.junit import Case
from vitdeploy.machine.hardware import read_cpu
from vitdeploy.progress import each
from vitdeploy.proof.parity import BOUNDS, Bounds, ParityReport, compare_outputs
from vitdeploy.proof.recorded import Measured, measure, natural_images, pick, pooled_db, record_failures

Array = NDArray[Any]

# Two runtimes that round INT8 differently were never further apart than 1.5 dB on eight images; one that computes
# a pattern wrongly is 10 dB or more away.
INT8_MARGIN_DB = 4.0

# At 20 dB the error is a tenth of the signal; the trained networks of the zoo keep 35 dB or more (docs/int8.md).
INT8_FLOOR_DB = 20.0

# No ratio of two numbers in float64 is further from 1.
LARGEST_DB = 6500.0


class Runner(Protocol):
    """What a proof needs of a loaded model; every backend is one."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def name(self) -> str:
        """Of the runtime."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name."""

    def describe(self) -> dict[str, Any]:
        """Backend, version, device, precision and threads, as JSON values."""


@dataclass(frozen=True)
class VerifyReport:
    """What a proof found; `str()` is a table.

    Attributes:
        runtime: What ran, see `describe_run`.
        files: How many files the manifest lists.
        signature_failures: Where the runtime's inputs and outputs are not the manifest's, in words.
        parity: The outputs against the reference.
        measured: What each image keeps, see `recorded.measure`.
        record_failures: Where that is less than what the bundle recorded at its export, in words.
        signed: Whether a signature is in the bundle.
        signed_by: Fingerprint of the public key that the signature was checked with; None where none was.
    """

    runtime: Mapping[str, Any]
    files: int
    signature_failures: tuple[str, ...]
    parity: ParityReport
    measured: Measured = field(default_factory=dict)
    record_failures: tuple[str, ...] = ()
    signed: bool = False
    signed_by: str | None = None

    @property
    def failures(self) -> tuple[str, ...]:
        """Everything that does not hold, in words."""
        return self.signature_failures + self.parity.failures + self.record_failures

    @property
    def passed(self) -> bool:
        """Whether everything holds."""
        return not self.failures

    def cases(self) -> list[Case]:
        """The gates that the bundle had to pass, for a report of tests."""
        subject = f"{Path(self.runtime['bundle']).name} on {self.runtime['backend']}"
        gates = {
            "has the inputs and outputs of its manifest": self.signature_failures,
            f"gives the outputs of {self.parity.against}": self.parity.failures,
            "gives what it gave at its export": self.record_failures,
        }
        return [Case(subject, gate, "\n".join(failures) or None) for gate, failures in gates.items()]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "passed": self.passed,
            "runtime": dict(self.runtime),
            "files": self.files,
            "signed": self.signed,
            "signed_by": self.signed_by,
            "signature_failures": list(self.signature_failures),
            "record_failures": list(self.record_failures),
            "parity": self.parity.to_dict(),
        }

    def __str__(self) -> str:
        ran = self.runtime
        computed = f"{ran['backend']} {ran['version']} on {ran['device']}, {ran['compute_precision']}"
        return "\n".join(
            [
                f"{ran['bundle']}: {ran['model']}, {self.files} files unchanged",
                *self._signature(),
                f"{computed}, threads: {ran['threads']}",
                *([f"chosen because {ran['reason']}"] if "reason" in ran else []),
                *([proven_against(self.parity.against)] if self.parity.against != PYTORCH else []),
                *self.signature_failures,
                str(self.parity),
                *self.record_failures,
                "passed" if self.passed else "FAILED",
            ]
        )

    def _signature(self) -> list[str]:
        if self.signed_by is not None:
            return [f"signed by the key {self.signed_by}"]
        return ["signed, which was not checked: --key PUBLIC.pem"] if self.signed else []


def proven_against(original: str) -> str:
    """What to say of a bundle that PyTorch never saw."""
    return f"proven against {original}, not against PyTorch"


def prove(bundle: Bundle, runner: Runner) -> VerifyReport:
    """Hold the signature and the outputs of a loaded model against what the bundle carries.

    Raises BundleError for a bundle that contradicts itself: its manifest against its graph, its reference or its
    preprocessing. Raises BackendError where the model fails while it runs. Numbers and signatures that do not hold are
    failures of the report.
    """
    bundle.check_graph()
    manifest, reference, bounds = bundle.manifest, bundle.reference(), bounds_of(bundle.manifest)
    _check_preprocessing(bundle, reference)
    found, judged = run_batches(runner, manifest, reference.inputs), _judged(manifest)
    parity = compare_outputs(
        pick(reference.outputs, judged),
        pick(found, judged),
        runtime=runner.name,
        precision=manifest.precision,
        bounds=bounds,
        selections=selections_of(manifest),
    )
    parity = replace(parity, against=manifest.against)
    ran, measured = describe_run(bundle, runner), measure(reference, found, selections_of(manifest))
    return VerifyReport(
        ran,
        len(manifest.files),
        tuple(signature_failures(manifest, runner)),
        parity,
        measured,
        (
            *_not_finite(found, parity),
            *_image_failures(manifest, bounds, measured),
            *record_failures(manifest, ran, measured),
        ),
        bundle.is_signed,
        bundle.signed_by,
    )


def selections_of(manifest: Manifest) -> tuple[str, ...]:
    """The outputs that the network declares to be sets of whole numbers."""
    names = manifest.graph.get("selections")
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _judged(manifest: Manifest) -> NDArray[np.bool_] | None:
    """The images that the bounds are for; None for all. INT8 keeps little of those that are unlike the calibrated."""
    kinds = manifest.reference.get("images")
    if manifest.precision != "int8" or not isinstance(kinds, list):
        return None
    natural = natural_images(kinds)
    return natural if natural.any() else None


def _image_failures(manifest: Manifest, bounds: Bounds, measured: Measured) -> list[str]:
    """Where FP16 misses its bound once every image counts the same, so that none of a large signal hides others."""
    least = bounds.min_snr_db
    if manifest.precision != "fp16" or least is None:
        return []
    floats = {spec.name for spec in manifest.outputs if spec.dtype.startswith("float")}
    ratios = {name: pooled_db(images) for name, images in measured["torch"].items() if name in floats}
    return [
        f"{name}: {ratio:.1f} dB where every image counts the same, the bound is {least:g} dB"
        for name, ratio in ratios.items()
        if not ratio >= least
    ]


def _not_finite(found: Mapping[str, Array], parity: ParityReport) -> list[str]:
    """The outputs that are NaN or Inf on images that the bounds are not for."""
    told = {output.name for output in parity.outputs if not output.finite}
    return [
        f"{name}: {np.count_nonzero(~np.isfinite(array))} of {array.size} values are NaN or Inf"
        for name, array in found.items()
        if name not in told and array.dtype.kind == "f" and not np.isfinite(array).all()
    ]


def signature_failures(manifest: Manifest, runner: Runner) -> list[str]:
    """Where the inputs and outputs of a loaded model are not the manifest's, in words."""
    return [
        *differences("input", manifest.inputs, runner.inputs),
        *differences("output", manifest.outputs, runner.outputs),
    ]


def describe_run(bundle: Bundle, runner: Runner) -> dict[str, Any]:
    """What runs where, as JSON values: bundle, model, weights, and what the runtime says of itself."""
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.path),
        "model": manifest.model.name,
        "weights": manifest.model.weights.kind,
        "precision": manifest.precision,
        "processor": read_cpu().kind,
        **runner.describe(),
    }


def bounds_of(manifest: Manifest) -> Bounds:
    """What the outputs have to keep; INT8 as much as the file itself keeps by the standard's arithmetic.

    Rounding differs a little from runtime to runtime. One that is far below computes something else than the file says.
    Raises BundleError for a manifest of INT8 that does not say how much the file keeps, or says that it is next to
    nothing although nobody accepted that.
    """
    if manifest.precision not in BOUNDS:
        raise damaged(manifest.model.name, f"precision is {manifest.precision!r}, not {' or '.join(BOUNDS)}")
    if manifest.precision != "int8":
        return BOUNDS[manifest.precision]
    snr_db = _decibels(manifest.precision_report.get("reference_snr_db"))
    if snr_db is None:
        raise BundleError(
            f"nothing says what the INT8 bundle of {manifest.model.name} keeps of its network",
            why="precision_report.reference_snr_db in its manifest is no number of decibels",
            fix="export the bundle again",
        )
    if not snr_db >= INT8_FLOOR_DB and not manifest.precision_report.get("missed"):
        raise BundleError(
            f"the INT8 bundle of {manifest.model.name} has lost its network",
            why=f"it keeps {snr_db:.1f} dB of PyTorch's outputs, and below {INT8_FLOOR_DB:g} dB little is left of them",
            fix="export it again with other images for --calibration, with --fp16, or with --accept-loss",
        )
    return Bounds(min_snr_db=snr_db - INT8_MARGIN_DB)


def _decibels(value: Any) -> float | None:
    """A number of decibels from a manifest, where anything can stand; None for what is none."""
    return float(value) if type(value) in (int, float) and abs(value) <= LARGEST_DB else None


def _check_preprocessing(bundle: Bundle, reference: Reference) -> None:
    sample = reference.preprocessing
    failure = sample.failure(bundle.manifest.recipe) if sample is not None else None
    if failure is not None:
        raise BundleError(
            f"the preprocessing of {bundle.path} is not the one that it was exported with",
            why=failure,
            fix="export the bundle again; `vitdeploy doctor` shows the versions that are installed here",
        )


def run_batches(runner: Runner, manifest: Manifest, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs for any number of samples; a model of fixed batch takes them a batch at a time."""
    batch = manifest.inputs[0].shape[0]
    if isinstance(batch, str):
        return runner.run(inputs)
    samples = len(next(iter(inputs.values())))
    parts = [
        runner.run({name: array[start : start + batch] for name, array in inputs.items()})
        for start in each("running the reference", range(0, samples, batch))
    ]
    return {name: np.concatenate([np.atleast_1d(part[name]) for part in parts]) for name in parts[0]}
