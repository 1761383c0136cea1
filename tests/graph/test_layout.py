from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from vitdeploy.graph.layout import Movement, Size

Chain = list[tuple[str, tuple[int, ...]]]


def apply_steps(movement: Movement, array: np.ndarray) -> np.ndarray:
    for perm, shape in movement.steps():
        array = array.transpose(perm) if perm is not None else array.reshape([-1 if s == "batch" else s for s in shape])
    return array


@st.composite
def chains(draw: st.DrawFn) -> tuple[tuple[int, ...], Chain]:
    """A shape, and transposes and reshapes that split and merge neighbouring axes."""
    start = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6, 8]), min_size=1, max_size=4)))
    shape, chain = list(start), list[tuple[str, tuple[int, ...]]]()
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(["transpose", "merge", "split", "unit"]))
        at = draw(st.integers(0, len(shape) - 1))
        if kind == "transpose":
            perm = draw(st.permutations(range(len(shape))))
            shape = [shape[i] for i in perm]
            chain.append(("transpose", tuple(perm)))
            continue
        if kind == "merge":
            shape[at : at + 2] = [math.prod(shape[at : at + 2])]
        elif kind == "unit":
            shape.insert(at, 1)
        else:
            factor = draw(st.sampled_from([d for d in range(1, shape[at] + 1) if shape[at] % d == 0]))
            shape[at : at + 1] = [factor, shape[at] // factor]
        chain.append(("reshape", tuple(shape)))
    return start, chain


def composed(start: tuple[Size, ...], chain: Chain) -> Movement | None:
    """The chain as one movement, built as the pass does it: from the last step up."""
    shapes: list[tuple[Size, ...]] = [start]
    for kind, argument in chain:
        shapes.append(tuple(shapes[-1][i] for i in argument) if kind == "transpose" else argument)
    movement: Movement | None = Movement.still(shapes[-1])
    for (kind, argument), before in zip(reversed(chain), reversed(shapes[:-1]), strict=True):
        if movement is None:
            return None
        movement = movement.after_transpose(argument) if kind == "transpose" else movement.after_reshape(before)
    return movement


@settings(max_examples=examples(300))
@given(chains())
def test_a_chain_of_transposes_and_reshapes_is_one_movement_of_at_most_one_transpose(
    case: tuple[tuple[int, ...], Chain],
) -> None:
    start, chain = case
    movement = composed(start, chain)
    if movement is None:  # sizes without common factors, say [4, 6] as [8, 3]
        return
    array = np.arange(math.prod(start)).reshape(start)
    expected = array
    for kind, argument in chain:
        expected = expected.transpose(argument) if kind == "transpose" else expected.reshape(argument)
    assert movement.shape == expected.shape
    np.testing.assert_array_equal(apply_steps(movement, array), expected)
    assert sum(step.perm is not None for step in movement.steps()) <= 1
    in_order = np.array_equal(expected.ravel(), array.ravel())
    assert movement.keeps_order == in_order
    assert len(movement.steps()) <= len(chain)


@settings(max_examples=examples(200))
@given(chains(), st.data())
def test_what_broadcasts_against_the_source_moves_to_what_broadcasts_against_the_target(
    case: tuple[tuple[int, ...], Chain], data: st.DataObject
) -> None:
    start, chain = case
    movement = composed(start, chain)
    if movement is None:
        return
    rank = data.draw(st.integers(0, len(start)))
    shape = [data.draw(st.sampled_from([1, size])) for size in start[len(start) - rank :]]
    small = np.arange(math.prod(shape)).reshape(shape)
    moved = movement.move(small)
    assert moved is not None
    assert moved.ndim == len(movement.shape)
    expected = apply_steps(movement, np.broadcast_to(small, start))
    np.testing.assert_array_equal(np.broadcast_to(moved, movement.shape), expected)


@settings(max_examples=examples(200))
@given(chains(), st.data())
def test_a_reduction_is_told_the_axes_of_the_source(case: tuple[tuple[int, ...], Chain], data: st.DataObject) -> None:
    start, chain = case
    movement = composed(start, chain)
    if movement is None:
        return
    axes = tuple(data.draw(st.sets(st.integers(0, len(movement.shape) - 1), min_size=1)))
    before = movement.axes_before(axes)
    if before is not None:
        array = np.random.default_rng(0).integers(0, 1000, start)
        expected = apply_steps(movement, array).sum(axes)
        np.testing.assert_array_equal(array.sum(tuple(before)).ravel(), expected.ravel())


def test_a_free_dimension_moves_as_a_whole() -> None:
    chain: Chain = [("transpose", (0, 2, 1)), ("reshape", ("batch", 2, 2, 3))]  # type: ignore[list-item]
    movement = composed(("batch", 3, 4), chain)
    assert movement is not None
    assert [step.perm for step in movement.steps()] == [(0, 2, 1), None]
    array = np.arange(60).reshape(5, 3, 4)
    np.testing.assert_array_equal(apply_steps(movement, array), array.transpose(0, 2, 1).reshape(5, 2, 2, 3))
    assert movement.move(np.arange(5).reshape(5, 1, 1)) is None
    assert Movement.still(("batch", 4)).after_reshape(("batch*2", 2)) is None


@pytest.mark.parametrize(
    ("start", "chain", "steps"),
    [
        ((2, 5, 4, 8), [("transpose", (0, 2, 1, 3)), ("transpose", (0, 1, 3, 2))], [(0, 2, 3, 1)]),
        ((2, 5, 32), [("reshape", (2, 5, 4, 8)), ("transpose", (0, 2, 3, 1))], [(0, 2, 1), None]),
        ((2, 5, 4, 8), [("transpose", (0, 2, 3, 1)), ("reshape", (2, 32, 5))], [(0, 2, 3, 1), None]),
        ((2, 9, 5), [("transpose", (0, 2, 1)), ("reshape", (2, 5, 3, 3)), ("transpose", (0, 2, 3, 1))], [None]),
        ((2, 1, 5), [("transpose", (1, 0, 2))], [None]),
        ((6, 4), [("reshape", (2, 3, 4)), ("transpose", (1, 0, 2)), ("reshape", (3, 8))], [None, (1, 0, 2), None]),
        ((3, 2), [("transpose", (1, 0)), ("transpose", (1, 0))], []),
    ],
)
def test_the_shortest_form_is_found(start: tuple[int, ...], chain: Chain, steps: list[object]) -> None:
    movement = composed(start, chain)
    assert movement is not None
    assert [step.perm for step in movement.steps()] == steps
