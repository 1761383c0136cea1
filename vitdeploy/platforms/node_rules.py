"""Rules about the attributes and constants of single operators, each with its source and what the parser says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from vitdeploy.graph.edit import attribute, constant, producer
from vitdeploy.platforms import capabilities as can
from vitdeploy.platforms.boards import Platform
from vitdeploy.platforms.fusion_rules import type_name
from vitdeploy.platforms.parser_reports import COMPILER, PARSER, beside, takes_form
from vitdeploy.platforms.report import BLOCKS, WARNS, Finding

Rule = Callable[[ir.Node, Platform], Iterator[Finding]]

_TABLES, _TABLE_10 = "parser 8.5 and 10.15", "parser 10.15"
_REDUCTIONS = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"
_NO_DILATION = ("MaxPool", "AveragePool", "LpPool")


def node_findings(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    """What the rules of the node's operator say."""
    for rule in _RULES.get(node.op_type, ()):
        yield from rule(node, platform)


def title(node: ir.Node) -> str:
    """How findings call a node."""
    return f"{node.op_type} {node.name}"


def _refused(
    node: ir.Node, platform: Platform, what: str, fix: str, source: str, taken: bool | None
) -> Iterator[Finding]:
    """A documented refusal; a product whose parser was measured and takes it has none."""
    if not (platform.product and taken):
        yield Finding(BLOCKS, title(node), what, fix, beside(source, taken))


