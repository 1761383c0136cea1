"""A file opened in a runtime as the benchmarks time it: one call with images, a fixed number of threads."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import openvino

from vitdeploy.machine.settings import exact_entries

Call = Callable[[Any], Any]


def open_onnxruntime(path: Path, threads: int) -> Call:
    """A session that computes INT8 exactly on every processor where that loads, else one with the defaults.

    Without VNNI, products overflow in 16 bits by default, and accuracy says more of the processor than of the file. On
    AVX2, ONNX Runtime 1.31.1 cannot load some files exactly: `Attempt to replace the existing tensor`.
    """
    try:
        session = _session(path, threads, exact=True)
    except Exception as error:
        print(f"{path.name} overflows where it may: {str(error).splitlines()[0][-60:]}", file=sys.stderr)
        session = _session(path, threads, exact=False)
    return lambda images: session.run(None, {"images": images})[0]


def _session(path: Path, threads: int, *, exact: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    # Else the workers of the session before go on spinning while the next one is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    for entry in exact_entries() if exact else ():
        options.add_session_config_entry(*entry)
    return onnxruntime.InferenceSession(str(path), options)


def open_openvino(path: Path, threads: int, precision: str | None = None) -> Call:
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    if precision:
        settings["INFERENCE_PRECISION_HINT"] = precision
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    return lambda images: next(iter(request.infer([images]).values())).copy()


# `openvino` computes in the precision that it chooses itself: bf16 where the processor has it.
RUNTIMES: dict[str, Callable[[Path, int], Call]] = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "openvino f32": lambda path, threads: open_openvino(path, threads, "f32"),
}
