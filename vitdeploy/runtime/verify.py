"""Does this bundle still give PyTorch's numbers, here and with this runtime?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vitdeploy.argument_types import checked_arguments
from vitdeploy.bundle import Bundle
from vitdeploy.proof.prove import VerifyReport, prove
from vitdeploy.runtime.auto import attempts
from vitdeploy.runtime.backends import find_backend
from vitdeploy.runtime.isolated import open_backend
from vitdeploy.runtime.options import Options
from vitdeploy.signing.check import open_bundle


@checked_arguments
def verify(
    bundle: Bundle | str | Path,
    *,
    runtime: str = "auto",
    key: str | Path | None = None,
    threads: int | None = None,
    num_requests: int | None = None,
    compute_precision: str | None = None,
    device: str | None = None,
    cache: str | Path | None = None,
    checkpoint: str | Path | None = None,
    untrusted: bool | None = None,
) -> VerifyReport:
    """Re-check a bundle on this machine, without PyTorch: hashes, signature, and outputs on the reference inputs.

    Args:
        bundle: the bundle, or its folder.
        runtime: a name of `vitdeploy doctor`, or `auto`: the one that `vitdeploy.load` would take.
        key: PEM file of a public key. The bundle has to be signed by its private half, see `vitdeploy.sign`; this is
            checked before anything of it is parsed.
        threads: Threads of computation, see `vitdeploy.load`.
        num_requests: Calls that are computed at once, see `vitdeploy.load`.
        compute_precision: `fp32`, `bf16` or `fp16`, see `vitdeploy.load`.
        device: What computes, see `vitdeploy.load`.
        cache: Folder of compiled models, see `vitdeploy.load`.
        checkpoint: File with the weights, for the runtime `torch`.
        untrusted: Whether the bundle is a stranger's, see `vitdeploy.load`.

    Returns:
        The report; numbers and signatures that do not hold are failures of it.

    Raises:
        BundleError: files are missing or altered, or the bundle contradicts itself: its manifest the graph, its
            reference or what the recorded preprocessing gave when it was exported.
        GateError: with `key`: the bundle is not signed, or not by this key, or not as it was signed.
        UsageError: there is no such runtime, or it does not support an option that was given.
        BackendError: the runtime refuses the model, or has no engine for it.
    """
    opened = open_bundle(bundle, key)
    opened.check_files()
    opened.check_graph()
    options = Options(
        threads=threads,
        num_requests=num_requests,
        compute_precision=compute_precision,
        device=device,
        cache=cache,
        checkpoint=checkpoint,
        untrusted=untrusted,
    )
    if runtime == "auto":
        return _verify_fastest(opened, options)
    backend = open_backend(find_backend(runtime), opened, options)
    try:
        return prove(opened, backend)
    finally:
        backend.close()


def _verify_fastest(bundle: Bundle, options: Options) -> VerifyReport:
    """The report of the runtime that `auto` takes; where none holds, of the fastest that loads the bundle."""
    reports = []
    for attempt in attempts(bundle, options):
        attempt.backend.close()
        assert attempt.report is not None, "nothing is remembered"
        report = replace(attempt.report, runtime={**attempt.report.runtime, "reason": attempt.reason})
        if report.passed:
            return report
        reports.append(report)
    return reports[0]
