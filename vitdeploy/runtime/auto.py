"""The fastest runtime that is installed and gives PyTorch's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vitdeploy.bundle import Bundle
from vitdeploy.errors import BackendError, GateError, UsageError
from vitdeploy.runtime.backends import Options, find_backend

if TYPE_CHECKING:
    from vitdeploy.runtime.session import Session
    from vitdeploy.runtime.verify import VerifyReport

# Fastest first, each with what speaks for it. On the CPU as measured on an AVX-512 EPYC, CPU time of one thread,
# LeMeViT-Tiny at 224: OpenVINO in FP32 takes 22.9 ms for the FP32 graph and 23.0 ms for the FP16 one, ONNX Runtime 25.4
# and 29.7 ms.
AUTO_ORDER = {
    "tensorrt": "there is a GPU, and it is the one made for it",
    "openvino": "it is the fastest measured",
    "onnxruntime": "it is the fastest measured",
}


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

    `reason` of a session tells why it is not one of the earlier runtimes. Where none loads the bundle, raises what the
    first that can be used here raised, or else what keeps the last, which any machine can have, from being used.
    """
    # Both rest on this module.
    from vitdeploy.runtime.session import Session
    from vitdeploy.runtime.verify import verify_session

    absent: list[BackendError | GateError | UsageError] = []
    refused: list[BackendError | GateError | UsageError] = []
    passed_over: list[str] = []
    for name, reason in AUTO_ORDER.items():
        if passed_over:
            reason += f" after {', '.join(passed_over)}"
        backend, errors = find_backend(name), absent
        try:
            backend.require()
            errors = refused
            session = Session(bundle, backend.open(bundle, options), reason=reason)
            report = verify_session(session)
        except (BackendError, GateError, UsageError) as error:
            errors.append(error)
            passed_over.append(f"{name} ({error.what})")
            continue
        yield session, report
        passed_over.append(f"{name} ({'; '.join(report.failures)})")
    if len(absent) + len(refused) == len(AUTO_ORDER):
        raise refused[0] if refused else absent[-1]
