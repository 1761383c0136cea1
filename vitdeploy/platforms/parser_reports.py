"""Where NVIDIA's own parser says something else about an element type than the operator tables: both, with versions.

The tables are those that `capabilities` names. The parser is that of TensorRT for RTX, asked by
benchmarks/nvidia_operators.py, whose results tests/platforms/test_parser_reports.py holds these rows to. It is another
product than TensorRT: what it refuses is worth a warning, and what it takes lifts no rule.
"""

from __future__ import annotations

from collections.abc import Mapping

PARSER = "the parser of TensorRT for RTX 1.7.1"

# Taken by the tables, or not mentioned there: element types by operator, in ONNX's words.
REFUSED: Mapping[str, frozenset[str]] = {
    "DepthToSpace": frozenset({"bool"}),
    "MeanVarianceNormalization": frozenset({"float16", "bfloat16"}),
    "Mod": frozenset({"int8"}),
    "ReduceL2": frozenset({"int32", "int64"}),
    "ReduceLogSum": frozenset({"int32", "int64"}),
    "ReduceLogSumExp": frozenset({"int32", "int64"}),
    "ReduceMax": frozenset({"bool"}),
    "ReduceMin": frozenset({"bool"}),
    "Relu": frozenset({"int32"}),
    "Resize": frozenset({"bool"}),
    "SpaceToDepth": frozenset({"bool"}),
    "TensorScatter": frozenset({"int8", "int32", "int64", "bool"}),
    "Upsample": frozenset({"bool"}),
}

# Refused by the tables, or by an issue.
TAKEN: Mapping[str, frozenset[str]] = {
    "Clip": frozenset({"int32", "int64"}),
    "Equal": frozenset({"uint8"}),
    "Identity": frozenset({"uint8"}),
    "MaxPool": frozenset({"int8"}),
    "Resize": frozenset({"int8"}),
    "Shape": frozenset({"uint8"}),
    "Size": frozenset({"uint8"}),
    "Upsample": frozenset({"int8"}),
}


def also(source: str, op_type: str, kind: str) -> str:
    """`source` of a rule against an operator of an element type, with the parser's word where that takes it."""
    return f"{source}; {PARSER} takes it" if kind in TAKEN.get(op_type, ()) else source
