"""One small model in one execution provider of ONNX Runtime: whether what the package names computes here.

A package names the providers that it was compiled with. Whether their libraries load, and whether they have kernels for
this device, shows when one runs.
"""

from __future__ import annotations

import base64
import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.errors import BackendError
from vitdeploy.runtime.backends.base import one_line

# x @ x + x of a 2 x 2 matrix, opset 13: the product is a library's kernel, the sum is one of the provider's own.
TINY_MODEL = base64.b64decode(
    "CAcSADpQChEKAXgKAXgSAXAiBk1hdE11bAoOCgFwCgF4EgF5IgNBZGQSAWdaEwoBeBIOCgwIARIICgIIAgoCCAJiEwoBeRIOCgwIARIICgIIAgoCCAJC"
    "BAoAEA0="
)
INPUT = ((1.0, 2.0), (3.0, 4.0))
OUTPUT = ((8.0, 12.0), (18.0, 26.0))


def try_provider(provider: str) -> None:
    """Run the model in `provider` and in nothing else.

    Raises:
        BackendError: It does not start, has no kernel for this device, or computes something else.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if provider != "CPUExecutionProvider":
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        # Without `enable_fallback=0`, a provider that fails is replaced by the CPU without an error.
        session = onnxruntime.InferenceSession(TINY_MODEL, settings, providers=[provider], enable_fallback=0)
        (found,) = session.run(None, {"x": np.asarray(INPUT, np.float32)})
    except Exception as error:
        raise _failure(provider, _reason(provider, error)) from error
    if not np.allclose(found, OUTPUT, rtol=1e-2):
        raise _failure(provider, f"it computes {np.asarray(found).tolist()} where {[*map(list, OUTPUT)]} is right")


def _failure(provider: str, why: str) -> BackendError:
    return BackendError(f"onnxruntime names {provider}, which runs no model here", why=why, fix="device CPU")


def _reason(provider: str, error: Exception) -> str:
    """What the runtime says; where it only says that the CPU would have to take over, the library that is missing."""
    said = one_line(error)
    return _missing_library(provider) or "it takes neither MatMul nor Add" if "CPU EP" in said else said


def _missing_library(provider: str) -> str | None:
    """What the dynamic linker says of the provider's own library; None where it finds all that this one needs."""
    import onnxruntime

    name: Any = provider.removesuffix("ExecutionProvider").lower()
    library = Path(onnxruntime.__file__).parent / "capi" / f"libonnxruntime_providers_{name}.so"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error) if library.exists() and "cannot open shared object file" in str(error) else None
    return None
