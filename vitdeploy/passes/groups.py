"""Values that are rewritten together or not at all."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


class Groups:
    """A forest of disjoint sets of values; each value is a group of its own until it is united with others."""

    def __init__(self) -> None:
        self._above: dict[ir.Value, ir.Value] = {}

    def of(self, value: ir.Value) -> ir.Value:
        """The value that stands for the group of `value`."""
        while value in self._above:
            value = self._above[value]
        return value

    def unite(self, values: Sequence[ir.Value]) -> None:
        """Put all `values` into one group."""
        for value in values[1:]:
            first, other = self.of(values[0]), self.of(value)
            if first is not other:
                self._above[other] = first
