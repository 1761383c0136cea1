"""INT8 on this processor, by the runtimes' defaults and as vitdeploy's sessions set them: time and error against FP32.

    vitdeploy export lemevit_tiny.eurosat -o fp32
    vitdeploy export lemevit_tiny.eurosat --int8 --calibration eurosat_train.zip --samples 64 -o int8
    python benchmarks/overflow.py fp32 int8

Prints a line for each: milliseconds, the ratio to the FP32 file in the same runtime, and the median decibels of the
reference's images against PyTorch. The two settings differ only where pairs of INT8 products overflow, see
docs/int8.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
from timing import interleave, ratio

from vitdeploy.bundle import MODEL, Bundle
from vitdeploy.runtime.backends.openvino import read_model
from vitdeploy.statistics import snr_db

ROUNDS = 30


def in_onnxruntime(model: bytes, exact: bool) -> Callable[[np.ndarray], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", str(int(exact)))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def in_openvino(model: bytes, exact: bool) -> Callable[[np.ndarray], np.ndarray]:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    settings |= {"LP_TRANSFORMS_MODE": False} if exact else {}
    core = openvino.Core()
    compiled = core.compile_model(read_model(core, model, b"", settings), "CPU", settings)
    return lambda images: compiled([images])[0].copy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fp32", type=Path, help="a bundle")
    parser.add_argument("int8", type=Path, help="the same network in INT8")
    args = parser.parse_args()
    floats, integers = Bundle.open(args.fp32), Bundle.open(args.int8)
    reference = integers.reference()
    (images,), (wanted,) = reference.inputs.values(), reference.outputs.values()
    for runtime, opened in (("onnxruntime", in_onnxruntime), ("openvino", in_openvino)):
        forms = {
            "FP32": opened(floats.read(MODEL), True),
            "INT8 by default": opened(integers.read(MODEL), False),
            "INT8 exact": opened(integers.read(MODEL), True),
        }
        times = interleave({name: lambda run=run: run(images[:1]) for name, run in forms.items()}, rounds=ROUNDS)
        for name, run in forms.items():
            decibels = [snr_db(wanted[row], run(images[row : row + 1])[0]) for row in range(len(images))]
            print(
                f"{runtime:12} {name:16} {1e3 * statistics.median(times[name]):6.1f} ms"
                f"  {ratio(times[name], times['FP32'])['median']:.2f}  {statistics.median(decibels):.1f} dB"
            )


if __name__ == "__main__":
    main()
