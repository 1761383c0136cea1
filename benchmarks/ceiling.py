"""What this machine can at most: one large product of matrices, in floats and in INT8, in each runtime.

    python benchmarks/ceiling.py [--rounds 40]

int8.py times the same files among its candidates, so that a table can say which part of it a network reaches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from sessions import RUNTIMES
from timing import environment, finished, interleave

from vitdeploy.graph.flop import PRODUCTS, flop_by_node

SIZE = 1024  # rows, columns and steps: larger ones take as long for each multiplication
MACS = SIZE**3
KINDS = ("fp32", "int8")


def write_products(folder: Path) -> dict[str, Path]:
    """A file for each kind: one linear layer of SIZE rows, `images` [SIZE, SIZE] to `y`.

    INT8 has uint8 activations and int8 weights with a scale for each column, as in the `onnxruntime` form; OpenVINO
    reads the same as integers.
    """
    random = np.random.default_rng(0)
    shape = [SIZE, SIZE]
    weight = random.integers(-127, 128, shape).astype(np.int8)
    scales = random.uniform(0.01, 0.02, SIZE).astype(np.float32)
    tensors: dict[str, dict[str, Any]] = {
        "fp32": {"w": weight.astype(np.float32) * scales},
        "int8": {
            "w8": weight,
            "ws": scales,
            "wz": np.zeros(SIZE, np.int8),
            "s": np.asarray(0.05, np.float32),
            "z": np.asarray(128, np.uint8),
        },
    }
    nodes = {
        "fp32": [helper.make_node("MatMul", ["images", "w"], ["y"])],
        "int8": [
            helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"]),
            helper.make_node("DequantizeLinear", ["w8", "ws", "wz"], ["w"], axis=1),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
    }
    paths = {}
    for kind in KINDS:
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("images", "y")]
        constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors[kind].items()]
        graph = helper.make_graph(nodes[kind], kind, ends[:1], ends[1:], constants)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        paths[kind] = folder / f"ceiling_{kind}.onnx"
        onnx.save(proto, paths[kind])
    return paths


def images() -> Any:
    """What the products are timed on."""
    return np.random.default_rng(1).standard_normal((SIZE, SIZE), dtype=np.float32)


def rate(seconds: Sequence[float]) -> float:
    """Billions of multiplications a second, by the median."""
    return round(MACS / statistics.median(seconds) / 1e9, 1)


def macs(path: Path) -> int:
    """Multiplications of the products in a file, of one batch."""
    graph = ir.load(path).graph
    flop = flop_by_node(graph)
    return sum(flop.get(str(node.name)) or 0 for node in graph if node.op_type in PRODUCTS) // 2


def ceilings(rounds: int) -> Mapping[str, Mapping[str, float]]:
    """GMAC/s of one thread, by runtime and kind."""
    fed, found = images(), {}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_products(Path(folder))
        for runtime, opened in RUNTIMES.items():
            calls = {kind: opened(path, 1) for kind, path in paths.items()}
            turns = {kind: (lambda call=call: call(fed)) for kind, call in calls.items()}
            found[runtime] = {
                kind: rate(seconds)
                for kind, seconds in interleave(turns, rounds=rounds, clock=time.process_time).items()
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    report = {"environment": environment(["onnxruntime", "openvino", "numpy"]), "gmac_per_second": ceilings(rounds)}
    print(json.dumps(finished(report), indent=1))


if __name__ == "__main__":
    main()
