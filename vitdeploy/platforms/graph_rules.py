"""What a platform's TensorRT accepts of a graph: its opset, operators, types and limits, and its known defects."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import onnx_ir as ir

from vitdeploy.platforms import capabilities as can
from vitdeploy.platforms.boards import Platform
from vitdeploy.platforms.fusion_rules import type_name
from vitdeploy.platforms.known_bad import Circumstances, KnownBad, matching_rows
from vitdeploy.platforms.node_rules import node_findings, title
from vitdeploy.platforms.parser_reports import LACKING, OTHER_REASONS, PARSER, beside, takes, takes_form
from vitdeploy.platforms.report import BLOCKS, WARNS, Block, Finding
from vitdeploy.platforms.versions import dotted

_TABLES = "parser 8.5 and 10.15"

# Issues that a rule of `fusion_rules` decides on the graph at hand.
_DECIDED_BY_RULES = (
    "tier4/autoware-ml#95",
    *(f"NVIDIA/TensorRT#{number}" for number in (3243, 3575, 4167)),
)


def check_graph(model: ir.Model, platform: Platform) -> Iterator[Finding]:
    """Everything but fusion: opset, operators, types, limits and the form of quantization."""
    yield from _opset(model, platform)
    yield from _python(model.graph, platform)
    yield from _signature(model.graph, platform)
    for node in model.graph:
        if node.domain not in ("", "ai.onnx"):
            what, fix = f"an operator of domain {node.domain}", "vitdeploy export MODEL, which ships standard operators"
            yield Finding(BLOCKS, title(node), what, fix, "parser 10.15")
            continue
        yield from _operator(node, platform)
        yield from _element_types(node, platform)
        yield from node_findings(node, platform)


def unreadable(model: ir.Model, platform: Platform) -> Iterator[tuple[ir.Node, Finding]]:
    """The nodes that block the build on `platform`, each with the first finding that says why."""
    for node in model.graph:
        rules = (_operator, _element_types, node_findings)
        findings = (finding for rule in rules for finding in rule(node, platform) if finding.level == BLOCKS)
        first = next(findings, None)
        if first is not None:
            yield node, first


def has_operator(platform: Platform, op_type: str) -> bool:
    """Whether every TensorRT of `platform` is known to have the operator, in some form."""
    newcomer = can.NEWCOMERS.get(op_type)
    return op_type in can.OPERATORS_8_5 or (newcomer is not None and platform.oldest >= newcomer.present)


def _opset(model: ir.Model, platform: Platform) -> Iterator[Finding]:
    opset = model.opset_imports.get("", 0)
    newest, source = next((n, s) for since, n, s in reversed(can.NEWEST_OPSETS) if platform.oldest >= since)
    if not can.OLDEST_OPSET <= opset <= newest:
        what = f"TensorRT {dotted(platform.oldest)} reads opset {can.OLDEST_OPSET} to {newest}, this is {opset}"
        target = "tensorrt8" if newest == 17 else "tensorrt10"
        yield Finding(BLOCKS, "model", what, f"vitdeploy export … --target {target}", source)


def _python(graph: ir.Graph, platform: Platform) -> Iterator[Finding]:
    """What to use instead of vitdeploy's runtime where the board's Python is too old for it."""
    if platform.python and tuple(map(int, platform.python.split("."))) < can.MIN_PYTHON:
        kinds = {type_name(value) for node in graph for value in node.outputs}
        flags = "".join(f" --{kind}" for kind in ("fp16", "int8") if kind in kinds)
        what = f"Python {platform.python} is too old for vitdeploy's runtime"
        if "fp16" in kinds:
            what += ", and trtexec --fp16 may compute in FP16 what the graph keeps in FP32: compare the outputs"
        yield Finding(WARNS, "system", what, f"trtexec --onnx=model.onnx{flags}, or a newer JetPack", platform.source)


def _signature(graph: ir.Graph, platform: Platform) -> Iterator[Finding]:
    for value in (*graph.inputs, *graph.outputs):
        kind = value.dtype
        if kind == ir.DataType.INT64 and platform.oldest < can.INT64_SINCE:
            what = f"int64 becomes int32 before TensorRT {dotted(can.INT64_SINCE)}"
            yield Finding(WARNS, str(value.name), what, "end the graph in float32 or int32", "parser 8.5")
        elif kind == ir.DataType.DOUBLE:
            yield Finding(WARNS, str(value.name), "float64 becomes float32", "use float32", "parser 10.15")
        for axis in list(value.shape or ())[1:]:
            if not isinstance(axis, int):
                what = f"axis {axis.value} is free; a profile is needed for it, and fused kernels may be lost"
                yield Finding(WARNS, str(value.name), what, "fix every axis but the batch", "guide")


def _operator(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    kind, newcomer = node.op_type, can.NEWCOMERS.get(node.op_type)
    if has_operator(platform, kind):
        return
    if kind in can.INTEGER_OPERATORS:
        what, fix = f"{kind} is an integer operator", "quantize with QuantizeLinear and DequantizeLinear pairs"
        yield Finding(BLOCKS, title(node), what, fix, "parser 10.15")
    elif newcomer is None:
        fix = "replace it in the model by other operators"
        yield Finding(BLOCKS, title(node), f"TensorRT has no {kind}", fix, "parser 8.5 and 10.15")
    else:
        oldest, present = dotted(platform.oldest), dotted(newcomer.present)
        known = platform.oldest[:2] <= newcomer.absent
        what = f"{kind} is there from TensorRT {present}, {'not in' if known else 'not known for'} {oldest}"
        fix = (
            "vitdeploy export … --target tensorrt8" if kind in ("LayerNormalization", "Gelu") else f"{present} or newer"
        )
        yield Finding(BLOCKS if known else WARNS, title(node), what, fix, newcomer.source)


def _element_types(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    kinds = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None and value.dtype is not None}
    known = can.ELEMENT_TYPES_8 if platform.oldest < (10, 0) else can.ELEMENT_TYPES_10
    for unknown in sorted({kind.name.lower() for kind in kinds} - known - {"bfloat16", "undefined"}):
        what, source = f"TensorRT has no {unknown}", beside(f"{_TABLES}: element types", takes("Identity", unknown))
        yield Finding(BLOCKS, title(node), what, "cast to int32 or float32 before the export", source)
        return
    if ir.DataType.BFLOAT16 in kinds and platform.oldest < can.BFLOAT16_SINCE:
        what = f"bfloat16 is there from TensorRT {dotted(can.BFLOAT16_SINCE)}"
        yield Finding(BLOCKS, title(node), what, "export it with --precision fp16 or fp32", "parser 8.5")
    first = node.inputs[0] if node.inputs else None
    kind = None if first is None or first.dtype is None else first.dtype.name.lower()
    measured = None if kind is None or platform.oldest < (10, 0) else takes(node.op_type, kind)
    read = {value.dtype for value in node.inputs if value is not None}
    documented = list(_documented_types(node, platform, read, measured))
    if documented:
        yield from () if platform.product and measured else documented
    elif measured is False and has_operator(platform, node.op_type) and not _another_reason(node, platform):
        what = f"{node.op_type} of {kind} is refused by {PARSER}, and the operator tables do not say so"
        level = BLOCKS if platform.product else WARNS
        yield Finding(level, title(node), what, "cast to float32 before it", f"{PARSER}; parser 10.15")


def _documented_types(
    node: ir.Node, platform: Platform, read: Collection[ir.DataType | None], measured: bool | None
) -> Iterator[Finding]:
    """What the operator tables say against the types that a node reads."""
    first = node.inputs[0] if node.inputs else None
    touched = {kind.name.lower() for kind in (*read, *(out.dtype for out in node.outputs)) if kind is not None}
    narrow = touched & can.QUANTIZED_TYPES
    if narrow and node.op_type not in can.QUANTIZATION:
        what, fix = (
            f"{' and '.join(sorted(narrow))} outside of quantization",
            "QuantizeLinear and DequantizeLinear around float",
        )
        asked = first is not None and first.dtype is not None and first.dtype.name.lower() in narrow
        taken = measured if asked else takes("Cast", min(narrow))
        source = "parser 10.15: such types come by quantization only"
        yield Finding(BLOCKS, title(node), what, fix, beside(source, taken))
    if ir.DataType.UINT8 in read and node.op_type not in can.UINT8_CONSUMERS:
        # The parser was asked with the first input of this type.
        taken = measured if first is not None and first.dtype == ir.DataType.UINT8 else None
        source = beside(can.UINT8_SOURCE, taken)
        yield Finding(BLOCKS, title(node), "it reads uint8", "a Cast to float before it", source)
    elif any(_is_computed_uint8(value) for value in node.inputs):
        what, source = (
            "it reads uint8 that is computed",
            beside(can.UINT8_SOURCE, takes_form("Cast", "through", "uint8")),
        )
        yield Finding(BLOCKS, title(node), what, "stay in int32 or float32", source)
    for kind in sorted(narrow & can.NARROW_SINCE.keys()):
        since, source = can.NARROW_SINCE[kind]
        if platform.sm is not None and platform.sm < since:
            what = f"{kind} needs compute capability {dotted(since)}, this GPU has {dotted(platform.sm)}"
            yield Finding(BLOCKS, title(node), what, "export it with --int8 or --fp16", source)
    float_only = can.FLOAT_ONLY_8 if platform.oldest < (10, 0) else can.FLOAT_ONLY_8 - can.INTEGERS_SINCE_10
    if node.op_type in float_only and first is not None and first.dtype is not None and first.dtype.is_integer():
        what = f"{node.op_type} of {type_name(first)} is not taken"
        yield Finding(BLOCKS, title(node), what, "cast to float before it", beside(_TABLES, measured))


def _is_computed_uint8(value: ir.Value | None) -> bool:
    """Whether a node gives it that does not quantize: the parser takes uint8 as an input or output of the network."""
    source = None if value is None or value.dtype != ir.DataType.UINT8 else value.producer()
    return source is not None and source.op_type not in ("QuantizeLinear", "Constant")


def _another_reason(node: ir.Node, platform: Platform) -> bool:
    """Whether the parser refuses the operator for a reason that is none of its type's, and of no product's either."""
    return node.op_type in OTHER_REASONS and not (platform.product and node.op_type in LACKING)


def check_known_bad(
    graph: ir.Graph, platform: Platform, attentions: Sequence[Block], norms: Sequence[Block]
) -> Iterator[Finding]:
    """Versions of the range that are known to go wrong on what this graph has; of another product nothing is known."""
    if platform.product:
        return
    every = {type_name(value) for node in graph for value in node.outputs}
    operators = {node.op_type for node in graph}
    free = any(not isinstance(axis, int) for value in graph.inputs for axis in value.shape or ())
    # What the words of a row name, the narrower words first, and the precisions in which the graph has it.
    precisions = {
        "attention": {block.precision for block in attentions},
        "written-out layer norm": {block.precision for block in norms if _is_written_out(block)},
        "layer norm": {block.precision for block in norms},
        "TopK": every if "TopK" in operators else set(),
        "free axes": every if free else set(),
        "": every,
    }
    versions: dict[KnownBad, list[str]] = {}
    for version in platform.minors:
        sm = () if platform.sm is None else (10 * platform.sm[0] + platform.sm[1],)
        here = Circumstances({"tensorrt": dotted(version)}, sm, bool(platform.jetpack), platform.jetpack or None)
        for row, _ in matching_rows(here):
            if row.issue not in _DECIDED_BY_RULES and _concerns(row, precisions):
                versions.setdefault(row, []).append(dotted(version))
    for row, hit in versions.items():
        where = f"TensorRT {hit[0]}" if len(hit) == 1 else f"TensorRT {hit[0]} to {hit[-1]}"
        what = f"{row.effect} reported: {row.affects}, {row.symptom}"
        yield Finding(WARNS, where, what, row.advice, row.issue or row.source)


def _is_written_out(norm: Block) -> bool:
    return any(rule.name == "operator" and not rule.holds for rule in norm.rules)


def _concerns(row: KnownBad, precisions: Mapping[str, set[str]]) -> bool:
    """Whether the graph has what the row's words name: the part, in the precision."""
    found = next(kinds for part, kinds in precisions.items() if part in row.affects)
    wanted = {kind for kind in ("fp16", "int8") if kind.upper() in row.affects}
    return bool(found) and (not wanted or "even in" in row.affects or bool(wanted & found))
