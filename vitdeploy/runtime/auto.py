"""The fastest runtime that is installed and gives PyTorch's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vitdeploy.bundle import Bundle
from vitdeploy.errors import BackendError, GateError, MissingDependencyError, UsageError
from vitdeploy.runtime.backends import Options, find_backend

if TYPE_CHECKING:
    from vitdeploy.runtime.session import Session
    from vitdeploy.validation.verify import VerifyReport

# Fastest first. Measured on an AVX-512 EPYC, CPU time of one thread, LeMeViT-Tiny at 224: OpenVINO in FP32 takes
# 22.9 ms for the FP32 graph and 23.0 ms for the FP16 one, ONNX Runtime 25.4 and 29.7 ms.
AUTO_ORDER = ("openvino", "onnxruntime")


def load_fastest(bundle: Bundle, options: Options) -> Session:
    """The bundle in the first runtime of AUTO_ORDER that reproduces its reference.

    Raises GateError where none does, and what `attempts` raises.
    """
    failed = []
    for session, report in attempts(bundle, options):
        if report.passed:
            return session
        session.close()
        failed.append(f"{session.backend.name}: {report.failures[0]}")
    raise GateError(
        f"no runtime here reproduces PyTorch with {bundle.path}",
        why="; ".join(failed),
        fix=f"vitdeploy verify {bundle.path}; or name the runtime, to take it as it is",
    )


def attempts(bundle: Bundle, options: Options) -> Iterator[tuple[Session, VerifyReport]]:
    """Each runtime of AUTO_ORDER that loads the bundle, and how it does on the reference; fastest first.

    `reason` of a session tells why it is not one of the earlier runtimes. Where none loads the bundle, raises
    MissingDependencyError if none is installed, else what the first installed one raised.
    """
    # Both rest on this module.
    from vitdeploy.runtime.session import Session
    from vitdeploy.validation.verify import verify_session

    errors: list[BackendError | UsageError] = []
    passed_over: list[str] = []
    for name in AUTO_ORDER:
        reason = "it is the fastest measured"
        if passed_over:
            reason += f" after {', '.join(passed_over)}"
        try:
            session = Session(bundle, find_backend(name).open(bundle, options), reason=reason)
            report = verify_session(session)
        except (BackendError, UsageError) as error:
            errors.append(error)
            passed_over.append(f"{name} ({error.what})")
            continue
        yield session, report
        passed_over.append(f"{name} ({'; '.join(report.failures)})")
    if len(errors) == len(AUTO_ORDER):
        raise next((error for error in errors if not isinstance(error, MissingDependencyError)), errors[-1])
