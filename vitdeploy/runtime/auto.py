"""The fastest runtime that is installed and gives PyTorch's numbers."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from typing import NamedTuple

from vitdeploy.bundle import Bundle
from vitdeploy.errors import BackendError, GateError, shell
from vitdeploy.proof.prove import VerifyReport, prove
from vitdeploy.runtime.backends import Backend, auto_order
from vitdeploy.runtime.isolated import open_backend
from vitdeploy.runtime.options import Options
from vitdeploy.runtime.remembered import proof_of

log = logging.getLogger(__name__)

# The order is that of `Backend.auto_rank`: TensorRT where there is a GPU, since it is the one made for it, then the
# CPU runtimes as measured on an AVX-512 EPYC, CPU time of one thread, LeMeViT-Tiny at 224: OpenVINO in FP32 takes
# 22.9 ms for the FP32 graph and 23.0 ms for the FP16 one, ONNX Runtime 25.4 and 29.7 ms.


class Attempt(NamedTuple):
    """A runtime that loaded the bundle, how it does on the reference, and why it is not one of the faster ones.

    report   None where it is remembered to reproduce the reference
    """

    backend: Backend
    report: VerifyReport | None
    reason: str


def load_fastest(bundle: Bundle, options: Options) -> Attempt:
    """The bundle in the first runtime that reproduces its reference, now or when it was asked before.

    Raises GateError where none does, and what `attempts` raises.
    """
    failed = []
    for attempt in attempts(bundle, options, remembering=True):
        if attempt.report is None or attempt.report.passed:
            return attempt
        attempt.backend.close()
        failed.append(f"{attempt.backend.name}: {attempt.report.failures[0]}")
    raise GateError(
        f"no runtime here reproduces PyTorch with {bundle.path}",
        why="; ".join(failed),
        fix=f"vitdeploy verify {shell(bundle.path)}; or name the runtime, to take it as it is",
    )


def attempts(bundle: Bundle, options: Options, *, remembering: bool = False) -> Iterator[Attempt]:
    """Each runtime that is installed and loads the bundle, fastest first.

    With `remembering`, one that is known to reproduce the reference here is not asked again, and what holds is noted.

    A runtime that is installed and does not support an option that was given is a UsageError: another one in its place
    would be slower than what was asked for, and nobody would know why. One that cannot load the bundle is passed over
    with a warning, and its memory is free before the next one is tried. Where none loads it, raises what the first one
    that is installed raised, or else what keeps the last, which any machine can have, from being used.
    """
    absent: list[BackendError] = []
    refused: list[BackendError | GateError] = []
    passed_over: dict[str, list[str]] = {}  # names by why
    order = auto_order()
    for backend in order:
        try:
            backend.require()
        except BackendError as error:
            absent.append(error)
            passed_over.setdefault(error.what, []).append(backend.name)
            continue
        loaded, handled = None, sys.exc_info()[1]
        try:
            loaded = open_backend(backend, bundle, options)
            report = _remembered(bundle, backend, loaded) if remembering else prove(bundle, loaded)
        except BaseException as error:
            if loaded is not None:
                loaded.close()
                loaded = None
            _let_go(error, handled)
            if not isinstance(error, (BackendError, GateError)):
                raise
            refused.append(error.with_traceback(None))
            passed_over.setdefault(error.what, []).append(backend.name)
            log.warning("%s is passed over: %s", backend.name, "; ".join(filter(None, (error.what, error.fix))))
            continue
        faster = ", ".join(f"{' and '.join(names)} ({why})" for why, names in passed_over.items())
        reason = backend.auto_reason + (f" after {faster}" if faster else "")
        yield Attempt(loaded, report, reason)
        loaded = None  # it is the caller's, who may have closed it
        passed_over.setdefault("; ".join(report.failures if report else ()), []).append(backend.name)
    if len(absent) + len(refused) == len(order):
        raise refused[0] if refused else absent[-1]


def _remembered(bundle: Bundle, kind: type[Backend], loaded: Backend) -> VerifyReport | None:
    """What a proof finds; None where it is known to hold."""
    known = proof_of(bundle, kind, loaded)
    if known is not None and known.holds():
        return None
    report = prove(bundle, loaded)
    if report.passed and known is not None:
        known.keep()
    return report


def _let_go(error: BaseException, handled: BaseException | None) -> None:
    """Empty the frames of an error and of what led to it, up to `handled`, which the caller is dealing with already.

    Their variables hold what was loaded: its memory would stay taken while the next runtime is tried.
    """
    pending, seen = [error], {id(None), id(handled)}
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        pending += [led for led in (one.__cause__, one.__context__) if led is not None]
