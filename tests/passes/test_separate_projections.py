from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.graph_cases import batch, folded, ops, parsed, prove
from tests.rows import TARGETS
from vitdeploy.models.lemevit import SelfAttention
from vitdeploy.passes.separate_projections import SeparateProjections

SEPARATE = TARGETS["onnxruntime"]
WEIGHTS = {
    "w": batch(8, 12, seed=1),
    "wt": batch(12, 8, seed=2),
    "b": batch(12, seed=3),
    "key_zero": np.concatenate([batch(4, seed=4), np.zeros(4, np.float32), batch(4, seed=5)]),
    "scalar": batch(1, seed=6),
    "thirds": np.array([4, 4, 4]),
    "other": np.array([2, 4, 6]),
    "streams": np.array([3, 2]),
    "rows": np.array([-1, 8]),
}
LINEAR = "m = MatMul (x, w) f = Add (m, b) "
PARTS = "p, q, r = Split <axis = 2> (f, thirds) y = Sub (p, q) z = Sum (y, r)"

SEPARATED = {
    "without bias": ("f = MatMul (x, w) " + PARTS, {"MatMul": 3}),
    "with bias": (LINEAR + PARTS, {"MatMul": 3, "Add": 3}),
    "one part without": ("m = MatMul (x, w) f = Add (key_zero, m) " + PARTS, {"MatMul": 3, "Add": 2}),
    "one number as bias": ("m = MatMul (x, w) f = Add (m, scalar) " + PARTS, {"MatMul": 3, "Add": 3}),
    "negative axis": (LINEAR + PARTS.replace("= 2", "= -1"), {"MatMul": 3, "Add": 3}),
    "a part that nothing reads": (LINEAR + "p, q, r = Split <axis = 2> (f, thirds) z = Sub (p, r)", {"MatMul": 2}),
    "Gemm": (
        "x2 = Reshape (x, rows) f = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (x2, wt, b) "
        + PARTS.replace("= 2", "= 1"),
        {"Gemm": 3},
    ),
    "two streams": (
        LINEAR + "s, t = Split <axis = 1> (f, streams) p, q, r = Split <axis = 2> (s, thirds) "
        "i, j, k = Split <axis = 2> (t, thirds) c = Sub (p, q) d = Sub (i, j) g = Mul (c, r) h = Mul (d, k) "
        "z = Concat <axis = 1> (g, h)",
        {"MatMul": 3, "Add": 3, "Split": 3},
    ),
}  # fmt: skip


def graph(body: str) -> ir.Model:
    return parsed(f"agraph (float[2, 5, 8] x) => (z) {{ {body} }}", **WEIGHTS)


@pytest.mark.parametrize("case", SEPARATED)
def test_the_weights_are_split_instead_of_the_product(case: str) -> None:
    body, expected = SEPARATED[case]
    model = graph(body)
    assert len(prove(SeparateProjections, model, batch(2, 5, 8), target=SEPARATE).changes) == 1
    found = ops(model)
    assert {kind: found[kind] for kind in expected} == expected
    assert found["Split"] == expected.get("Split", 0)


LEFT_ALONE = {
    "product read elsewhere": LINEAR + PARTS.replace("z =", "u =") + " v = ReduceMax (f) z = Add (u, v)",
    "product read before its bias": LINEAR + PARTS.replace("z =", "u =") + " v = ReduceMax (m) z = Add (u, v)",
    "rows": LINEAR + "p, q = Split <axis = 1> (f, streams) e = ReduceMax (p) z = Add (e, q)",
    "no linear layer": "f = Concat <axis = 2> (x, x) p, q, r = Split <axis = 2> (f, sixteen) z = Add (p, q)",
    "streams cut in different ways": LINEAR + "s, t = Split <axis = 1> (f, streams) "
    "p, q, r = Split <axis = 2> (s, thirds) i, j, k = Split <axis = 2> (t, other) z = Concat <axis = 1> (p, j)",
    "a stream read elsewhere": LINEAR + "s, t = Split <axis = 1> (f, streams) p, q, r = Split <axis = 2> (s, thirds) "
    "i, j, k = Split <axis = 2> (t, thirds) e = ReduceMax (t) c = Concat <axis = 1> (p, j) z = Add (c, e)",
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    model = parsed(f"agraph (float[2, 5, 8] x) => (z) {{ {LEFT_ALONE[case]} }}", **WEIGHTS, sixteen=np.array([6, 6, 4]))
    assert prove(SeparateProjections, model, batch(2, 5, 8), target=SEPARATE).changes == []


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_only_targets_that_ask_for_it_are_given_it(target: str) -> None:
    changes = prove(SeparateProjections, graph(LINEAR + PARTS), batch(2, 5, 8), target=TARGETS[target]).changes
    assert bool(changes) == (target == "onnxruntime")


@settings(max_examples=examples(25))
@given(
    b=st.integers(1, 3),
    widths=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    tokens=st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
def test_any_number_of_parts_of_any_width_and_any_streams(b: int, widths: list[int], tokens: list[int]) -> None:
    n, total = sum(tokens), sum(widths)
    streams = [f"s{i}" for i in range(len(tokens))] if len(tokens) > 1 else ["f"]
    body = f"{', '.join(streams)} = Split <axis = 1> (f, tokens) " if len(tokens) > 1 else ""
    outputs = []
    for stream in streams:
        parts = [f"{stream}p{i}" for i in range(len(widths))]
        outputs += [f"y{part}" for part in parts]
        body += f"{', '.join(parts)} = Split <axis = 2> ({stream}, widths) "
        body += "".join(f"y{part} = Tanh ({part}) " for part in parts)
    model = parsed(
        f"agraph (float[{b}, {n}, 3] x) => ({', '.join(outputs)}) {{ m = MatMul (x, w) f = Add (m, b) {body} }}",
        w=batch(3, total, seed=1),
        b=batch(total, seed=2),
        widths=np.array(widths),
        tokens=np.array(tokens),
    )

    prove(SeparateProjections, model, batch(b, n, 3), target=SEPARATE)

    assert ops(model)["MatMul"] == len(widths)
    assert ops(model)["Split"] == (len(widths) if len(tokens) > 1 else 0)


@pytest.mark.parametrize("dynamic", [False, True])
def test_self_attention_of_lemevit(dynamic: bool) -> None:
    attention = SelfAttention(64)
    torch.nn.init.normal_(attention.qkv.bias)
    model = folded(attention, torch.randn(2, 17, 64), dynamic_batch=dynamic)
    before = ops(model)
    prove(SeparateProjections, model, batch(2, 17, 64), target=SEPARATE)
    after = ops(model)
    assert (before["Split"], after["Split"]) == (1, 0)
    assert after["MatMul"] == before["MatMul"] + 2
