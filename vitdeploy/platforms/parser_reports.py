"""NVIDIA's own parser beside the operator tables: what both say is kept, with their versions.

The tables are those that `capabilities` names. The parser is that of TensorRT for RTX, whose measured answers are in
`parser_table`. It is another product than TensorRT: for a platform of TensorRT, what it refuses alone is worth a
warning, and what it takes alone lifts no rule. For a platform of that product it decides.
"""

from __future__ import annotations

from collections.abc import Mapping

from vitdeploy.platforms.parser_table import FORMS, PRODUCT, TYPES, VERSION

PARSER = f"the parser of {PRODUCT} {VERSION.rpartition('.')[0]}"
COMPILER = f"the compiler of {PRODUCT} {VERSION.rpartition('.')[0]}"

# Refused for a reason that is none of the element type's, so that it says nothing of TensorRT itself.
OTHER_REASONS: Mapping[str, str] = {
    "Attention": "its kernels take some sizes and types, see the rules of fused attention",
    "BlackmanWindow": "the probe computes its length",
    "DeformConv": "a plug-in, which TensorRT for RTX lacks",
    "GridSample": "the rule is about wrong numbers, which no compiler tells",
    "HammingWindow": "the probe computes its length",
    "HannWindow": "the probe computes its length",
    "Loop": "the form, whose result grows with every turn",
    "NonMaxSuppression": "no kernels in TensorRT for RTX",
    "NonZero": "a plug-in, which TensorRT for RTX lacks",
    "RoiAlign": "a plug-in, which TensorRT for RTX lacks",
    "Scan": "the form",
}
# Those that TensorRT for RTX does not have at all.
LACKING = frozenset({"DeformConv", "NonMaxSuppression", "NonZero", "RoiAlign"})


def takes(op_type: str, kind: str) -> bool | None:
    """Whether the parser takes the operator with a first input of type `kind` (ONNX's word); None: not measured."""
    taken, refused = TYPES.get(op_type, ("", ""))
    return True if kind in taken.split() else False if kind in refused.split() else None


def takes_form(op_type: str, *words: str) -> bool | None:
    """Whether the parser takes every measured form of the operator that has these words; None: not measured, or some.

    Words are attributes and constants as `parser_table.FORMS` has them, such as `sorted=0`.
    """
    wanted = {op_type, *words}
    found = {taken for name, taken in FORMS.items() if wanted <= set(name.split()) and name.split()[0] == op_type}
    return found.pop() if len(found) == 1 else None


def beside(source: str, taken: bool | None) -> str:
    """The source of a documented refusal, with what the parser says about it."""
    if taken is None:
        return source
    return f"{source}; {PARSER} {'takes it' if taken else 'refuses it too'}"
