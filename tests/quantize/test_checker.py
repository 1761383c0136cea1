from __future__ import annotations

import numpy as np
import pytest

from tests.graph_cases import parsed
from tests.rows import RULES
from vitdeploy.quantize.checker import violations

_GOOD = """
network (float[n, 32] x) => (float[n, 16] y) {
  q = QuantizeLinear (x, s, z)
  d = DequantizeLinear (q, s, z)
  w = DequantizeLinear <axis = 1> (wi, ws, wz)
  y = MatMul (d, w)
}
"""


def weights(**other: np.ndarray) -> dict[str, np.ndarray]:
    made = {
        "s": np.float32(0.1),
        "z": np.int8(0),
        "wi": np.ones((32, 16), np.int8),
        "ws": np.full(16, 0.1, np.float32),
        "wz": np.zeros(16, np.int8),
    }
    return {name: np.asarray(array) for name, array in {**made, **other}.items()}


def broken(text: str = _GOOD, target: str = "portable", **other: np.ndarray) -> list[str]:
    return violations(parsed(text, **weights(**other)).graph, RULES[target])


def test_a_symmetric_pair_on_both_factors_keeps_the_rules() -> None:
    assert broken() == []


def test_an_asymmetric_activation_breaks_portable_and_not_onnxruntime() -> None:
    zero = np.uint8(7)
    assert any("zero point is 7" in line for line in broken(z=zero))
    assert broken(target="onnxruntime", z=zero) == []


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_that_is_no_positive_number_is_named(scale: float) -> None:
    assert any("positive" in line for line in broken(s=np.float32(scale)))


def test_a_factor_left_in_float_is_named() -> None:
    text = _GOOD.replace("w = DequantizeLinear <axis = 1> (wi, ws, wz)", "w = Cast <to = 1> (wi)")
    assert any("only one of its two factors" in line for line in broken(text))


def test_integers_that_something_else_reads_are_named() -> None:
    text = """
    network (float[n, 32] x) => (float[n, 32] y) {
      q = QuantizeLinear (x, s, z)
      y = Cast <to = 1> (q)
    }
    """
    assert any("read by Cast" in line for line in broken(text))


def test_integer_operators_are_named() -> None:
    text = """
    network (uint8[4, 32] x) => (int32[4, 16] y) {
      y = MatMulInteger (x, wi)
    }
    """
    assert any("MatMulInteger is an integer operator" in line for line in broken(text))
