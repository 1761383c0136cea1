"""Complex arithmetic in real numbers: ONNX has no complex operators, and runtimes none of its DFT in older opsets.

Every operator on complex tensors is written for the real and the imaginary part. Between two operators the pair
travels as one tensor with a last axis of 2, which is what view_as_real and view_as_complex are in ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vitdeploy.exporter.lowering.fourier import joined, parts

aten = torch.ops.aten
Form = Callable[..., Any]

# f(a + ib) = f(a) + i f(b) for operators that move, copy, select or add up values.
_PARTWISE = """
    add.Tensor sub.Tensor neg sum sum.dim_IntList mean mean.dim clone alias detach view reshape _unsafe_view permute
    transpose.int t mT movedim.int movedim.intlist flatten.using_ints unflatten.int expand unsqueeze squeeze squeeze.dim
    squeeze.dims slice.Tensor select.int narrow cat stack roll flip repeat index.Tensor index_select gather
    constant_pad_nd split.Tensor split_with_sizes chunk unbind.int contiguous where.self swapaxes rsub.Tensor cumsum
    repeat_interleave.self_int slice_scatter select_scatter copy lift_fresh_copy tensor_split.sections
    masked_fill.Scalar diagonal tril triu
"""


def decompositions() -> dict[Any, Form]:
    """The forms of this module by ATen operator; for real tensors each is what it was."""
    table: dict[Any, Form] = {}
    for name in _PARTWISE.split():
        operator = _find(name)
        table[operator] = _for_complex(operator, _partwise(operator))
    for name, form in _PRODUCTS.items():
        operator = _find(name)
        table[operator] = _for_complex(operator, form)
    usual: Mapping[Any, Form] = torch.export.default_decompositions()
    table.update({operator: usual[operator] for operator in list(usual) if "aten.fft_" in str(operator)})
    return {**table, aten.polar.default: _polar, aten.complex.default: joined}


def has_complex(values: Any) -> bool:
    """Whether a complex tensor is among the arguments of an operator, lists included."""
    if isinstance(values, (list, tuple)):
        return any(has_complex(value) for value in values)
    if isinstance(values, dict):
        return has_complex(list(values.values()))
    return isinstance(values, complex) or (isinstance(values, Tensor) and values.is_complex())


def _find(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet), overload or "default")


def _for_complex(operator: Any, form: Form) -> Form:
    def decomposition(*args: Any, **kwargs: Any) -> Any:
        return form(*args, **kwargs) if has_complex([args, kwargs]) else NotImplemented

    return decomposition


def _split(value: Any) -> tuple[Any, Any]:
    """Real and imaginary part of an argument; a real tensor has an imaginary part of zeros."""
    if isinstance(value, Tensor):
        return parts(value) if value.is_complex() else (value, torch.zeros_like(value))
    if isinstance(value, complex):
        return value.real, value.imag
    return value, 0.0


def _join(real: Any, imaginary: Any) -> Any:
    if isinstance(real, (list, tuple)):
        return type(real)(_join(a, b) for a, b in zip(real, imaginary, strict=True))
    return joined(real, imaginary)


def _partwise(operator: Any) -> Form:
    """The operator for each part; tensors that say where or how much, booleans and integers, go to both."""

    def form(*args: Any, **kwargs: Any) -> Any:
        def side(value: Any, which: int) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(side(one, which) for one in value)
            if isinstance(value, Tensor):
                if value.is_complex() or value.is_floating_point():
                    return _split(value)[which]
                return value
            return _split(value)[which] if isinstance(value, complex) else value

        def numbers(which: int) -> list[Any]:
            adding = operator in _ADDING
            taken = [side(value, which) for value in args]
            if adding and which == 1:  # a number that is added has no imaginary part
                taken = [
                    0.0 if isinstance(value, (int, float)) and not isinstance(value, bool) else value for value in taken
                ]
            return taken

        return _join(operator(*numbers(0), **kwargs), operator(*numbers(1), **kwargs))

    return form


_ADDING = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.masked_fill.Scalar, aten.constant_pad_nd.default})


def _mul(a: Any, b: Any) -> Tensor:
    if not has_complex(b):
        real, imaginary = parts(a)
        return joined(real * b, imaginary * b)
    if not has_complex(a):
        return _mul(b, a)
    (p, q), (r, s) = _split(a), _split(b)
    return joined(p * r - q * s, p * s + q * r)


def _div(a: Any, b: Any) -> Tensor:
    if not has_complex(b):
        real, imaginary = parts(a)
        return joined(real / b, imaginary / b)
    (p, q), (r, s) = _split(a), _split(b)
    length = r * r + s * s
    return joined((p * r + q * s) / length, (q * r - p * s) / length)


def _bilinear(operator: Any) -> Form:
    def form(a: Tensor, b: Tensor) -> Tensor:
        if not b.is_complex():
            real, imaginary = parts(a)
            return joined(operator(real, b), operator(imaginary, b))
        if not a.is_complex():
            real, imaginary = parts(b)
            return joined(operator(a, real), operator(a, imaginary))
        (p, q), (r, s) = parts(a), parts(b)
        return joined(operator(p, r) - operator(q, s), operator(p, s) + operator(q, r))

    return form


def _einsum(equation: str, operands: Sequence[Tensor], *, path: Sequence[int] | None = None) -> Any:
    """Multilinear, one operand after another."""
    complex_at = [place for place, one in enumerate(operands) if one.is_complex()]
    if not complex_at:
        return torch.einsum(equation, *operands)
    first = complex_at[0]
    real, imaginary = parts(operands[first])

    def with_part(part: Tensor) -> Any:
        return _einsum(equation, [*operands[:first], part, *operands[first + 1 :]])

    a, b = with_part(real), with_part(imaginary)
    if not a.is_complex():
        return joined(a, b)
    (p, q), (r, s) = parts(a), parts(b)
    return joined(p - s, q + r)


def _abs(x: Tensor) -> Tensor:
    real, imaginary = parts(x)
    return (real * real + imaginary * imaginary).sqrt()


def _angle(x: Tensor) -> Tensor:
    real, imaginary = parts(x)
    return torch.atan2(imaginary, real)


def _conjugate(x: Tensor) -> Tensor:
    real, imaginary = parts(x)
    return joined(real, -imaginary)


def _exp(x: Tensor) -> Tensor:
    real, imaginary = parts(x)
    size = real.exp()
    return joined(size * imaginary.cos(), size * imaginary.sin())


def _square(x: Tensor, exponent: Any) -> Any:
    if exponent == 2:
        return _mul(x, x)
    if exponent == 1:
        return x
    size, turn = _abs(x) ** exponent, _angle(x) * exponent
    return joined(size * turn.cos(), size * turn.sin())


def _sgn(x: Tensor) -> Tensor:
    size = _abs(x)
    return _div(x, torch.where(size == 0, torch.ones_like(size), size))


def _reciprocal(x: Tensor) -> Tensor:
    real, imaginary = parts(x)
    length = real * real + imaginary * imaginary
    return joined(real / length, -imaginary / length)


def _sqrt(x: Tensor) -> Any:
    return _square(x, 0.5)


def _log(x: Tensor) -> Tensor:
    return joined(_abs(x).log(), _angle(x))


def _to_copy(x: Tensor, **options: Any) -> Any:
    kind = options.get("dtype")
    real, imaginary = parts(x)
    if kind is not None and not kind.is_complex:
        return real.to(kind)
    part = torch.float64 if kind == torch.complex128 else torch.float32 if kind == torch.complex64 else real.dtype
    return joined(real.to(part), imaginary.to(part))


def _polar(size: Tensor, turn: Tensor) -> Tensor:
    return joined(size * turn.cos(), size * turn.sin())


_PRODUCTS: dict[str, Form] = {
    "mul.Tensor": _mul,
    "mul.Scalar": _mul,
    "div.Tensor": _div,
    "div.Scalar": _div,
    "matmul": _bilinear(torch.matmul),
    "bmm": _bilinear(torch.bmm),
    "mm": _bilinear(torch.mm),
    "einsum": _einsum,
    "abs": _abs,
    "angle": _angle,
    "_conj": _conjugate,
    "conj": _conjugate,
    "_conj_physical": _conjugate,
    "conj_physical": _conjugate,
    "resolve_conj": lambda x: joined(*parts(x)),
    "real": lambda x: parts(x)[0],
    "imag": lambda x: parts(x)[1],
    "exp": _exp,
    "pow.Tensor_Scalar": _square,
    "square": lambda x: _mul(x, x),
    "sgn": _sgn,
    "reciprocal": _reciprocal,
    "sqrt": _sqrt,
    "log": _log,
    "_to_copy": _to_copy,
    "to.dtype": lambda x, dtype, *rest: _to_copy(x, dtype=dtype),
}
