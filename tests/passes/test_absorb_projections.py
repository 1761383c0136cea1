"""AbsorbProjections: attention between few tokens and many without linear layers of the many."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.graph_cases import PORTABLE, parsed, prove
from tests.rows import TARGETS
from vitdeploy.exporter.request import ExportRequest
from vitdeploy.graph.edit import constant, sizes
from vitdeploy.passes.absorb_projections import AbsorbProjections

ABSORBS = replace(PORTABLE, absorbs_projections=("fp32",))
EXACT = 1e-11  # of the largest output, in float64


@dataclass(frozen=True)
class Block:
    """Attention of n tokens to m others and back, each with one layer for queries, keys and values."""

    n: int = 40
    m: int = 2
    heads: int = 2
    depth: int = 4
    width: int = 5
    inner: int = 8
    outer: int = 6
    batch: int = 2
    bias: bool = True
    free: bool = False
    learned: bool = False  # the m tokens are the same for all images
    scores: str = ""  # between product and softmax
    more: str = ""

    def model(self) -> ir.Model:
        """In float64; `y` is of the n tokens and `z` of the m."""
        rng = np.random.default_rng(0)
        h, d, e = self.heads, self.depth, self.width
        parts = 2 * h * d + h * e
        size, first = ("batch", 0) if self.free else (self.batch, self.batch)

        def of(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape) / np.sqrt(shape[0])

        def shape(*lengths: int, images: int = first) -> np.ndarray:
            return np.array([images, *lengths])

        of_m = 1 if self.learned else first

        def attention(q: str, k: str, v: str, rows: str, columns: str, out: str) -> str:
            scores = self.scores.replace("s_", f"s_{out}").replace("t_", f"t_{out}")
            soft = f"t_{out}" if self.scores else f"s_{out}"
            return f"""
              h{q} = Reshape ({q}, d_{rows}) t{q} = Transpose <perm = [0, 2, 1, 3]> (h{q})
              h{k} = Reshape ({k}, d_{columns}) t{k} = Transpose <perm = [0, 2, 3, 1]> (h{k})
              h{v} = Reshape ({v}, e_{columns}) t{v} = Transpose <perm = [0, 2, 1, 3]> (h{v})
              s_{out} = MatMul (t{q}, t{k}) {scores} a_{out} = Softmax <axis = -1> ({soft})
              r_{out} = MatMul (a_{out}, t{v}) l_{out} = Transpose <perm = [0, 2, 1, 3]> (r_{out})
              f_{out} = Reshape (l_{out}, f_{rows}) p_{out} = MatMul (f_{out}, w_{out})
              {out} = Add (p_{out}, b_{out})"""

        def layer(tokens: str) -> str:
            bias = f"j{tokens} = Add (i{tokens}, bias_{tokens})" if self.bias else ""
            return f"""
              i{tokens} = MatMul ({tokens}, weight_{tokens}) {bias}
              q{tokens}, k{tokens}, v{tokens} = Split <axis = 2> ({"j" if self.bias else "i"}{tokens}, parts)"""

        return parsed(
            f"agraph (double[{size}, {self.n + self.m}, {self.inner}] tokens) => (y, z{', u' if self.more else ''}) {{"
            + ("x, o = Split <axis = 1> (tokens, streams) c = ReduceMean (o, images)" if self.learned else "")
            + ("" if self.learned else "x, c = Split <axis = 1> (tokens, streams)")
            + layer("x")
            + layer("c")
            + attention("qx", "kc", "vc", "n", "m", "y")
            + attention("qc", "kx", "vx", "m", "n", "z")
            + f"{self.more} }}",
            streams=np.array([self.n, self.m]),
            parts=np.array([h * d, h * d, h * e]),
            images=np.array([0]),
            d_n=shape(self.n, h, d),
            e_n=shape(self.n, h, e),
            d_m=shape(self.m, h, d, images=of_m),
            e_m=shape(self.m, h, e, images=of_m),
            **{f"f_{key}": shape(count, h * e) for key, count in (("n", self.n), ("m", self.m))},
            **{f"weight_{key}": of(self.inner, parts) for key in "xc"},
            **{f"bias_{key}": rng.standard_normal(parts) for key in "xc"},
            **{f"w_{key}": of(h * e, self.outer) for key in "yz"},
            **{f"b_{key}": rng.standard_normal(self.outer) for key in "yz"},
            factor=np.array(0.5),
            mask=rng.standard_normal((self.batch, 1, 1, 1)),
        )

    @property
    def tokens(self) -> np.ndarray:
        """An input."""
        shape = (3 if self.free else self.batch, self.n + self.m, self.inner)
        return np.random.default_rng(1).standard_normal(shape)

    @property
    def pays(self) -> bool:
        """Whether the more tokens take fewer multiplications without their layers."""
        n, hm, d, e = max(self.n, self.m), self.heads * min(self.n, self.m), self.depth, self.width
        layers = self.inner * self.heads * (2 * d + e) + self.heads * e * self.outer
        before = n * layers + 2 * n * hm * (d + e)
        few = hm * (self.inner * d + e * self.outer) + hm * self.inner * (d + e)
        return n * hm * (3 * self.inner + self.outer) + few < before


@settings(max_examples=examples(40), deadline=None)
@given(
    st.builds(
        Block,
        n=st.integers(3, 60),
        m=st.integers(1, 12),
        heads=st.integers(1, 3),
        depth=st.integers(1, 5),
        width=st.integers(1, 5),
        inner=st.integers(1, 9),
        outer=st.integers(1, 9),
        batch=st.integers(1, 3),
        bias=st.booleans(),
        free=st.booleans(),
        learned=st.booleans(),
    )
)
def test_any_block_computes_the_same_and_is_rewritten_where_that_pays(block: Block) -> None:
    model = block.model()
    done = prove(AbsorbProjections, model, block.tokens, target=ABSORBS, tolerance=EXACT)
    assert len(done.changes) == (2 if block.n != block.m and block.pays else 0)
    layers = [node for node in model.graph if node.op_type == "MatMul" and constant(node.inputs[1]) is not None]
    flat = [node for node in layers if len(sizes(node.outputs[0]) or ()) == 3]
    assert len(flat) == (2 if done.changes else 4)  # those of the few tokens are left


def test_the_bias_of_the_queries_and_of_the_values_count() -> None:
    block = Block()
    model, other = block.model(), replace(block, bias=False).model()
    for one in (model, other):
        assert len(prove(AbsorbProjections, one, block.tokens, target=ABSORBS, tolerance=EXACT).changes) == 2
    counts = [sum(node.op_type == "Add" for node in one.graph) for one in (model, other)]
    assert counts[0] - counts[1] == 3  # the layer of the few tokens, the row of the queries, the row of the values


LEFT_ALONE = {
    "a mask": Block(scores="t_ = Add (s_, mask)"),
    "a scale": Block(scores="t_ = Mul (s_, factor)"),
    "queries that something else reads": Block(more="u = Relu (qx)"),
    "keys that something else reads": Block(more="u = Relu (tkx)"),
    "values that something else reads": Block(more="u = Relu (hvx)"),
    "the whole layer that something else reads": Block(more="u = Relu (jx)"),
    "scores that something else reads": Block(more="u = Relu (s_y)"),
    "weights that something else reads": Block(more="u = Relu (a_z)"),
    "a result that something else reads": Block(more="u = Relu (r_y)"),
    "as many tokens on both sides": Block(n=5, m=5),
    "so many heads of few tokens that it does not pay": Block(m=20, n=40),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    block = LEFT_ALONE[case]
    assert prove(AbsorbProjections, block.model(), block.tokens, target=ABSORBS, tolerance=EXACT).changes == []


def test_a_target_that_gains_nothing_keeps_its_layers() -> None:
    keeps = replace(PORTABLE, absorbs_projections=())
    assert prove(AbsorbProjections, Block().model(), Block().tokens, target=keeps).changes == []


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", TARGETS)
def test_only_the_precisions_that_gain_get_it(name: str, precision: str, tmp_path: Path) -> None:
    row = ExportRequest("lemevit_tiny", tmp_path / "b", target=name, precision=precision).row
    assert row.name == name
    assert AbsorbProjections(row).applies() == (precision in TARGETS[name].absorbs_projections)
    assert not (TARGETS[name].for_nvidia_alone and AbsorbProjections(row).applies())
