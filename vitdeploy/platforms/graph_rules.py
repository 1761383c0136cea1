"""What a platform's TensorRT accepts of a graph: its opset, operators, types and limits, and its known defects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx_ir as ir

from vitdeploy.graph.edit import attribute, constant, producer
from vitdeploy.platforms import capabilities as can
from vitdeploy.platforms.capabilities import Platform, dotted
from vitdeploy.platforms.fusion_rules import type_name
from vitdeploy.platforms.known_bad import Circumstances, KnownBad, matching_rows
from vitdeploy.platforms.parser_reports import PARSER, REFUSED, also
from vitdeploy.platforms.report import BLOCKS, WARNS, Block, Finding

# Issues that a rule of `fusion_rules` decides on the graph at hand.
_DECIDED_BY_RULES = (
    "tier4/autoware-ml#95",
    *(f"NVIDIA/TensorRT#{number}" for number in (3243, 3575, 4167)),
)


def check_graph(model: ir.Model, platform: Platform) -> Iterator[Finding]:
    """Everything but fusion: opset, operators, types, limits and the form of quantization."""
    yield from _opset(model, platform)
    yield from _python(platform)
    yield from _signature(model.graph, platform)
    for node in model.graph:
        if node.domain not in ("", "ai.onnx"):
            what, fix = f"an operator of domain {node.domain}", "vitdeploy export, which ships standard operators"
            yield Finding(BLOCKS, _name(node), what, fix, "parser 10.15")
            continue
        yield from _operator(node, platform)
        yield from _element_types(node, platform)
        for rule in _NODE_RULES.get(node.op_type, ()):
            yield from rule(node, platform)


def unreadable(model: ir.Model, platform: Platform) -> Iterator[tuple[ir.Node, Finding]]:
    """The nodes that block the build on `platform`, each with the first finding that says why."""
    for node in model.graph:
        rules = (_operator, _element_types, *_NODE_RULES.get(node.op_type, ()))
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


def _python(platform: Platform) -> Iterator[Finding]:
    if platform.python and tuple(map(int, platform.python.split("."))) < can.MIN_PYTHON:
        what = f"Python {platform.python} is too old for vitdeploy's runtime"
        yield Finding(WARNS, "system", what, "trtexec --onnx=model.onnx, or a newer JetPack", platform.source)


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
        yield Finding(BLOCKS, _name(node), what, fix, "parser 10.15")
    elif newcomer is None:
        fix = "replace it in the model by other operators"
        yield Finding(BLOCKS, _name(node), f"TensorRT has no {kind}", fix, "parser 8.5 and 10.15")
    else:
        oldest, present = dotted(platform.oldest), dotted(newcomer.present)
        known = platform.oldest[:2] <= newcomer.absent
        what = f"{kind} is there from TensorRT {present}, {'not in' if known else 'not known for'} {oldest}"
        fix = (
            "vitdeploy export … --target tensorrt8" if kind in ("LayerNormalization", "Gelu") else f"{present} or newer"
        )
        yield Finding(BLOCKS if known else WARNS, _name(node), what, fix, newcomer.source)


def _element_types(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    kinds = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None and value.dtype is not None}
    if ir.DataType.BFLOAT16 in kinds and platform.oldest < can.BFLOAT16_SINCE:
        what = f"bfloat16 is there from TensorRT {dotted(can.BFLOAT16_SINCE)}"
        yield Finding(BLOCKS, _name(node), what, "--precision fp16 or fp32", "parser 8.5")
    read = {value.dtype for value in node.inputs if value is not None}
    if ir.DataType.UINT8 in read and node.op_type not in can.UINT8_CONSUMERS:
        source = also(can.UINT8_SOURCE, node.op_type, "uint8")
        yield Finding(BLOCKS, _name(node), "it reads uint8", "a Cast to float before it", source)
    float_only = can.FLOAT_ONLY_8 if platform.oldest < (10, 0) else can.FLOAT_ONLY_8 - can.INTEGERS_SINCE_10
    first = node.inputs[0] if node.inputs else None
    if node.op_type in float_only and first is not None and first.dtype is not None and first.dtype.is_integer():
        what = f"{node.op_type} of {type_name(first)} is not taken"
        source = also("parser 8.5 and 10.15", node.op_type, type_name(first))
        yield Finding(BLOCKS, _name(node), what, "cast to float before it", source)
    elif first is not None and first.dtype is not None and platform.oldest >= (10, 0):
        kind = first.dtype.name.lower()
        if kind in REFUSED.get(node.op_type, ()):
            what = f"{node.op_type} of {kind} is refused by {PARSER}, and the operator tables do not say so"
            yield Finding(WARNS, _name(node), what, "cast to float32 before it", f"{PARSER}; parser 10.15")


def _top_k(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    count = constant(node.inputs[1])
    if count is None:
        yield Finding(BLOCKS, _name(node), "K is computed", "make K a constant", can.TOPK_SOURCE)
    elif int(count.item()) >= can.TOPK_LIMIT:
        what = f"K is {int(count.item())}, the limit is below {can.TOPK_LIMIT}"
        yield Finding(BLOCKS, _name(node), what, "choose a smaller K", can.TOPK_SOURCE)
    if not attribute(node, "sorted", 1):
        yield Finding(BLOCKS, _name(node), "sorted is 0", "sorted=True in torch.topk", can.TOPK_SOURCE)


def _quantization(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    source = "parser 10.15: zero points are 0"
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero = constant(node.inputs[2])
        if zero is None or zero.any():
            yield Finding(BLOCKS, _name(node), "the zero point is not 0", "quantize symmetrically", source)
    integer = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    if integer is not None and integer.dtype == ir.DataType.UINT8:
        yield Finding(BLOCKS, _name(node), "uint8 is not taken", "quantize to int8", source)
    scale = constant(node.inputs[1])
    if scale is None or not (scale > 0).all():
        why = "the scale is computed" if scale is None else "the scale is not positive"
        yield Finding(BLOCKS, _name(node), why, "constant positive scales", "TensorRT: explicit quantization")


def _layer_norm(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    if any(out.name for out in node.outputs[1:]):
        what, fix = "it gives mean or deviation, and only Y is taken", "compute them by ReduceMean"
        yield Finding(BLOCKS, _name(node), what, fix, PARSER)


def _deconvolution(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    weight = node.inputs[1]
    if weight is None or weight.shape is None or not all(isinstance(n, int) for n in weight.shape):
        return
    group = int(attribute(node, "group", 1))
    sides = int(weight.shape[0]) // group, int(weight.shape[1])  # type: ignore[arg-type]
    if group > 1 and any(side % can.INT8_DECONVOLUTION_MULTIPLE for side in sides):
        int8 = producer(weight, "DequantizeLinear") is not None
        yield Finding(
            BLOCKS if int8 else WARNS,
            _name(node),
            f"{sides[0]} and {sides[1]} channels a group, not a multiple of {can.INT8_DECONVOLUTION_MULTIPLE}",
            "vitdeploy export …, which takes Resize and Conv there",
            can.DECONVOLUTION_SOURCE,
        )


def _resize(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    for name, allowed, default in (
        ("coordinate_transformation_mode", can.RESIZE_COORDINATES, "half_pixel"),
        ("mode", can.RESIZE_MODES, "nearest"),
        ("antialias", (0,), 0),
    ):
        value = attribute(node, name, default)
        if value not in allowed:
            fix = f"one of {', '.join(map(str, allowed))}"
            yield Finding(BLOCKS, _name(node), f"{name} is {value}", fix, "parser 8.5 and 10.15")


def _scatter(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    if attribute(node, "reduction", "none") != "none":
        yield Finding(BLOCKS, _name(node), "it reduces", "scatter without a reduction", "parser 10.15")


def _grid_sample(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    if attribute(node, "mode", "bilinear") in ("linear", "cubic"):
        what = "its interpolation is named as in opset 20, which the parser takes for nearest"
        yield Finding(BLOCKS, _name(node), what, "opset 19 or older", "NVIDIA/TensorRT#4646, onnx/onnx-tensorrt#1060")
    image = node.inputs[0]
    if image is not None and image.shape is not None and len(image.shape) != 4:
        yield Finding(BLOCKS, _name(node), "it samples a volume", "sample planes", "NVIDIA/TensorRT#4618")


def _data_dependent(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    what = "the shape behind it depends on the values"
    yield Finding(WARNS, _name(node), what, "TopK with a constant K and Gather", "parser 8.5")


_NODE_RULES: dict[str, tuple[Callable[[ir.Node, Platform], Iterator[Finding]], ...]] = {
    "TopK": (_top_k,),
    "LayerNormalization": (_layer_norm,),
    "QuantizeLinear": (_quantization,),
    "DequantizeLinear": (_quantization,),
    "ConvTranspose": (_deconvolution,),
    "Resize": (_resize,),
    "ScatterND": (_scatter,),
    "ScatterElements": (_scatter,),
    "GridSample": (_grid_sample,),
    "NonZero": (_data_dependent,),
}


def check_known_bad(
    graph: ir.Graph, platform: Platform, attentions: Sequence[Block], norms: Sequence[Block]
) -> Iterator[Finding]:
    """Versions of the range that are known to go wrong on what this graph has; of another product nothing is known."""
    if platform.product:
        return
    precisions = {
        "attention": {block.precision for block in attentions},
        "layer norm": {block.precision for block in norms},
        "": {type_name(value) for node in graph for value in node.outputs},
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


def _concerns(row: KnownBad, precisions: Mapping[str, set[str]]) -> bool:
    """Whether the graph has what the row's words name: the part, in the precision."""
    found = next(kinds for part, kinds in precisions.items() if part in row.affects)
    wanted = {kind for kind in ("fp16", "int8") if kind.upper() in row.affects}
    return bool(found) and (not wanted or "even in" in row.affects or bool(wanted & found))


def _name(node: ir.Node) -> str:
    return f"{node.op_type} {node.name}"
