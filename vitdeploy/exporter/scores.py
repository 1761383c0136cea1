"""The scores that whole numbers and flags are decided from: a class map shows no rounding until a class flips.

A network that returns an argmax is judged by what the argmax looks at, as long as its precision is decided; the outputs
that are added for that are gone from what ships.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from vitdeploy.graph.edit import Array, constant
from vitdeploy.graph.run import Inputs, run

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})


def show_scores(graph: ir.Model, inputs: Inputs, expected: Mapping[str, Array]) -> dict[str, Array]:
    """`expected`, and what `graph` itself computes of the scores behind its whole numbers and flags.

    The scores become outputs of `graph`, FP32 and right as it is. Nothing is added where an output is a float: that
    one shows what rounding does.
    """
    if any(value.dtype in _FLOATS for value in graph.graph.outputs):
        return dict(expected)
    behind = [value for output in graph.graph.outputs for value in _scores(output)]
    shown = [value for value in dict.fromkeys(behind) if value.producer() is not None]
    graph.graph.outputs.extend(shown)
    found = run(graph, inputs, "as_written") if shown else {}
    return {**expected, **{str(value.name): found[str(value.name)] for value in shown}}


def hide_scores(graph: ir.Model, names: Mapping[str, Array]) -> None:
    """Leave only the outputs `names` of a graph."""
    kept = [value for value in graph.graph.outputs if value.name in names]
    graph.graph.outputs.clear()
    graph.graph.outputs.extend(kept)


def _scores(output: ir.Value) -> list[ir.Value]:
    """The floats that `output` is made of by operators that give whole numbers or flags."""
    found: dict[ir.Value, None] = {}
    waiting, seen = [output], {output}
    while waiting:
        node = waiting.pop().producer()
        for value in () if node is None else node.inputs:
            if value is None or value in seen or constant(value) is not None:
                continue
            seen.add(value)
            if value.dtype in _FLOATS:
                found[value] = None
            else:
                waiting.append(value)
    return list(found)
