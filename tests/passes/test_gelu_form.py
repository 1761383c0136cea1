from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.conftest import examples
from tests.graph_cases import PORTABLE, batch, ops, parsed, prove, run
from tests.rows import TARGETS
from vitdeploy.passes.gelu_form import GeluForm
from vitdeploy.targets import Target

FORMS = {"erf": PORTABLE, "gelu": TARGETS["onnxruntime"]}


def scalar(number: float) -> np.ndarray:
    return np.array(number, dtype=np.float32)


WEIGHTS = {
    "half": scalar(0.5),
    "one": scalar(1),
    "two": scalar(2),
    "three": scalar(3),
    "root": scalar(math.sqrt(2)),
    "inverse_root": scalar(math.sqrt(0.5)),
    "slope": scalar(math.sqrt(2 / math.pi)),
    "cubic": scalar(0.044715),
    "one111": np.ones((1, 1, 1), dtype=np.float32),
    "vector": batch(6, seed=1),
    "rough": scalar(1.41),
    "quick": scalar(1.702),
}

ERF = {
    "PyTorch": "d = Div (x, root) e = Erf (d) a = Add (e, one) m = Mul (x, a) y = Mul (m, half)",
    "half first": "h = Mul (x, half) d = Div (x, root) e = Erf (d) a = Add (one, e) y = Mul (h, a)",
    "half on the curve": "d = Mul (inverse_root, x) e = Erf (d) a = Add (e, one) m = Mul (a, half) y = Mul (x, m)",
    "cumulative": "d = Mul (x, inverse_root) e = Erf (d) h = Mul (e, half) a = Add (h, half) y = Mul (a, x)",
    "divided by two": "d = Div (x, root) e = Erf (d) a = Add (e, one) m = Mul (x, a) y = Div (m, two)",
    "scalar of rank three": "d = Div (x, root) e = Erf (d) a = Add (e, one111) m = Mul (x, a) y = Mul (m, half)",
}
TANH = {
    "fused order": "p = Pow (x, three) c = Mul (p, cubic) i = Add (x, c) u = Mul (i, slope) t = Tanh (u) "
    "a = Add (t, one) h = Mul (x, half) y = Mul (h, a)",
    "cube by products": "s = Mul (x, x) p = Mul (s, x) c = Mul (cubic, p) i = Add (x, c) u = Mul (slope, i) "
    "t = Tanh (u) a = Add (one, t) m = Mul (x, a) y = Mul (half, m)",
    "polynomial factored": "s = Mul (x, x) c = Mul (s, cubic) k = Add (c, one) g = Mul (x, slope) u = Mul (g, k) "
    "t = Tanh (u) a = Add (t, one) m = Mul (a, half) y = Mul (x, m)",
}
WRITTEN = {**{f"erf, {k}": v for k, v in ERF.items()}, **{f"tanh, {k}": v for k, v in TANH.items()}}
OPERATORS = {f"operator, {kind}": f'y = Gelu <approximate = "{kind}"> (x)' for kind in ("none", "tanh")}


def graph(body: str) -> ir.Model:
    return parsed(f"agraph (float[batch, 5, 6] x) => (y) {{ {body} }}", **WEIGHTS)


def form(target: Target) -> type[GeluForm]:
    """The pass for `target`, whichever target it is constructed with."""

    class ForTarget(GeluForm):
        def __init__(self, _: Target) -> None:
            super().__init__(target)

    return ForTarget


@pytest.mark.parametrize("case", [*WRITTEN, *OPERATORS])
def test_every_spelling_becomes_the_operator(case: str) -> None:
    model = graph({**WRITTEN, **OPERATORS}[case])
    prove(form(FORMS["gelu"]), model, batch(2, 5, 6) * 3)
    (node,) = model.graph
    assert node.op_type == "Gelu"
    assert node.attributes["approximate"].value == ("tanh" if "tanh" in case else "none")


