"""The other end of `isolated`: limits itself, loads what it is told to, and answers frames until its input ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from vitdeploy.bundle import Bundle, TensorSpec
from vitdeploy.errors import BackendError, VitDeployError
from vitdeploy.runtime.backends import Backend, find_backend
from vitdeploy.runtime.frames import Array, FrameError, read_frame, told, write_frame
from vitdeploy.runtime.options import Options


def serve(limit: int) -> None:
    """Answer questions on standard input; `limit` is the most bytes of memory that the process may write to."""
    limit_memory(limit)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a runtime prints must not get between the answers
    backend: Backend | None = None
    while True:
        try:
            question, arrays = read_frame(sys.stdin.buffer)
        except FrameError:
            return
        try:
            if "run" in question:
                assert backend is not None, "a bundle is opened first"
                write_frame(answers, {}, backend.run(arrays))
                continue
            answer: Mapping[str, Any]
            kind = find_backend(question["runtime"])
            if "executed" in question:
                answer = kind.executed(Bundle.open(question["executed"])).to_dict()
            else:
                backend = kind.open(Bundle.open(question["open"]), Options(**question["options"]))
                answer = _signature(backend)
            write_frame(answers, answer, _NONE)
        except VitDeployError as error:
            write_frame(answers, {"error": told(error)}, _NONE)
        except Exception as error:  # an unknown failure of the runtime is the bundle's
            why = f"{type(error).__name__}: {error}"[:2000]
            fix = "do not use this bundle, or give it more memory: VITDEPLOY_UNTRUSTED_GB"
            write_frame(answers, {"error": told(BackendError("the runtime failed", why=why, fix=fix))}, _NONE)


_NONE: Mapping[str, Array] = {}


def limit_memory(limit: int) -> None:
    """Let no more than `limit` bytes be written to, where the system has such a limit; no core file either."""
    try:
        import resource
    except ModuleNotFoundError:  # on Windows
        return
    for name, value in (("RLIMIT_DATA", limit), ("RLIMIT_CORE", 0)):
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _signature(backend: Backend) -> dict[str, Any]:
    def listed(specs: tuple[TensorSpec, ...]) -> list[list[Any]]:
        return [[spec.name, spec.dtype, list(spec.shape)] for spec in specs]

    return {
        "inputs": listed(backend.inputs),
        "outputs": listed(backend.outputs),
        "num_requests": backend.num_requests,
        "describe": backend.describe(),
    }
