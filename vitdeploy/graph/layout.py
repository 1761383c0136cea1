"""Transposes and reshapes as one thing: how the axes of a tensor are split, permuted and merged."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Array, attribute, sizes

# Operators that move elements and do nothing else.
MOVERS = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})

Size = int | str  # a free dimension by its name

# A factor of an axis: the splits that led to it (no two factors share them), and its size.
Factor = tuple[tuple[int, ...], Size]
Axis = tuple[Factor, ...]


class Step(NamedTuple):
    """One operator of a movement and the shape it gives; `perm` is a Transpose's, None for a Reshape."""

    perm: tuple[int, ...] | None
    shape: tuple[Size, ...]


@dataclass(frozen=True)
class Movement:
    """How elements move from a source to a target: both as axes made of the same factors, axes of size 1 of none."""

    source: tuple[Axis, ...]
    target: tuple[Axis, ...]

    @classmethod
    def still(cls, shape: Sequence[Size]) -> Movement:
        """The movement from a tensor of `shape` to itself."""
        axes = tuple(() if size == 1 else (((index,), size),) for index, size in enumerate(shape))
        return cls(axes, axes)

    def after_transpose(self, perm: Sequence[int]) -> Movement:
        """This movement of a source that is itself Transpose(perm) of a new source."""
        source: list[Axis] = [()] * len(perm)
        for axis, origin in zip(self.source, perm, strict=True):
            source[origin] = axis
        return Movement(tuple(source), self.target)

    def after_reshape(self, shape: Sequence[Size]) -> Movement | None:
        """This movement of a source that is itself a Reshape of a new source of `shape`.

        None where the shapes share no common factors, as 6 x 4 and 8 x 3, or a free dimension would have to be split.
        """
        regrouped = _regroup([factor for axis in self.source for factor in axis], shape)
        if regrouped is None:
            return None
        axes, splits = regrouped
        return Movement(
            tuple(axes), tuple(tuple(part for f in axis for part in splits.get(f, (f,))) for axis in self.target)
        )

    @property
    def keeps_order(self) -> bool:
        """Whether the elements stay in order, so that a Reshape does it, or nothing."""
        return _flat(self.source) == _flat(self.target)

    @property
    def shape(self) -> tuple[Size, ...]:
        """The shape of the target."""
        return _sizes(self.target)

    def steps(self) -> list[Step]:
        """The fewest operators that do it: at most one Transpose, with a Reshape on each side."""
        if self.keeps_order:
            return [] if self.source == self.target else [Step(None, self.shape)]
        whole = _permutation(self.source, self.target)
        if whole is not None:  # the axes of the source move as they are
            moved = [self.source[i] for i in whole]
            return [_transpose(self.source, whole), *([] if moved == list(self.target) else [Step(None, self.shape)])]
        back = _permutation(self.target, self.source)
        if back is not None:  # the axes of the target come as they are
            axes = [self.target[i] for i in back]
            return [Step(None, _sizes(axes)), _transpose(axes, np.argsort(back).tolist())]
        runs = self._runs()
        order = np.argsort([_flat(self.target).index(run[0]) for run in runs]).tolist()
        return [Step(None, _sizes(runs)), _transpose(runs, order), Step(None, self.shape)]

    def axes_before(self, axes: Collection[int]) -> list[int] | None:
        """The axes of the source that become just the target's `axes`; None unless all others stay in order."""
        chosen = {factor for axis in axes for factor in self.target[axis]}
        found = [index for index, axis in enumerate(self.source) if axis and chosen.issuperset(axis)]
        others = [factor for index, axis in enumerate(self.source) if index not in found for factor in axis]
        return found if others == [factor for factor in _flat(self.target) if factor not in chosen] else None

    def _runs(self) -> list[Axis]:
        """The factors of the source, those that stay beside each other in the target together."""
        target, runs = _flat(self.target), list[list[Factor]]()
        for factor in _flat(self.source):
            if runs and not _is_named(runs[-1] + [factor]) and target.index(factor) == target.index(runs[-1][-1]) + 1:
                runs[-1].append(factor)
            else:
                runs.append([factor])
        return [tuple(run) for run in runs]

    def move(self, array: Array) -> Array | None:
        """`array`, which broadcasts to the source, moved likewise; None where it would fill a free dimension."""
        shape = (1,) * (len(self.source) - array.ndim) + array.shape
        spread = {factor: size == 1 for axis, size in zip(self.source, shape, strict=True) for factor in axis}
        factors = _flat(self.source)
        if any(isinstance(factor[1], str) and not spread[factor] for factor in factors):
            return None
        split = array.reshape([1 if spread[factor] else int(factor[1]) for factor in factors])
        moved = split.transpose([factors.index(factor) for factor in _flat(self.target)])
        full, result = [], []
        for axis in self.target:
            mixed = len({spread[factor] for factor in axis}) > 1  # part of the axis varies: spell all of it out
            if mixed and _is_named(axis):
                return None
            full += [int(factor[1]) if mixed or not spread[factor] else 1 for factor in axis]
            result.append(math.prod(full[len(full) - len(axis) :]))
        return np.asarray(np.broadcast_to(moved, full).reshape(result))


