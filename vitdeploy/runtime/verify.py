"""Does this bundle still give PyTorch's numbers, here and with this runtime?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.bundle import Bundle, Manifest, TensorSpec
from vitdeploy.proof.parity import Bounds, ParityReport, compare_outputs, find_bounds
from vitdeploy.runtime.auto import attempts
from vitdeploy.runtime.backends import Options
from vitdeploy.runtime.session import Session, load

Array = NDArray[Any]

# Two runtimes that round INT8 differently were never further apart than 1.5 dB on eight images; one that computes
# a pattern wrongly is 10 dB or more away.
INT8_MARGIN_DB = 4.0


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found; `str()` is a table.

    runtime             what ran, see `Session.describe`
    files               how many files carry the manifest's hash
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
        return "\n".join(
            [
                f"{ran['bundle']}: {ran['model']}, {self.files} files unchanged",
                f"{ran['backend']} {ran['version']} on {ran['device']}, {ran['precision']}, threads: {ran['threads']}",
                *self.signature_failures,
                str(self.parity),
                "passed" if self.passed else "FAILED",
            ]
        )


def verify(bundle: Bundle | str | Path, *, runtime: str = "auto", **options: Any) -> VerifyReport:
    """Re-checks a bundle on this machine, without PyTorch: hashes, signature, and outputs on the reference inputs.

    `options` are those of `load`: threads, num_requests, precision, device, cache, checkpoint.

    Raises BundleError for files that are missing or altered and what `load` raises; numbers and signatures that do not
    hold are failures of the report.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    opened.check_files()
    if runtime == "auto":
        return _verify_fastest(opened, Options(**options))
    with load(opened, runtime=runtime, **options) as session:
        return verify_session(session)


def _verify_fastest(bundle: Bundle, options: Options) -> VerifyReport:
    """The report of the runtime that `auto` takes; where none holds, of the fastest that loads the bundle."""
    reports = []
    for session, report in attempts(bundle, options):
        session.close()
        if report.passed:
            return report
        reports.append(report)
    return reports[0]


def verify_session(session: Session) -> VerifyReport:
    """The part of `verify` that needs a loaded bundle: signature and outputs."""
    manifest = session.bundle.manifest
    reference = session.bundle.reference()
    signature_failures = (
        *_differences("input", manifest.inputs, session.backend.inputs),
        *_differences("output", manifest.outputs, session.backend.outputs),
    )
    outputs = reproduce(session, reference.inputs)
    parity = compare_outputs(
        reference.outputs,
        outputs,
        runtime=session.backend.name,
        precision=manifest.precision,
        bounds=bounds_of(manifest),
    )
    return VerifyReport(session.describe(), len(manifest.files), signature_failures, parity)


def bounds_of(manifest: Manifest) -> Bounds:
    """What the outputs have to keep; INT8 as much as the file itself keeps by the standard's arithmetic.

    Rounding differs a little from runtime to runtime. One that is far below computes something else than the file says.
    """
    snr_db = manifest.precision_report.get("reference_snr_db")
    if manifest.precision == "int8" and snr_db is not None:
        return Bounds(min_snr_db=snr_db - INT8_MARGIN_DB)
    return find_bounds(manifest.precision)


def reproduce(session: Session, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The session's outputs for any number of samples; a model of fixed batch takes them a batch at a time."""
    batch = session.bundle.manifest.inputs[0].shape[0]
    if isinstance(batch, str):
        return session.run(inputs)
    samples = len(next(iter(inputs.values())))
    parts = [
        session.run({name: array[start : start + batch] for name, array in inputs.items()})
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
