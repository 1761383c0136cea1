"""Operators of a file that the targets want in a form of their own, as the composites that a capture gives."""

from __future__ import annotations

import math

import onnx_ir as ir

from vitdeploy.exporter import composites
from vitdeploy.graph.edit import attribute, constant, input_of, of_type, replace

_SAME = ("SAME_UPPER", "SAME_LOWER")


def state_deconvolutions(model: ir.Model) -> None:
    """Every ConvTranspose over maps of known size becomes a Deconvolution, its padding written out."""
    for node in of_type(model.graph, "ConvTranspose"):
        x, weight = input_of(node, 0), input_of(node, 1)
        size, kernel = _spatial(x), _spatial(weight)
        if size is None or kernel is None:
            continue
        rank = len(kernel)
        strides = list(attribute(node, "strides", [1] * rank))
        dilations = list(attribute(node, "dilations", [1] * rank))
        extra = list(attribute(node, "output_padding", [0] * rank))
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
        full = [s * (n - 1) + span for n, s, span in zip(size, strides, spans, strict=True)]
        pads = _pads(node, size, strides, full, extra)
        if pads is None:
            continue
        new = ir.node(
            composites.DECONVOLUTION,
            node.inputs,
            domain=composites.DOMAIN,
            name=node.name,
            version=composites.VERSION,
            attributes={
                "strides": strides,
                "pads": pads,
                "output_padding": extra,
                "dilations": dilations,
                "group": attribute(node, "group", 1),
            },
        )
        out, old = new.outputs[0], node.outputs[0]
        name, out.shape, out.type = old.name, old.shape, old.type
        model.graph.insert_before(node, new)
        old.name = f"{name}.replaced"
        replace(node, out)
        out.name = name
    model.graph.opset_imports[composites.DOMAIN] = composites.VERSION
    composites.attach_functions(model)


def _spatial(value: ir.Value) -> list[int] | None:
    array = constant(value)
    shape = array.shape if array is not None else tuple(value.shape or ())
    sizes = [length for length in shape[2:] if isinstance(length, int)]
    return sizes if len(shape) > 2 and len(sizes) == len(shape) - 2 else None


def _pads(node: ir.Node, size: list[int], strides: list[int], full: list[int], extra: list[int]) -> list[int] | None:
    """What is cut off in front and behind, as ONNX defines it; None where more is asked for than there is."""
    rank, auto = len(size), attribute(node, "auto_pad", "NOTSET")
    wanted = attribute(node, "output_shape")
    if wanted is None and auto not in _SAME:
        return list(attribute(node, "pads", [0] * 2 * rank)) if auto == "NOTSET" else [0] * 2 * rank
    sizes = list(wanted)[-rank:] if wanted is not None else [n * s for n, s in zip(size, strides, strict=True)]
    total = [length + e - want for length, e, want in zip(full, extra, sizes, strict=True)]
    if min(total) < 0:
        return None
    small, large = [cut // 2 for cut in total], [math.ceil(cut / 2) for cut in total]
    return small + large if auto == "SAME_UPPER" else large + small