@pytest.mark.parametrize("case", [*WRITTEN, *OPERATORS])
def test_every_spelling_becomes_the_decomposition(case: str) -> None:
    model = graph({**WRITTEN, **OPERATORS}[case])
    prove(form(FORMS["erf"]), model, batch(2, 5, 6) * 3)
    kinds = [node.op_type for node in model.graph]
    if "tanh" in case:
        assert sorted(kinds) == sorted(["Pow", "Mul", "Add", "Mul", "Tanh", "Add", "Mul", "Mul"])
    else:
        assert kinds == ["Div", "Erf", "Add", "Mul", "Mul"]


LEFT_ALONE = {
    "rough constant": "d = Div (x, rough) e = Erf (d) a = Add (e, one) m = Mul (x, a) y = Mul (m, half)",
    "twice the value": "d = Div (x, root) e = Erf (d) a = Add (e, one) y = Mul (x, a)",
    "sigmoid form": "g = Mul (x, quick) s = Sigmoid (g) y = Mul (x, s)",
    "constants for each channel": "d = Mul (x, vector) e = Erf (d) a = Add (e, one) m = Mul (x, a) y = Mul (m, half)",
    "curve read elsewhere": "d = Div (x, root) e = Erf (d) a = Add (e, one) m = Mul (x, a) g = Mul (m, half) "
    "s = ReduceMax (e) y = Add (g, s)",
    "gated by another value": "r = Relu (x) d = Div (x, root) e = Erf (d) a = Add (e, one) m = Mul (r, a) "
    "y = Mul (m, half)",
    "a plain tanh": "y = Tanh (x)",
}


@pytest.mark.parametrize("target", FORMS)
@pytest.mark.parametrize("case", LEFT_ALONE)
def test_another_function_is_left_alone(case: str, target: str) -> None:
    model = graph(LEFT_ALONE[case])
    assert prove(form(FORMS[target]), model, batch(2, 5, 6)).changes == []


@pytest.mark.parametrize("target", FORMS)
def test_gelu_of_a_gelu_behind_elementwise_nodes(target: str) -> None:
    outer = ERF["PyTorch"].replace("(x", "(g").replace("x)", "g)")
    model = graph(f"b = Add (x, vector) g = Gelu (b) {outer}")
    prove(form(FORMS[target]), model, batch(2, 5, 6) * 3)
    assert ops(model)["Gelu" if target == "gelu" else "Erf"] == 2


@settings(max_examples=examples(25))
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    case=st.sampled_from(["none", "tanh"]),
    scale=st.floats(0.1, 20),
)
def test_decomposition_is_the_function(shape: list[int], case: str, scale: float) -> None:
    model = parsed(f'agraph (float{shape} x) => (y) {{ y = Gelu <approximate = "{case}"> (x) }}')
    x = batch(*shape) * np.float32(scale)
    prove(GeluForm, model, x)
    expected = nn.functional.gelu(torch.from_numpy(x).double(), approximate=case).numpy()
    np.testing.assert_allclose(run(model, {"x": x})[0], expected, atol=1e-6 * max(1.0, scale))


@pytest.mark.parametrize("kind", ["none", "tanh"])
@pytest.mark.parametrize("layer", ["h = MatMul (x, w)", "m = MatMul (x, w) h = Add (m, b)"])
def test_backends_fuse_the_decomposition(layer: str, kind: str, tmp_path: Path) -> None:
    """One GELU in ONNX Runtime; in OpenVINO nothing beside the layer, which takes it as a post-operation."""
    body = f'{layer} g = Gelu <approximate = "{kind}"> (h) y = Relu (g)'
    model = parsed(f"agraph (float[2, 5, 6] x) => (y) {{ {body} }}", w=batch(6, 6), b=batch(6))
    prove(GeluForm, model, batch(2, 5, 6))
    model.graph.opset_imports[""] = 17
    path, optimized = tmp_path / "model.onnx", tmp_path / "optimized.onnx"
    ir.save(model, path)

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimized)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(optimized).graph.node]
    assert sum(kind in ("Gelu", "FastGelu", "BiasGelu") for kind in kinds) == 1
    assert not {"Erf", "Tanh", "Pow", "Mul", "Div"} & set(kinds)

    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(str(path), "CPU")
    left = {node.get_rt_info()["layerType"].value for node in compiled.get_runtime_model().get_ordered_ops()}
    assert not left & {"Math", "Subgraph"}
