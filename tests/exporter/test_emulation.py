"""Watching a graph while it runs costs no more memory than running it."""

from __future__ import annotations

import subprocess
import sys

MEASURE = """
import numpy as np
import onnx.parser
import onnx_ir as ir

from vitdeploy.exporter.emulation import activation_ranges
from vitdeploy.latency.worker import peak_memory

LAYERS = 40
chain = " ".join(f"v{i + 1} = Neg (v{i})" for i in range(LAYERS))
text = f'<ir_version: 10, opset_import: ["": 20]> g (float[N] v0) => (float[N] v{LAYERS}) {{ {chain} }}'
model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))

activation_ranges(model, {"v0": np.ones(8, np.float32)})
before = peak_memory()
values = np.linspace(-3, 2, 5_000_000, dtype=np.float32)
ranges = activation_ranges(model, {"v0": values})
assert len(ranges) == LAYERS + 1
assert all(seen.max_abs == 3 for seen in ranges.values())
print((peak_memory() - before) / values.nbytes)
"""


def test_no_activation_is_kept_for_the_statistics() -> None:
    """Forty tensors pass; kept until the end they would take forty times the memory of one, and more."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 15
