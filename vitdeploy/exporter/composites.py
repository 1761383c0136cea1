"""The `vitdeploy` ONNX domain: operators that stay whole until a target says how it wants them.

Each composite carries a function body in standard operators, its executable definition: a captured graph runs in any
ONNX runtime before it is lowered, and every lowering is tested against that body and against PyTorch.

CrossAttention(query [B, h, N, d], key [B, h, M, d], value [B, h, M, e], bias? broadcastable to [B, h, N, M])
    = softmax(scale * query key^T + bias) value
Deconvolution(x [B, C, *spatial], weight [C, O / group, *kernel], bias? [O])
    = the transposed convolution of ONNX ConvTranspose with explicit pads and output_padding
"""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir

DOMAIN = "vitdeploy"
VERSION = 1
CROSS_ATTENTION = "CrossAttention"
DECONVOLUTION = "Deconvolution"

# Optional inputs cannot be tested inside a function body, so a bias selects the overload of that name.
WITH_BIAS = "bias"

_HEADER = '<opset_import: ["": 17], domain: "vitdeploy"{overload}>'

_ATTENTION = """
{name} <scale> (query, key, value{bias_input}) => (out)
{{
    factor = Constant <value_float: float = @scale> ()
    typed_factor = CastLike (factor, query)
    scaled = Mul (query, typed_factor)
    transposed = Transpose <perm = [0, 1, 3, 2]> (key)
    product = MatMul (scaled, transposed)
    {scores}
    weights = Softmax <axis = -1> (scores)
    out = MatMul (weights, value)
}}
"""

_DECONVOLUTION = """
{name} <strides, pads, output_padding, dilations, group> (x, weight{bias_input}) => (out)
{{
    out = ConvTranspose <strides: ints = @strides, pads: ints = @pads, output_padding: ints = @output_padding,
                         dilations: ints = @dilations, group: int = @group> (x, weight{bias_input})
}}
"""


def functions() -> list[ir.Function]:
    """The function bodies: each composite, without and with a bias."""
    return [
        _parse(_ATTENTION, CROSS_ATTENTION, "", scores="scores = Identity (product)"),
        _parse(_ATTENTION, CROSS_ATTENTION, WITH_BIAS, scores="scores = Add (product, bias)"),
        _parse(_DECONVOLUTION, DECONVOLUTION, ""),
        _parse(_DECONVOLUTION, DECONVOLUTION, WITH_BIAS),
    ]


def _parse(template: str, name: str, overload: str, **parts: str) -> ir.Function:
    body = template.format(name=name, bias_input=", bias" if overload else "", **parts)
    header = _HEADER.format(overload=f', overload: "{overload}"' if overload else "")
    return ir.serde.deserialize_function(onnx.parser.parse_function(header + body))


def is_composite(node: ir.Node) -> bool:
    """Whether `node` is an operator of this domain."""
    return bool(node.domain == DOMAIN)


def attach_functions(model: ir.Model) -> None:
    """Give `model` the bodies of the composites that it uses."""
    bodies = {function.identifier(): function for function in functions()}
    unbiased = {CROSS_ATTENTION: 3, DECONVOLUTION: 2}
    for node in model.graph:
        if is_composite(node):
            node.overload = WITH_BIAS if len(node.inputs) > unbiased[node.op_type] else ""
            model.functions[node.op_identifier()] = bodies[node.op_identifier()]
