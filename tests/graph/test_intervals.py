"""Every element of every value lies in the interval that the graph alone tells, whatever goes in."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.graph_cases import parsed, run
from vitdeploy.graph.intervals import Interval, intervals

UNARY = ["Abs", "Ceil", "Cos", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "Log", "Mish"]
UNARY += ["Neg", "Reciprocal", "Relu", "Sigmoid", "Sin", "Softmax", "Softplus", "Sqrt", "Tanh"]
BINARY = ["Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "MatMul"]
REDUCE = ["ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare"]
POWERS = {f"to the {exponent}": exponent for exponent in (2.0, 3.0, 4.0, 0.5, -0.5, -1.0, -2.0)}
CONSTANTS = [0.0, 1e-12, 1e-6, 0.5, 1.0, -1.0, 2.0, 3.0, -0.5, 100.0]


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, list[str]]:
    """Statements of ONNX text over [3, 3] values, and what they make."""
    lines, names = [], ["x"]
    for index in range(draw(st.integers(1, 8))):
        name = f"v{index}"
        value = draw(st.sampled_from(names))
        kind = draw(st.sampled_from(["unary", "binary", "square", "constant", "reduce", "clip", "where"]))
        if kind == "unary":
            lines.append(f"{name} = {draw(st.sampled_from(UNARY))} ({value})")
        elif kind == "binary":
            lines.append(f"{name} = {draw(st.sampled_from(BINARY))} ({value}, {draw(st.sampled_from(names))})")
        elif kind == "square":
            lines.append(f"{name} = Mul ({value}, {value})")
        elif kind == "constant":
            number = draw(st.sampled_from(CONSTANTS))
            lines.append(f"c{index} = Constant <value_float = {number!r}> ()")
            order = draw(st.permutations([value, f"c{index}"]))
            lines.append(f"{name} = {draw(st.sampled_from(BINARY[:-1]))} ({', '.join(order)})")
        elif kind == "reduce":
            lines.append(f"a{index} = Constant <value_ints = [-1]> ()")
            lines.append(f"r{index} = {draw(st.sampled_from(REDUCE))} ({value}, a{index})")
            lines.append(f"s{index} = Constant <value_ints = [3, 3]> ()")
            lines.append(f"{name} = Expand (r{index}, s{index})")
        elif kind == "clip":
            low = draw(st.sampled_from([1e-12, 1e-3, -1.0]))
            lines.append(f"l{index} = Constant <value_float = {low!r}> ()")
            lines.append(f"{name} = Clip ({value}, l{index})")
        else:
            lines.append(f"g{index} = Greater ({value}, x)")
            lines.append(f"{name} = Where (g{index}, {value}, {draw(st.sampled_from(names))})")
        names.append(name)
    return " ".join(lines), names[1:]


def model_of(body: str, names: list[str]) -> ir.Model:
    outputs = ", ".join(f"float[3, 3] {name}" for name in names)
    return parsed(f"g (float[3, 3] x) => ({outputs}) {{ {body} }}")


@settings(max_examples=examples(80), deadline=None)
@given(bodies(), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-8, 1e-3, 1.0, 30.0]))
def test_no_element_is_outside(case: tuple[str, list[str]], seed: int, scale: float) -> None:
    body, names = case
    model = model_of(body, names)
    known = {str(value.name): interval for value, interval in intervals(model.graph).items()}
    x = (scale * np.random.default_rng(seed).standard_normal((3, 3))).astype(np.float32)
    with np.errstate(all="ignore"):
        for name, array in zip(names, run(model, {"x": x}), strict=True):
            assert_inside(known[name], array, f"{name} of {body}")


SOURCES = {
    "any": "Identity (x)",
    "positive": "Abs (x)",
    "guarded": "Add (positive, tiny)",
    "negative": "Neg (positive)",
    "unit": "Sigmoid (x)",
    "around": "Tanh (x)",
    "below": "Sub (negative, half)",
    "capped": "Min (positive, half)",
    "narrow": "Add (unit, half)",
}


@pytest.mark.parametrize("op", [*UNARY, *BINARY, *REDUCE, "square", *POWERS])
def test_every_operator_on_every_kind_of_interval(op: str) -> None:
    calls = {name: f"{op} ({name})" for name in SOURCES}
    if op == "square":
        calls = {name: f"Mul ({name}, {name})" for name in SOURCES}
    elif op in POWERS:
        calls = {name: f"Pow ({name}, exponent)" for name in SOURCES}
    elif op in REDUCE:
        calls = {name: f"{op} ({name}, last)" for name in SOURCES}
    elif op in BINARY:
        calls = {f"{a}_{b}": f"{op} ({a}, {b})" for a in SOURCES for b in SOURCES}
    constants = "tiny = Constant <value_float = 1e-06> () half = Constant <value_float = 0.5> () "
    constants += "last = Constant <value_ints = [-1]> () "
    constants += f"exponent = Constant <value_float = {POWERS.get(op, 1.0)}> () "
    body = constants + " ".join(f"{name} = {made}" for name, made in SOURCES.items())
    body += " " + " ".join(f"y_{name} = {made}" for name, made in calls.items())
    outputs = ", ".join(f"float[M, N] y_{name}" for name in calls)
    model = parsed(f"g (float[3, 3] x) => ({outputs}) {{ {body} }}")
    known = intervals(model.graph)
    for seed, scale in enumerate([0.0, 1e-3, 0.3, 1.0, 3.0, 30.0]):
        x = (scale * np.random.default_rng(seed).standard_normal((3, 3))).astype(np.float32)
        for value, array in zip(model.graph.outputs, run(model, {"x": x}), strict=True):
            assert_inside(known[value], array, str(value.name))


def assert_inside(interval: Interval, array: np.ndarray, what: str) -> None:
    """Every finite element, up to float32's rounding."""
    finite = array[np.isfinite(array)].astype(np.float64)
    if finite.size:
        slack = 1e-5 * max(1.0, float(np.abs(finite).max()))
        assert interval.low - slack <= finite.min(), (what, interval)
        assert finite.max() <= interval.high + slack, (what, interval)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Sigmoid (x)", Interval(0.0, 1.0)),
        ("s = Mul (x, x) c = Constant <value_float = 1e-06> () y = Add (s, c)", Interval(1e-6, math.inf)),
        ("n = ReduceL2 <keepdims = 1> (x) c = Constant <value_float = 1e-12> () y = Max (n, c)", Interval(1e-12)),
        ("a = Abs (x) c = Constant <value_float = 0.25> () b = Add (a, c) y = Reciprocal (b)", Interval(0.0, 4.0)),
        (
            "a = Constant <value_ints = [-1]> () m = ReduceMax (x, a) d = Sub (x, m) e = Exp (d) y = ReduceSum (e, a)",
            Interval(1.0),
        ),
        (
            "a = Constant <value_ints = [-1]> () b = Constant <value_ints = [0]> () m = ReduceMax (x, a) "
            "d = Sub (x, m) e = Exp (d) y = ReduceSum (e, b)",
            Interval(0.0),
        ),
        ("p = Softmax (x) q = Relu (x) y = MatMul (p, q)", Interval(0.0)),
        ("q = Relu (x) y = MatMul (q, x)", Interval()),
        ("c = Constant <value_float = 2.0> () y = Pow (x, c)", Interval(0.0)),
        ("c = Constant <value_float = 3.0> () y = Pow (x, c)", Interval()),
        ("y = Div (x, x)", Interval()),
    ],
)
def test_known_bounds(body: str, expected: Interval) -> None:
    model = parsed(f"g (float[3, 3] x) => (float[M, N] y) {{ {body} }}")
    found = intervals(model.graph)[model.graph.outputs[0]]
    assert found.low == pytest.approx(expected.low)
    assert found.high == pytest.approx(expected.high)