def after(node: ir.Node, movement: Movement) -> Movement | None:
    """`movement` with `node`, one of MOVERS, done before it; None where that has no common factors."""
    shape = sizes(node.inputs[0])
    if shape is None or len(movement.source) != len(sizes(node.outputs[0]) or ()):
        return None
    if node.op_type == "Transpose":
        return movement.after_transpose(attribute(node, "perm", range(len(shape))[::-1]))
    return movement.after_reshape(shape)


def _flat(axes: Sequence[Axis]) -> list[Factor]:
    return [factor for axis in axes for factor in axis]


def _is_named(axis: Sequence[Factor]) -> bool:
    return any(isinstance(size, str) for _, size in axis)


def _transpose(axes: Sequence[Axis], perm: Sequence[int]) -> Step:
    return Step(tuple(perm), _sizes([axes[i] for i in perm]))


def _sizes(axes: Sequence[Axis]) -> tuple[Size, ...]:
    return tuple(_size(axis) for axis in axes)


def _size(axis: Axis) -> Size:
    """The product of the factors; a free dimension is always alone in its axis."""
    return axis[0][1] if _is_named(axis) else math.prod(int(size) for _, size in axis)


def _permutation(moving: Sequence[Axis], order: Sequence[Axis]) -> list[int] | None:
    """The order of the axes `moving` in which their factors follow each other as in `order`, if there is one.

    Axes of size 1 keep their place where that is possible.
    """
    target = _flat(order)
    if len(moving) == len(order) and sorted(moving) == sorted(order):
        waiting = {axis: [i for i, m in enumerate(moving) if m == axis] for axis in set(moving)}
        return [waiting[axis].pop(0) for axis in order]
    empty = [i for i, axis in enumerate(moving) if not axis]
    filled = sorted((i for i, axis in enumerate(moving) if axis), key=lambda i: target.index(moving[i][0]))
    if [factor for i in filled for factor in moving[i]] != target:
        return None
    for place in empty:
        filled.insert(place, place)
    return filled


def _regroup(
    factors: Sequence[Factor], shape: Sequence[Size]
) -> tuple[list[Axis], dict[Factor, tuple[Factor, ...]]] | None:
    """`factors` in their order as axes of `shape`, and how factors had to be split for that."""
    if 0 in shape or any(extent == 0 for _, extent in factors):
        return None
    waiting, splits = list(factors), dict[Factor, tuple[Factor, ...]]()
    origin = {factor: factor for factor in factors}
    axes: list[Axis] = []
    for size in shape:
        axis: list[Factor] = []
        rest = size
        while rest != 1:
            if not waiting:
                return None
            factor = waiting.pop(0)
            path, extent = factor
            if extent == rest:
                rest = 1
            elif isinstance(extent, str) or isinstance(rest, str):
                return None
            elif rest % extent == 0:
                rest //= extent
            elif extent % rest == 0:
                first, second = ((*path, 0), rest), ((*path, 1), extent // rest)
                whole = origin.pop(factor)
                origin |= {first: whole, second: whole}
                splits[whole] = (*splits.get(whole, (factor,))[:-1], first, second)
                waiting.insert(0, second)
                factor, rest = first, 1
            else:
                return None
            axis.append(factor)
        axes.append(tuple(axis))
    return None if waiting else (axes, splits)