def _top_k(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    count, limit = constant(node.inputs[1]), can.TOPK_LIMIT
    if count is None:
        taken = takes_form("TopK", "K=computed")
        yield from _refused(node, platform, "K is computed", "make K a constant", can.TOPK_SOURCE, taken)
    elif (k := int(count.item())) >= limit:
        what, taken = f"K is {k}, the limit is below {limit}", takes_form("TopK", f"K={limit if k == limit else 5000}")
        yield from _refused(node, platform, what, "choose a smaller K", can.TOPK_SOURCE, taken)
    if not attribute(node, "sorted", 1):
        taken = takes_form("TopK", "sorted=0")
        yield from _refused(node, platform, "sorted is 0", "sorted=True in torch.topk", can.TOPK_SOURCE, taken)


def _quantization(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    source, kind = f"{_TABLE_10}: zero points are 0", node.op_type
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero = constant(node.inputs[2])
        if zero is None or zero.any():
            taken = takes_form(kind, "zero_point=3")
            yield from _refused(node, platform, "the zero point is not 0", "quantize symmetrically", source, taken)
    integer = node.inputs[0] if kind == "DequantizeLinear" else node.outputs[0]
    if integer is not None and integer.dtype == ir.DataType.UINT8:
        taken = takes_form(kind, "zero_point=0", "type=uint8")
        yield from _refused(node, platform, "uint8 is not taken", "quantize to int8", source, taken)
    scale = constant(node.inputs[1])
    if scale is None or not (scale > 0).all():
        why = "the scale is computed" if scale is None else "the scale is not positive"
        taken = takes_form("QuantizeLinear", "scale=computed" if scale is None else "scale=-0.1")
        fix, source = "constant positive scales", "TensorRT: explicit quantization"
        yield from _refused(node, platform, why, fix, source, taken)


def _layer_norm(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    if any(out.name for out in node.outputs[1:]):
        what, taken = "it gives mean or deviation, and only Y is taken", takes_form(node.op_type, "outputs=3")
        yield from _refused(node, platform, what, "compute them by ReduceMean", _TABLE_10, taken)


def _batch_norm(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    if attribute(node, "training_mode", 0):
        what, fix = "it computes the statistics of the batch", "model.eval() before the export"
        yield Finding(BLOCKS, title(node), what, fix, f"{PARSER} refuses it; the operator tables do not say so")


def _pool(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    gaps = [int(step) for step in attribute(node, "dilations", [])]
    if any(step != 1 for step in gaps):
        words = "x".join(map(str, gaps))
        what, fix = f"its dilations are {words}", "vitdeploy export …, which takes the maximum of moved maps"
        taken = takes_form(node.op_type, "dilations=2x2")
        yield from _refused(node, platform, what, fix, _TABLE_10, taken)
    if any(out.name for out in node.outputs[1:]):
        what, fix = "it gives the places of the maxima", "return_indices=False in torch.nn.MaxPool2d"
        yield from _refused(node, platform, what, fix, _TABLES, takes_form(node.op_type, "outputs=2"))


def _deconvolution(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    weight = node.inputs[1]
    if weight is None or weight.shape is None or not all(isinstance(n, int) for n in weight.shape):
        return
    group = int(attribute(node, "group", 1))
    sides = int(weight.shape[0]) // group, int(weight.shape[1])  # type: ignore[arg-type]
    if group > 1 and any(side % can.INT8_DECONVOLUTION_MULTIPLE for side in sides):
        int8 = producer(weight, "DequantizeLinear") is not None
        what = f"{sides[0]} and {sides[1]} channels a group, not a multiple of {can.INT8_DECONVOLUTION_MULTIPLE}"
        fix, taken = "vitdeploy export …, which takes Resize and Conv there", takes_form(node.op_type, "int8")
        if int8:
            yield from _refused(node, platform, what, fix, can.DECONVOLUTION_SOURCE, taken)
        else:
            yield Finding(WARNS, title(node), what, fix, beside(can.DECONVOLUTION_SOURCE, taken))


def _resize(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    coordinates = "coordinate_transformation_mode"
    for name, allowed, default, beyond in (
        (coordinates, can.RESIZE_COORDINATES, "half_pixel", ()),
        ("mode", can.RESIZE_MODES, "nearest", (f"{coordinates}=half_pixel",)),
        ("antialias", (0,), 0, ()),
        ("keep_aspect_ratio_policy", ("stretch",), "stretch", ()),
    ):
        value = attribute(node, name, default)
        if value not in allowed:
            fix, taken = f"one of {', '.join(map(str, allowed))}", takes_form("Resize", f"{name}={value}", *beyond)
            yield from _refused(node, platform, f"{name} is {value}", fix, _TABLES, taken)


def _scatter(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    reduction = str(attribute(node, "reduction", "none"))
    if reduction != "none":
        taken = takes_form(node.op_type, f"reduction={reduction}")
        yield from _refused(node, platform, "it reduces", "scatter without a reduction", _TABLE_10, taken)


def _reduction(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    if len(node.inputs) > 1 and node.inputs[1] is not None and constant(node.inputs[1]) is None:
        what, fix = "its axes are computed", "make the axes constants"
        yield from _refused(node, platform, what, fix, _TABLE_10, takes_form(node.op_type, "axes=computed"))


def _grid_sample(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    # That the parser takes both says nothing: it is the numbers that are wrong.
    if attribute(node, "mode", "bilinear") in ("linear", "cubic"):
        what = "its interpolation is named as in opset 20, which the parser takes for nearest"
        yield Finding(BLOCKS, title(node), what, "opset 19 or older", "NVIDIA/TensorRT#4646, onnx/onnx-tensorrt#1060")
    image = node.inputs[0]
    if image is not None and image.shape is not None and len(image.shape) != 4:
        source = f"{_TABLE_10}; NVIDIA/TensorRT#4618"
        yield Finding(BLOCKS, title(node), "it samples a volume", "sample planes", source)


def _attention(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    """The operator of opset 23; attention of products and a softmax is the concern of `fusion_rules`."""
    fix = "opset 22 or older, which writes attention as products and a softmax"
    for name, words in (("softcap", "softcap=2.0"), ("softmax_precision", "softmax_precision=1")):
        if attribute(node, name, 0):
            yield from _refused(node, platform, f"it has {name}", fix, _TABLE_10, takes_form("Attention", words))
    query = node.inputs[0]
    if query is None:
        return
    if query.shape is not None and len(query.shape) != 4:
        what = f"its query is of rank {len(query.shape)}"
        yield Finding(WARNS, title(node), what, fix, f"{_TABLE_10} wants rank 4; {PARSER} takes it in FP16")
    low, high, _ = can.ATTENTION.half_head
    head = query.shape[-1] if query.shape is not None and len(query.shape) == 4 else None
    if isinstance(head, int) and not low <= head <= high:
        source = f"{_TABLE_10} allows it; {COMPILER} has no kernel for it"
        yield Finding(WARNS, title(node), f"its head size is {head}", fix, source)
    if query.dtype == ir.DataType.FLOAT:
        source = f"{_TABLE_10} allows it; {COMPILER} has no kernel for it"
        yield Finding(WARNS, title(node), f"it computes in {type_name(query)}", "export it with --fp16", source)


def _data_dependent(node: ir.Node, platform: Platform) -> Iterator[Finding]:
    what = "the shape behind it depends on the values"
    yield Finding(WARNS, title(node), what, "TopK with a constant K and Gather", "parser 8.5")


_RULES: Mapping[str, tuple[Rule, ...]] = {
    "Attention": (_attention,),
    "BatchNormalization": (_batch_norm,),
    "ConvTranspose": (_deconvolution,),
    "DequantizeLinear": (_quantization,),
    "GridSample": (_grid_sample,),
    "LayerNormalization": (_layer_norm,),
    "NonZero": (_data_dependent,),
    "QuantizeLinear": (_quantization,),
    "Resize": (_resize,),
    "ScatterElements": (_scatter,),
    "ScatterND": (_scatter,),
    "TopK": (_top_k,),
    **dict.fromkeys(_NO_DILATION, (_pool,)),
    **{f"Reduce{name}": (_reduction,) for name in _REDUCTIONS.split()},
}
