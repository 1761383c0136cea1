from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.graph_cases import batch, parsed, prove
from tests.rows import TARGETS
from vitdeploy.graph.edit import attribute
from vitdeploy.passes.channels_last_maps import ChannelsLastMaps

LAST = TARGETS["onnxruntime"]
TO_MAP = "t = Transpose <perm = [0, 2, 1]> (x) y = Reshape (t, image) "
TO_TOKENS = "f = Reshape (x, flat) y = Transpose <perm = [0, 2, 1]> (f) "


def perms(model: ir.Model) -> list[tuple[int, ...]]:
    return [tuple(attribute(node, "perm")) for node in model.graph if node.op_type == "Transpose"]


@settings(max_examples=examples(25))
@given(b=st.integers(1, 3), h=st.integers(1, 5), w=st.integers(1, 5), c=st.integers(1, 5), free=st.booleans())
def test_tokens_become_a_map_with_the_channels_last(b: int, h: int, w: int, c: int, free: bool) -> None:
    size = "batch" if free else b
    model = parsed(
        f"agraph (float[{size}, {h * w}, {c}] x) => (y) {{ {TO_MAP} }}", image=np.array([0 if free else b, c, h, w])
    )
    assert len(prove(ChannelsLastMaps, model, batch(b, h * w, c), target=LAST).changes) == 1
    assert perms(model) == [(0, 3, 1, 2)]


@settings(max_examples=examples(25))
@given(b=st.integers(1, 3), h=st.integers(1, 5), w=st.integers(1, 5), c=st.integers(1, 5), free=st.booleans())
def test_a_map_becomes_tokens_with_the_channels_last(b: int, h: int, w: int, c: int, free: bool) -> None:
    size = "batch" if free else b
    model = parsed(
        f"agraph (float[{size}, {c}, {h}, {w}] x) => (y) {{ {TO_TOKENS} }}", flat=np.array([0 if free else b, c, h * w])
    )
    assert len(prove(ChannelsLastMaps, model, batch(b, c, h, w), target=LAST).changes) == 1
    assert perms(model) == [(0, 2, 3, 1)]


def test_a_transpose_with_another_reader_stays_for_it() -> None:
    model = parsed(
        f"agraph (float[2, 6, 4] x) => (y, z) {{ {TO_MAP} z = Softmax <axis = 2> (t) }}", image=np.array([2, 4, 2, 3])
    )
    prove(ChannelsLastMaps, model, batch(2, 6, 4), target=LAST)
    assert sorted(perms(model)) == [(0, 2, 1), (0, 3, 1, 2)]


LEFT_ALONE = {
    "heads": "t = Transpose <perm = [0, 2, 1]> (x) y = Reshape (t, heads)",
    "rows and columns of the channels": "t = Transpose <perm = [0, 2, 1]> (x) y = Reshape (t, rows)",
    "no transpose": "y = Reshape (x, image)",
    "flat tokens read elsewhere": "i = Reshape (x, image) f = Reshape (i, flat) t = Transpose <perm = [0, 2, 1]> (f) "
    "z = Softmax <axis = 1> (f) u = Transpose <perm = [0, 2, 1]> (z) y = Add (t, u)",
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    model = parsed(
        f"agraph (float[2, 6, 4] x) => (y) {{ {LEFT_ALONE[case]} }}",
        heads=np.array([2, 2, 2, 6]),
        rows=np.array([4, 2, 2, 3]),
        image=np.array([2, 4, 2, 3]),
        flat=np.array([2, 4, 6]),
    )
    assert prove(ChannelsLastMaps, model, batch(2, 6, 4), target=LAST).changes == []


def test_a_target_that_convolves_channels_first_keeps_the_form() -> None:
    model = parsed(f"agraph (float[2, 6, 4] x) => (y) {{ {TO_MAP} }}", image=np.array([2, 4, 2, 3]))
    target = replace(TARGETS["tensorrt10"], channels_last_maps=False)
    assert prove(ChannelsLastMaps, model, batch(2, 6, 4), target=target).changes == []
