"""The `vitdeploy` ONNX domain: operators that stay whole until a target says how it wants them.

Each composite carries a function body in standard operators, its executable definition: a captured graph runs in any
ONNX runtime before it is lowered, and every lowering is tested against that body and against PyTorch.

CrossAttention(query [B, h, N, d], key [B, h, M, d], value [B, h, M, e], bias? broadcastable to [B, h, N, M])
    = softmax(scale * query key^T + bias) value, where one of the three may have a single head for all. A bias of bools
      says which keys a query sees, one of floats hides them by -inf; a query that sees none gets 0.
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
WITH_MASK = "mask"  # a bias of bools

MASKED = -10000.0  # exp of it is 0, and half precision holds it with room for the score

_HEADER = '<opset_import: ["": 20], domain: "vitdeploy"{overload}>'

_ATTENTION = """
{name} <scale> (query, key, value{bias_input}) => (out)
{{
    factor = Constant <value_float: float = @scale> ()
    typed_factor = CastLike (factor, query)
    scaled = Mul (query, typed_factor)
    transposed = Transpose <perm = [0, 1, 3, 2]> (key)
    product = MatMul (scaled, transposed)
    zero = Constant <value_float = 0.0> ()
    {scores}
    hidden = IsInf <detect_positive = 0> (scores)
    shares = Softmax <axis = -1> (scores)
    nothing = CastLike (zero, query)
    weights = Where (hidden, nothing, shares)
    out = MatMul (weights, value)
}}
"""

_MASKED_SCORES = """
    infinite = Constant <value_float = -inf> ()
    unseen = CastLike (infinite, query)
    scores = Where (bias, product, unseen)
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
        _parse(_ATTENTION, CROSS_ATTENTION, WITH_MASK, scores=_MASKED_SCORES),
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
            bias = node.inputs[unbiased[node.op_type] :]
            of_bools = any(value is not None and value.dtype == ir.DataType.BOOL for value in bias)
            node.overload = (WITH_MASK if of_bools else WITH_BIAS) if bias else ""
            model.functions[node.op_identifier()] = bodies[node.op_identifier()]
