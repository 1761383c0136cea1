"""Does a loaded model give the numbers that its bundle carries? Asked of anything that runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitdeploy.bundle import Bundle, Manifest, TensorSpec
from vitdeploy.proof.parity import Bounds, ParityReport, compare_outputs, find_bounds

Array = NDArray[Any]

# Two runtimes that round INT8 differently were never further apart than 1.5 dB on eight images; one that computes
# a pattern wrongly is 10 dB or more away.
INT8_MARGIN_DB = 4.0


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

    runtime             what ran, see `describe_run`
    files               how many files the manifest lists
    signature_failures  where the runtime's inputs and outputs are not the manifest's, in words
    parity              the outputs against the reference
    """

    runtime: Mapping[str, Any]
    files: int
    signature_failures: tuple[str, ...]
    parity: ParityReport

    @property
    def failures(self) -> tuple[str, ...]:
        """Everything that does not hold, in words."""
        return self.signature_failures + self.parity.failures

    @property
    def passed(self) -> bool:
        """Whether everything holds."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "passed": self.passed,
            "runtime": dict(self.runtime),
            "files": self.files,
            "signature_failures": list(self.signature_failures),
            "parity": self.parity.to_dict(),
        }

    def __str__(self) -> str:
        ran = self.runtime
        computed = f"{ran['backend']} {ran['version']} on {ran['device']}, {ran['compute_precision']}"
        return "\n".join(
            [
                f"{ran['bundle']}: {ran['model']}, {self.files} files unchanged",
                f"{computed}, threads: {ran['threads']}",
                *([f"chosen because {ran['reason']}"] if "reason" in ran else []),
                *self.signature_failures,
                str(self.parity),
                "passed" if self.passed else "FAILED",
            ]
        )


def prove(bundle: Bundle, runner: Runner) -> VerifyReport:
    """Hold the signature and the outputs of a loaded model against what the bundle carries.

    Raises BundleError for a reference that cannot be read, and BackendError where the model fails while it runs.
    Numbers and signatures that do not hold are failures of the report.
    """
    manifest, reference = bundle.manifest, bundle.reference()
    signature_failures = (
        *_differences("input", manifest.inputs, runner.inputs),
        *_differences("output", manifest.outputs, runner.outputs),
    )
    parity = compare_outputs(
        reference.outputs,
        run_batches(runner, manifest, reference.inputs),
        runtime=runner.name,
        precision=manifest.precision,
        bounds=bounds_of(manifest),
    )
    return VerifyReport(describe_run(bundle, runner), len(manifest.files), signature_failures, parity)


def describe_run(bundle: Bundle, runner: Runner) -> dict[str, Any]:
    """What runs where, as JSON values: bundle, model, weights, and what the runtime says of itself."""
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.path),
        "model": manifest.model.name,
        "weights": manifest.model.weights.kind,
        "precision": manifest.precision,
        **runner.describe(),
    }


def bounds_of(manifest: Manifest) -> Bounds:
    """What the outputs have to keep; INT8 as much as the file itself keeps by the standard's arithmetic.

    Rounding differs a little from runtime to runtime. One that is far below computes something else than the file says.
    """
    snr_db = manifest.precision_report.get("reference_snr_db")
    if manifest.precision == "int8" and snr_db is not None:
        return Bounds(min_snr_db=snr_db - INT8_MARGIN_DB)
    return find_bounds(manifest.precision)


def run_batches(runner: Runner, manifest: Manifest, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs for any number of samples; a model of fixed batch takes them a batch at a time."""
    batch = manifest.inputs[0].shape[0]
    if isinstance(batch, str):
        return runner.run(inputs)
    samples = len(next(iter(inputs.values())))
    parts = [
        runner.run({name: array[start : start + batch] for name, array in inputs.items()})
        for start in range(0, samples, batch)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _differences(side: str, expected: tuple[TensorSpec, ...], found: tuple[TensorSpec, ...]) -> list[str]:
    """Where the runtime's signature is not the manifest's; names of dynamic axes do not count, runtimes drop them."""
    by_name = {spec.name: spec for spec in found}
    failures = [f"{side} {name} is not in the manifest" for name in by_name.keys() - {spec.name for spec in expected}]
    for spec in expected:
        other = by_name.get(spec.name)
        if other is None:
            failures.append(f"the model has no {side} {spec.name}")
        elif (other.dtype, _lengths(other)) != (spec.dtype, _lengths(spec)):
            failures.append(f"{side} {other} should be {spec}")
    return failures


def _lengths(spec: TensorSpec) -> list[int | None]:
    return [axis if isinstance(axis, int) else None for axis in spec.shape]
