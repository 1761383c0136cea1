"""A small network with every kind of product, as the optimizer leaves it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tests.graph_cases import parsed
from vitdeploy.graph.run import run

CLASSES = 24
SIDE = 16

_TEXT = """
network (float[{batch}, 3, 16, 16] images) => (float[{batch}, 24] logits) {{
  [stem_Conv] stem = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (images, stem_weight, stem_bias)
  act = Relu (stem)
  [down_Conv] down = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (act, down_weight, down_bias)
  [pos_Conv] pos = Conv <group = 32, pads = [1, 1, 1, 1]> (down, pos_weight)
  flat = Reshape (pos, flat_shape)
  tokens = Transpose <perm = [0, 2, 1]> (flat)
  norm = LayerNormalization <axis = -1> (tokens, norm_weight, norm_bias)
  [q_MatMul] q = MatMul (norm, q_weight)
  [k_MatMul] k = MatMul (norm, k_weight)
  [v_MatMul] v0 = MatMul (norm, v_weight)
  v = Add (v0, v_bias)
  kt = Transpose <perm = [0, 2, 1]> (k)
  [scores_MatMul] scores = MatMul (q, kt)
  weights = Softmax <axis = -1> (scores)
  [mixed_MatMul] mixed = MatMul (weights, v)
  sum = Add (tokens, mixed)
  [fc_MatMul] fc0 = MatMul (sum, fc_weight)
  fc = Add (fc0, fc_bias)
  relu = Relu (fc)
  axes = Constant <value_ints = [1]> ()
  pooled = ReduceMean <keepdims = 0> (relu, axes)
  [head_Gemm] logits = Gemm (pooled, head_weight, head_bias)
}}
"""


def network(batch: int | str = "batch", seed: int = 0) -> ir.Model:
    """images [batch, 3, 16, 16] -> logits [batch, 24]: two convolutions, attention, an MLP and a head."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, fan: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)

    return parsed(
        _TEXT.format(batch=batch),
        **{
            "stem_weight": normal(16, 3, 3, 3, fan=27),
            "stem_bias": normal(16, fan=4),
            "down_weight": normal(32, 16, 3, 3, fan=144),
            "down_bias": normal(32, fan=4),
            "pos_weight": normal(32, 1, 3, 3, fan=9),
            "flat_shape": np.array([0, 32, -1], np.int64),
            "norm_weight": np.ones(32, np.float32),
            "norm_bias": np.zeros(32, np.float32),
            "q_weight": normal(32, 32, fan=32),
            "k_weight": normal(32, 32, fan=32),
            "v_weight": normal(32, 32, fan=32),
            "v_bias": normal(32, fan=4),
            "fc_weight": normal(32, 64, fan=32),
            "fc_bias": normal(64, fan=4),
            "head_weight": normal(64, CLASSES, fan=64),
            "head_bias": normal(CLASSES, fan=4),
        },
    )


def photos(count: int, seed: int = 1) -> np.ndarray:
    """Normalised images [count, 3, 16, 16] with flat areas and edges."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 3, 4, 4)).repeat(4, axis=2).repeat(4, axis=3)
    return (coarse + 0.3 * rng.standard_normal((count, 3, SIDE, SIDE))).astype(np.float32)


def evaluate(model: ir.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """All outputs by name, Q and DQ computed as the standard says."""
    return run(model, {"images": images}, "qdq")
